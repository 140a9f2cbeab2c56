"""Forecasts a run on this machine, or on a card that the user names: layout, gangs, memory, time.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from lynx_parallel.errors import CheckpointError, LynxError
from lynx_parallel.inputs.cards import Card, find_card, local_gpus
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.estimate import Estimate, Rates, estimate, fit, rates_of_card, remembered, sidecars_of
from lynx_parallel.plan.gpu_memory import predictions
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import EXPECTED, Item, Plan
from lynx_parallel.text import counted, rough_duration


@dataclass(frozen=True)
class Machine:
    """Where a run is taken to be.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: of the device, such as ``NVIDIA H200``.
        ranks: GPUs, or ranks on the CPU.
        card: None if it is unknown.
        assumed: whether the user named it, or it was guessed.
    """

    device: str
    name: str
    ranks: int
    card: Card | None = None
    assumed: bool = False


@dataclass(frozen=True)
class PartForecast:
    """The forecast of one pipeline's shots.

    Attributes:
        pipeline: its name.
        layout: of the largest shot, in words.
        ranks: of a gang.
        gangs: at work at the same time.
        why: in words.
        least_bytes, most_bytes: memory of a GPU at least, and with everything kept; 0 if unknown.
        estimate: None if nothing is known about the device's rate.
    """

    pipeline: str
    layout: str
    ranks: int
    gangs: int
    why: str
    least_bytes: int = 0
    most_bytes: int = 0
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run.

    Attributes:
        seconds: of the whole run without its start, or None.
    """

    machine: Machine
    parts: tuple[PartForecast, ...]

    @property
    def seconds(self) -> float | None:
        found = [part.estimate.seconds for part in self.parts if part.estimate is not None]
        return sum(found) if found and len(found) == len(self.parts) else None

    @property
    def rank_hours(self) -> float:
        return sum(part.estimate.rank_hours for part in self.parts if part.estimate is not None)

    def end(self, now: datetime) -> datetime | None:
        """Returns the time at which a run that begins now ends, or None if it is unknown."""
        return None if self.seconds is None else now + timedelta(seconds=self.seconds)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds, "rank_hours": round(self.rank_hours, 3)}

    def lines(self, now: datetime) -> Iterator[str]:
        """Yields the forecast in words."""
        several, machine = len(self.parts) > 1, self.machine
        for part in self.parts:
            of = f" ({part.pipeline})" if several else ""
            yield f"layout{of}: {part.layout}, {counted(part.gangs, 'gang')}: {part.why}"
            if part.most_bytes:
                yield f"memory{of}: {_memory(part, machine)}"
            if part.estimate is not None:
                seconds = part.estimate.shot_seconds
                shot = rough_duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"
                yield f"time{of}: about {shot} a shot, from {part.estimate.source}"
        if self.seconds is None:
            if self.parts:
                yield f"time: unknown: no shot was timed on {machine.name} yet; --card H100 plans for a card"
            return
        yield f"in all: {self.in_all(now)}"

    def in_all(self, now: datetime) -> str:
        """Returns the time of the whole run in words; nothing if it is unknown."""
        end = self.end(now)
        if self.seconds is None or end is None:
            return ""
        spent = f"{self.rank_hours:.1f} GPU-hours, " if self.machine.device == "cuda" else ""
        return f"{spent}about {rough_duration(self.seconds)} {_on(self.machine)}, until about {_clock(end, now)}"


def machine_of(cluster: ClusterSpec, card: Card | None) -> Machine:
    """Returns the machine of a plan: the card that the user named, else this machine.

    Args:
        card: of ``--card``.
    """
    names = local_gpus()
    if card is not None:
        ranks = cluster.max_gpus or (cluster.gangs or 1) * _asked(cluster)
        return Machine("cuda", card.name, ranks, card, assumed=True)
    if cluster.device == "cpu" or not names:
        return Machine("cpu", "cpu", max(_asked(cluster) * (cluster.gangs or 1), 2))
    return Machine("cuda", names[0], cluster.max_gpus or len(names), find_card(names[0]))


def make_forecast(parts: Sequence[Part], plan: Plan, cluster: ClusterSpec, machine: Machine) -> Forecast:
    """Returns the forecast of what a plan leaves to do."""
    todo = plan.of(*EXPECTED)
    found = (_forecast(part, plan, cluster, machine) for part in parts if part.of(todo))
    return Forecast(machine, tuple(one for one in found if one is not None))


