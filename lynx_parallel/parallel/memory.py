"""What a rank holds in memory, from shapes alone. Pure; imports neither torch nor Ray.

Weights are exact. Activations are an estimate from the model's forward; a kernel's workspace, the
allocator's rounding and what a process needs before it holds a weight come on top.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from lynx_parallel.parallel.layout import Layout

DType = Literal["float32", "bfloat16", "float16"]
Shapes = Mapping[str, tuple[int, ...]]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_FP32 = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
"""Modules that diffusers keeps in fp32 (``WanTransformer3DModel._keep_in_fp32_modules``)."""
TEXT_TOKENS, ID_TOKENS, REF_TOKENS = 512, 16, 256


@dataclass(frozen=True)
class Prediction:
    """Bytes on the fullest rank of a gang.

    Attributes:
        transformer: the base's parameters that live here.
        adapters: Lynx's ID and reference projections that live here.
        resampler, vae: whole on every rank.
        gathered: with sharding, the weights that are whole while a block runs.
        static_kv: keys and values of text, ID and reference for this rank's branches.
        activations: peak of a forward, estimated.
    """

    transformer: int
    adapters: int
    resampler: int
    vae: int
    gathered: int
    static_kv: int
    activations: int

    @property
    def weights(self) -> int:
        return self.transformer + self.adapters + self.resampler + self.vae

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.static_kv + self.activations


def predict(
    shapes: Shapes,
    layout: Layout,
    *,
    dtype: DType,
    sharded: bool,
    keep_projections: bool = True,
    tokens: int,
    heads: int,
    branches: Sequence[str] = ("c", "i", "u"),
    resampler: Shapes | None = None,
    vae_bytes: int = 0,
    kept_fp32: Collection[str] = KEPT_FP32,
) -> Prediction:
    """What the fullest rank of a gang needs to denoise one shot.

    Args:
        shapes: of the transformer with its adapters, by state-dict key of ``LynxTransformer``.
        dtype: of all weights but those that stay in fp32.
        sharded: whether each rank of a ring × Ulysses group keeps 1/(ring · ulysses) of the transformer and adapters.
        keep_projections: whether the projections behind static keys and values stay; False as in ``load_transformer``.
        tokens: of the whole video.
        heads: attention heads of the model.
        branches: guidance branches with a weight: c, i, u.
        resampler: shapes of the resampler; None where there is none.
        vae_bytes: of the VAE, which is fp32 and small (0.5 GB at 14B).
    """
    width, ranks = DTYPE_BYTES[dtype], layout.sequence if sharded else 1
    ffn_dim, dim = shapes["blocks.0.ffn.net.0.proj.weight"]
    held = {key: shape for key, shape in shapes.items() if keep_projections or not is_projection(key)}
    adapters = {key: shape for key, shape in held.items() if "_adapter." in key}
    base = {key: shape for key, shape in held.items() if key not in adapters}
    return Prediction(
        transformer=parameter_bytes(base, width, kept_fp32=kept_fp32, ranks=ranks),
        adapters=parameter_bytes(adapters, width, kept_fp32=kept_fp32, ranks=ranks),
        resampler=parameter_bytes(resampler or {}, width, kept_fp32=()),
        vae=vae_bytes,
        gathered=_gathered_bytes(held, width, kept_fp32) if ranks > 1 else 0,
        static_kv=max(static_kv_bytes(shapes, branches[n :: layout.guidance], width) for n in range(layout.guidance)),
        activations=activation_bytes(
            tokens, layout, dim=dim, ffn_dim=ffn_dim, head_dim=dim // heads, dtype_bytes=width
        ),
    )


def parameter_bytes(
    shapes: Shapes,
    dtype_bytes: int,
    *,
    kept_fp32: Collection[str] = KEPT_FP32,
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Bytes of these parameters that live on one rank.

    Args:
        dtype_bytes: of one number of the model's type.
        kept_fp32: names of modules and parameters whose numbers take four bytes all the same.
        rank: among those that share one copy of the weights. Rank 0 is never emptier than another.
        ranks: that share one copy, as ``fully_shard`` cuts it: by ⌈rows / ranks⌉ rows of the first axis, so that the
            last ranks may get fewer rows, or none.
    """
    total = 0
    for key, (rows, *rest) in shapes.items():
        chunk = ceil(rows / ranks)
        mine = min((rank + 1) * chunk, rows) - min(rank * chunk, rows)
        in_fp32 = any(part in kept_fp32 for part in key.split("."))
        total += mine * prod(rest) * (4 if in_fp32 else dtype_bytes)
    return total


