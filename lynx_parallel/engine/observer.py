"""The receivers of what a run reports. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lynx_parallel.output.run_status import RunStatus


def _ignore(_: object) -> None: ...


@dataclass(frozen=True)
class Observer:
    """Takes what a run reports.

    Attributes:
        say: takes each line for the user.
        progress: takes lines that are repeated with other numbers; None for ``say``. A live view leaves them out.
        watch: takes the run's status, about every second.
        event: takes each record of the journal, and each status that is written.
    """

    say: Callable[[str], None]
    progress: Callable[[str], None] | None = None
    watch: Callable[[RunStatus], None] = _ignore
    event: Callable[[Mapping[str, Any]], None] = _ignore

    def beside(self, watch: Callable[[RunStatus], None], event: Callable[[Mapping[str, Any]], None]) -> Observer:
        """Returns an observer that gives each status and each event to two receivers."""

        def watch_both(status: RunStatus) -> None:
            self.watch(status)
            watch(status)

        def event_to_both(record: Mapping[str, Any]) -> None:
            self.event(record)
            event(record)

        return replace(self, watch=watch_both, event=event_to_both)
