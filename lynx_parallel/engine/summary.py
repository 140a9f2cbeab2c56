"""The result of a run."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lynx_parallel.errors import BLOCKED_CODE, ClusterError, Stopped


@dataclass
class Summary:
    """The result of a run, shot by shot.

    Attributes:
        failed, blocked: (name, reason).
        codes: code of each failed or blocked shot, by name; see ``docs/troubleshooting.md``.
        withheld: (name, reason) of shots that the safety checker withheld, now or before.
        auditioned: number of takes of which a preview was made.
        not_chosen: takes that were auditioned and are not finished. That is no failure.
        waiting: takes that were auditioned and wait for a person's choice.
        candidates: number of videos that were rendered and were not good enough.
        below: (name, similarity in words) of finished shots whose best video is not good enough.
        left: number of shots that were not finished because the run was stopped.
        retries: number of failed attempts that were repeated.
        steps: denoising steps of the shots that were decoded, without those that earlier runs had made.
        left_out: machines and GPUs that were excluded because they were at fault, each with its reason.
        fault: the fault that ended the run, with a remedy; empty if there was none.
        conditioning: how often subjects, texts, identities and references were made, and how often found kept.
        stopped_by: number of the signal that ended the run early; SIGUSR1 also for ``--stop-after``.
    """

    rendered: list[str] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    blocked: list[tuple[str, str]] = field(default_factory=list)
    codes: dict[str, str] = field(default_factory=dict)
    withheld: list[tuple[str, str]] = field(default_factory=list)
    auditioned: int = 0
    not_chosen: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    candidates: int = 0
    below: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    retries: int = 0
    steps: int = 0
    left_out: list[str] = field(default_factory=list)
    fault: str = ""
    conditioning: Counter[str] = field(default_factory=Counter)
    stopped_by: int | None = None
    seconds: float = 0.0

    def fail(self, name: str, reason: str, code: str) -> None:
        """Adds a failed shot."""
        self.failed.append((name, reason))
        self.codes[name] = code

    def block(self, shots: Iterable[tuple[str, str]]) -> None:
        """Sets the blocked shots: (name, reason)."""
        self.blocked = list(shots)
        self.codes |= {name: BLOCKED_CODE for name, _ in self.blocked}

    @property
    def finished(self) -> int:
        """Number of shots with which this run has no more to do: rendered, encoded, failed, or out of an audition."""
        made = len(self.rendered) + len(self.encoded)
        return made + len(self.failed) + len(self.withheld) + len(self.not_chosen) + len(self.waiting)

    @property
    def exit_code(self) -> int:
        if self.stopped_by == signal.SIGUSR1:
            return Stopped.exit_code
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        if self.fault:
            return ClusterError.exit_code
        return 1 if self.failed or self.blocked or self.withheld or self.waiting else 0


def exit_code_of_all(summaries: Iterable[Summary]) -> int:
    """Returns the exit code of a run. A stop and a fault are in every summary; else one failed shot is enough."""
    return max(summary.exit_code for summary in summaries)
