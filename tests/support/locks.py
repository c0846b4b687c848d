"""Locks between the processes of one run."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, how: int) -> Iterator[IO[bytes]]:
    """Hold an `fcntl` lock on a file."""
    with path.open("wb") as file:
        fcntl.flock(file, how)
        yield file
