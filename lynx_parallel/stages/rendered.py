"""A rendered video in memory: its frames, its latents, its files, and its player in a notebook."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lynx_parallel.inputs.call import read_setting
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.marks import Mark, add_mark
from lynx_parallel.stages.formats import write_webp
from lynx_parallel.stages.video import encode_video

SUFFIXES = (".mp4", ".webp")
_WEBP_QUALITY = 90


@dataclass(frozen=True, eq=False, repr=False)
class LynxOutput:
    """A rendered video. A notebook shows it as a player.

    Attributes:
        frames: uint8 [F, H, W, 3].
        latents: final latents [1, 16, T, h, w], fp32, normalised.
        prompt: the text of this video.
        sampling: all settings of this video, with its seed.
        video: encoding of the file that ``save`` writes.
    """

    frames: np.ndarray
    latents: torch.Tensor
    prompt: str
    sampling: Sampling
    video: Video

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"LynxOutput({count} frames, {width}x{height}, {self.sampling.fps:g} fps, seed {self.sampling.seed})"

    def save(
        self, path: str | Path, *, fps: float | None = None, codec: str | None = None, crf: int | None = None
    ) -> None:
        """Writes the video to a file. An existing file is replaced once the new one is complete.

        Args:
            path: ends in ``.mp4``, or in ``.webp`` for an animated picture. A missing folder is made.
            fps: frames per second. By default those of the settings, as the pipeline file has them.
            codec, crf: as in ``video:`` of a pipeline file, for ``.mp4`` only. By default the pipeline file's.

        Raises:
            InputErrors: an argument is wrong.
            RenderError, ClusterError: as ``encode_video``.
            OSError: the file cannot be written.
        """
        path = Path(path)
        rate, video = self._settings(path, {"fps": fps, "codec": codec, "crf": crf})
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            if path.suffix.lower() == ".webp":
                write_webp(self.frames, part, fps=rate, quality=_WEBP_QUALITY, lossless=video.lossless, mark=self._mark)
            else:
                encode_video(self.frames, part, fps=rate, codec=video.codec, crf=video.crf, lossless=video.lossless)
                add_mark(part, self._mark)

    @property
    def _mark(self) -> Mark:
        """What a file says of itself. There is no digest, because nothing has hashed the weights."""
        return Mark("", self.prompt, self.sampling.seed) if self.video.metadata == "full" else Mark("")

    def _settings(self, path: Path, given: dict[str, Any]) -> tuple[float, Video]:
        """Returns the frame rate and the encoding of a file. Raises InputErrors with all mistakes."""
        problems = Problems()
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            problems.option(f"path: {shown_value(str(path))}: must end in {' or '.join(SUFFIXES)}")
        settings = {}
        for name, value in given.items():
            if value is None:
                continue
            if suffix == ".webp" and name != "fps":
                problems.option(f"{name}={shown_value(value)}: .webp has none: save as .mp4, or leave it out")
            settings[name] = read_setting(SamplingOverrides if name == "fps" else Video, name, value, problems)
        problems.raise_if_any()
        fps = settings.pop("fps", self.sampling.fps)
        return fps, self.video.model_copy(update=settings)

    @cached_property
    def _mp4(self) -> bytes:
        """The video as browsers play it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            encode_video(self.frames, path, fps=self.sampling.fps, codec="h264", crf=max(self.video.crf, 1))
            return path.read_bytes()

    def _repr_html_(self) -> str:
        """Returns a player with the whole video in it, for notebooks."""
        _, height, width, _ = self.frames.shape
        data = base64.b64encode(self._mp4).decode()
        return (
            f'<video controls loop autoplay muted playsinline width="{width}" height="{height}" '
            f'style="max-width: 100%; height: auto" src="data:video/mp4;base64,{data}"></video>'
        )
