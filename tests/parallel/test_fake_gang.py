"""The code of a gang of GPUs as one of its ranks, without a GPU: every collective, with its bytes and devices.

The transformer has the 14B's width and two blocks, in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.shapes import WAN_14B
from lynx_parallel.inputs.layout import Layout
from tests.helpers.fake_gang import Collective, Collectives, fake_cuda, pretend_gpu, to_fake_cuda
from tests.helpers.processes import run_gang

if TYPE_CHECKING:
    from lynx_parallel.parallel.xdit import Membership

BLOCKS, HEADS, HEAD_DIM = 2, 40, 128
BRANCHES = ["c", "i", "u"]
LAYOUTS = [Layout(1, 1, 8), Layout(1, 2, 4), Layout(3, 1, 2), Layout(1, 8, 1)]
SIZES = {32760: (21, 60, 104), 31059: (21, 58, 102)}
"""Tokens → frames, height and width of the latents. Eight divides 32,760; neither eight nor two divides 31,059."""
INPUTS = [(1, 16, 21, 60, 104), (1, 512, 4096), (1, 512, 4096), (1, 16, 5120), (1, 16, 5120)]
"""Shapes of a shot's inputs without a reference, in fp32."""
STATE = [(1, 16, 21, 60, 104), (1, 16, 21, 60, 104), (2, 1, 16, 21, 60, 104)]
"""Shapes of a state, but for its counters."""
BF16 = 2
"""Bytes of a number."""
CASES = [(layout, tokens) for layout in LAYOUTS for tokens in SIZES]


def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need_lse: bool) -> Any:
    """torch's flash kernel; a fake one accepts anything, so what a real one accepts is checked here."""
    for x in (q, k, v):
        assert x.device.type == "cuda"
        assert x.dtype == torch.bfloat16
        assert x.stride(-1) == 1, "the channels of a head lie apart"
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse = attend(*(x.transpose(1, 2) for x in (q, k, v)))[:2]
    return out.transpose(1, 2), lse if need_lse else None


@contextmanager
def joined(layout: Layout, rank: int) -> Iterator[Membership]:
    """A rank of a gang of GPUs; within it, tensors are fake."""
    from lynx_parallel.parallel import xdit

    store: Any = None  # a fake group needs none
    device = torch.device("cuda")
    member = xdit.join(layout, rank=rank, store=store, device=device, transformer_config=WAN_14B, kernel=kernel)
    with fake_cuda():
        yield member
    xdit.leave()


