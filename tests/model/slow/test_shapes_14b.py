"""Loading at the 14B's true shapes: every key used, none missing, without gigabytes.

Files have true safetensors headers and sparse bodies, so that the code which reads real ones runs. The
shapes are those recorded from the real files where the recordings are, and everywhere those that the
documented sizes give.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from benchmarks.shapes import (
    LITE_ID_DIM,
    WAN_14B,
    id_shapes,
    ref_shapes,
    resampler_shapes,
    transformer_shapes,
)
from lynx_parallel.errors import CheckpointError
from lynx_parallel.model import adapter_files, checkpoints, tensor_files
from lynx_parallel.model.adapters import Resampler
from tests.helpers.adapters_14b import FULL_DIM, RECORDED, Adapters, derived, recorded, write_adapters, write_base

PAIRINGS = list(derived())
requires_recorded = pytest.mark.skipif(
    not RECORDED.is_file(), reason="the recorded shapes (../shared/golden) are not beside this checkout"
)


@pytest.fixture(scope="module", params=["derived", pytest.param("recorded", marks=requires_recorded)])
def pairings(request: pytest.FixtureRequest) -> dict[str, Adapters]:
    return derived() if request.param == "derived" else recorded()


@pytest.fixture(params=PAIRINGS)
def adapters(request: pytest.FixtureRequest, pairings: dict[str, Adapters]) -> Adapters:
    return pairings[request.param]


@pytest.fixture
def folder(fast_disk: Path) -> Path:
    """For sparse files, which take no room. Of a file on a disk, the kernel reads megabytes ahead for each tensor."""
    return fast_disk


def base_sources(base: Path) -> dict[str, checkpoints.Source]:
    return {
        key: checkpoints.Source(path, key, shape)
        for path in tensor_files.weight_files(base / "transformer")
        for key, shape in tensor_files.read_shapes(path).items()
    }


@requires_recorded
def test_the_documented_sizes_give_the_recorded_shapes() -> None:
    assert derived() == recorded()
    config = json.loads(RECORDED.read_text())["wan_transformer_config"]
    assert {key: WAN_14B[key] for key in config} == config


def test_the_base_has_wans_keys_and_no_others() -> None:
    with torch.device("meta"):
        wan = WanTransformer3DModel.from_config(WAN_14B)
    assert {key: tuple(tensor.shape) for key, tensor in wan.state_dict().items()} == transformer_shapes(WAN_14B)
    assert round(sum(p.numel() for p in wan.parameters()) / 1e9, 1) == 14.3


def test_every_key_is_used_and_none_is_missing(adapters: Adapters, folder: Path) -> None:
    base = write_base(folder, adapters.dtype)
    assert len(tensor_files.weight_files(base / "transformer")) > 1
    sources = adapter_files.adapter_sources(write_adapters(folder, adapters), WAN_14B["num_layers"])
    assert len(sources) == len(adapters.id) + len(adapters.ref or {})
    transformer = checkpoints.build_transformer(WAN_14B, {key: source.shape for key, source in sources.items()})
    assert all(parameter.is_meta for parameter in transformer.parameters())
    everything = base_sources(base) | sources
    checkpoints._check(transformer, everything)
    assert everything.keys() == transformer.state_dict().keys()
    assert transformer.has_reference == (adapters.ref is not None)
    with_id = [number for number, block in enumerate(transformer.blocks) if block.id_adapter is not None]
    assert with_id == list(range(0, 40, 1 if adapter_files.is_full(adapters.id) else 2))


def test_a_missing_or_surplus_or_misshapen_key_is_named(adapters: Adapters, folder: Path) -> None:
    base = write_base(folder, adapters.dtype)
    sources = adapter_files.adapter_sources(write_adapters(folder, adapters), WAN_14B["num_layers"])
    transformer = checkpoints.build_transformer(WAN_14B, {key: source.shape for key, source in sources.items()})
    everything = base_sources(base) | sources
    key = "blocks.38.id_adapter.to_v_ip.weight"
    for changed, message in (
        ({k: s for k, s in everything.items() if k != key}, f"{key}: missing"),
        ({**everything, "blocks.40.norm2.weight": everything[key]}, "surplus key"),
        ({**everything, key: everything[key]._replace(shape=(5120, 5119))}, "expected shape"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoints._check(transformer, changed)


def test_the_resampler_is_built_from_its_file(adapters: Adapters, folder: Path) -> None:
    weights = write_adapters(folder, adapters)
    with torch.device("meta"):
        empty = Resampler.from_shapes(tensor_files.read_shapes(weights.resampler))
    assert {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items()} == adapters.resampler
    resampler = checkpoints.load_resampler(weights.resampler, dtype=torch.bfloat16)
    id_dim = next(shape[1] for key, shape in adapters.id.items() if key.endswith("to_k_ip.weight"))
    tokens = resampler(torch.zeros(1, 1, 512, dtype=torch.bfloat16))
    assert tokens.shape == (1, 16, id_dim)
    assert [layer[0].heads for layer in resampler.layers] == [20] * 4


def test_mixing_up_the_resamplers_is_said_in_one_line(pairings: dict[str, Adapters], folder: Path) -> None:
    full, lite = pairings["full, reference"], pairings["lite, reference"]
    for mixed in (
        Adapters(lite.resampler, full.id, full.ref, full.dtype),
        Adapters(full.resampler, lite.id, None, lite.dtype),
    ):
        with pytest.raises(CheckpointError, match="both be Lynx full's or both Lynx lite's"):
            adapter_files.adapter_sources(write_adapters(folder, mixed), WAN_14B["num_layers"])


def test_layers_of_another_depth_are_refused(pairings: dict[str, Adapters], folder: Path) -> None:
    for pairing, stride in (("full, reference", 1), ("lite, single-file", 2)):
        weights = write_adapters(folder, pairings[pairing])
        with pytest.raises(CheckpointError, match="made for another base than this one of 30 blocks"):
            adapter_files.adapter_sources(weights, 30)
        assert len(adapter_files.blocks(adapter_files.adapter_sources(weights, 40), "id_adapter")) == 40 // stride


@pytest.mark.parametrize(
    ("variant", "layout", "blocks"),
    [
        ("full", "reference", 4),
        ("full", "single-file", 4),
        ("lite", "reference", 4),
        pytest.param("full", "single-file", 40, marks=pytest.mark.slow),
    ],
)
def test_the_loader_itself(variant: Any, layout: Any, blocks: int, folder: Path) -> None:
    """``load_transformer`` on the CPU in the files' own type: it maps their pages and copies next to nothing."""
    config = {**WAN_14B, "num_layers": blocks}
    name, dtype = ("BF16", torch.bfloat16) if layout == "reference" else ("F16", torch.float16)
    resampler = resampler_shapes(FULL_DIM if variant == "full" else LITE_ID_DIM)
    ref = ref_shapes(config, layout) if variant == "full" else None
    adapters = Adapters(resampler, id_shapes(config, variant, layout), ref, name)
    write_base(folder, name, config)
    transformer = checkpoints.load_transformer(write_adapters(folder, adapters), dtype=dtype)
    kept: dict[torch.dtype, int] = {}
    for parameter in transformer.parameters():
        assert parameter.device.type == "cpu"
        kept[parameter.dtype] = kept.get(parameter.dtype, 0) + parameter.numel()
    # norm2 and the tables of every block, the last table, the time embedder's two layers
    fp32 = blocks * (2 + 6) * FULL_DIM + 2 * FULL_DIM + (256 + 1) * FULL_DIM + (FULL_DIM + 1) * FULL_DIM
    everything = [*transformer_shapes(config).values(), *adapters.id.values(), *(adapters.ref or {}).values()]
    assert kept == {torch.float32: fp32, dtype: sum(map(prod, everything)) - fp32}
    assert transformer.rope.freqs_cos.shape == (1024, 128)
    assert not transformer.rope.freqs_cos.is_meta
