"""The parts of a base model: which folders it has, and what its transformers do. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.model_config import read_config
from lynx_parallel.inputs.weight_files import COMPONENTS, IMAGE_PARTS, SECOND_EXPERT

IMAGE_TO_VIDEO = "WanImageToVideoPipeline"
"""diffusers' class of the bases that begin a video with a picture."""


@dataclass(frozen=True)
class BaseParts:
    """What ``model_index.json`` says of a base.

    Attributes:
        components: folders of the base that change a video.
        boundary_ratio: of a base with two experts: the first denoises the steps whose timestep is at least
            1000 · ``boundary_ratio``. None for a base with one transformer.
        takes_image: whether a video begins with a picture.
        encodes_image: whether the transformer also sees that picture's CLIP embedding.
    """

    components: tuple[str, ...] = COMPONENTS
    boundary_ratio: float | None = None
    takes_image: bool = False
    encodes_image: bool = False

    @property
    def experts(self) -> int:
        """Number of transformers."""
        return 1 if self.boundary_ratio is None else 2


def base_parts(base: Path) -> BaseParts:
    """Returns the parts of a base. A base without ``model_index.json`` is a Wan2.1 T2V model.

    Raises:
        CheckpointError: ``model_index.json`` is unreadable, or names a second transformer without a boundary.
    """
    path = base / "model_index.json"
    if not path.is_file():
        return BaseParts()
    index = read_config(path)
    more = [name for name in (SECOND_EXPERT, *IMAGE_PARTS) if names(index, name)]
    boundary = index.get("boundary_ratio")
    if SECOND_EXPERT in more and (not isinstance(boundary, int | float) or not 0 < boundary < 1):
        raise CheckpointError(
            f"{path}: boundary_ratio: {boundary}: expected a number between 0 and 1: it has two experts"
        )
    return BaseParts(
        components=(*COMPONENTS, *more),
        boundary_ratio=float(boundary) if SECOND_EXPERT in more and boundary is not None else None,
        takes_image=index.get("_class_name") == IMAGE_TO_VIDEO,
        encodes_image="image_encoder" in more,
    )


def names(index: Mapping[str, Any], component: str) -> bool:
    """Returns whether a ``model_index.json`` names a component. diffusers writes one left out as ``[null, null]``."""
    return index.get(component) not in (None, [None, None])
