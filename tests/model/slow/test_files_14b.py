"""Published LoRAs and packagings at their true shapes: every key is used. The files are hollow."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from benchmarks.shapes import ITEM_BYTES, WAN_14B, transformer_shapes, write_hollow_tensors
from lynx_parallel.inputs.lora import read_lora
from lynx_parallel.inputs.packaging import describe, read_packed
from lynx_parallel.inputs.tensor_headers import read_header
from lynx_parallel.model.tensor_files import single_file_sources
from tests.helpers.lora_files import EMBEDDINGS, LINEARS, NORMS, wan
from tests.helpers.packagings import wan_name

SHAPES = transformer_shapes(WAN_14B)
BLOCKS = range(40)
LINEAR = [f"blocks.{i}.{name}" for i in BLOCKS for name in LINEARS]
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by key."""


def hollow(path: Path, tensors: Tensors) -> Path:
    write_hollow_tensors(path, tensors)
    return path


def pairs(modules: list[str], rank: int, dtype: str, *, alpha: bool = False) -> Tensors:
    made: Tensors = {}
    for module in modules:
        outputs, inputs = SHAPES[f"{module}.weight"]
        own, name = min(rank, outputs, inputs), f"diffusion_model.{wan(module)}"
        made[f"{name}.lora_down.weight"] = dtype, (own, inputs)
        made[f"{name}.lora_up.weight"] = dtype, (outputs, own)
        if alpha:
            made[f"{name}.alpha"] = dtype, ()
    return made


def extracted(dtype: str = "BF16") -> Tensors:
    """ComfyUI's extraction of a distilled model: pairs of all linear layers, differences of norms and biases."""
    made = pairs([*LINEAR, *EMBEDDINGS, "proj_out"], 64, dtype)
    for parameter, shape in SHAPES.items():
        module, _, kind = parameter.rpartition(".")
        if kind == "bias":
            made[f"diffusion_model.{wan(module)}.diff_b"] = dtype, shape
        elif kind == "weight" and len(shape) == 1:
            made[f"diffusion_model.{wan(module)}.diff"] = dtype, shape
    return made


def test_lightx2v_of_rank_64(tmp_path: Path) -> None:
    """1459 tensors and 630,697,104 bytes are published. The header's length depends on the writer."""
    path = hollow(tmp_path / "lora.safetensors", extracted())
    header = read_header(path)
    assert len(header.tensors) == 1459
    assert sum(ITEM_BYTES[one.dtype] * prod(one.shape) for one in header.tensors.values()) == pytest.approx(
        630_697_104, abs=300_000
    )
    lora = read_lora(path, header, SHAPES)
    assert (lora.applied, lora.skipped) == (1459, {})
    assert len({change.target for change in lora.changes}) == len(SHAPES) - 42  # modulation and the patches' weight


def test_wan22_lightning(tmp_path: Path) -> None:
    """1200 tensors: the linear layers of the blocks, with an alpha each."""
    path = hollow(tmp_path / "lora.safetensors", pairs(LINEAR, 64, "F16", alpha=True))
    header = read_header(path)
    assert len(header.tensors) == 1200
    lora = read_lora(path, header, SHAPES)
    assert (lora.applied, lora.skipped, len(lora.changes)) == (1200, {}, 400)


def test_a_lora_of_the_small_model_is_refused(tmp_path: Path) -> None:
    small = transformer_shapes({**WAN_14B, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960})
    path = hollow(tmp_path / "lora.safetensors", pairs(LINEAR, 64, "F16"))
    with pytest.raises(Exception, match=r"expected a change of .*was this LoRA made for another base"):
        read_lora(path, read_header(path), small)


def single(kind: str) -> Tensors:
    quantised = {f"{module}.weight" for module in LINEAR}
    made: Tensors = {"scaled_fp8": ("F8_E4M3", (2,))} if kind == "fp8 scaled, Kijai" else {}
    for parameter, shape in SHAPES.items():
        name, layer = wan_name(parameter), wan_name(parameter).removesuffix("weight")
        if parameter not in quantised or kind in ("F16", "BF16", "F32"):
            made[name] = kind if kind in ITEM_BYTES else "F32", shape
        elif kind == "int8, quanto":
            made |= {f"{name}._data": ("I8", shape), f"{name}._scale": ("BF16", (shape[0], 1))}
        else:
            made[name] = "F8_E4M3", shape
            if kind == "fp8 scaled, Kijai":
                made[f"{layer}scale_weight"] = "F32", (1,)
            elif kind == "fp8 scaled, ComfyUI":
                made |= {f"{layer}weight_scale": ("F32", ()), f"{layer}comfy_quant": ("U8", (28,))}
    return made


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        ("F32", "fp32"), ("F16", "fp16"), ("BF16", "bf16"), ("fp8", "fp8_e4m3"),
        ("fp8 scaled, Kijai", "fp8_e4m3 scaled"), ("fp8 scaled, ComfyUI", "fp8_e4m3 scaled"),
        ("int8, quanto", "int8 scaled"),
    ],
)  # fmt: skip
def test_every_key_of_a_single_file_is_used(kind: str, described: str, tmp_path: Path) -> None:
    path = hollow(tmp_path / "model.safetensors", single(kind))
    sources = single_file_sources(path)
    assert {target: source.shape for target, source in sources.items()} == SHAPES
    assert describe(read_packed(path)) == described
    scaled = {target for target, source in sources.items() if source.scale}
    assert len(scaled) == (400 if "scaled" in described else 0)


def test_norms_are_all_in_the_model() -> None:
    assert all(f"blocks.{i}.{norm}.weight" in SHAPES for i in BLOCKS for norm in NORMS)