def is_projection(key: str) -> bool:
    """``model.projections.is_projection``, which needs torch to be imported."""
    return key.startswith("blocks.") and any(part in key for part in (".attn2.to_k.", ".attn2.to_v.", "_adapter."))


def static_kv_bytes(shapes: Shapes, branches: Iterable[str], dtype_bytes: int) -> int:
    """Keys and values that these branches attend to beside the video, made once per shot; branches share them.

    c sees the prompt's text, i and u the negative prompt's; c and i the subject's identity and reference, u no one's.
    Sets that a pipeline keeps from earlier shots are not counted.
    """
    branches = set(branches)
    texts = len({name == "c" for name in branches})
    people = len({name == "u" for name in branches})
    numbers = 0
    for key, shape in shapes.items():
        if key.endswith("attn2.to_k.weight"):
            numbers += texts * TEXT_TOKENS * shape[0]
        elif key.endswith("id_adapter.to_k_ip.weight"):
            registers = shapes.get(key.replace("to_k_ip.weight", "registers"), (1, 0))[1]
            numbers += people * (ID_TOKENS + registers) * shape[0]
        elif key.endswith("ref_adapter.to_k_ref.weight"):
            numbers += people * REF_TOKENS * shape[0]
    return 2 * numbers * dtype_bytes


def activation_bytes(tokens: int, layout: Layout, *, dim: int, ffn_dim: int, head_dim: int, dtype_bytes: int) -> int:
    """Estimated peak of one forward, one branch at a time; measured on the CPU to within a few per cent.

    With N tokens, P = ring · ulysses, L = ⌈N / P⌉ of them here, C channels, D of a head, F of the feed-forward, b bytes
    a number, and e = 4 where the model is not fp32 itself (its residuals are then cast to fp32), else 0: the rotary
    tables of all tokens, 8·N·D; with more than one rank the embedding of all tokens, b·(N − L)·C, of which the first
    block's input is a part; and the largest of

    - residual: the caller's x, x, h, the cross-attention's q and output, and the self-attention's k and v, which
      live to the block's end, what is added, x and it in fp32, their product and sum: L·C·(8b + 8 + e)
    - feed-forward: the first seven of these, x in fp32, the hidden layer before and after its activation:
      L·(C·(7b + e) + 2b·F)
    - Ulysses: x, h, q, k, v, rotated q and k, the exchanged q, k, v, the output, its way back:
      L·C·13b
    - ring: it gathers the keys and values of all its ranks at once, beside merging in fp32:
      L·C·(10b + 8 + e + 2b·ring), and 2b more with Ulysses
    """
    b, shard = dtype_bytes, layout.shard(tokens)
    cast = 4 if b < 4 else 0
    stages = [dim * (8 * b + 8 + cast), dim * (7 * b + cast) + 2 * b * ffn_dim]
    if layout.ulysses > 1:
        stages.append(dim * 13 * b)
    if layout.ring > 1:
        stages.append(dim * (10 * b + 8 + cast + 2 * b * layout.ring + (2 * b if layout.ulysses > 1 else 0)))
    return 8 * tokens * head_dim + b * (tokens - shard) * dim + shard * max(stages)


def _gathered_bytes(shapes: Shapes, dtype_bytes: int, kept_fp32: Collection[str]) -> int:
    """What sharding makes whole for a while: what lies outside the blocks, and twice the largest block.

    A forward gathers no projections. They are gathered a kind at a time, before the activations take their memory.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {"": {}}
    for key, shape in shapes.items():
        group = key.split(".")[1] if key.startswith("blocks.") else ""
        if not is_projection(key):
            groups.setdefault(group, {})[key] = shape
    outside, *blocks = (parameter_bytes(group, dtype_bytes, kept_fp32=kept_fp32) for group in groups.values())
    return outside + 2 * max(blocks)
