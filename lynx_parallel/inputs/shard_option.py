"""The option --shard."""

from __future__ import annotations

import re

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.problems import shown_value
from lynx_parallel.output.shard import Shard


def read_shard(text: str | None) -> Shard | None:
    """Returns the shard of ``2/8``: the second of eight. None stays None.

    Raises:
        InputErrors: not of this form, or no such shard.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputErrors([f"--shard {shown_value(text)[1:-1]}: must be K/N with K from 1 to N, such as 2/8"])
    return Shard(int(found[1]), int(found[2]))
