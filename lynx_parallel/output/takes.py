"""The takes of an output folder: which seed each has, and whether it was accepted or rejected.

``<output>/.lynx/takes.json`` holds them. Nothing is written beside the manifest. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lynx_parallel.errors import InputErrors
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.journal import now

TAKES_VERSION = 1

TakeState = Literal["", "accepted", "rejected"]
TakeKey = tuple[str, str, str, int]
"""Subject, prompt, variant and number of a take."""


@dataclass(frozen=True)
class Past:
    """An earlier seed of a take, and what became of it.

    Attributes:
        time: when it was replaced, ISO 8601.
    """

    seed: int
    state: TakeState = ""
    time: str = ""


@dataclass(frozen=True)
class Take:
    """A take with a seed of its own.

    Attributes:
        time: of the last change, ISO 8601; empty if unknown.
        instead_of: seed that the manifest gives by hand, which this one replaces; None if it gives none. If the
            manifest later gives another seed by hand, the manifest wins.
        history: earlier seeds, the oldest first.
    """

    subject: str
    prompt: str
    take: int
    seed: int
    variant: str = ""
    state: TakeState = ""
    time: str = ""
    instead_of: int | None = None
    history: tuple[Past, ...] = ()

    @property
    def key(self) -> TakeKey:
        return self.subject, self.prompt, self.variant, self.take

    def as_json(self) -> dict[str, Any]:
        """Returns the take without what is empty."""
        found = {name: value for name, value in asdict(self).items() if value not in ("", None, ())}
        if self.history:
            found["history"] = [{k: v for k, v in asdict(past).items() if v != ""} for past in self.history]
        return found


class Takes(Mapping[TakeKey, Take]):
    """Takes by subject, prompt, variant and number."""

    def __init__(self, takes: Iterable[Take] = ()):
        self._takes = {take.key: take for take in takes}

    def __getitem__(self, key: TakeKey) -> Take:
        return self._takes[key]

    def __iter__(self) -> Iterator[TakeKey]:
        return iter(self._takes)

    def __len__(self) -> int:
        return len(self._takes)

    def later_of(self, other: Takes) -> Takes:
        """Returns the takes of both. Of two for the same take, the one that was changed later."""
        every = {**other._takes}
        for key, take in self._takes.items():
            if key not in every or take.time >= every[key].time:
                every[key] = take
        return Takes(every.values())

    def seeds_of(self, subject: str, prompt: str, variant: str) -> set[int]:
        """Returns every seed that a take of this shot has or had."""
        mine = [take for key, take in self._takes.items() if key[:3] == (subject, prompt, variant)]
        return {seed for take in mine for seed in (take.seed, *(past.seed for past in take.history))}


def read_takes(path: Path) -> Takes:
    """Reads a file of takes. Without a file there are none.

    Raises:
        InputErrors: it cannot be read. Its seeds must not be lost silently.
    """
    if not os.path.lexists(path):
        return Takes()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputErrors([f"{path}: {error.strerror}"]) from None
    try:
        found = json.loads(text)
        if found["version"] != TAKES_VERSION:
            raise InputErrors([f"{path}: version {found['version']}: this lynx-parallel reads version {TAKES_VERSION}"])
        return Takes(map(take_of, found["takes"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputErrors([f"{path}: not a file of takes; restore it, or remove it to forget the takes"]) from None


def take_of(found: Mapping[str, Any]) -> Take:
    """Returns the take that a mapping describes. Raises ValueError, KeyError or TypeError if it describes none."""
    history = tuple(Past(_seed(one["seed"]), _state(one.get("state", "")), str(one.get("time", ""))) for one in
                    found.get("history", ()))  # fmt: skip
    replaced = found.get("instead_of")
    number = found["take"]
    if type(number) is not int or number < 1:
        raise ValueError("take: a whole number from 1")
    return Take(
        str(found["subject"]), str(found["prompt"]), number, _seed(found["seed"]), str(found.get("variant", "")),
        _state(found.get("state", "")), str(found.get("time", "")), None if replaced is None else _seed(replaced),
        history,
    )  # fmt: skip


@contextlib.contextmanager
def changing(path: Path) -> Iterator[dict[TakeKey, Take]]:
    """Yields the takes of a file by key, to be changed, and writes them at the end of the block.

    Other processes that change them wait meanwhile. An exception changes nothing.

    Raises:
        InputErrors: as ``read_takes``.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        takes = dict(read_takes(path))
        before = dict(takes)
        yield takes
        if takes != before:
            with atomic_write(path) as part:
                part.write_text(as_text(takes.values()), encoding="utf-8")


def as_text(takes: Iterable[Take]) -> str:
    """Returns the content of a file of takes, sorted, so that changes are easy to compare."""
    rows = [json.dumps(take.as_json(), ensure_ascii=False) for take in sorted(takes, key=lambda take: take.key)]
    lines = ",\n  ".join(rows)
    body = f"[\n  {lines}\n]" if rows else "[]"
    return f'{{"version": {TAKES_VERSION}, "takes": {body}}}\n'


def rerolled(take: Take, taken: Collection[int]) -> Take:
    """Returns the take with a derived seed. The old seed goes to its history, as rejected.

    Args:
        taken: seeds that it must not get: those of all takes of the shot.
    """
    time = now()
    history = (*take.history, Past(take.seed, "rejected", time))
    seed = derived_seed(take.key, len(history), {*taken, *(past.seed for past in history)})
    return replace(take, seed=seed, state="", time=time, history=history)


def derived_seed(key: TakeKey, number: int, taken: Collection[int]) -> int:
    """Returns a seed below 2^32 that depends on the take and on ``number`` alone, unless it is already taken."""
    return _hashed_seed(key, number, taken)


def attempt_seed(seed: int, attempt: int, taken: Collection[int]) -> int:
    """Returns a seed below 2^32 that depends on a seed and the number of an attempt, unless it is already taken."""
    return _hashed_seed(("attempt", seed), attempt, taken)


def _hashed_seed(key: tuple[str | int, ...], number: int, taken: Collection[int]) -> int:
    while True:
        text = "\0".join([*map(str, key), str(number)])
        seed = int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:4], "big")
        if seed not in taken:
            return seed
        number += 1_000_000


def _seed(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("seed: a whole number from 0 to 2^63-1")
    return value


def _state(value: Any) -> TakeState:
    if value not in get_args(TakeState):
        raise ValueError("state: accepted or rejected")
    return value
