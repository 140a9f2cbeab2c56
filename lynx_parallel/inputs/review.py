"""Reviews: takes that people picked or rejected, in ``review.csv`` of a report or by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.problems import nearest, shown_value
from lynx_parallel.inputs.text_files import Unreadable, read_text
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import now
from lynx_parallel.output.takes import Take, TakeKey, Takes, changing, rerolled
from lynx_parallel.text import shown_path

MAX_REVIEW_BYTES = 64 * 2**20
Verdict = Literal["pick", "reject"]


@dataclass(frozen=True)
class Reviewed:
    """The result of a review.

    Attributes:
        accepted, rerolled: takes that changed.
        earlier: rows about a seed that the take no longer has, because it was rerolled since. They change nothing.
    """

    accepted: int
    rerolled: int
    earlier: int


def reroll_shots(output: Output, campaign: Campaign, shots: Sequence[Shot]) -> list[Take]:
    """Gives each shot's take a derived seed that no take of the shot has or had. Returns the new takes.

    Raises:
        InputErrors, OSError: the file of takes cannot be read or written.
    """
    with changing(output.takes) as takes:
        return [_reroll(takes, campaign, shot) for shot in shots]


def apply_review(output: Output, campaign: Campaign, path: Path) -> Reviewed:
    """Accepts the takes that a review picks, and rerolls those that it rejects. A second time, it changes nothing.

    Args:
        path: a CSV file with the columns shot, seed and verdict (pick or reject).

    Raises:
        InputErrors: mistakes in the review, one line each. Nothing is changed then.
        OSError: the file of takes cannot be written.
    """
    rows = _read(path, campaign)
    with changing(output.takes) as takes:
        accepted, rejected, earlier = 0, 0, 0
        for shot, seed, verdict in rows:
            if seed != shot.seed:
                earlier += 1
            elif verdict == "reject":
                _reroll(takes, campaign, shot)
                rejected += 1
            else:
                before = _take(takes, shot)
                if before.state != "accepted":
                    takes[before.key] = replace(before, state="accepted", time=now())
                    accepted += 1
    return Reviewed(accepted, rejected, earlier)


def _reroll(takes: dict[TakeKey, Take], campaign: Campaign, shot: Shot) -> Take:
    key = _key(shot)
    taken = {other.seed for other in campaign.shots if _key(other)[:3] == key[:3]}
    taken |= Takes(takes.values()).seeds_of(*key[:3])
    takes[key] = rerolled(_take(takes, shot), taken)
    return takes[key]


def _take(takes: dict[TakeKey, Take], shot: Shot) -> Take:
    """Returns the take of a shot as the campaign has it now."""
    subject, prompt, variant, number = _key(shot)
    own = takes.get((subject, prompt, variant, number))
    history = shot.history if own is None else own.history
    state = shot.state if own is None else own.state
    return Take(subject, prompt, number, shot.seed, variant, state, now(), shot.given_seed, history)


def _key(shot: Shot) -> TakeKey:
    return shot.subject.id, shot.prompt.id, shot.variant, shot.take


def _read(path: Path, campaign: Campaign) -> list[tuple[Shot, int, Verdict]]:
    try:
        text = read_text(path, MAX_REVIEW_BYTES)
    except Unreadable as error:
        raise InputErrors([f"--review {shown_path(path)}: {error.reason}"]) from None
    table = csv.DictReader(io.StringIO(text))
    if lacking := [name for name in ("shot", "seed", "verdict") if name not in (table.fieldnames or ())]:
        raise InputErrors([f"--review {shown_path(path)}: has no column {', '.join(lacking)}"])
    shots = {shot.name: shot for shot in campaign.shots}
    rows: dict[str, tuple[Shot, int, Verdict]] = {}
    lines: list[str] = []
    for row in table:
        where = f"{shown_path(path)}:{table.line_num}"
        name, seed, verdict = ((row[key] or "").strip() for key in ("shot", "seed", "verdict"))
        if verdict not in ("pick", "reject", ""):
            lines.append(f"{where}: column verdict: {shown_value(verdict)}: must be 'pick', 'reject' or empty")
        elif name not in shots:
            lines.append(f"{where}: column shot: {shown_value(name)}: no such shot; {nearest(name, shots, 'shots')}")
        elif not seed.isascii() or not seed.isdecimal():
            lines.append(f"{where}: column seed: {shown_value(seed)}: must be a whole number")
        elif name in rows and rows[name][1:] != (int(seed), verdict):
            lines.append(f"{where}: {name} is reviewed twice, differently")
        elif verdict:
            rows[name] = shots[name], int(seed), verdict  # type: ignore[assignment]
    if lines:
        raise InputErrors(lines)
    return list(rows.values())
