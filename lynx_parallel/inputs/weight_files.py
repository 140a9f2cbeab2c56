"""Types of the files that hold a pipeline's weights. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ARCFACE_SHA256 = "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28"
"""sha256 of facexlib's ``recognition_arcface_ir_se50.pth``, with which Lynx was trained."""


CONVERTED = "converted.json"
"""Manifest in the folder of a converted transformer, see ``plan.converted``."""
COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
"""Folders of the base that change a video."""


BASE_PATTERNS = ("model_index.json", *(f"{name}/*" for name in COMPONENTS))
"""Files of a hub repository that are downloaded as a base."""


CONFIG_PATTERNS = ("model_index.json", *(f"{name}/*config.json" for name in COMPONENTS))
"""Small files that show what kind of model a base is."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA and its weight: the factor of its change."""

    path: Path
    weight: float


@dataclass(frozen=True)
class WeightFiles:
    """Local files of a pipeline's weights.

    Attributes:
        ref: None for lite.
        transformer: a single file that replaces the base's transformer, or None.
        loras: in the order in which they are added.
        loras_on_reference: whether the LoRAs also act in the reference pass.
        converted: folder of a copy of the base's transformer in the pipeline's dtype, or None; see
            ``lynx_parallel.plan.converted``.
    """

    base: Path
    resampler: Path
    id: Path
    ref: Path | None = None
    converted: Path | None = None
    transformer: Path | None = None
    loras: tuple[LoraFile, ...] = ()
    loras_on_reference: bool = True


@dataclass(frozen=True)
class FaceFiles:
    """Local face models, and how they are run.

    Attributes:
        detector: insightface pack folder or YuNet file.
        recognizer: IR-SE50 file.
        recognizer_sha256: what it must hash to; None accepts any (the demo's).
    """

    detector: Path
    recognizer: Path
    recognizer_sha256: str | None
    det_size: int
    rgb_quirk: bool
