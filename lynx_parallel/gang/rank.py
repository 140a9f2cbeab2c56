"""A rank: one process that holds the weights, stays alive, and is part of at most one gang."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

import lynx_parallel
from lynx_parallel.artifacts import sha256_file
from lynx_parallel.errors import RenderError, Stopped
from lynx_parallel.model.attention import AttentionName, choose_kernel
from lynx_parallel.model.checkpoints import load_vae
from lynx_parallel.parallel import xdit
from lynx_parallel.parallel.apply import localize, parallelize
from lynx_parallel.parallel.broadcast import broadcast
from lynx_parallel.parallel.layout import Layout
from lynx_parallel.parallel.shard import shard
from lynx_parallel.parallel.vae import can_split, split_decoder
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.spec.manifest import Shot
from lynx_parallel.spec.pipeline import Video
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.encode import encode_video
from lynx_parallel.stages.identify import Person, save_crops
from lynx_parallel.stages.latents import decode, to_frames
from lynx_parallel.stages.partial import Partial, load_partial, save_partial
from lynx_parallel.stages.prompt import encode_prompts
from lynx_parallel.subjects import SubjectCache, faces
from lynx_parallel.weights import FaceFiles, WeightFiles, transformer_config

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
PARTIAL_SHARE = 0.02
"""Saving partial states takes at most this share of the time …"""
PARTIAL_EVERY_S = 30.0
"""… and happens at most this often."""


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself."""

    pid: int
    host: str
    device: str
    attention: str
    version: str


@dataclass(frozen=True)
class Progress:
    """Steps done and in all; ``age``: seconds since the last step ended, or the shot began."""

    step: int
    total: int
    age: float


@dataclass(frozen=True)
class Rendered:
    """What rank 0 made of a shot.

    Attributes:
        outputs: size in bytes and sha256 of each ``.part`` file written, by kind.
        seconds: by stage.
        exactness: what differs from the plain way of one rank.
        conditioning: how often static keys and values were computed, and found kept, for this shot; whether the
            subject came from the cache.
        warnings: lines for the user.
    """

    outputs: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    exactness: dict[str, str]
    conditioning: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """What ranks load, and how they run it; alike for all ranks of a campaign.

    Attributes:
        dtype: torch's name of the weights' dtype.
        denoise: whether the transformer is needed; saved latents are encoded with the VAE alone.
        shard: whether a gang's sequence ranks share one copy of the transformer.
        attention: kernel asked for, see ``model.attention.choose_kernel``.
        tiled_decode: decode tile by tile, on rank 0: less memory, other pixels.
        keep_projections: as in ``load_transformer``; None keeps them where the device has room.
        face: models for subjects whose landmarks or embedding are not given.
    """

    weights: WeightFiles
    dtype: str
    denoise: bool
    shard: bool = False
    attention: AttentionName = "auto"
    tiled_decode: bool = False
    keep_projections: bool | None = None
    face: FaceFiles | None = None


