"""Predicted bytes against bytes held: exact for weights and static keys and values, close for activations."""

from __future__ import annotations

import re
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.machine import RESULTS
from benchmarks.memory_table import report
from benchmarks.shapes import TEXT_ENCODER_BYTES, UMT5_XXL, WAN_14B, model_shapes, resampler_shapes
from lynx_parallel.inputs.decode_memory import VideoSize, decode_bytes, encode_bytes
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import (
    ALLOWANCE_BYTES,
    CONDITIONING_ENTRIES,
    GROUP_BYTES,
    KEPT_FP32,
    TEXT_ACTIVATION_BYTES,
    Prediction,
    activation_bytes,
    kept_kv_bytes,
    parameter_bytes,
    predict,
    static_kv_bytes,
)
from lynx_parallel.inputs.projections import is_projection
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.block import KV, BlockConditioning
from lynx_parallel.model.checkpoints import build_transformer, load_resampler, load_transformer, loaded_dtype
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.parallel.vae import split_decoder
from lynx_parallel.stages.conditioning import ConditioningCache
from lynx_parallel.stages.first_frame import encode_first_frame
from lynx_parallel.stages.latents import latent_shape
from tests.helpers.live import LiveBytes
from tests.helpers.processes import run_gang
from tests.helpers.shapes import shapes_of

SMALL, P480, P720 = VideoSize(96, 96, 1), VideoSize(832, 480, 81), VideoSize(1280, 720, 81)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def files(demo: Path, variant: str = "full") -> WeightFiles:
    folder = demo / variant
    ref = folder / "ref_layers.safetensors"
    return WeightFiles(
        demo / "wan",
        folder / "resampler.safetensors",
        folder / "ip_layers.safetensors",
        ref if ref.exists() else None,
    )


