"""The parts of ``benchmarks.gpu``, each a function that measures one thing and returns what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.flops import forward_flops
from benchmarks.gpu_files import STEPS, NoRoom, write_manifest, write_pipeline
from benchmarks.gpu_model import (
    KERNELS,
    Sizes,
    attention_kernel,
    median,
    peak_of,
    predicted_bytes,
    random_branch,
    random_transformer,
    random_vae,
    reset_peak,
    seconds_of,
    synchronize,
)
from benchmarks.gpu_prepare import time_preparation
from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.attention import LocalTokens
from lynx_parallel.model.checkpoints import load_transformer
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.plan.weights import find_weights
from lynx_parallel.stages.latents import decode, latent_shape


class LeftOut(Exception):
    """A part is not measured. The message gives the reason."""


class Bench:
    """One run: what it measures with, and what it found.

    Args:
        folder: for weights files, manifest and renders.
        real: name of the shipped pipeline whose published weights are used.
    """

    def __init__(self, sizes: Sizes, device: torch.device, budget: float, folder: Path, real: str | None = None):
        self.sizes, self.device, self.folder, self.real = sizes, device, folder, real
        self.end = time.monotonic() + budget
        self.part_end = self.end
        self.found: dict[str, Any] = {}
        self._transformer: LynxTransformer | None = None
        self._weights: WeightFiles | None = None
        self._no_room: NoRoom | None = None
        self._pipeline = real

    def weights(self) -> WeightFiles:
        """Returns the weights files. Writes random ones at the first call.

        Raises:
            NoRoom: no disk or no time for them.
            CheckpointError: the published weights are not installed.
        """
        if self._no_room is not None:
            raise self._no_room
        if self._weights is None:
            self.release()
            if self._pipeline is None:
                try:
                    self._pipeline = str(write_pipeline(self.folder, self.sizes, self.device, self.part_end))
                except NoRoom as reason:
                    self._no_room = reason  # tried only once, because writing takes long
                    raise
            from lynx_parallel.inputs.load import load_campaign

            self._weights = find_weights(load_campaign(self.manifest()).pipeline.model)
        return self._weights

    def manifest(self) -> Path:
        """Writes a campaign of one shot with these weights. Returns the manifest."""
        assert self._pipeline is not None
        return write_manifest(self.folder, self._pipeline, self.sizes.videos["480p"])

    def transformer(self) -> LynxTransformer:
        """Returns the transformer on the device. Makes or loads it at the first call."""
        if self._transformer is None:
            if self.real:
                self._transformer = load_transformer(self.weights(), dtype=torch.bfloat16, device=self.device)
            else:
                self._transformer = random_transformer(self.sizes.transformer, self.device)
        return self._transformer

    def release(self) -> None:
        """Frees the transformer's memory."""
        self._transformer = None
        reset_peak(self.device)