class Rank:
    """Ray actor. ``progress`` answers while ``render`` blocks (concurrency group ``ctl``).

    Raises:
        ClusterError: the attention kernel asked for is not to be had here.
    """

    def __init__(self, device: str, threads: int, load: Load):
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.what = load
        self.attention, self._kernel = choose_kernel(load.attention, self.device)
        self.rank = 0
        self.layout = Layout()
        self.pipeline: LynxPipeline | None = None
        self.vae: Any = None
        self._split_vae: Any = None
        self._prompts: dict[str, torch.Tensor] = {}
        self._subjects = SubjectCache(warn=lambda line: self._warnings.append(line))
        self._inputs: ShotInputs | None = None
        self._from_cache = False
        self._warnings: list[str] = []
        self._progress = Progress(0, 0, 0.0)
        self._stepped = time.monotonic()
        self._stop = False
        self._partial: tuple[Path, str] | None = None
        self._saved, self._save_seconds = 0.0, 0.0

    def hello(self) -> Hello:
        name = torch.cuda.get_device_name(0) if self.device.type == "cuda" else "cpu"
        return Hello(os.getpid(), socket.gethostname(), name, self.attention, lynx_parallel.__version__)

    @ray.method(concurrency_group="ctl")
    def progress(self) -> Progress:
        """How far the shot at hand is; answers while ``render`` blocks."""
        return replace(self._progress, age=time.monotonic() - self._stepped)

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        """Rank 0: after the step at hand, save the partial state and end the shot with ``Stopped``."""
        self._stop = True

    def encode_prompts(self, prompts: list[str]) -> None:
        """Rank 0: makes the campaign's prompt embeddings; the text encoder is gone before the rest is loaded."""
        dtype = getattr(torch, self.what.dtype)
        self._prompts |= encode_prompts(self.what.weights.base, prompts, dtype=dtype, device=self.device)

    def load(self) -> None:
        """Loads the weights; a sharded transformer waits for ``join``, which knows this rank's share."""
        if not self.what.denoise:
            self._take_vae(load_vae(self.what.weights.base / "vae", device=self.device))
        elif not self.what.shard:
            self._build(None)

    def open_store(self) -> tuple[str, int]:
        """Rank 0: the gang's meeting place; its port is bound here, so no two gangs race for one."""
        host = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(host, 0, None, True, COLLECTIVE_TIMEOUT, wait_for_workers=False, multi_tenant=True)
        return host, self._store.port

    def join(self, layout: Layout, rank: int, store: tuple[str, int]) -> None:
        """Becomes rank ``rank`` of a gang of this layout; blocks until its peers have joined.

        Weights stay as they are, unless they are sharded: each rank then reads its share of the new group.
        """
        self.layout, self.rank = layout, rank
        if not self.what.denoise:
            return
        if layout.size > 1:
            mine = self._store if rank == 0 else dist.TCPStore(*store, None, False, COLLECTIVE_TIMEOUT)
            membership = xdit.join(
                layout, rank=rank, store=mine, device=self.device, kernel=self._kernel,
                transformer_config=transformer_config(self.what.weights), timeout=COLLECTIVE_TIMEOUT,
            )  # fmt: skip
            if self.what.shard:
                self._build(membership.tokens.group if layout.sequence > 1 else None)
            assert self.pipeline is not None
            parallelize(self.pipeline, membership)
        else:
            if self.pipeline is None:
                self._build(None)
            assert self.pipeline is not None
            localize(self.pipeline, self._kernel)

    def leave(self) -> None:
        """Leaves the gang; weights stay, but for a share of a sharded transformer."""
        if dist.is_initialized():
            xdit.leave()
        self._split_vae = None
        if self.what.shard:
            self.pipeline = None
        self.layout, self.rank = Layout(), 0

    def _build(self, group: dist.ProcessGroup | None) -> None:
        if self.what.shard:
            print(f"reading the weights of rank {self.rank}'s share ({self.layout})", flush=True)
        self.pipeline = None  # before the new one takes its memory
        dtype, weights = getattr(torch, self.what.dtype), self.what.weights
        keep = self.what.keep_projections
        if keep is None:
            keep = _has_room(self.device, weights)
        sharder = None if group is None else partial(shard, group=group, keep_projections=keep)
        self.pipeline = LynxPipeline.from_files(
            weights, self.what.face, dtype=dtype, device=self.device, shard=sharder, keep_projections=keep
        )
        self.pipeline.encoded_prompts = self._prompts
        self._take_vae(self.pipeline.vae)

    def _take_vae(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        if self.what.tiled_decode:
            vae.enable_tiling()

    def prepare(self, shot: Shot, key: str, output: Path) -> None:
        """Rank 0: reads the subject, or finds it in the cache, and draws the noise. No peer waits: it may fail freely.

        Args:
            key: of ``identity.subject_key``.
            output: the campaign's output folder; what the model sees of the face is shown there.

        Raises:
            SubjectError: picture, landmarks or embedding cannot be used.
        """
        assert self.pipeline is not None
        self._warnings = []
        person, latents = self._person(shot, key, output)
        self._inputs = self.pipeline.prepare(shot.text, shot.sampling, person, latents)
        self._stepped, self._progress = time.monotonic(), Progress(0, shot.sampling.num_inference_steps, 0.0)
        save_crops(faces(output, shot.subject.id), person)

    def _person(self, shot: Shot, key: str, output: Path) -> tuple[Person, torch.Tensor | None]:
        """The subject's person and reference latents, the latter None for lite."""
        assert self.pipeline is not None
        subject = shot.subject
        arrays = self._subjects.get(key)
        self._from_cache = arrays is not None
        if arrays is not None:
            self._subjects.refer(key, subject=subject.id, output=output)
            latents = arrays.pop("reference_latents", None)
            person = Person(**arrays)  # type: ignore[arg-type]
            return person, None if latents is None else torch.from_numpy(latents)
        person = self.pipeline.identify(
            shot.sampling, image=subject.image, landmarks=subject.landmarks, embedding=subject.embedding,
            face=subject.face,  # type: ignore[arg-type]
        )  # fmt: skip
        if person.warning:
            self._warnings.append(f"{subject.id}: {person.warning}")
        encoded = None if person.ref_crop is None else self.pipeline.reference_latents(shot.sampling, person).cpu()
        made = {
            "embedding": person.embedding,
            "landmarks": person.landmarks,
            "id_crop": person.id_crop,
            "ref_crop": person.ref_crop,
            "reference_latents": None if encoded is None else encoded.numpy(),
        }
        if person.warning is None:  # a guess is made, and told, anew in every run
            found = {name: array for name, array in made.items() if array is not None}
            self._subjects.put(key, found, subject=subject.id, output=output)
        return person, encoded

    def render(
        self, shot: Shot, digest: str, partial: Path, video: Video, parts: dict[str, Path], log: Path
    ) -> Rendered | None:
        """Every rank of the gang at once: denoises a prepared shot; rank 0 decodes, encodes and writes.

        Args:
            digest: the shot's latents digest.
            partial: file of the shot's partial state; where there is one, rendering goes on from it.
            parts: where rank 0 writes ``video`` and, if wanted, ``latents``.
            log: this rank's log file.

        Raises:
            Stopped: on rank 0, once ``stop`` was called and the partial state is saved; its peers are left waiting.

        Returns:
            On rank 0 what was made; None on the others.
        """
        assert self.pipeline is not None
        with _output_to(log):
            self.pipeline.counts.clear()
            began = time.perf_counter()
            inputs, self._inputs = self._inputs, None
            state = load_partial(partial, digest, self.device) if self.rank == 0 else None
            if self.layout.size > 1:
                inputs = broadcast(inputs, ShotInputs, device=self.device)
                state = broadcast(state, Partial, device=self.device)
            assert inputs is not None
            assert state is not None
            self._partial = (partial, digest) if self.rank == 0 else None
            self._stepped = self._saved = time.monotonic()
            self._progress = Progress(state.steps_done, shot.sampling.num_inference_steps, 0.0)
            if state.steps_done:
                print(f"going on after step {state.steps_done}", flush=True)
            latents = self.pipeline.denoise(inputs, shot.sampling, self._on_step, state)
            seconds = {"denoise": time.perf_counter() - began}
            began = time.perf_counter()
            frames, how = self._decode(latents)
            seconds["decode"] = time.perf_counter() - began
            if self.rank != 0:
                return None
            made = self._write(frames, latents, shot, video, parts, seconds, how)
            conditioning = {**self.pipeline.counts, "subject kept" if self._from_cache else "subject": 1}
            return replace(made, conditioning=conditioning, warnings=tuple(self._warnings))

    def encode(self, shot: Shot, video: Video, latents: Path, parts: dict[str, Path], log: Path) -> Rendered:
        """Rank 0: makes the video again from saved latents."""
        with _output_to(log):
            saved = load_file(latents)["latents"]
            how = {"decode": "tiled"} if self.what.tiled_decode else {}
            return self._write(to_frames(decode(self.vae, saved)), saved, shot, video, parts, {}, how)

    def _decode(self, latents: torch.Tensor) -> tuple[np.ndarray | None, dict[str, str]]:
        """Frames, on rank 0 at least, and what they owe to the way they were decoded."""
        if self.what.tiled_decode or not can_split(latents.shape[3], self.layout.size):
            how = {"decode": "tiled"} if self.what.tiled_decode else {}
            return (to_frames(decode(self.vae, latents)) if self.rank == 0 else None), how
        if self._split_vae is None:
            self._split_vae = split_decoder(self.vae)
        frames = to_frames(decode(self._split_vae, latents))
        return frames, {"decode": f"rows over {self.layout.size} ranks"}

    def _write(
        self,
        frames: np.ndarray | None,
        latents: torch.Tensor,
        shot: Shot,
        video: Video,
        parts: dict[str, Path],
        seconds: dict[str, float],
        how: dict[str, str],
    ) -> Rendered:
        assert frames is not None
        try:
            if "latents" in parts:
                save_file({"latents": latents.float().cpu().contiguous()}, parts["latents"])
            began = time.perf_counter()
            encode_video(frames, parts["video"], fps=shot.sampling.fps, codec=video.codec, crf=video.crf)
            seconds["encode"] = time.perf_counter() - began
        except OSError as error:
            raise RenderError(f"{error.filename or parts['video']}: {error.strerror or error}") from None
        return Rendered(
            {kind: {"size": path.stat().st_size, "sha256": sha256_file(path)} for kind, path in parts.items()},
            {stage: round(value, 3) for stage, value in seconds.items()},
            how,
        )

    def _on_step(self, step: Step) -> None:
        self._stepped = time.monotonic()
        self._progress = Progress(step.index + 1, step.total, 0.0)
        print(f"{time.strftime('%H:%M:%S')} step {step.index + 1}/{step.total}", flush=True)
        if self._partial is None:
            return
        due = self._stepped - self._saved >= max(PARTIAL_EVERY_S, self._save_seconds / PARTIAL_SHARE)
        if self._stop or (due and step.index + 1 < step.total):
            path, digest = self._partial
            save_partial(path, step.state(), digest)
            self._saved = time.monotonic()
            self._save_seconds = self._saved - self._stepped
        if self._stop:
            raise Stopped(f"put aside after step {step.index + 1} of {step.total}")


def _has_room(device: torch.device, weights: WeightFiles) -> bool:
    """Whether idle projections may stay on the device: where all weights fill no more than half of it.

    On the CPU they are left in the file: mapped again, they cost next to nothing (benchmarks/conditioning.py).
    """
    if device.type != "cuda":
        return False
    files = [*(weights.base / "transformer").glob("*.safetensors"), weights.id, *([weights.ref] if weights.ref else [])]
    return 2 * sum(path.stat().st_size for path in files) <= torch.cuda.get_device_properties(device).total_memory


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