def bytes_here(module: torch.nn.Module) -> int:
    local = [getattr(parameter, "_local_tensor", parameter) for parameter in module.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, lynx_parallel.inputs.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_modules_kept_in_fp32_are_those_of_diffusers() -> None:
    assert set(WanTransformer3DModel._keep_in_fp32_modules) == KEPT_FP32


# Weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["full", "lite"])
def test_parameters_of_one_rank_are_exact(dtype: Any, variant: str, demo: Path) -> None:
    weights = files(demo, variant)
    transformer = load_transformer(weights, dtype=DTYPES[dtype])
    resampler = load_resampler(weights.resampler, dtype=DTYPES[dtype])
    made = predict(
        shapes_of(transformer), Layout(), dtype=dtype, sharded=True, size=SMALL,
        heads=4, resampler=shapes_of(resampler), vae_bytes=7,
    )  # fmt: skip
    adapters = [module for block in transformer.blocks for module in (block.id_adapter, block.ref_adapter) if module]
    assert made.adapters == sum(map(bytes_here, adapters)) > 0
    assert made.transformer + made.adapters == bytes_here(transformer)
    assert made.resampler == bytes_here(resampler)
    assert made.weights == bytes_here(transformer) + bytes_here(resampler) + 7
    assert made.gathered == 0


@pytest.mark.parametrize("variant", ["full", "lite"])
def test_projections_left_in_the_file_are_not_counted(variant: str, demo: Path) -> None:
    transformer = load_transformer(files(demo, variant), dtype=torch.bfloat16, keep_projections=False)
    shapes = shapes_of(transformer)
    adapters = {key for key in shapes if "_adapter." in key or ".attn2.to_k." in key or ".attn2.to_v." in key}
    assert {key for key in shapes if is_projection(key)} == adapters
    made = predict(
        shapes, Layout(), dtype="bfloat16", sharded=False, keep_projections=False, size=SMALL, heads=4
    )  # fmt: skip
    held = [parameter for parameter in transformer.parameters() if not parameter.is_meta]
    assert made.transformer == made.weights == sum(tensor.numel() * tensor.element_size() for tensor in held)


def held_when_sharded(rank: int, store: Any, demo: Path) -> dict[str, Any]:
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.shard import shard

    held: dict[str, Any] = {}
    whole = load_transformer(files(demo), dtype=torch.float32)
    for name, dtype in DTYPES.items():
        membership = xdit.join(
            Layout(ulysses=2), rank=rank, store=PrefixStore(name, store), device=torch.device("cpu"),
            transformer_config=whole.config,
        )  # fmt: skip
        transformer = load_transformer(
            files(demo), dtype=dtype, shard=lambda model, group=membership.tokens.group: shard(model, group)
        )
        held[name] = bytes_here(transformer)
        xdit.leave()
    return {"held": held, "shapes": shapes_of(whole)}


@pytest.fixture(scope="module")
def sharded(demo: Path) -> list[dict[str, Any]]:
    return run_gang(2, held_when_sharded, demo)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_every_rank_are_exact_when_sharded(dtype: Any, sharded: list[dict[str, Any]]) -> None:
    shapes, width = sharded[0]["shapes"], DTYPES[dtype].itemsize
    for rank, made in enumerate(sharded):
        assert parameter_bytes(shapes, width, rank=rank, ranks=2) == made["held"][dtype]
    made = predict(shapes, Layout(ulysses=2), dtype=dtype, sharded=True, size=SMALL, heads=4)
    assert made.transformer + made.adapters == max(result["held"][dtype] for result in sharded)  # type: ignore[attr-defined]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8])
def test_the_ranks_hold_everything_once_and_the_first_most(ranks: int) -> None:
    shapes = model_shapes({**WAN_14B, "num_layers": 2}) | {"odd": (7, 3), "one": (1, 5)}
    each = [parameter_bytes(shapes, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sum(each) == parameter_bytes(shapes, 2)
    assert max(each) == each[0]


def test_the_14b_in_round_figures() -> None:
    """14.3 billion numbers in the base; full's ID and reference layers 4.2 GB each; the resampler, in fp32, 0.33 GB."""
    made = predict(
        model_shapes(WAN_14B), Layout(), dtype="bfloat16", sharded=False, size=P480,
        heads=40, resampler=resampler_shapes(5120),
    )  # fmt: skip
    assert made.transformer / 1e9 == pytest.approx(28.6, abs=0.1)
    assert made.adapters / 1e9 == pytest.approx(8.4, abs=0.05)
    assert made.resampler / 1e9 == pytest.approx(0.33 / 2, abs=0.01)


# Static keys and values


@pytest.mark.parametrize("variant", ["full", "lite"])
def test_static_keys_and_values_are_exact(variant: str, demo: Path) -> None:
    transformer = load_transformer(files(demo, variant), dtype=torch.bfloat16)
    shapes = shapes_of(transformer)
    tokens = torch.zeros(1, 16, shapes["blocks.0.id_adapter.to_k_ip.weight"][1], dtype=torch.bfloat16)
    made = {
        "text": transformer.text_kv(torch.zeros(1, 512, 64, dtype=torch.bfloat16)),
        "person": [*transformer.identity_kv(tokens)],
    }
    if transformer.has_reference:
        features = transformer.reference_features(torch.zeros(1, 16, 1, 32, 32, dtype=torch.bfloat16), made["text"])
        made["person"] += transformer.reference_kv(features)
    size = {
        name: sum(tensor.numel() * 2 for pair in pairs if pair is not None for tensor in pair)  # type: ignore[attr-defined]
        for name, pairs in made.items()
    }
    for branches, texts, people in (("c", 1, 1), ("ci", 2, 1), ("cu", 2, 2), ("iu", 1, 2), ("ciu", 2, 2), ("u", 1, 1)):
        assert static_kv_bytes(shapes, branches, 2) == texts * size["text"] + people * size["person"]


def test_the_guidance_axis_counts_its_fullest_rank() -> None:
    shapes = model_shapes(WAN_14B)

    def static(guidance: int) -> int:
        layout = Layout(guidance=guidance)
        return predict(shapes, layout, dtype="bfloat16", sharded=False, size=P480, heads=40).static_kv

    assert static(1) == static(2) == static_kv_bytes(shapes, "cu", 2) == 2 * static(3)


def test_the_pipeline_keeps_as_many_sets_as_are_counted() -> None:
    cache = ConditioningCache()
    for number in range(2 * CONDITIONING_ENTRIES):
        cache.get("text", torch.tensor([number]), lambda source: source)
    cache.get("text", torch.tensor([CONDITIONING_ENTRIES]), lambda source: source)
    cache.get("text", torch.tensor([0]), lambda source: source)
    assert cache.counts == {"text": 2 * CONDITIONING_ENTRIES + 1, "text kept": 1}
    shapes = model_shapes(WAN_14B)
    text = 40 * 2 * 512 * 5120 * 2
    assert kept_kv_bytes(shapes, "ciu", 2) == 2 * text  # six in use: two texts, two people's identity and reference
    assert kept_kv_bytes(shapes, "i", 2) == 5 * text
    lite = {key: shape for key, shape in shapes.items() if "ref_adapter" not in key}
    assert kept_kv_bytes(lite, "ciu", 2) == 4 * text


# Phases


def test_the_fullest_phase_decides() -> None:
    shapes = model_shapes(WAN_14B)

    def made(layout: Layout, size: VideoSize, **settings: Any) -> Prediction:
        return predict(
            shapes, layout, dtype="bfloat16", size=size, heads=40, text_encoder_bytes=TEXT_ENCODER_BYTES,
            **{"sharded": False, **settings},
        )  # fmt: skip

    def fullest(prediction: Prediction) -> str:
        return max(prediction.phases, key=lambda phase: prediction.phases[phase])

    one, tiled = made(Layout(), P720), made(Layout(), P720, tiled_decode=True)
    assert fullest(one) == "decode"
    assert one.total == one.weights + one.static_kv + one.kept_kv + one.decode + ALLOWANCE_BYTES
    assert fullest(tiled) == "denoise"
    assert tiled.total == one.total - one.decode + tiled.activations
    assert tiled.communication == 0
    eight = made(Layout(ulysses=8), P480, sharded=True, keep_projections=False)
    assert fullest(eight) == "encode text"
    assert eight.total == TEXT_ENCODER_BYTES + TEXT_ACTIVATION_BYTES + ALLOWANCE_BYTES
    assert eight.communication == 3 * GROUP_BYTES  # the gang, its sequence axis, its Ulysses axis


def test_the_text_encoder_is_umt5_xxls() -> None:
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
    assert sum(parameter.numel() for parameter in encoder.parameters()) * 2 == TEXT_ENCODER_BYTES


# Activations


SIDE, TOKENS, DIM, HEAD_DIM = 60, 900, 256, 64


def small(ffn_dim: int, dtype: torch.dtype) -> LynxTransformer:
    config = {
        **WAN_14B, "num_attention_heads": DIM // HEAD_DIM, "attention_head_dim": HEAD_DIM, "ffn_dim": ffn_dim,
        "num_layers": 2, "text_dim": 64, "freq_dim": 32,
    }  # fmt: skip
    made = WanTransformer3DModel.from_config(config)
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data.to(loaded_dtype(name, dtype))
    return LynxTransformer(made)


@torch.no_grad()
def peak_of_a_forward(transformer: LynxTransformer, dtype: torch.dtype) -> int:
    latents, timestep = torch.randn(1, 16, 1, SIDE, SIDE).to(dtype), torch.tensor([5.0])
    text: list[KV] = transformer.text_kv(torch.randn(1, 512, 64).to(dtype))
    branch = [BlockConditioning(kv) for kv in text]
    before = [*transformer.parameters(), *transformer.buffers(), latents, timestep]
    with LiveBytes([*before, *(tensor for kv in text for tensor in kv)]) as live:
        transformer(latents, timestep, branch)
    return live.peak


CASES = [(name, ffn_dim) for name in DTYPES for ffn_dim in (256, 700)]
LAYOUTS = [Layout(ulysses=2), Layout(ring=2)]
BANDS, VAE_DIM = [VideoSize(64, 64, 9), VideoSize(64, 128, 9)], 8


def peaks_on_a_gang(rank: int, store: Any) -> dict[Any, int]:
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit

    peaks = {}
    for layout in LAYOUTS:
        transformer = small(256, torch.float32)
        membership = xdit.join(
            layout, rank=rank, store=PrefixStore(str(layout), store), device=torch.device("cpu"),
            transformer_config=transformer.config,
        )  # fmt: skip
        for name, ffn_dim in CASES:
            transformer = small(ffn_dim, DTYPES[name])
            transformer.tokens = membership.tokens
            peaks[layout, name, ffn_dim] = min(peak_of_a_forward(transformer, DTYPES[name]) for _ in range(8))
        xdit.leave()
    dist.init_process_group("gloo", store=PrefixStore("rows", store), rank=rank, world_size=2)
    split = split_decoder(AutoencoderKLWan(base_dim=VAE_DIM).eval().requires_grad_(False))
    for size in BANDS:
        peaks[size] = peak_of_decoding(split, size)
    dist.destroy_process_group()
    return peaks


def peak_of_decoding(vae: AutoencoderKLWan, size: VideoSize) -> int:
    latents = torch.randn(latent_shape(*size))
    with torch.no_grad(), LiveBytes([*vae.parameters(), *vae.buffers(), latents]) as live:
        vae.decode(latents, return_dict=False)
    return live.peak


@pytest.mark.parametrize("size", [VideoSize(64, 64, 9), VideoSize(128, 64, 17)], ids=str)
def test_encoding_a_first_frame_stays_below_its_bound(size: VideoSize) -> None:
    vae = AutoencoderKLWan(base_dim=VAE_DIM).eval().requires_grad_(False)
    frame = np.zeros((size.height, size.width, 3), np.uint8)
    with torch.no_grad(), LiveBytes([*vae.parameters(), *vae.buffers()]) as live:
        encode_first_frame(vae, frame, size.frames)
    bound = encode_bytes(size, base_dim=VAE_DIM)
    assert 0.97 * bound <= live.peak <= bound


def test_a_first_frame_is_a_phase_of_its_own() -> None:
    """On one rank decoding takes more. On eight, where each decodes an eighth, rank 0 still encodes all of it."""

    def phases(layout: Layout, **settings: Any) -> dict[str, int]:
        made = predict(
            model_shapes(WAN_14B), layout, dtype="bfloat16", sharded=False, size=P480, heads=40, **settings
        )  # fmt: skip
        return made.phases

    assert phases(Layout())["encode first frame"] == 0
    one, eight = (phases(layout, first_frame=True) for layout in (Layout(), Layout(ulysses=8)))
    assert one["encode first frame"] < one["decode"]
    assert eight["encode first frame"] > eight["decode"]


@pytest.fixture(scope="module")
def gang_peaks() -> dict[Any, int]:
    return run_gang(2, peaks_on_a_gang)[0]


def estimate(layout: Layout, dtype: str, ffn_dim: int) -> int:
    width = DTYPES[dtype].itemsize
    return activation_bytes(TOKENS, layout, dim=DIM, ffn_dim=ffn_dim, head_dim=HEAD_DIM, dtype_bytes=width)


@pytest.mark.parametrize(("dtype", "ffn_dim"), CASES)
def test_activations_of_one_rank_are_close(dtype: str, ffn_dim: int) -> None:
    measured = peak_of_a_forward(small(ffn_dim, DTYPES[dtype]), DTYPES[dtype])
    assert estimate(Layout(), dtype, ffn_dim) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("dtype", "ffn_dim"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_activations_on_a_gang_are_close(layout: Layout, dtype: str, ffn_dim: int, gang_peaks: dict[Any, int]) -> None:
    """The peak is the least of eight forwards, because gloo sometimes frees a sent buffer late."""
    assert estimate(layout, dtype, ffn_dim) == pytest.approx(gang_peaks[layout, dtype, ffn_dim], rel=0.08)


@pytest.mark.parametrize("size", BANDS, ids=str)
def test_decoding_rows_on_a_gang_stays_below_its_bound(size: VideoSize, gang_peaks: dict[Any, int]) -> None:
    bound = decode_bytes(size, ranks=2, base_dim=VAE_DIM)
    assert 0.8 * bound <= gang_peaks[size] <= bound < decode_bytes(size, base_dim=VAE_DIM)


def test_what_sharding_gathers_is_a_block_twice_and_all_outside_the_blocks() -> None:
    shapes = model_shapes(WAN_14B)
    made = predict(shapes, Layout(ulysses=8), dtype="bfloat16", sharded=True, size=P480, heads=40)
    used = {key: shape for key, shape in shapes.items() if not is_projection(key)}
    block = {key: shape for key, shape in used.items() if key.startswith("blocks.7.")}
    outside = {key: shape for key, shape in used.items() if not key.startswith("blocks.")}
    assert made.gathered == 2 * parameter_bytes(block, 2) + parameter_bytes(outside, 2)
    assert sum(map(prod, block.values())) * 40 + sum(map(prod, outside.values())) == sum(map(prod, used.values()))


def test_built_on_the_meta_device_the_model_has_these_shapes() -> None:
    shapes = model_shapes(WAN_14B)
    adapters = {key: shape for key, shape in shapes.items() if "_adapter." in key}
    assert shapes_of(build_transformer(WAN_14B, adapters)) == shapes


def test_the_published_table_is_the_prediction() -> None:
    """Else run ``python -m benchmarks.memory_table``, and update the figures in docs/how-to/small-cards.md."""
    published = (RESULTS / "memory_14b.md").read_text()
    assert published == report()
    page = (RESULTS.parents[1] / "docs" / "how-to" / "small-cards.md").read_text()
    section = page.partition("## Which card is needed for what")[2].partition("memory_14b.md")[0]
    totals = set(re.findall(r"\b\d+\.\d\b", section)) - {"12.6"}
    assert len(totals) > 8
    assert all(f" {total} |\n" in published for total in totals)
