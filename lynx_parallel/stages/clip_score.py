"""How well a video follows its prompt, by CLIP: the scorer ``clip``, an example of ``lynx_parallel.scorers``.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. The score is the mean
over sampled frames of the cosine between CLIP's embeddings of frame and prompt. The Lynx paper's own measure of prompt
following is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError, InputErrors
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.stages.sampled_frames import sample_frames
from lynx_parallel.text import first_line

FRAMES = 8


class ClipScorer:
    """CLIP in the format of transformers, from a local folder. Nothing is downloaded.

    Args:
        options: ``model``: the folder.
        folder: of the manifest.

    Raises:
        InputErrors: an option is missing or unknown.
        CheckpointError: the model cannot be loaded.
    """

    scale = "cosine of frame and prompt by CLIP"

    def __init__(self, options: Mapping[str, Any], folder: Path):
        if set(options) != {"model"} or not isinstance(options["model"], str):
            raise InputErrors([f"scorers.clip: options {', '.join(options) or 'none'}: give model: FOLDER alone"])
        path = resolve_file(folder, options["model"])
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model: Any = CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(f"{path}: CLIP cannot be loaded: {first_line(error)}") from error

    def score(self, video: Path, prompt: str, picture: Path | None) -> float:
        """Returns the mean cosine over sampled frames."""
        import torch

        images = [frame.image for frame in sample_frames(video, FRAMES)]
        given = self._processor(text=[prompt], images=images, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            made = self._model(**given)
        cosine = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
        return round(float(cosine.mean()), 4)
