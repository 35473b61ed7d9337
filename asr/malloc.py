"""The C library's memory allocator, told to keep what it has."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep the large blocks that are freed and asked for again, in one heap, instead of having the system clear new pages for each."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 1 << 28), (_M_ARENA_MAX, 1)):
            mallopt(option, value)
