"""What failed, and why. Imports neither torch nor Ray."""

from __future__ import annotations

import errno
import os


def machine_at_fault(error: Exception) -> bool:
    """Whether a file may be good though it could not be read: a failing disk or share, too many open files."""
    return any(os.strerror(number) in str(error) for number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE))


def disk_is_full(error: Exception) -> bool:
    """Whether a write failed for want of room, on the disk or in a quota; libraries keep only the system's words."""
    full = errno.ENOSPC, errno.EDQUOT
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)
