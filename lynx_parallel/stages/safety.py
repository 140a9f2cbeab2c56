"""Checks frames with an image classifier, before anything of a shot becomes a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lynx_parallel.errors import CheckpointError, WithheldError
from lynx_parallel.inputs.site import Safety
from lynx_parallel.text import first_line

FRAMES = 8
"""Frames of a video that are checked, at equal distances, the first and the last among them."""


class SafetyChecker:
    """An image classifier in the format of transformers, from a local folder. It runs on the CPU, in fp32.

    Raises:
        CheckpointError: it cannot be loaded, or its labels are others than the site file's.
    """

    def __init__(self, safety: Safety):
        self._safety = safety
        self._processor, self._model = _load(safety.folder)
        labels: Mapping[int, str] = self._model.config.id2label
        self._labels = {int(index): label for index, label in labels.items() if label in safety.labels}
        if set(self._labels.values()) != set(safety.labels):
            raise CheckpointError(f"{safety.folder}: has no label {', '.join(safety.labels)}")

    def check(self, frames: NDArray[np.uint8]) -> None:
        """Raises WithheldError if a frame is unsafe.

        Args:
            frames: uint8 [F, H, W, 3]. ``FRAMES`` of them are looked at.
        """
        chosen = sorted({round(step * (len(frames) - 1) / (FRAMES - 1)) for step in range(FRAMES)})
        worst, label, index = max((*self._score(frames[index]), index) for index in chosen)
        if worst >= self._safety.threshold:
            raise WithheldError(
                f"withheld by the safety checker: {label} {worst:.2f} in frame {index + 1}, "
                f"threshold {self._safety.threshold:g}"
            )

    @torch.no_grad()
    def _score(self, frame: NDArray[np.uint8]) -> tuple[float, str]:
        """Returns the highest score of an unsafe label, and the label."""
        pixels = self._processor(images=[np.ascontiguousarray(frame)], return_tensors="pt")
        scores = self._model(**pixels).logits.float().softmax(dim=-1)[0]
        return max((float(scores[index]), label) for index, label in self._labels.items())


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{folder}: the safety checker cannot be loaded: {first_line(error)}") from error
    return processor, model.float().eval()
