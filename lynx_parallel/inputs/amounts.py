"""Ages and sizes in options."""

from __future__ import annotations

import re

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.problems import shown_value

_SIZE_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def read_age(text: str, option: str) -> float:
    """Returns the seconds of ``30d``, ``12h``, ``45m`` or ``1d12h``.

    Raises:
        InputErrors: none of these.
    """
    found = re.fullmatch(r"(?:(\d{1,5})d)?(?:(\d{1,5})h)?(?:(\d{1,5})m)?", text, re.ASCII)
    if not text or found is None:
        raise InputErrors([f"{option} {shown_value(text)[1:-1]}: must be an age such as 30d, 12h or 1d12h"])
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return float(days * 86400 + hours * 3600 + minutes * 60)


def read_size(text: str, option: str) -> int:
    """Returns the bytes of ``500MB``, ``50GB`` or ``1.5TB``. Units are powers of 1000, as in all output.

    Raises:
        InputErrors: none of these.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([kKMGT]?B)", text, re.ASCII)
    if found is None:
        raise InputErrors([f"{option} {shown_value(text)[1:-1]}: must be a size such as 500MB, 50GB or 1TB"])
    return round(float(found[1]) * _SIZE_UNITS[found[2].upper()])
