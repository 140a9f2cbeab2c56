"""The whole 14B on fake ``cuda`` tensors: devices, types, hidden synchronisation, layouts of attention, peak of memory.

No GPU and no weights are needed. Values are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from benchmarks.shapes import WAN_14B, model_shapes
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.guidance import BranchName
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import predict, static_kv_bytes
from lynx_parallel.model.attention import LocalTokens
from lynx_parallel.model.block import KV, BlockConditioning
from lynx_parallel.model.checkpoints import build_transformer, loaded_dtype
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.stages.denoise import Phase, Step, denoise
from tests.helpers.fake_cuda import Strict, fake_cuda, fake_weights
from tests.helpers.live import LiveBytes

SHAPES = model_shapes(WAN_14B)
HEADS, HEAD_DIM, BLOCKS = WAN_14B["num_attention_heads"], WAN_14B["attention_head_dim"], WAN_14B["num_layers"]
P480 = VideoSize(832, 480, 81)


def spy(q_BLHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, need_lse: bool) -> tuple[torch.Tensor, None]:
    """A kernel that demands what FlashAttention and cuDNN demand: bf16, channels in a row, heads packed beside them."""
    for name, tensor in (("q", q_BLHD), ("k", k_BSHD), ("v", v_BSHD)):
        assert tensor.dtype == torch.bfloat16, f"{name} is {tensor.dtype}"
        assert tensor.shape[2:] == (HEADS, HEAD_DIM)
        assert tensor.stride()[2:] == (HEAD_DIM, 1), f"{name} has strides {tensor.stride()}"
        assert tensor.stride(1) % 8 == 0, f"{name} has strides {tensor.stride()}"  # rows start at 16 bytes
    assert not need_lse
    return torch.empty(q_BLHD.shape, dtype=q_BLHD.dtype, device=q_BLHD.device), None


class Made(NamedTuple):
    """What one run of all parts gave."""

    velocity: torch.Tensor
    features: list[torch.Tensor]
    branch: list[BlockConditioning]
    calls: int
    held: int
    forward_peak: int
    reference_peak: int


def built(config: dict[str, Any]) -> LynxTransformer:
    shapes = model_shapes(config)
    return build_transformer(config, {key: shape for key, shape in shapes.items() if "_adapter." in key})


def run(transformer: LynxTransformer, kernel: Callable[..., Any] = spy) -> Made:
    """Text, identity, reference pass and one forward at 480p with all three; within ``fake_cuda``."""
    dtypes = {name: loaded_dtype(name, torch.bfloat16) for name, _ in transformer.named_parameters()}
    fake_weights(transformer, dtypes)
    transformer.tokens = LocalTokens(kernel)
    given: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    embeds, id_tokens = torch.empty(1, 512, 4096, **given), torch.empty(1, 16, 5120, **given)
    crop, latents = torch.empty(1, 16, 1, 32, 32, **given), torch.empty(1, 16, 21, 60, 104, **given)
    timestep = torch.empty(1, device="cuda")
    weights = [*transformer.parameters(), *transformer.buffers()]
    with Strict() as strict:
        text = transformer.text_kv(embeds)
        identity = transformer.identity_kv(id_tokens)
        with LiveBytes([*weights, crop, *tensors(text)]) as live:
            features = transformer.reference_features(crop, text)
        reference_peak = live.peak
        reference = transformer.reference_kv(features)
        branch = [BlockConditioning(*kv) for kv in zip(text, identity, reference, strict=True)]
        static = tensors([*text, *identity, *reference])
        with LiveBytes([*weights, latents, timestep, *static]) as live:
            velocity = transformer(latents, timestep, branch)
    held = sum(tensor.numel() * tensor.element_size() for tensor in static)
    return Made(velocity, features, branch, strict.calls, held, live.peak, reference_peak)


def tensors(pairs: list[KV | None] | list[KV]) -> list[torch.Tensor]:
    return [tensor for pair in pairs if pair is not None for tensor in pair]


@pytest.fixture(scope="module")
def made() -> Made:
    transformer = built(WAN_14B)
    with fake_cuda():
        return run(transformer)


def test_the_whole_14b_runs_on_cuda_without_mixing_or_waiting(made: Made) -> None:
    """``Strict`` and ``spy`` raise otherwise."""
    assert made.calls > 100 * BLOCKS
    assert made.velocity.shape == (1, 16, 21, 60, 104)
    assert (made.velocity.dtype, made.velocity.device.type) == (torch.bfloat16, "cuda")
    assert [tuple(feature.shape) for feature in made.features] == [(1, 256, 5120)] * BLOCKS
    assert all(entry.identity is not None and entry.reference is not None for entry in made.branch)


def test_the_peak_is_the_predicted_one(made: Made) -> None:
    predicted = predict(SHAPES, Layout(), dtype="bfloat16", sharded=False, size=P480, heads=HEADS)
    assert made.forward_peak == pytest.approx(predicted.activations, rel=0.1)
    assert made.held == static_kv_bytes(SHAPES, "c", 2)
    assert made.reference_peak < predicted.activations / 10


def test_a_first_frame_on_cuda() -> None:
    """Wan2.1 I2V: 36 channels and the image's keys, in bf16, without mixing types or devices."""
    transformer = built({**WAN_14B, "num_layers": 2, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120})
    given: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    with fake_cuda():
        dtypes = {name: loaded_dtype(name, torch.bfloat16) for name, _ in transformer.named_parameters()}
        fake_weights(transformer, dtypes)
        transformer.tokens = LocalTokens(spy)
        embeds, image = torch.empty(1, 512, 4096, **given), torch.empty(1, 257, 1280, **given)
        crop, latents = torch.empty(1, 16, 1, 32, 32, **given), torch.empty(1, 36, 21, 60, 104, **given)
        with Strict():
            text, images = transformer.text_kv(embeds), transformer.image_kv(image)
            features = transformer.reference_features(crop, text)
            branch = [BlockConditioning(t, image=i) for t, i in zip(text, images, strict=True)]
            velocity = transformer(latents, torch.empty(1, device="cuda"), branch)
    assert [tuple(kv.k_BSHD.shape) for kv in images] == [(1, 257, HEADS, HEAD_DIM)] * 2
    assert (velocity.dtype, velocity.device.type, velocity.shape) == (torch.bfloat16, "cuda", (1, 16, 21, 60, 104))
    assert [tuple(feature.shape) for feature in features] == [(1, 256, 5120)] * 2


