"""Checkpoints: where they come from, what they hold, and their networks for torch and OpenVINO."""

import getpass
import os

try:
    getpass.getuser()
except (KeyError, OSError):  # torch asks for it when it is imported, and fails likewise
    os.environ["USER"] = f"uid-{os.getuid()}"
