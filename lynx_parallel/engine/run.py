"""The inputs and outputs of one campaign's shots in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lynx_parallel.engine.summary import Summary
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.packaging import packagings
from lynx_parallel.inputs.recognizers import Recognizer, with_files
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.plan.digests import subject_key
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.plan import Item

if TYPE_CHECKING:
    from lynx_parallel.engine.gang import Gang


@dataclass(frozen=True)
class Run:
    """The inputs and outputs of the shots that one pipeline makes for one campaign.

    Attributes:
        weight_digests: by ``plan.hashing.weight_digests``.
        summary: of the campaign.
        say: takes each line for the user.
        name: of the campaign's record of this run.
        total: number of shots to make with all pipelines, for all campaigns.
        first: names of the shots of the sample, which are made before the others.
        progress: takes lines that are repeated with other numbers; None for ``say``.
        others: summaries of the run's other campaigns.
        resumed: steps that earlier runs had made, of each shot that was begun.
        title: how lines call the campaign, different for each; empty if it is the only one.
        takes: the plan's shots that go through an audition together, by ``Shot.takes_of``.
    """

    campaign: Campaign
    weights: WeightFiles
    face: FaceFiles | None
    weight_digests: Mapping[str, str]
    cluster: ClusterSpec
    layout_choice: LayoutChoice
    output: Output
    journal: Journal
    summary: Summary
    say: Callable[[str], None]
    name: str = ""
    total: int = 0
    progress: Callable[[str], None] | None = None
    first: frozenset[str] = frozenset()
    others: tuple[Summary, ...] = ()
    resumed: dict[str, int] = field(default_factory=dict)
    title: str = ""
    takes: Mapping[tuple[str, str, str], Sequence[Item]] = field(default_factory=dict)

    @property
    def summaries(self) -> list[Summary]:
        """Those of all campaigns of the run, its own first."""
        return [self.summary, *self.others]

    def shown(self, name: str) -> str:
        """Returns how lines call a shot or a subject. Those of several campaigns may share a name."""
        return f"{self.title}: {name}" if self.title else name

    def show_progress(self, line: str) -> None:
        """Prints a line that is repeated with other numbers. A live view shows the same all the time."""
        (self.progress or self.say)(line)

    def subject_key(self, shot: Shot, gang: Gang) -> str:
        """Returns the key of a shot's subject in the cache of a gang's ranks."""
        device = "cpu" if gang.hellos[0].device == "cpu" else "cuda"
        return subject_key(self.campaign, shot, self.weight_digests, device)

    @cached_property
    def recognizer(self) -> Recognizer | None:
        """Scores the videos, with its files; None if they are not scored."""
        quality = self.campaign.quality
        return None if quality is None else with_files(quality.recognizer, self.face)

    @cached_property
    def packaging(self) -> dict[str, str]:
        """How the files of the transformer and of the adapters are packed."""
        files = self.weights
        names = ("transformer", "transformer_2", "id", "ref")
        return packagings({name: getattr(files, name) for name in names})