def denoise_a_step(layout: Layout, tokens: int) -> list[Collective]:
    """What the last rank of this layout sends in one step of three guidance branches."""
    from lynx_parallel.model.block import KV, BlockConditioning
    from lynx_parallel.model.checkpoints import build_transformer

    def kv(count: int) -> KV:
        return KV(*(torch.empty(1, count, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in "kv"))

    with joined(layout, layout.size - 1) as member:
        transformer: Any = to_fake_cuda(build_transformer({**WAN_14B, "num_layers": BLOCKS}, {}), torch.bfloat16)
        transformer.tokens = member.tokens
        branch = [BlockConditioning(kv(512), kv(32), kv(256)) for _ in range(BLOCKS)]
        latents, time = torch.empty(1, 16, *SIZES[tokens], device="cuda"), torch.empty(1, device="cuda")
        with Collectives() as sent:
            made = {n: transformer(latents.bfloat16(), time, branch).float() for n in member.guidance.mine(BRANCHES)}
            made = member.guidance.share(made, BRANCHES, latents)
        assert all(made[name].shape == latents.shape for name in BRANCHES)
        assert all(made[name].device.type == "cuda" for name in BRANCHES)
    return sent.calls


def broadcast_inputs() -> list[Collective]:
    """What rank 0 of eight sends before a shot: its inputs, and the state from which it resumes."""
    from lynx_parallel.parallel.broadcast import broadcast
    from lynx_parallel.pipeline import ShotInputs
    from lynx_parallel.stages.resume_state import ResumeState

    device = torch.device("cuda")
    with joined(Layout(1, 1, 8), 0), Collectives() as sent:
        broadcast(ShotInputs(*(torch.empty(shape, device=device) for shape in INPUTS)), ShotInputs, device=device)
        counters = torch.empty(3, dtype=torch.int64, device=device)
        state = ResumeState(*(torch.empty(shape, device=device) for shape in STATE), counters)  # type: ignore[call-arg]
        broadcast(state, ResumeState, device=device)
    return sent.calls


class EqualRows(TorchFunctionMode):
    """Answers for the other ranks of DistVAE, which asks each how many rows it holds: as many as this one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor and kwargs.get("dtype") is torch.int64:
            (self.rows,) = args[0]
        return self.rows if func is torch.Tensor.item else func(*args, **(kwargs or {}))


def decode_rows() -> list[Collective]:
    """What rank 3 of eight sends to decode a small video with Wan's VAE."""
    from diffusers import AutoencoderKLWan

    from lynx_parallel.parallel.vae import split_decoder
    from lynx_parallel.stages.latents import decode

    # Fake tensors can be neither drawn at random nor moved; both would be undone or do nothing here.
    torch.nn.modules.conv._ConvNd.reset_parameters = lambda self: None
    torch.nn.Module._apply = lambda self, function, recurse=True: self
    with joined(Layout(1, 1, 8), 3):
        with torch.device("meta"):
            vae: Any = AutoencoderKLWan().requires_grad_(False).eval()
        split = split_decoder(to_fake_cuda(vae, torch.float32))
        with EqualRows(), Collectives() as sent:
            video = decode(split, torch.empty(1, 16, 2, 64, 64, device="cuda"))
        assert video.shape == (1, 3, 5, 512, 512)
    return sent.calls


def record(rank: int, store: Any) -> dict[Any, list[Collective]]:
    """All that is sent, by what it is for; in a process of its own, which takes itself for a rank with a GPU."""
    pretend_gpu()
    made: dict[Any, list[Collective]] = {case: denoise_a_step(*case) for case in CASES}
    return made | {"inputs": broadcast_inputs(), "decode": decode_rows()}


@pytest.fixture(scope="module")
def recorded() -> dict[Any, list[Collective]]:
    return run_gang(1, record)[0]


@pytest.mark.parametrize(
    "purpose", [*CASES, "inputs", "decode"], ids=lambda p: p if isinstance(p, str) else f"{p[0]}-{p[1]}"
)
def test_every_collective_gets_contiguous_tensors_on_the_gpu(
    purpose: Any, recorded: dict[Any, list[Collective]]
) -> None:
    assert recorded[purpose]
    for call in recorded[purpose]:
        assert call.devices == {"cuda"}, call
        assert call.contiguous, call


def expected(layout: Layout, tokens: int) -> list[tuple[str, int, int, int]]:
    """Operator, ranks, bytes given, bytes of all tensors of the call; in their order.

    A block, of L = ⌈N / P⌉ tokens and C channels here, in bf16:

    - Ulysses, all to all: queries, keys and values before attention and the output after it, L·C each.
    - Ring, gathered once: the keys and values that Ulysses has made, together 2·L·C; all other steps read the result.

    A forward: the L tokens of the velocity, 64 numbers each, from every rank of the sequence group. A step: with G
    guidance ranks, ⌈3 / G⌉ velocities in fp32 from each.
    """
    shard = ceil(tokens / layout.sequence)
    piece = shard * HEADS * HEAD_DIM * BF16
    exchange = ("all_to_all_single", layout.ulysses, piece, piece)
    block = []
    if layout.ulysses > 1:
        block += [exchange] * 3
    if layout.ring > 1:
        block += [("all_gather_into_tensor", layout.ring, 2 * piece, 2 * piece)]
    if layout.ulysses > 1:
        block += [exchange]
    velocity = shard * 64 * BF16
    forward = [*block * BLOCKS, ("allgather_", layout.sequence, velocity, velocity * (layout.sequence + 1))]
    here = len(BRANCHES[layout.guidance - 1 :: layout.guidance])
    step = forward * here
    if layout.guidance > 1:
        latents = ceil(len(BRANCHES) / layout.guidance) * 16 * prod(SIZES[tokens]) * 4
        step += [("allgather_", layout.guidance, latents, latents * (layout.guidance + 1))]
    return step


@pytest.mark.parametrize(("layout", "tokens"), CASES, ids=str)
def test_number_and_bytes_of_a_step(layout: Layout, tokens: int, recorded: dict[Any, list[Collective]]) -> None:
    calls = recorded[layout, tokens]
    assert [(call.name, call.group, call.sent, call.whole) for call in calls] == expected(layout, tokens)


def test_rank_0_broadcasts_each_tensor_once(recorded: dict[Any, list[Collective]]) -> None:
    """Beside them goes a pickled list of shapes, after its own length of 8 bytes."""
    assert {(call.name, call.group) for call in recorded["inputs"]} == {("broadcast_", 8)}
    sent = [call.sent for call in recorded["inputs"]]
    inputs, state = ([4 * prod(shape) for shape in shapes] for shapes in (INPUTS, STATE))
    assert (sent[0], sent[2:7], sent[7], sent[9:]) == (8, inputs, 8, [*state, 3 * 8])
    assert max(sent[1], sent[8]) < 500


def test_a_rank_inside_the_picture_exchanges_as_many_rows_as_it_gives(
    recorded: dict[Any, list[Collective]],
) -> None:
    calls = recorded["decode"]
    assert {call.group for call in calls} == {8}
    given, taken = ([call.whole for call in calls if call.name == name] for name in ("send", "recv_"))
    assert sorted(given) == sorted(taken)
    # The last four frames, in fp32, come last; each rank gives an eighth of them.
    assert calls[-1].sent == 3 * 4 * 512 * 512 * 4 // 8
