"""The content of a manifest: a campaign of shots with all settings resolved.

Made by ``lynx_parallel.inputs.load.load_campaign``; everything here is checked, frozen and absolute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.pipeline import PipelineSpec
from lynx_parallel.inputs.quality import Audition, Quality
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides
from lynx_parallel.inputs.scorers import ScorerSpec
from lynx_parallel.inputs.site import Site
from lynx_parallel.output.takes import Past, TakeState

Label = str | int | float | bool
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Consent:
    """The consent to render this face. It is copied to the sidecar."""

    ref: str
    scope: str | None = None
    expires: date | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """One person.

    Attributes:
        landmarks: five (x, y) points in pixels of ``image``: eyes, nose, mouth corners.
        face: which face of several: ``largest``, ``only`` (several are an error) or the n-th from the left.
        start_image: as in ``Shot``.
    """

    id: str
    image: Path | None = None
    embedding: Path | None = None
    landmarks: Points | None = None
    face: str | int = "largest"
    vars: dict[str, str] = field(default_factory=dict, hash=False)
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    consent: Consent | None = None
    labels: dict[str, Label] = field(default_factory=dict, hash=False)
    start_image: Path | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with ``{var}`` fields, not yet filled in."""

    id: str
    text: str
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    start_image: Path | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """A named change of settings or pipeline. The one without a name stands for a manifest without variants.

    Attributes:
        pipeline: path of its own pipeline file; None for the campaign's.
        spec: what is in that file.
    """

    id: str = ""
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    pipeline: Path | None = None
    spec: PipelineSpec | None = None


@dataclass(frozen=True, slots=True)
class Shot:
    """One video to render.

    Attributes:
        take: number among the shots of this subject, prompt and variant, from 1.
        text: the prompt after its vars.
        sampling: every setting, with the shot's own seed.
        priority: higher first.
        name: of the output files, relative to the campaign's output, with ``/``, without suffix.
        variant: its id; empty in a manifest without variants.
        start_image: picture with which the video begins, for a base that takes one (I2V).
        given_seed: seed that the manifest gives this take by hand; None if it counts from ``sampling.seed``.
        state: ``accepted``, ``rejected`` or empty.
        bound: whether a file of takes decides its seed.
        history: earlier seeds of the take.
        audition: that the take goes through before it is finished; None for none.
    """

    subject: Subject
    prompt: Prompt
    take: int
    text: str
    sampling: Sampling
    priority: int
    name: str
    variant: str = ""
    start_image: Path | None = None
    given_seed: int | None = None
    state: TakeState = ""
    bound: bool = False
    history: tuple[Past, ...] = ()
    audition: Audition | None = None

    @property
    def seed(self) -> int:
        """Seed of the initial noise."""
        return self.sampling.seed

    @property
    def id(self) -> str:
        """``subject/prompt/take``, then the variant if there is one; unique in a campaign."""
        return "/".join([self.subject.id, self.prompt.id, str(self.take), *([self.variant] if self.variant else [])])

    @property
    def takes_of(self) -> tuple[str, str, str]:
        """Identifies the subject, prompt and variant whose takes this shot belongs to."""
        return self.subject.id, self.prompt.id, self.variant


def reference_sizes(shots: Iterable[Shot]) -> dict[str, frozenset[int]]:
    """Returns the sides of the reference crops that shots use, in pixels, by subject."""
    sizes: dict[str, set[int]] = {}
    for shot in shots:
        sizes.setdefault(shot.subject.id, set()).add(shot.sampling.reference_size)
    return {subject: frozenset(sides) for subject, sides in sizes.items()}


@dataclass(frozen=True, slots=True)
class Campaign:
    """A whole manifest. ``shots`` stand in the manifest's order; priorities are not yet applied.

    ``pipeline`` includes the manifest's ``video`` and ``--set video.*``; its ``sampling`` is the pipeline file's own
    (each shot has its resolved one). ``notices`` are warnings about the manifest. ``sources`` are the bytes of the
    text files that it was made of, by absolute path: manifest, pipeline file, tables and prompt files.

    Attributes:
        faces: ``private`` closes the folder of crops to everyone but its owner; ``inherit`` gives it the mode of the
            output folder.
        reference_sizes: ``reference_size`` of each subject's shots, those left out by ``--only`` included.
        crf_place: what sets ``video.crf``, for messages: the option, or the file with the key.
        quality: how videos are scored and which are good enough; None if they are not scored.
        scorers: other scorers than recognisers, for ``lynx-render score``.
        site: rules of the machine.
        parts: if variants have pipelines of their own, a campaign for each pipeline, with its shots; else empty.
    """

    path: Path
    output: Path
    pipeline: PipelineSpec
    pipeline_path: Path
    subjects: tuple[Subject, ...]
    prompts: tuple[Prompt, ...]
    shots: tuple[Shot, ...]
    save_latents: bool
    notices: tuple[Notice, ...] = ()
    faces: str = "inherit"
    reference_sizes: dict[str, frozenset[int]] = field(default_factory=dict, hash=False)
    sources: Mapping[Path, bytes] = field(default_factory=dict, hash=False, repr=False, compare=False)
    crf_place: str = field(default="", compare=False)
    parts: tuple[Campaign, ...] = ()
    quality: Quality | None = None
    site: Site = field(default_factory=Site)
    scorers: tuple[ScorerSpec, ...] = ()

    @property
    def each(self) -> tuple[Campaign, ...]:
        """One campaign for each pipeline: the parts, or the campaign itself."""
        return self.parts or (self,)


def split(campaign: Campaign, pipelines: Mapping[str, tuple[Path, PipelineSpec]]) -> tuple[Campaign, ...]:
    """Returns a campaign for each pipeline, in the order in which they are rendered.

    Pipelines with the same models and encoding make one part: only sampling differs, and each shot has its own. The
    part with the highest priority comes first, then that of the first shot.

    Args:
        pipelines: file and content of each variant's own pipeline, by the variant's id.
    """
    shots: dict[str, list[Shot]] = {}
    for shot in campaign.shots:
        shots.setdefault(shot.variant, []).append(shot)
    parts: list[Campaign] = []
    for variant, own in shots.items():
        path, spec = pipelines.get(variant, (campaign.pipeline_path, campaign.pipeline))
        same = next((i for i, part in enumerate(parts) if _same_models(part.pipeline, spec)), None)
        if same is None:
            parts.append(replace(campaign, pipeline=spec, pipeline_path=path, shots=tuple(own)))
        else:
            parts[same] = replace(parts[same], shots=(*parts[same].shots, *own))
    return tuple(sorted(parts, key=lambda part: -max(shot.priority for shot in part.shots)))


def _same_models(one: PipelineSpec, other: PipelineSpec) -> bool:
    return (one.model, one.face, one.video) == (other.model, other.face, other.video)


@dataclass(frozen=True, slots=True)
class ShotGroup:
    """One entry of ``shots``, a table row, or the default: subjects × prompts × takes."""

    file: Path
    line: int
    where: str  # how errors call it: "shots[2]", "row", …
    subjects: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    numbers: tuple[int, ...] | None = None  # of the takes with these seeds; None counts them
    first_seed: int | None = None  # takes count up from here instead of sampling.seed
    takes: int = 1
    priority: int = 0
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    start_image: Path | None = None
    audition: Audition | None = None
