"""Files of memory, which processes share."""

from __future__ import annotations

import os
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl


def memory_file(size: int, flags: int) -> int:
    """A file that keeps its size, whoever gets it: what is cut off kills its readers.

    `flags` as of memfd_create(2), for huge pages. Raises OSError.
    """
    fd = os.memfd_create("pyvirtnet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
