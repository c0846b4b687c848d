"""Memory that the process has no use for any more."""

import ctypes

_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc has it, other C libraries do not need it."""


def return_to_system() -> None:
    """Gives the system what has been freed; takes milliseconds."""
    if _MALLOC_TRIM:
        _MALLOC_TRIM(0)
