"""Small pieces of English that several lines share. Imports neither torch nor Ray."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Returns ``1 shot`` or ``2 shots``; for nouns whose plural ends in ``s``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown_duration(seconds: float) -> str:
    """Returns a duration as ``--stop-after`` takes it: ``3h50m``, ``45m`` or ``90s``."""
    hours, rest = divmod(round(seconds), 3600)
    parts = [(hours, "h"), (rest // 60, "m"), (rest % 60, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
