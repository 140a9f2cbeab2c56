"""A rank: one process that holds the weights, stays alive, and is part of at most one gang."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import lynx_parallel
from lynx_parallel.artifacts import sha256_file
from lynx_parallel.errors import RenderError
from lynx_parallel.model.checkpoints import load_vae
from lynx_parallel.parallel.apply import localize, parallelize
from lynx_parallel.parallel.broadcast import broadcast
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.spec.manifest import Shot
from lynx_parallel.spec.pipeline import Video
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.encode import encode_video
from lynx_parallel.stages.latents import decode, to_frames
from lynx_parallel.weights import WeightFiles

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself."""

    pid: int
    host: str
    device: str
    version: str


@dataclass(frozen=True)
class Rendered:
    """What rank 0 made of a shot.

    Attributes:
        outputs: size in bytes and sha256 of each ``.part`` file written, by kind.
        seconds: by stage.
    """

    outputs: dict[str, dict[str, Any]]
    seconds: dict[str, float] = field(default_factory=dict)


class Rank:
    """Ray actor. ``progress`` answers while ``render`` blocks (concurrency group ``ctl``)."""

    def __init__(self, device: str, threads: int):
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.rank = 0
        self.layout = Layout()
        self.pipeline: LynxPipeline | None = None
        self.vae: Any = None
        self._inputs: ShotInputs | None = None
        self._progress = (0, 0)

    def hello(self) -> Hello:
        name = torch.cuda.get_device_name(0) if self.device.type == "cuda" else "cpu"
        return Hello(os.getpid(), socket.gethostname(), name, lynx_parallel.__version__)

    @ray.method(concurrency_group="ctl")
    def progress(self) -> tuple[int, int]:
        """(steps done, steps in all) of the shot at hand."""
        return self._progress

    def load(self, weights: WeightFiles, dtype: str, *, denoise: bool) -> float:
        """Loads the weights, once; without ``denoise`` the VAE alone. Returns seconds."""
        began = time.perf_counter()
        if denoise and self.pipeline is None:
            self.pipeline = LynxPipeline.from_files(weights, dtype=getattr(torch, dtype), device=self.device)
            self.vae = self.pipeline.vae
        elif self.vae is None:
            self.vae = load_vae(weights.base / "vae", device=self.device)
        return time.perf_counter() - began

    def open_store(self) -> tuple[str, int]:
        """Rank 0: the gang's meeting place; its port is bound here, so no two gangs race for one."""
        host = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(host, 0, None, True, COLLECTIVE_TIMEOUT, wait_for_workers=False, multi_tenant=True)
        return host, self._store.port

    def join(self, layout: Layout, rank: int, store: tuple[str, int]) -> None:
        """Becomes rank ``rank`` of a gang of this layout; blocks until its peers have joined."""
        self.layout, self.rank = layout, rank
        if layout.size == 1 or self.pipeline is None:
            return
        from lynx_parallel.parallel import xdit

        mine = self._store if rank == 0 else dist.TCPStore(*store, None, False, COLLECTIVE_TIMEOUT)
        transformer = self.pipeline.transformer
        tokens = xdit.join(
            layout, rank=rank, store=mine, device=self.device, transformer_config=transformer.config,
            timeout=COLLECTIVE_TIMEOUT,
        )  # fmt: skip
        parallelize(transformer, tokens)

    def leave(self) -> None:
        """Leaves the gang; weights stay."""
        if self.layout.size > 1 and self.pipeline is not None:
            from lynx_parallel.parallel import xdit

            xdit.leave()
            localize(self.pipeline.transformer)
        self.layout, self.rank = Layout(), 0

    def encode_prompts(self, prompts: list[str]) -> None:
        """Rank 0: makes the campaign's prompt embeddings; the text encoder is gone afterwards."""
        assert self.pipeline is not None
        self.pipeline.encode_prompts(prompts)

    def prepare(self, shot: Shot) -> None:
        """Rank 0: reads the subject and draws the noise. No peer waits here, so it may fail freely.

        Raises:
            SubjectError: picture, landmarks or embedding cannot be used.
        """
        assert self.pipeline is not None
        subject = shot.subject
        assert subject.embedding is not None
        self._inputs = self.pipeline.prepare(
            shot.text, shot.sampling, image=subject.image, landmarks=subject.landmarks, embedding=subject.embedding
        )

    def render(self, shot: Shot, video: Video, parts: dict[str, Path], log: Path) -> Rendered | None:
        """Every rank of the gang at once: denoises a prepared shot; rank 0 decodes, encodes and writes.

        Args:
            parts: where rank 0 writes ``video`` and, if wanted, ``latents``.
            log: this rank's log file.

        Returns:
            On rank 0 what was made; None on the others.
        """
        assert self.pipeline is not None
        with _output_to(log):
            began = time.perf_counter()
            inputs, self._inputs = self._inputs, None
            if self.layout.size > 1:
                inputs = broadcast(inputs, ShotInputs, device=self.device)
            assert inputs is not None
            latents = self.pipeline.denoise(inputs, shot.sampling, self._on_step)
            seconds = {"denoise": time.perf_counter() - began}
            if self.rank != 0:
                return None
            return self._write(latents, shot, video, parts, seconds)

    def encode(self, shot: Shot, video: Video, latents: Path, parts: dict[str, Path], log: Path) -> Rendered:
        """Rank 0: makes the video again from saved latents."""
        with _output_to(log):
            return self._write(load_file(latents)["latents"], shot, video, parts, {})

    def _write(
        self, latents: torch.Tensor, shot: Shot, video: Video, parts: dict[str, Path], seconds: dict[str, float]
    ) -> Rendered:
        try:
            if "latents" in parts:
                save_file({"latents": latents.float().cpu().contiguous()}, parts["latents"])
            began = time.perf_counter()
            frames = to_frames(decode(self.vae, latents))
            seconds["decode"] = time.perf_counter() - began
            began = time.perf_counter()
            encode_video(frames, parts["video"], fps=shot.sampling.fps, codec=video.codec, crf=video.crf)
            seconds["encode"] = time.perf_counter() - began
        except OSError as error:
            raise RenderError(f"{error.filename or parts['video']}: {error.strerror or error}") from None
        return Rendered(
            {kind: {"size": path.stat().st_size, "sha256": sha256_file(path)} for kind, path in parts.items()},
            {stage: round(value, 3) for stage, value in seconds.items()},
        )

    def _on_step(self, step: Step) -> None:
        self._progress = step.index + 1, step.total
        print(f"{time.strftime('%H:%M:%S')} step {step.index + 1}/{step.total}", flush=True)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """All this process prints, C libraries included, goes to a file meanwhile."""
    log.parent.mkdir(parents=True, exist_ok=True)
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for descriptor, copy in enumerate(saved, start=1):
            os.dup2(copy, descriptor)
            os.close(copy)