class OneNumber:
    """A scheduler without work of its own: diffusers' UniPC waits for the device by itself, a few times a step."""

    def __init__(self) -> None:
        self.timesteps = torch.empty(4, dtype=torch.int64, device="cuda")
        self.init_noise_sigma = 1.0

    def step(self, velocity: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, **_: Any) -> Any:
        return (latents + velocity * timestep,)


class OneLayer(nn.Module):
    dtype = torch.bfloat16

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, branch: Any) -> torch.Tensor:
        return latents * timestep.view(-1, 1, 1, 1, 1).to(latents.dtype)


def test_the_loop_itself_never_waits() -> None:
    weights: dict[BranchName, float] = {"c": 5.0, "i": -3.0, "u": -1.0}
    phase = Phase(weights, {name: [] for name in weights}, OneLayer())  # type: ignore[arg-type]
    with fake_cuda():
        noise, scheduler = torch.empty(1, 16, 21, 60, 104, device="cuda"), OneNumber()
        seen: list[Step] = []
        with Strict() as strict:
            latents = denoise(scheduler, noise, lambda step: phase, seen.append)  # type: ignore[arg-type]
    assert (latents.shape, latents.dtype, latents.device.type) == (noise.shape, torch.float32, "cuda")
    assert len(seen) == 4
    assert strict.calls > 4 * 3


# What the run would raise: each of these faults was a way in which CUDA code has gone wrong somewhere.


def spoiled(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
        return spy(change(q), k, v, need_lse)

    return kernel


FAULTS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "to the CPU": (lambda q: q.cpu(), "makes a tensor on cpu"),
    "a value read": (lambda q: q * q.sum().item(), "_local_scalar_dense makes the host wait"),
    "a branch on a value": (lambda q: q[: bool(q.any())], "makes the host wait"),
    "nonzero": (lambda q: torch.ops.aten.nonzero.default(q), "nonzero makes the host wait"),
    "made on the CPU": (lambda q: q + torch.empty(HEAD_DIM), "empty makes a tensor on cpu"),
    "fp32 into attention": (lambda q: q.float(), "q is torch.float32"),
    "fp32 times bf16": (lambda q: q.float() @ q.transpose(-1, -2), "mixes torch.bfloat16, torch.float32"),
    "heads apart": (lambda q: q.transpose(1, 2).contiguous().transpose(1, 2), "q has strides"),
    "channels apart": (lambda q: q.transpose(2, 3).contiguous().transpose(2, 3), "q has strides"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    change, message = FAULTS[fault]
    transformer = built({**WAN_14B, "num_layers": 1})
    with fake_cuda(), pytest.raises(AssertionError, match=message):
        run(transformer, spoiled(change))


def test_a_tensor_of_the_cpu_is_seen_but_a_number_may_stay_there() -> None:
    with fake_cuda():
        row, number, there = torch.empty(3), torch.empty(()), torch.empty(3, device="cuda")
        with Strict():
            there * number
            with pytest.raises(AssertionError, match="mul reads a tensor on cpu"):
                there * row