def _forecast(part: Part, plan: Plan, cluster: ClusterSpec, machine: Machine) -> PartForecast | None:
    items = part.of(plan.of(*EXPECTED))
    try:
        choice = LayoutChoice(cluster, part.weights)
        ranks = choice.ranks(machine.device, machine.ranks)
        tasks = {choice.task(item.shot, ranks) for item in items}
        size = max(task.layout.size for task in tasks)
        gangs = choice.gangs(size, machine.device, machine.ranks, len(items))
    except CheckpointError:
        return _without_base(part, items, plan, cluster, machine)
    except LynxError:
        return None  # the options ask for more than the machine has
    largest = max(tasks, key=lambda task: (task.layout.size, task.size.tokens))
    model = part.campaign.pipeline.model
    memory = predictions(
        part.weights, tasks, dtype=model.dtype, sharded=cluster.shard_weights, tiled_decode=cluster.tiled_decode,
        tf32_decode=model.vae_dtype == "tf32", one_expert=cluster.one_expert,
    )  # fmt: skip
    least, most = (0, 0) if memory is None or machine.device == "cpu" else (memory[0].total, memory[1].total)
    rates = _rates(part, plan, machine)
    return PartForecast(
        part.campaign.pipeline_path.stem, str(largest.layout), size, gangs, _why(cluster, machine, gangs), least, most,
        None if rates is None else estimate(part, items, rates, ranks=size, gangs=gangs),
    )  # fmt: skip


def _without_base(
    part: Part, items: Sequence[Item], plan: Plan, cluster: ClusterSpec, machine: Machine
) -> PartForecast:
    """Returns the forecast if the base is not on this machine. Its size is taken to be that of the 14B."""
    layout = Layout(cluster.guidance or 1, cluster.ring or 1, cluster.ulysses or 1)
    gangs = min(cluster.gangs or max(machine.ranks // layout.size, 1), len(items))
    rates = _rates(part, plan, machine)
    return PartForecast(
        part.campaign.pipeline_path.stem, str(layout), layout.size, gangs,
        f"{_why(cluster, machine, gangs)}; the base is not on this machine: 14 billion parameters are assumed",
        estimate=None if rates is None else estimate(part, items, rates, ranks=layout.size, gangs=gangs),
    )  # fmt: skip


def _rates(part: Part, plan: Plan, machine: Machine) -> Rates | None:
    """Returns the rates of this folder's shots on such a device, else of this machine, else of the card."""
    made = [item for item in plan.items if item.action == "done" or item.stale]
    sidecars = sidecars_of(part, Output(part.campaign.output), made)
    if rates := fit(part, (sidecar for sidecar in sidecars if _made_on(sidecar, machine))):
        return rates
    if not machine.assumed and (rates := remembered(part, machine.name)):
        return rates
    return rates_of_card(machine.card, part.campaign.pipeline.model.vae_dtype) if machine.card else None


def _made_on(sidecar: Mapping[str, Any], machine: Machine) -> bool:
    ranks = sidecar.get("ranks")
    names = {rank.get("device") for rank in ranks if isinstance(rank, dict)} if isinstance(ranks, list) else set()
    if machine.assumed:
        return any(find_card(str(name)) == machine.card for name in names)
    return names == {machine.name}


def _why(cluster: ClusterSpec, machine: Machine, gangs: int) -> str:
    if any((cluster.ulysses, cluster.ring, cluster.guidance)):
        return "as asked for"
    if machine.device == "cpu":
        return "one shot uses all cores of a CPU"
    if gangs == 1:
        return "one GPU renders one shot after another"
    return "many small gangs render more shots per hour than few large ones"


def _memory(part: PartForecast, machine: Machine) -> str:
    least, most = part.least_bytes / 1e9, part.most_bytes / 1e9
    text = f"{least:.1f} GB a GPU at least, {most:.1f} GB with everything kept"
    if machine.card is None:
        return text
    has = machine.card.gigabytes
    if least > 0.95 * has:
        return f"{text}: {machine.card.name} has {has:.0f} GB: too little; see --shard-weights and --tiled-decode"
    return f"{text}: {machine.card.name} has {has:.0f} GB"


def _on(machine: Machine) -> str:
    if machine.device == "cpu":
        return "on this machine's CPU"
    return f"on {machine.ranks} × {machine.name}"


def _clock(end: datetime, now: datetime) -> str:
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %H:%M}"


def _asked(cluster: ClusterSpec) -> int:
    return (cluster.ulysses or 1) * (cluster.ring or 1) * (cluster.guidance or 1)


def read_deadline(text: str, now: datetime) -> datetime | None:
    """Returns the time of ``06:00``, the next one, or of ``2026-11-28 06:00``; None if it is neither."""
    try:
        clock = datetime.strptime(text, "%H:%M").time()
    except ValueError:
        try:
            return datetime.fromisoformat(text).astimezone(now.tzinfo)
        except ValueError:
            return None
    at = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
    return at if at > now else at + timedelta(days=1)


def late(forecast: Forecast, deadline: datetime, now: datetime) -> str:
    """Returns a warning if the run ends after the deadline, or if its end is unknown; else nothing."""
    end = forecast.end(now)
    if end is None:
        return "" if not forecast.parts else "--deadline: the end of the run cannot be estimated yet"
    if end <= deadline:
        return ""
    by = rough_duration((end - deadline).total_seconds())
    return f"--deadline: the run is estimated to end at {_clock(end, now)}, {by} after {_clock(deadline, now)}"
