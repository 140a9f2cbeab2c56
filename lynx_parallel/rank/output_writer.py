"""Makes files from final latents. All ranks of a gang decode; rank 0 encodes and writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.model.checkpoints import load_vae
from lynx_parallel.model.precision import VAE_PRECISIONS
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import add_checksum, sha256_file
from lynx_parallel.output.marks import add_mark
from lynx_parallel.parallel.vae import can_split, split_decoder
from lynx_parallel.rank.disk_space import when_room
from lynx_parallel.rank.messages import EncodeOrder, RankConfig, Rendered, RenderOrder
from lynx_parallel.rank.scores import Scores
from lynx_parallel.stages.latents import decode, read_latents, to_frames
from lynx_parallel.stages.poster import write_poster
from lynx_parallel.stages.safety import SafetyChecker
from lynx_parallel.stages.video import encode_video
from lynx_parallel.text import one_line


@dataclass(frozen=True)
class Decoded:
    """A shot that is decoded and not yet encoded.

    Attributes:
        frames: uint8 [F, H, W, 3].
        seconds: of the stages so far.
        exactness, conditioning, warnings, steps: as in ``Rendered``.
    """

    frames: np.ndarray
    seconds: dict[str, float]
    exactness: dict[str, str]
    conditioning: dict[str, int]
    warnings: tuple[str, ...]
    steps: int = 0


class OutputWriter:
    """Makes a shot's files from its latents.

    Attributes:
        vae: None until it is loaded or taken from a pipeline.

    Args:
        waits: called with what the rank waits for, as in ``writing.when_room``.
    """

    def __init__(self, config: RankConfig, device: torch.device, waits: Callable[[str], None]):
        self.vae: Any = None
        self._config = config
        self._device = device
        self._waits = waits
        self._precision = VAE_PRECISIONS[config.vae_dtype]
        self._split: AutoencoderKLWan | None = None
        self._decoded: dict[Path, Decoded] = {}
        self._scores = Scores()
        self._checker: SafetyChecker | None = None

    def load(self) -> None:
        """Loads the VAE alone, for saved latents."""
        self.take(load_vae(self._config.weights.base / "vae", dtype=self._precision.weights, device=self._device))

    def take(self, vae: AutoencoderKLWan) -> None:
        """Uses this VAE from now on."""
        self.vae = vae
        if self._config.tiled_decode:
            vae.enable_tiling()

    def regroup(self) -> None:
        """Drops the split decoder, whose process group ends when the rank leaves its gang."""
        self._split = None

    def decode(self, latents: torch.Tensor, layout: Layout, rank: int) -> tuple[np.ndarray | None, dict[str, str]]:
        """Returns the frames, and how they were decoded for the sidecar. Only rank 0 is sure to get frames."""
        if self._config.tiled_decode or not can_split(latents.shape[3], layout.size):
            return (self._frames(self.vae, latents) if rank == 0 else None), self._tiled
        if self._split is None:
            self._split = split_decoder(self.vae)
        return self._frames(self._split, latents), {"decode": f"rows over {layout.size} ranks"}

    def encode(self, order: EncodeOrder) -> Rendered:
        """Makes the video again from saved latents.

        They are checked by the sha256 of the order, or else by the checksum in their header.

        Returns:
            What was made, and ``latents`` as they were read.

        Raises:
            DamagedError: the file holds other bytes than were written.
            RenderError: the file cannot be read.
        """
        saved, facts = read_latents(order.latents, order.sha256)
        if self.vae is None:  # with sharded weights nothing is loaded before ``join``
            self.load()
        made = self.write(self._frames(self.vae, saved), order, {}, self._tiled)
        return self._scores.add(replace(made, outputs={**made.outputs, "latents": facts}), order)

    def save_latents(self, latents: torch.Tensor, path: Path, metadata: Mapping[str, str]) -> None:
        """Writes final latents. They appear whole or not at all, and stay of use if the video cannot be made."""
        saved = add_checksum(save({"latents": latents.float().cpu().contiguous()}), metadata)
        when_room(lambda: _write(path, saved), path, self._waits)

    def keep(self, order: RenderOrder, decoded: Decoded) -> None:
        """Keeps a decoded shot until ``finish``."""
        self._decoded[order.parts["video"]] = decoded

    def finish(self, order: RenderOrder) -> Rendered:
        """Encodes a shot that was kept. Uses neither the device nor the model, so it runs beside the next shot."""
        kept = self._decoded.pop(order.parts["video"])
        made = self.write(kept.frames, order, kept.seconds, kept.exactness)
        made = replace(
            made, conditioning=kept.conditioning, warnings=(*kept.warnings, *made.warnings), steps=kept.steps
        )
        return self._scores.add(made, order)

    def write(
        self,
        frames: np.ndarray,
        order: RenderOrder | EncodeOrder,
        seconds: dict[str, float],
        how: dict[str, str],
    ) -> Rendered:
        """Writes the video.

        Raises:
            WithheldError: the safety checker withholds it. Nothing is written then.

        Args:
            order: its ``parts`` are where to write ``video`` and ``poster``, and where ``latents`` are if they were
                written.
            seconds: of the earlier stages.
            how: how the frames were made, for the sidecar.
        """
        began = time.perf_counter()
        video, parts = order.video, order.parts
        if self._safety is not None:
            self._safety.check(frames)
        encode = partial(
            encode_video, frames, fps=order.shot.sampling.fps, codec=video.codec, crf=video.crf, lossless=video.lossless
        )

        def write(path: Path) -> None:
            encode(path)
            if order.mark is not None:
                add_mark(path, order.mark)

        when_room(lambda: write(parts["video"]), parts["video"], self._waits)
        seconds["encode"] = time.perf_counter() - began
        warnings = []
        if "poster" in parts:
            try:
                write_poster(frames, parts["poster"])
            except OSError as error:
                warnings.append(f"{parts['poster'].parent}: no poster for the report: {one_line(error)}")
        files = {kind: path for kind, path in parts.items() if kind != "poster"}
        return Rendered(
            {kind: {"size": path.stat().st_size, "sha256": sha256_file(path)} for kind, path in files.items()},
            {stage: round(value, 3) for stage, value in seconds.items()},
            how,
            warnings=tuple(warnings),
        )

    @property
    def _safety(self) -> SafetyChecker | None:
        """The safety checker, which is loaded on first use; None if the site has none."""
        if self._checker is None and self._config.safety is not None:
            self._checker = SafetyChecker(self._config.safety)
        return self._checker

    @property
    def _tiled(self) -> dict[str, str]:
        return {"decode": "tiled"} if self._config.tiled_decode else {}

    def _frames(self, vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
        return to_frames(decode(vae, latents, precision=self._precision.convolutions))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(data)
