"""Types of the files that hold a pipeline's weights. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

ARCFACE_SHA256 = "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28"
"""sha256 of facexlib's ``recognition_arcface_ir_se50.pth``, with which Lynx was trained."""


CONVERTED = "converted.json"
"""Manifest in the folder of a converted transformer, see ``plan.converted``."""
COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
"""Folders of every base that change a video."""
SECOND_EXPERT = "transformer_2"
"""Folder of the second transformer of Wan2.2's A14B bases."""
IMAGE_PARTS = ("image_encoder", "image_processor")
"""Folders of Wan2.1's I2V bases, which see the CLIP embedding of the first frame."""
_FOLDERS = (*COMPONENTS, SECOND_EXPERT, *IMAGE_PARTS)


BASE_PATTERNS = ("model_index.json", *(f"{name}/*" for name in _FOLDERS))
"""Files of a hub repository that are downloaded as a base."""


CONFIG_PATTERNS = ("model_index.json", *(f"{name}/*config.json" for name in _FOLDERS))
"""Small files that show what kind of model a base is."""


Expert = Literal["high_noise", "low_noise"]
"""One of two transformers: the first denoises the steps of high noise, the second the others."""
EXPERTS: dict[Expert, str] = {"high_noise": "transformer", "low_noise": SECOND_EXPERT}
"""Folder of each expert in the base."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA and its weight: the factor of its change.

    Attributes:
        expert: the only expert that it changes; None for both.
    """

    path: Path
    weight: float
    expert: Expert | None = None


@dataclass(frozen=True)
class WeightFiles:
    """Local files of a pipeline's weights.

    Attributes:
        resampler, id: None without the ID adapter.
        ref: None without the reference adapter, as in lite.
        transformer, transformer_2: single files that replace the base's transformers, or None.
        loras: in the order in which they are added.
        loras_on_reference: whether the LoRAs also act in the reference pass.
        adapters_on: the only expert with adapters; None for both.
        converted, converted_2: folders of copies of the base's transformers in the pipeline's dtype, or None; see
            ``lynx_parallel.plan.converted``.
        folder: of the transformer that is meant, within the base; see ``of``.
    """

    base: Path
    resampler: Path | None
    id: Path | None
    ref: Path | None = None
    converted: Path | None = None
    converted_2: Path | None = None
    transformer: Path | None = None
    transformer_2: Path | None = None
    loras: tuple[LoraFile, ...] = ()
    loras_on_reference: bool = True
    adapters_on: Expert | None = None
    folder: str = "transformer"

    def of(self, expert: Expert) -> WeightFiles:
        """Returns the files of one expert: its transformer, its LoRAs, and its adapters if it has any."""
        files = replace(self, loras=tuple(lora for lora in self.loras if lora.expert in (None, expert)))
        if self.adapters_on not in (None, expert):
            files = replace(files, id=None, ref=None)
        if expert == "high_noise":
            return files
        return replace(files, folder=EXPERTS[expert], transformer=self.transformer_2, converted=self.converted_2)

    @property
    def transformer_folder(self) -> Path:
        """Folder of the transformer in the base."""
        return self.base / self.folder


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
