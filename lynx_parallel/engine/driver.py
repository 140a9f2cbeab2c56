"""The driver: locks the output folders, starts Ray, runs the supervisor, and stops on signals.

It is the only process that publishes files and writes the journals.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.monitor import Chosen, Watcher
from lynx_parallel.engine.observer import Observer
from lynx_parallel.engine.process import give_up
from lynx_parallel.engine.sample import Sample, turns
from lynx_parallel.engine.signals import Interrupted, deferred_signals, hold, interruptible, signals
from lynx_parallel.engine.summary import Summary, exit_code_of_all
from lynx_parallel.errors import ClusterError, collect
from lynx_parallel.inputs.cluster import CUDA_ONLY, ClusterSpec
from lynx_parallel.output.journal import now
from lynx_parallel.plan.auditions import takes_in_auditions
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.plan import Item
from lynx_parallel.text import shown_duration, shown_path

if TYPE_CHECKING:
    from lynx_parallel.engine.cluster import Cluster
    from lynx_parallel.engine.run import Run


class Driver:
    """Makes the shots of campaigns, out of one queue if they share their weights.

    Args:
        campaigns: with different output folders.
        observer: takes lines, events and the status.
        sample: shots of each campaign to make first; None for no such sample.
    """

    def __init__(
        self,
        campaigns: Sequence[CampaignRun],
        cluster: ClusterSpec,
        observer: Observer,
        sample: Sample | None = None,
    ):
        self.campaigns = campaigns
        if len(campaigns) > 1:
            names = [campaign.campaign.path.name for campaign in campaigns]
            for campaign, name in zip(campaigns, names, strict=True):
                campaign.title = name if names.count(name) == 1 else shown_path(campaign.campaign.path)
        self.cluster = cluster
        self.observer = observer
        self.say = observer.say
        self.sample = sample
        self._stopping: asyncio.Task[None] | None = None
        self._watcher: Watcher | None = None

    @property
    def summaries(self) -> list[Summary]:
        return [campaign.summary for campaign in self.campaigns]

    def run(self) -> None:
        """Renders the plans. SIGINT and SIGTERM end it early, with every process that it has started.

        The results are in the campaigns' summaries.

        Raises:
            InputErrors: the work cannot be done, or is not approved.
            ClusterError: no Ray, no room, or another driver in an output folder.
        """
        began = time.monotonic()
        for campaign in self.campaigns:
            campaign.look(self.observer)
        self._check()
        for campaign in self.campaigns:
            campaign.close_faces(self.observer)
        if busy := [campaign for campaign in self.campaigns if campaign.todo]:
            self._start(busy)
        for campaign in self.campaigns:
            if campaign not in busy and campaign.unsettled:
                with campaign.locked(self.observer):
                    campaign.settle()
            campaign.close(time.monotonic() - began)

    def _check(self) -> None:
        """Refuses the work of all campaigns if that of one cannot be done."""
        collect(partial(campaign.check, self.cluster) for campaign in self.campaigns if campaign.todo)

    def _start(self, busy: Sequence[CampaignRun]) -> None:
        """Starts Ray, takes the output folders and makes what is then left to do."""
        from lynx_parallel.engine.address import Address
        from lynx_parallel.engine.cluster import ray_cluster

        address = Address.chosen(self.cluster.address)
        for campaign in busy:
            campaign.try_output()
            campaign.summary.left = len(campaign.todo)  # in case a signal comes first
        private = busy[0].output.private
        log = private / "logs" / "ray" / f"{now().replace(':', '')}.log"
        try:
            with (
                deferred_signals() as pending,
                ray_cluster(address, private, log, pending, self.say) as cluster,
                self._metrics_in_ray(busy),
                self._locked(busy),
            ):
                with interruptible(pending):
                    for campaign in busy:
                        campaign.settle()
                chosen = [(campaign, todo) for campaign in busy if (todo := campaign.choose(self.sample))]
                if chosen:
                    self._run(chosen, cluster, pending)
                    for campaign, _ in chosen:
                        campaign.finish()
        except Interrupted as stop:
            self._stopped_by(stop.number)

    @contextlib.contextmanager
    def _metrics_in_ray(self, busy: Sequence[CampaignRun]) -> Iterator[None]:
        """Also gives statuses and events to Ray's metrics. Needs a running Ray."""
        from lynx_parallel.engine.metrics import RayMetrics

        metrics = RayMetrics(", ".join(str(campaign.output.folder) for campaign in busy))
        self.observer = self.observer.beside(metrics.watch, metrics.event)
        yield

    @contextlib.contextmanager
    def _locked(self, busy: Sequence[CampaignRun]) -> Iterator[None]:
        """Takes the output folders. Always in the same order, so that two drivers do not each get some of them."""
        with contextlib.ExitStack() as stack:
            for campaign in sorted(busy, key=lambda campaign: campaign.output.folder):
                stack.enter_context(campaign.locked(self.observer))
            try:
                yield
            except Interrupted as stop:
                self._stopped_by(stop.number)
                raise
            finally:
                if self._watcher is not None:
                    self._watcher.show(exit_code=exit_code_of_all(self.summaries))

    def _run(self, chosen: Chosen, cluster: Cluster, pending: list[int]) -> None:
        from lynx_parallel.engine.cluster import RayFailed

        runner = asyncio.Runner()
        try:
            runner.run(self._until_stopped(chosen, cluster, pending))
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

    def _runs(self, chosen: Chosen) -> list[tuple[Run, list[Item]]]:
        """Returns the run of each campaign's pipeline with something to do, and its shots."""
        from lynx_parallel.engine.run import Run

        total = sum(len(todo) for _, todo in chosen)
        return [
            (
                Run(
                    part.campaign, part.weights, part.face, part.digests, self.cluster,
                    LayoutChoice(self.cluster, part.weights), campaign.output, campaign.journal, campaign.summary,
                    self.say, campaign.name, total=total, progress=self.observer.progress,
                    first=frozenset(item.shot.name for item in campaign.first),
                    others=tuple(other for other in self.summaries if other is not campaign.summary),
                    title=campaign.title, takes=takes_in_auditions(part.of(campaign.plan.items)),
                ),
                items,
            )
            for campaign, todo in chosen
            for part, items in turns(campaign.parts, todo, campaign.first)
        ]  # fmt: skip

    async def _until_stopped(self, chosen: Chosen, cluster: Cluster, pending: list[int]) -> None:
        """Runs the shots. A signal, or a failure of Ray itself, cancels them."""
        from lynx_parallel.engine.parts import InTurn, together
        from lynx_parallel.engine.placement import StartOptions, available
        from lynx_parallel.engine.supervisor import STOP_WITHIN_S

        device, machines = available(self.cluster.device)
        if device == "cpu" and self.cluster.attention in CUDA_ONLY:
            raise ClusterError(f"--attention {self.cluster.attention}: runs on CUDA only. The ranks run on the CPU.")
        options = StartOptions(device, cluster.local, machines, hung_after=self.cluster.hung_after)
        supervisor = InTurn(together(self._runs(chosen)), options)
        work = asyncio.ensure_future(supervisor.make_all())
        loop = asyncio.get_running_loop()

        def stop(number: int, why: str = "") -> None:
            pending.append(number)
            if self.summaries[0].stopped_by is not None:
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
        self._watcher = Watcher(chosen, self.observer)
        if self.sample is not None:
            self._watcher.tell_when(self.sample.ready)
        self._watcher.show()
        watcher = asyncio.ensure_future(self._watcher.follow(supervisor))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()  # raises
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            watch.cancel()
            watcher.cancel()

    def _stopped_by(self, number: int, why: str = "") -> None:
        """Records in each summary what ended the run. Only the first signal is reported."""
        if self.summaries[0].stopped_by is not None:
            return
        for summary in self.summaries:
            summary.stopped_by = number
        self.say(f"{why or signal.Signals(number).name}: stopping; finished shots stay, run again to resume")