def matmul(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measures TFLOP/s of large bf16 matrix products."""
    found = {}
    for rows, inputs, outputs in bench.sizes.gemms:
        a = torch.randn(rows, inputs, device=bench.device, dtype=torch.bfloat16)
        b = torch.randn(outputs, inputs, device=bench.device, dtype=torch.bfloat16)
        product = partial(torch.nn.functional.linear, a, b)
        seconds = seconds_of(product, bench.device, repeats=20 * repeats, warm_up=10, until=bench.part_end)
        rate = 2 * rows * inputs * outputs / median(seconds) / 1e12
        found[f"{rows}×{inputs}×{outputs}"] = {"seconds": median(seconds), "repeats": len(seconds), "tflop_per_s": rate}
    return found


def forwards(bench: Bench, repeats: int, video: str) -> dict[str, Any]:
    """Measures one forward of one branch by attention kernel, first the kernel that ``auto`` takes."""
    config, device = bench.sizes.transformer, bench.device
    auto, _ = attention_kernel("auto", device, torch.bfloat16)
    names = sorted(KERNELS, key=lambda name: name != auto)
    transformer, forward = forward_of(bench, video)
    tokens = VideoSize(*bench.sizes.videos[video]).tokens
    flop = sum(forward_flops(config, tokens).values())
    found: dict[str, Any] = {
        "tokens": tokens, "tflop": flop / 1e12, "auto": auto, "kernels": {},
        "predicted_bytes": predicted_bytes(config, bench.sizes.videos[video]),
    }  # fmt: skip
    for number, name in enumerate(names):
        try:
            _, kernel = attention_kernel(name, device, torch.bfloat16)  # type: ignore[arg-type]
        except ClusterError as error:
            found["kernels"][name] = {"missing": str(error)}
            continue
        transformer.tokens = LocalTokens(kernel)
        until = time.monotonic() + (bench.part_end - time.monotonic()) / (len(names) - number)
        try:
            made = time_forward(forward, device, repeats, until)
        except Exception as error:  # one kernel that fails must not cost the others
            found["kernels"][name] = {"failed": in_one_line(error)}
            continue
        found["kernels"][name] = {**made, "tflop_per_s": flop / made["median"] / 1e12}
    return found


def forward_of(bench: Bench, video: str) -> tuple[LynxTransformer, Callable[[], torch.Tensor]]:
    """Returns the transformer, and its forward of one branch on random inputs."""
    transformer, branch = bench.transformer(), random_branch(bench.sizes.transformer, bench.device)
    latents = torch.randn(latent_shape(*bench.sizes.videos[video]), device=bench.device, dtype=torch.bfloat16)
    return transformer, partial(transformer, latents, torch.tensor([500.0], device=bench.device), branch)


def time_forward(
    forward: Callable[[], torch.Tensor], device: torch.device, repeats: int, until: float
) -> dict[str, Any]:
    """Returns seconds of a forward, its peak of allocated memory, and whether its last result is finite."""
    last: list[torch.Tensor] = []

    def work() -> None:
        last[:] = [forward()]

    reset_peak(device)
    seconds = seconds_of(work, device, repeats=repeats, until=until)
    return {
        "seconds": seconds, "median": median(seconds), "peak_bytes": peak_of(device),
        "finite": bool(last[0].isfinite().all()),
    }  # fmt: skip


def compiled(bench: Bench, repeats: int, video: str) -> dict[str, Any]:
    """Measures a forward with and without ``torch.compile`` of each block, and how far the two results differ.

    The renderer compiles nothing. On the CPU the blocks are traced but not compiled, because that takes long.
    """
    device = bench.device
    name, kernel = attention_kernel("auto", device, torch.bfloat16)
    transformer, forward = forward_of(bench, video)
    transformer.tokens = LocalTokens(kernel)
    found: dict[str, Any] = {"attention": name, "eager": time_forward(forward, device, repeats, bench.part_end)}
    with torch.no_grad():
        expected = forward().float()
        for block in transformer.blocks:
            block.compile(backend="inductor" if device.type == "cuda" else "aot_eager")
        began = time.perf_counter()
        made = forward().float()
        synchronize(device)
        found["first"] = time.perf_counter() - began
    found["difference"] = ((made - expected).norm() / expected.norm()).item()
    found["compiled"] = time_forward(forward, device, repeats, bench.part_end)
    bench.release()  # the next part gets blocks that are not compiled
    return found


def decodes(bench: Bench, repeats: int, video: str) -> dict[str, Any]:
    """Measures decoding on one rank, with convolutions in tf32 and in fp32."""
    bench.release()
    vae = random_vae(bench.sizes.vae, bench.device)
    latents = torch.randn(latent_shape(*bench.sizes.videos[video]), device=bench.device)
    found: dict[str, Any] = {}
    precisions: dict[str, Literal["tf32", "ieee"]] = {"tf32": "tf32", "fp32": "ieee"}
    for number, (name, precision) in enumerate(precisions.items()):
        reset_peak(bench.device)
        share = (bench.part_end - time.monotonic()) / (len(precisions) - number)
        work = partial(decode, vae, latents, precision=precision)
        seconds = seconds_of(work, bench.device, repeats=repeats, until=time.monotonic() + share)
        found[name] = {"seconds": seconds, "median": median(seconds), "peak_bytes": peak_of(bench.device)}
    return found


def prepare(bench: Bench, repeats: int, *, files: bool) -> dict[str, Any]:
    """Measures loading, and the fixed seconds of a new prompt and of a new subject.

    Without files, uses random weights with the projections kept and measures no loading.
    """
    try:
        if not files and not bench.real:
            raise NoRoom("--no-files")
        weights = bench.weights()
    except NoRoom as reason:
        found = time_preparation(bench.sizes, bench.device, {"kept": bench.transformer}, repeats)
        return {**found, "left out": f"loading, and projections borrowed from files: {reason}"}
    bench.release()

    def loaded(keep: bool) -> LynxTransformer:
        return load_transformer(weights, dtype=torch.bfloat16, device=bench.device, keep_projections=keep)

    modes = {"kept": partial(loaded, True), "borrowed": partial(loaded, False)}
    return time_preparation(bench.sizes, bench.device, modes, repeats)


def shot(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measures one shot through the command line, once."""
    bench.weights()
    bench.release()
    command = [sys.executable, "-m", "lynx_parallel.cli", str(bench.manifest()), "--device", bench.device.type]
    began = time.perf_counter()
    try:
        run = subprocess.run(
            [*command, "--ulysses", "1"], env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            capture_output=True, text=True, timeout=max(bench.end - time.monotonic(), 1), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LeftOut("the shot did not end within the budget") from None
    seconds = time.perf_counter() - began
    if run.returncode:
        raise RuntimeError(f"lynx-render: exit {run.returncode}: {(run.stdout + run.stderr).strip().splitlines()[-1]}")
    (path,) = (bench.folder / "renders").glob("[!.]*/*.json")
    sidecar = json.loads(path.read_text())
    branches = 3  # of Lynx full
    return {
        "wall": seconds, "steps": STEPS, "attention": sidecar["attention"], "seconds": sidecar["seconds"],
        "forward": sidecar["seconds"]["denoise"] / (STEPS * branches),
    }  # fmt: skip


def in_one_line(error: Exception) -> str:
    """Returns type and message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
