"""An opt-in for the C allocator: freed memory stays with the process instead of being faulted in again."""

import ctypes
import ctypes.util

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_ONE_GIB = 1 << 30


def keep_pages() -> bool:
    """Serve arrays up to 1 GiB from memory that stays with this process; False where the C library has no such switch.

    A forward and backward pass allocates and frees what its tape keeps. By default glibc returns large
    blocks to the system, which then has to zero every page again at the next step: often the largest
    single cost. The setting holds for the whole process and cannot be taken back, so the engine never
    makes it on its own.
    """
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _ONE_GIB) and mallopt(_TRIM_THRESHOLD, 2 * _ONE_GIB - 1))
