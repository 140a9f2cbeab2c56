"""Self-checks of a rank, in seconds: memory, attention, decoding, the output folder, and its gang's groups.

A failing check is a result, not an exception. Nothing here needs the weights.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch.nn.attention import SDPBackend, sdpa_kernel

from lynx_parallel.errors import WithheldError
from lynx_parallel.failures import remedy_for
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.inputs.site import Safety
from lynx_parallel.model.attention import Attention, Kernel
from lynx_parallel.output.atomic import try_publishing
from lynx_parallel.rank.messages import Check, RankConfig
from lynx_parallel.stages.safety import SafetyChecker
from lynx_parallel.stages.video import encode_video
from lynx_parallel.subject.recognition import load_recognition
from lynx_parallel.text import first_line

ALLOCATION_BYTES = {"cuda": 256 * 2**20, "cpu": 4 * 2**20}
FILE_BYTES = 2**20
HEADS, HEAD_DIM, QUERIES, KEYS = 4, 128, 197, 331
"""Sizes of the attention check. The head size is Wan's. 128 divides neither length: some cuDNN versions fail there."""

ATTENTION_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest error relative to the largest value. About five roundings of the 16-bit types; fp32 in TF32 (1e-3) fails."""
DECODE_TOLERANCE = 2e-2
"""Largest error relative to the largest value. Allows convolutions in TF32, cuDNN's default; bf16 (6e-2) fails."""
COLLECTIVE_TIMEOUT = timedelta(seconds=60)

EXCHANGING = ("ulysses", "ring")
"""Axes on which an all-to-all is checked too."""


class _Wrong(Exception):
    """A check found a wrong result. Holds the remedy."""

    def __init__(self, what: str, remedy: str):
        super().__init__(what)
        self.remedy = remedy


def check_all(config: RankConfig, device: torch.device, kernel: Callable[[], Kernel], output: Path) -> list[Check]:
    """Returns the checks of a rank and of the encoder, with the settings of the run.

    Args:
        kernel: returns the attention kernel.
        output: output folder.
    """
    try:
        name, attention, _ = kernel()
    except Exception as error:
        remedy = remedy_for(f"{type(error).__name__}: {error}", host=socket.gethostname())
        return [Check("attention", False, 0.0, first_line(error), remedy)]
    checks = check_rank(device, getattr(torch, config.dtype), name, attention, output)
    checks += [check_encoder(config.video, *size, output / ".lynx") for size in config.formats]
    for recognizer in config.recognizers:
        checks.append(_run("recognizer", torch.device("cpu"), partial(_recognize, recognizer)))
    if config.safety is not None:
        checks.append(_run("safety", torch.device("cpu"), partial(_check_safety, config.safety)))
    return checks


def _recognize(recognizer: Recognizer) -> str:
    """Loads the recogniser that scores videos, and looks for faces in a grey picture."""
    recognition = load_recognition(recognizer)
    recognition.faces(np.full((64, 64, 3), 128, np.uint8))
    return recognition.model


def _check_safety(safety: Safety) -> str:
    """Loads the safety checker and runs it on a grey picture. Whether it withholds that does not matter."""
    with contextlib.suppress(WithheldError):
        SafetyChecker(safety).check(np.full((1, 64, 64, 3), 128, np.uint8))
    return str(safety.folder)


def check_rank(
    device: torch.device, dtype: torch.dtype, kernel_name: str, kernel: Attention, output: Path, need_lse: bool = False
) -> list[Check]:
    """Checks what a rank needs by itself; never raises.

    Args:
        dtype: of the transformer's weights.
        kernel_name, kernel: of ``model.attention.choose_kernel``.
        output: the output folder; a small file is written to its ``.lynx`` and deleted.
        need_lse: whether the kernel's log-sum-exp is checked too; a ring needs it.
    """
    return [
        _run("memory", device, lambda: _allocate(device)),
        check_attention(device, dtype, kernel_name, kernel, need_lse),
        _run("decode", device, lambda: _decode(device)),
        _run("output", torch.device("cpu"), lambda: _write(output / ".lynx")),
    ]


