"""One campaign of a run: its plan, its output folder with lock, journal and record, and its results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lynx_parallel
from lynx_parallel.engine.gate import keep_candidates
from lynx_parallel.engine.record import write_record
from lynx_parallel.engine.sample import Sample
from lynx_parallel.engine.settle import settle, unsettled
from lynx_parallel.engine.summary import Summary
from lynx_parallel.errors import BLOCKED_CODE
from lynx_parallel.failures import disk_is_full
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.atomic import try_publishing
from lynx_parallel.output.crops import faces_folder, make_faces_folder
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History, Journal, now
from lynx_parallel.output.shard import FolderLock, Shard
from lynx_parallel.plan.parts import Part, check_parts
from lynx_parallel.plan.plan import TODO, Item, Plan
from lynx_parallel.plan.shards import part_of_plan, shots_digest
from lynx_parallel.text import shown_path

if TYPE_CHECKING:
    from lynx_parallel.engine.observer import Observer


class CampaignRun:
    """One campaign of a run.

    Args:
        parts: of the campaign, one for each pipeline.
        replan: compares the campaign with the current output folder.
        request: options of the command line.
        check: raises if the remaining work cannot be done.
        shard: whose shots alone are made; None for all.

    Attributes:
        plan: by the last comparison with the output folder.
        first: the shots of the sample.
        name: of its record; empty before it is written.
        title: how lines call it, different for each campaign; empty if it is the only one.
        journal: open while the output folder is locked.
    """

    journal: Journal

    def __init__(
        self,
        campaign: Campaign,
        parts: Sequence[Part],
        replan: Callable[[], Plan],
        request: Request | None = None,
        check: Callable[[Plan], object] = str,
        shard: Shard | None = None,
    ):
        self.campaign = campaign
        self.parts = parts
        self.output = Output(campaign.output, shard)
        self.summary = Summary()
        self.plan = Plan((), ())
        self.first: list[Item] = []
        self.name = self.title = ""
        self._shots = ""
        self._replan = replan
        self._request = request or Request()
        self._check = check
        self._shard = shard

    @property
    def todo(self) -> list[Item]:
        """The shots to render, to audition or to encode, and those that wait for other takes."""
        return [item for item in self.plan.of(*TODO) if not _waits_for_a_person(item)]

    def look(self, observer: Observer) -> None:
        """Compares the campaign with its output folder, and prints the result."""
        self._plan()
        shard = f", shard {self._shard}" if self._shard else ""
        observer.say(f"{self.campaign.path.name}{shard}: {self.plan}")
        for name in self.plan.orphans:
            observer.say(f"{name}: not in the manifest any more; left as it is")

    def check(self, cluster: ClusterSpec) -> None:
        """Refuses work that cannot be done.

        Raises:
            InputErrors: the work cannot be done, or is not approved.
            ClusterError: another driver is at work in the output folder.
        """
        check_parts(self.parts, self.todo, cluster)
        self._lock.refuse()  # before asking about shots that another driver may be rendering
        self._check(self.plan)

    def close_faces(self, observer: Observer) -> None:
        """Makes the folder of crops private if the manifest says so."""
        used = self.todo or faces_folder(self.output.folder).exists()
        if self.campaign.faces != "private" or not used:
            return
        if warning := make_faces_folder(self.output.folder, private=True):
            observer.say(f"warning: {warning}")

    @property
    def unsettled(self) -> bool:
        """Whether a killed driver left something undone, although no shot is left to make."""
        if not any(path.exists() for path in self.output.journals):
            return False
        return any(unsettled(self.output, self.plan.of("done"), self._history()))

    def try_output(self) -> None:
        """Tries the steps of publishing in the output folder before any work. A full disk is no error here."""
        self.output.private.mkdir(parents=True, exist_ok=True)
        try:
            try_publishing(self.output.private)
        except OSError as error:
            if not disk_is_full(error):
                raise

    def _plan(self) -> Plan:
        self.plan = plan = self._replan()
        if self._shard is not None:
            self._shots = shots_digest(plan.items)
            self.plan = part_of_plan(plan, self.parts, self._shard)
        return self.plan

    @cached_property
    def _lock(self) -> FolderLock:
        return FolderLock(self.output.private, self._shard, self._shots)

    @contextlib.contextmanager
    def locked(self, observer: Observer) -> Iterator[None]:
        """Takes the output folder for the time of the block, in which the journal is open.

        Raises:
            ClusterError: another driver has it.
        """
        with self._lock:
            ours = self._history().attempted
            alone = self._shard is None or self._lock.alone
            self.output.sweep(ours if alone else ours & {item.shot.name for item in self.plan.items}, alone=alone)
            self._record(observer)

            def listen(record: Mapping[str, Any]) -> None:
                observer.event({**record, "output": str(self.output.folder)})

            self.journal = journal = Journal(self.output.journal, listen)
            journal.append(
                "run_started", run=self.name, manifest=str(self.campaign.path), version=lynx_parallel.__version__
            )
            try:
                yield
            finally:
                summary = self.summary
                journal.append(
                    "run_ended", rendered=len(summary.rendered), encoded=len(summary.encoded),
                    failed=len(summary.failed), signal=summary.stopped_by,
                )  # fmt: skip
                journal.close()
                if journal.unwritten:
                    observer.say(f"warning: {shown_path(self.output.journal)}: its last records could not be written")

    def settle(self) -> None:
        """Plans again and completes what a killed driver left undone. Needs the lock.

        Another driver may have rendered shots before this one had the lock.
        """
        history = self._history()
        plan = self._plan()
        settle(self.output, plan.of("done"), history, self.journal)
        if keep_candidates(self.parts, self.todo, self.output, self.journal):
            plan = self._plan()
        blocked = ((item.shot.name, item.reason) for item in plan.of("blocked"))
        self.journal.extend(
            {"event": "blocked", "name": name, "reason": why, "code": BLOCKED_CODE} for name, why in blocked
        )
        self.journal.extend(
            {"event": "not chosen", "name": item.shot.name, "reason": item.reason} for item in plan.of("not chosen")
        )
        self.summary.left = len(self.todo)

    def choose(self, sample: Sample | None) -> list[Item]:
        """Returns the shots to make in this run, after choosing the sample."""
        if sample is None:
            return self.todo
        self.first = sample.of(self.todo)
        return self.first if sample.only else self.todo

    def finish(self) -> None:
        """Counts what is left after the run, and removes prompt embeddings that no shot needs any more."""
        summary = self.summary
        summary.left -= summary.finished
        if not (summary.failed or summary.stopped_by) and (self._shard is None or self._lock.alone):
            self.output.forget_prompts()

    def close(self, seconds: float) -> None:
        """Completes the summary with the shots that the run did not make."""
        self.summary.skipped = [item.shot.name for item in self.plan.of("done")]
        self.summary.block((item.shot.name, item.reason) for item in self.plan.of("blocked"))
        self.summary.withheld += [(item.shot.name, item.reason) for item in self.plan.of("withheld")]
        self.summary.waiting += [item.shot.name for item in self.plan.of("auditioned") if _waits_for_a_person(item)]
        self.summary.seconds = seconds

    def _history(self) -> History:
        return History.read(*self.output.journals)

    def _record(self, observer: Observer) -> None:
        """Writes the record of this run. On a full disk there is no record, and the run continues."""
        started = now()
        self.name = started.replace(":", "") + (f"-{self._shard.folder}" if self._shard else "")
        folder = self.output.record(self.name)
        try:
            write_record(folder, self.campaign, self.parts, self._request, started)
        except OSError as error:
            if not disk_is_full(error):
                raise
            observer.say(f"warning: {shown_path(folder)}: this run cannot be recorded: the disk is full")


def _waits_for_a_person(item: Item) -> bool:
    audition = item.shot.audition
    return item.action == "auditioned" and audition is not None and audition.choose == "person"
