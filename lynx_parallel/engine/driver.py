"""The driver: locks the output folder, starts Ray, runs the supervisor, and stops on signals.

It is the only process that publishes files and writes the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import lynx_parallel
from lynx_parallel.engine.monitor import Monitor, first_status
from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.process import give_up
from lynx_parallel.engine.record import write_record
from lynx_parallel.engine.sample import Sample, turns
from lynx_parallel.engine.settle import settle, unsettled
from lynx_parallel.engine.signals import Interrupted, deferred_signals, hold, interruptible, signals
from lynx_parallel.engine.summary import Summary
from lynx_parallel.errors import BLOCKED_CODE, ClusterError
from lynx_parallel.failures import disk_is_full
from lynx_parallel.inputs.cluster import CUDA_ONLY, ClusterSpec
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.atomic import try_publishing
from lynx_parallel.output.crops import faces_folder, make_faces_folder
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import History, Journal, now
from lynx_parallel.output.lock import Lock
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.parts import Part, check_parts
from lynx_parallel.plan.plan import Item, Plan
from lynx_parallel.plan.work import costs
from lynx_parallel.text import shown_duration, shown_path

if TYPE_CHECKING:
    from lynx_parallel.engine.cluster import Cluster
    from lynx_parallel.engine.run import Run


class Driver:
    """Carries out one plan.

    Args:
        parts: of the campaign, one for each pipeline.
        replan: compares the campaign with the current output folder.
        observer: takes lines, events and the status.
        request: options of the command line.
        check: raises if the remaining work cannot be done.
        sample: shots to make first; None for no such sample.
    """

    def __init__(
        self,
        campaign: Campaign,
        parts: Sequence[Part],
        replan: Callable[[], Plan],
        cluster: ClusterSpec,
        observer: Observer,
        request: Request | None = None,
        check: Callable[[Plan], object] = str,
        sample: Sample | None = None,
    ):
        self.campaign = campaign
        self.parts = parts
        self.replan = replan
        self.cluster = cluster
        self.observer = observer
        self.say = observer.say
        self.request = request or Request()
        self.check = check
        self.sample = sample
        self._first: list[Item] = []
        self._name = ""
        self.output = Output(campaign.output)
        self.summary = Summary()
        self._stopping: asyncio.Task[None] | None = None
        self._plan = Plan((), ())
        self._monitor: Monitor | None = None

    def run(self) -> Summary:
        """Renders the plan. SIGINT and SIGTERM end it early, with every process that it has started.

        Raises:
            ClusterError: no Ray, no room, or another driver in this output folder.
        """
        began = time.monotonic()
        plan = self.replan()
        self.say(f"{self.campaign.path.name}: {plan}")
        for name in plan.orphans:
            self.say(f"{name}: not in the manifest any more; left as it is")
        todo = plan.of("render", "encode")
        if todo:
            check_parts(self.parts, todo, self.cluster)
            self._lock.refuse()  # before asking about shots that another driver may be rendering
            self.check(plan)
        shows_faces = self.campaign.faces == "private" and (todo or faces_folder(self.output.folder).exists())
        if shows_faces and (warning := make_faces_folder(self.output.folder, private=True)):
            self.say(f"warning: {warning}")
        if todo:
            plan = self._start(plan)
        elif self.output.journal.exists() and any(unsettled(self.output, plan.of("done"), self._history())):
            with self._locked() as (journal, history):
                plan = self._settled(history, journal)
        self.summary.skipped = [item.shot.name for item in plan.of("done")]
        self.summary.block((item.shot.name, item.reason) for item in plan.of("blocked"))
        self.summary.seconds = time.monotonic() - began
        return self.summary

    def _start(self, plan: Plan) -> Plan:
        """Starts Ray, takes the output folder and runs. Returns the plan as it was when the folder was taken."""
        from lynx_parallel.engine.address import Address
        from lynx_parallel.engine.cluster import ray_cluster

        address = Address.chosen(self.cluster.address)
        self._check_output()
        self.summary.left = len(plan.of("render", "encode"))  # in case a signal comes first
        log = self.output.private / "logs" / "ray" / f"{now().replace(':', '')}.log"
        try:
            with (
                deferred_signals() as pending,
                ray_cluster(address, self.output.private, log, pending, self.say) as cluster,
                self._locked() as (journal, history),
            ):
                with interruptible(pending):
                    plan = self._settled(history, journal)
                todo = plan.of("render", "encode")
                self.summary.left = len(todo)
                if self.sample is not None:
                    self._first = self.sample.of(todo)
                    todo = self._first if self.sample.only else todo
                if todo:
                    self._run(todo, journal, cluster, pending)
                    self.summary.left -= self.summary.finished
                    if not (self.summary.failed or self.summary.stopped_by):
                        self.output.forget_prompts()
        except Interrupted as stop:
            if self.summary.stopped_by is None:
                self._stopped_by(stop.number)
        return plan

    def _settled(self, history: History, journal: Journal) -> Plan:
        # Another driver may have rendered shots before this one had the lock.
        self._plan = plan = self.replan()
        settle(self.output, plan.of("done"), history, journal)
        blocked = ((item.shot.name, item.reason) for item in plan.of("blocked"))
        journal.extend({"event": "blocked", "name": name, "reason": why, "code": BLOCKED_CODE} for name, why in blocked)
        return plan

    @cached_property
    def _lock(self) -> Lock:
        return Lock(self.output.private / "lock")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[Journal, History]]:
        with self._lock:
            history = self._history()
            self.output.sweep(history.attempted)
            self._record()
            journal = Journal(self.output.journal, self.observer.event)
            journal.append(
                "run_started", run=self._name, manifest=str(self.campaign.path), version=lynx_parallel.__version__
            )
            try:
                yield journal, history
            except Interrupted as stop:
                self._stopped_by(stop.number)
                raise
            finally:
                summary = self.summary
                if self._monitor is not None:
                    self._monitor.show(exit_code=summary.exit_code)
                journal.append(
                    "run_ended", rendered=len(summary.rendered), encoded=len(summary.encoded),
                    failed=len(summary.failed), signal=summary.stopped_by,
                )  # fmt: skip
                journal.close()
                if journal.unwritten:
                    self.say(f"warning: {shown_path(self.output.journal)}: its last records could not be written")

    def _monitor_of(self, todo: list[Item]) -> Monitor:
        first = first_status(self._name, self.campaign.path, self._plan, len(todo))
        monitor = Monitor(self.output, first, self.summary, costs(self.parts, todo), self.observer)
        if self.sample is not None:
            monitor.tell_when({item.shot.name for item in self._first}, self.sample.ready)
        monitor.show()
        return monitor

    def _record(self) -> None:
        """Writes the record of this run. On a full disk there is no record, and the run continues."""
        started = now()
        self._name = started.replace(":", "")
        try:
            write_record(self.output.record(self._name), self.campaign, self.parts, self.request, started)
        except OSError as error:
            if not disk_is_full(error):
                raise
            self.say(
                f"warning: {shown_path(self.output.record(self._name))}: this run cannot be recorded: the disk is full"
            )

    def _history(self) -> History:
        return History.read(self.output.journal)

    def _check_output(self) -> None:
        """Tries the steps of publishing in the output folder before any work. A full disk is no error here."""
        self.output.private.mkdir(parents=True, exist_ok=True)
        try:
            try_publishing(self.output.private)
        except OSError as error:
            if not disk_is_full(error):
                raise

    def _run(self, todo: list[Item], journal: Journal, cluster: Cluster, pending: list[int]) -> None:
        from lynx_parallel.engine.cluster import RayFailed

        runner = asyncio.Runner()
        try:
            runner.run(self._until_stopped(todo, journal, cluster, pending))
        except RayFailed:
            give_up("event loop")  # its tasks would call Ray to kill the ranks
            raise
        except BaseException:
            runner.close()
            raise
        else:
            runner.close()
        finally:
            hold(pending)  # the loop has restored the default handlers, and Ray has not ended yet

    def _runs(self, todo: list[Item], journal: Journal) -> list[tuple[Run, list[Item]]]:
        """Returns the run of each part with something to do, and its shots."""
        from lynx_parallel.engine.run import Run

        return [
            (
                Run(
                    part.campaign, part.weights, part.face, part.digests, self.cluster,
                    LayoutChoice(self.cluster, part.weights), self.output, journal, self.summary, self.say, self._name,
                    total=len(todo), progress=self.observer.progress,
                    first=frozenset(item.shot.name for item in self._first),
                ),
                items,
            )
            for part, items in turns(self.parts, todo, self._first)
        ]  # fmt: skip

    async def _until_stopped(self, todo: list[Item], journal: Journal, cluster: Cluster, pending: list[int]) -> None:
        """Runs the shots. A signal, or a failure of Ray itself, cancels them."""
        from lynx_parallel.engine.parts import InTurn
        from lynx_parallel.engine.placement import StartOptions, available
        from lynx_parallel.engine.supervisor import STOP_WITHIN_S

        device, machines = available(self.cluster.device)
        if device == "cpu" and self.cluster.attention in CUDA_ONLY:
            raise ClusterError(f"--attention {self.cluster.attention}: runs on CUDA only. The ranks run on the CPU.")
        options = StartOptions(device, cluster.local, machines, hung_after=self.cluster.hung_after)
        supervisor = InTurn(self._runs(todo, journal), options)
        work = asyncio.ensure_future(supervisor.make_all())
        loop = asyncio.get_running_loop()

        def stop(number: int, why: str = "") -> None:
            pending.append(number)
            if self.summary.stopped_by is not None:
                work.cancel()  # a second signal: at once
                return
            self._stopped_by(number, why)
            # A scheduler sends SIGUSR1 early enough.
            within = None if number == signal.SIGUSR1 else STOP_WITHIN_S
            self._stopping = loop.create_task(supervisor.save_and_stop(work, within))

        for number in signals():
            loop.add_signal_handler(number, stop, number)
        if self.cluster.stop_after is not None:
            why = f"--stop-after {shown_duration(self.cluster.stop_after)}"
            loop.call_later(self.cluster.stop_after, stop, int(signal.SIGUSR1), why)
        for number in list(pending):
            stop(number)
        watch = asyncio.ensure_future(cluster.watch())
        self._monitor = self._monitor_of(todo)
        monitor = asyncio.ensure_future(self._monitor.follow(supervisor))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()  # raises
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            watch.cancel()
            monitor.cancel()

    def _stopped_by(self, number: int, why: str = "") -> None:
        self.summary.stopped_by = number
        self.say(f"{why or signal.Signals(number).name}: stopping; finished shots stay, run again to resume")
