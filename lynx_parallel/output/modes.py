"""Errors of file systems without permissions."""

from __future__ import annotations

import errno
import os

REFUSED = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Error numbers of ``chmod`` on a file system without permissions, such as FAT, SMB or FUSE mounts."""


def reason(error: OSError) -> str:
    """Returns an error's reason without its path."""
    return error.strerror or (os.strerror(error.errno) if error.errno else type(error).__name__)