def check_encoder(video: Video, width: int, height: int, fps: float, folder: Path) -> Check:
    """Encodes three frames as the end of a shot does; never raises.

    Args:
        video, width, height, fps: of the run's videos.
        folder: where a small file is written and deleted; the machine's own temporary folder may be read-only.
    """
    return _run("ffmpeg", torch.device("cpu"), lambda: _encode(video, width, height, fps, folder))


def check_attention(
    device: torch.device, dtype: torch.dtype, kernel_name: str, kernel: Attention, need_lse: bool = False
) -> Check:
    """Compares one small attention with fp32 math on the CPU; never raises. Arguments as in ``check_rank``."""
    return _run("attention", device, lambda: _attend(device, dtype, kernel_name, kernel, need_lse))


def check_group(
    device: torch.device,
    groups: Mapping[str, dist.ProcessGroup | None],
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> list[Check]:
    """Runs collectives of known values on each axis of a gang. Every rank of the gang must call it. Never raises.

    After a collective that raised, the remaining axes are not tried: each would wait for the timeout.

    Args:
        groups: by axis (``sequence``, ``ulysses``, ``ring``, ``guidance``), in the same order on every rank; None and
            groups of one rank are skipped.
        timeout: of each collective. NCCL's first call also connects the ranks, under the group's own timeout.
    """
    checks: list[Check] = []
    for axis, group in groups.items():
        if group is None or dist.get_world_size(group) == 1:
            continue
        communicate = _Communication(device, axis, group, timeout)
        checks.append(_run(f"{axis} group", device, communicate))
        if communicate.broken:
            break
    return checks


def _run(name: str, device: torch.device, check: Callable[[], str]) -> Check:
    began = time.perf_counter()
    try:
        with torch.no_grad():
            detail = check()
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # a kernel's fault shows here, and not in the next check
                torch.cuda.empty_cache()
    except _Wrong as wrong:
        return Check(name, False, time.perf_counter() - began, str(wrong), wrong.remedy)
    except Exception as error:
        text = f"{type(error).__name__}: {first_line(error)}"
        remedy = remedy_for(f"{type(error).__name__}: {error}", host=socket.gethostname(), free=_free(device))
        return Check(name, False, time.perf_counter() - began, text, remedy)
    return Check(name, True, time.perf_counter() - began, detail)


def _free(device: torch.device) -> str:
    try:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            memory = psutil.virtual_memory()
            free, total = memory.available, memory.total
    except Exception:  # this text is part of an error message and must not fail itself
        return "memory free: unknown"
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _allocate(device: torch.device) -> str:
    size = ALLOCATION_BYTES[device.type]
    block = torch.ones(size // 4, dtype=torch.float32, device=device)
    if (total := block.sum(dtype=torch.float64).item()) != size // 4:
        raise _Wrong(f"{size // 4} ones add up to {total:g}", "The memory is faulty. Leave this device out.")
    return f"{size // 2**20} MiB allocated; {_free(device)}"


def _attend(device: torch.device, dtype: torch.dtype, name: str, kernel: Attention, need_lse: bool) -> str:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, length, HEADS, HEAD_DIM, generator=generator).to(dtype) for length in (QUERIES, KEYS, KEYS)
    )
    out, lse = kernel(q.to(device), k.to(device), v.to(device), need_lse)
    # The expected values come from the CPU, so that a device that computes wrongly cannot agree with itself.
    query, key, value = (t.float().transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    remedy = f"Kernel {name} computes wrongly here. Reinstall it, or choose another one with --attention."
    tolerance = ATTENTION_TOLERANCE[dtype]
    error = _difference("attention", out, expected, tolerance, remedy)
    if need_lse:
        if lse is None:
            raise _Wrong(f"kernel {name} returns no log-sum-exp", remedy)
        exact = (query @ key.transpose(-1, -2) * HEAD_DIM**-0.5).logsumexp(-1)
        _difference("log-sum-exp", lse, exact, tolerance, remedy)
    return f"kernel {name} in {str(dtype).removeprefix('torch.')}: error {error:.0e}, allowed {tolerance:.0e}"


def _decode(device: torch.device) -> str:
    """Decodes a small latent with a small VAE of random weights: Wan's own takes long to load.

    On the CPU, with which other devices are compared, it only runs, on fewer pixels.
    """
    height, width = (3, 5) if device.type == "cpu" else (6, 10)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA too
        vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()
        latents = torch.randn(1, 16, 2, height, width)  # five frames of 80 × 48, or of 40 × 24
    expected = vae.decode(latents, return_dict=False)[0]
    if device == expected.device:
        return f"{expected.shape[2]} frames"
    video = vae.to(device).decode(latents.to(device), return_dict=False)[0]
    remedy = "Convolutions compute wrongly here. Reinstall torch with its own NVIDIA packages (cuDNN)."
    error = _difference("decoding", video, expected, DECODE_TOLERANCE, remedy)
    return f"{expected.shape[2]} frames: error {error:.0e}, allowed {DECODE_TOLERANCE:.0e}"


def _encode(video: Video, width: int, height: int, fps: float, folder: Path) -> str:
    frames = np.zeros((3, height, width, 3), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"probe-{uuid.uuid4().hex}.mp4"  # a later run removes such a file if this process is killed
    try:
        encode_video(frames, path, fps=fps, codec=video.codec, crf=video.crf, lossless=video.lossless)
        return f"{video.codec}, {width}x{height}: {path.stat().st_size} bytes"
    finally:
        path.unlink(missing_ok=True)


def _difference(what: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float, remedy: str) -> float:
    """Returns the largest error relative to the largest expected value, on the CPU in fp32."""
    found = found.float().cpu()
    if found.shape != expected.shape:
        raise _Wrong(f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}", remedy)
    if not found.isfinite().all():
        raise _Wrong(f"{what} has values that are not finite", remedy)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if error > tolerance:
        raise _Wrong(f"{what} differs from the CPU's fp32 result by {error:.0e}, allowed {tolerance:.0e}", remedy)
    return error


def _write(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    try_publishing(folder, os.urandom(FILE_BYTES))
    return f"{FILE_BYTES // 2**20} MiB written, renamed, read and deleted in {folder}"


class _Communication:
    """The collectives of one axis. ``broken`` is True until all have returned: other ranks may wait in one."""

    def __init__(self, device: torch.device, axis: str, group: dist.ProcessGroup, timeout: timedelta):
        self.device, self.axis, self.group, self.timeout = device, axis, group, timeout
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.broken = True

    def __call__(self) -> str:
        everyone = torch.arange(1.0, self.size + 1)
        mine = torch.full((1,), self.rank + 1.0, device=self.device)
        total = mine.clone()
        self._wait(dist.all_reduce(total, group=self.group, async_op=True))
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        self._wait(dist.all_gather(gathered, mine, group=self.group, async_op=True))
        found = {"all_reduce": (total, everyone.sum(0, True)), "all_gather": (torch.cat(gathered), everyone)}
        if self.axis in EXCHANGING:
            received = torch.empty(self.size, device=self.device)
            sent = mine.repeat(self.size)
            self._wait(dist.all_to_all_single(received, sent, group=self.group, async_op=True))
            found["all_to_all"] = (received, everyone)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.broken = False
        for name, (value, expected) in found.items():
            if not torch.equal(value.cpu(), expected):
                raise _Wrong(
                    f"{name} over {self.size} ranks gave {value.tolist()}, expected {expected.tolist()}",
                    "The link between these ranks changes data. NCCL_P2P_DISABLE=1 avoids direct GPU links.",
                )
        return f"{', '.join(found)} over {self.size} ranks"

    def _wait(self, work: dist.Work) -> None:
        work.wait(self.timeout)
