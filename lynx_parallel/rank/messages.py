"""Messages between the driver and the ranks. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lynx_parallel.inputs.cluster import Attention
from lynx_parallel.inputs.manifest import Points, Shot
from lynx_parallel.inputs.memory import Task
from lynx_parallel.inputs.pipeline import VaeDtype, Video
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.inputs.site import Safety
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.output.crops import Crops
from lynx_parallel.output.marks import Mark
from lynx_parallel.output.prompt_files import PromptFiles
from lynx_parallel.output.scores import IdentityScore


@dataclass(frozen=True)
class Hello:
    """Description of a rank.

    Attributes:
        device: ``cpu`` or the name of the GPU.
        attention: name of the attention kernel.
        version: of this package.
        node: Ray's id of the machine.
        gpu: Ray's id of the GPU on its machine; empty on the CPU.
        warnings: lines for the user about this machine.
    """

    pid: int
    host: str
    device: str
    attention: str
    version: str
    node: str = ""
    gpu: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def machine(self) -> str:
        """Identifies the machine. The host name alone does not: two containers may share it."""
        return self.node or self.host

    @property
    def place(self) -> str:
        """GPU of a machine, or machine of CPUs, on which the rank runs; see ``engine.faults``."""
        return f"{self.machine}/{self.gpu}" if self.gpu else self.machine


@dataclass(frozen=True)
class Check:
    """The result of one self-check of a rank.

    Attributes:
        name: of the check, such as ``attention``.
        seconds: that the check took.
        detail: the result; the first line of the error if the check failed.
        remedy: what to do about a failure; empty if ``ok``.
    """

    name: str
    ok: bool
    seconds: float
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Progress:
    """Progress of a rank with its current shot.

    Attributes:
        step, total: steps that are done, and all steps.
        age: seconds since the last step ended, or the shot began.
        waits_for: what the rank waits for, in words; empty if it does not wait.
        read, to_read: bytes of weights that are loaded, and all bytes to load.
        memory, memory_total: bytes in use on the GPU, by all processes, and all of it; 0 on the CPU.
    """

    step: int
    total: int
    age: float
    waits_for: str = ""
    read: int = 0
    to_read: int = 0
    memory: int = 0
    memory_total: int = 0


@dataclass(frozen=True)
class ScoreOrder:
    """How rank 0 scores a video.

    Attributes:
        recognizer: with the path of its files.
        picture: of the subject.
        face: which face of the picture, as in ``Subject``.
        landmarks: of that face, if the manifest gives them.
        frames: of the video that are scored.
    """

    recognizer: Recognizer
    picture: Path
    face: str | int
    landmarks: Points | None
    frames: int


@dataclass(frozen=True)
class RenderOrder:
    """What a gang needs to render one shot; every rank gets the same order.

    Attributes:
        digest: latents digest that the resume state and the latents' file are bound to.
        settings: what the digest is of, for the header of the latents' file.
        subject_key: key of the subject's cached data, see ``plan.digests.subject_key``.
        crops: where the crops of the face are shown.
        resume_state: file of the shot's resume state, which may not exist.
        parts: where rank 0 writes ``video``, ``latents`` and ``poster``.
        logs: folder of the ranks' log files.
        first_expert: end before the expert of low noise is needed, with a resume state.
        until: for an audition: end after this many steps, with a resume state, and decode the x0 that the last step
            predicts; None makes the whole shot. No latents are written then.
        score: how the video is scored; None if it is not.
        mark: what the video file says of itself.
    """

    shot: Shot
    digest: str
    settings: Mapping[str, Any]
    subject_key: str
    crops: Crops
    resume_state: Path
    video: Video
    parts: Mapping[str, Path]
    logs: Path
    first_expert: bool = False
    until: int | None = None
    score: ScoreOrder | None = None
    mark: Mark | None = None

    def log(self, rank: int) -> Path:
        """Returns the log file of a rank."""
        return self.logs / f"rank{rank}.log"


@dataclass(frozen=True)
class EncodeOrder:
    """What rank 0 needs to encode saved latents.

    Attributes:
        latents: their file.
        parts: where ``video`` and ``poster`` are written.
        logs: folder of the ranks' log files.
        sha256: of the latents' file by its sidecar; None for latents that no sidecar lists.
        score, mark: as in ``RenderOrder``.
    """

    shot: Shot
    video: Video
    latents: Path
    parts: Mapping[str, Path]
    logs: Path
    sha256: str | None = None
    score: ScoreOrder | None = None
    mark: Mark | None = None


@dataclass(frozen=True)
class Rendered:
    """What rank 0 has made of a shot.

    Attributes:
        outputs: size in bytes and sha256 of each ``.part`` file written, by kind.
        seconds: by stage.
        exactness: how the shot differs from a render on one rank.
        conditioning: how often static keys and values were computed, and found kept, for this shot; whether the
            subject came from the cache.
        warnings: lines for the user.
        score: of the video, if the order asks for one.
        steps: that were made of an audition; 0 for a whole shot.
    """

    outputs: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    exactness: dict[str, str]
    conditioning: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    score: IdentityScore | None = None
    steps: int = 0


@dataclass(frozen=True)
class RankConfig:
    """What ranks load and how they run it. All ranks of a gang get the same.

    Attributes:
        dtype: torch's name of the weights' dtype.
        vae_dtype: as in ``ModelSpec``.
        denoise: whether the transformer is needed; saved latents are encoded with the VAE alone.
        shard: whether a gang's sequence ranks share one copy of the transformer.
        attention: kernel asked for, see ``model.attention.choose_kernel``.
        one_expert: of two transformers, hold only the one in use, even if there is room for both.
        tiled_decode: decode tile by tile, on rank 0: less memory, other pixels.
        keep_projections: as in ``load_transformer``; None keeps them where the device has room.
        face: models for subjects whose landmarks or embedding are not given.
        prompts: where prompt embeddings are stored; None keeps them only in the rank's memory.
        video: how the videos are encoded.
        formats: width, height and frames per second of the videos to make.
        save_every: seconds between resume states at least.
        hung_after: seconds, see ``ClusterSpec``.
        recognizers: that score videos, for the self-check.
        safety: checks every video; None without a safety checker.
        tasks: sizes and layouts that the rank may have to render; empty if unknown.
    """

    weights: WeightFiles
    dtype: str
    denoise: bool
    vae_dtype: VaeDtype = "float32"
    shard: bool = False
    attention: Attention = "auto"
    one_expert: bool = False
    tiled_decode: bool = False
    keep_projections: bool | None = None
    face: FaceFiles | None = None
    prompts: PromptFiles | None = None
    video: Video = field(default_factory=Video)
    formats: tuple[tuple[int, int, float], ...] = ((32, 32, 8),)
    save_every: float = 30.0
    hung_after: float = 60.0
    recognizers: tuple[Recognizer, ...] = ()
    safety: Safety | None = None
    tasks: tuple[Task, ...] = ()
