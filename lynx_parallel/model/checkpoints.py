"""Weights files → modules: the base in diffusers layout, Lynx's adapters in both known layouts.

Modules are built on the meta device and filled tensor by tensor, each read straight to its dtype and
device, so that no second copy and no fp32 detour exists. Every key must be used and none may miss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors import SafetensorError, safe_open
from torch import nn

from lynx_parallel.errors import CheckpointError
from lynx_parallel.model.adapters import IDProjection, RefProjection, Resampler
from lynx_parallel.model.transformer import LynxTransformer

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterFiles:
    """Lynx's three files; ``ref`` is None for lite. The layout is told from the keys."""

    resampler: Path
    id: Path
    ref: Path | None = None


@dataclass(frozen=True)
class _Layout:
    """How one adapter file's keys map to ``blocks.{block}.{module}.{parameter}``."""

    reference: re.Pattern[str]
    single_file: re.Pattern[str]
    module: str


_ID = _Layout(
    reference=re.compile(r"(?P<i>\d+)\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"),
    single_file=re.compile(
        r"blocks\.(?P<i>\d+)\.cross_attn\.ip_adapter\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"
    ),
    module="id_adapter",
)
_REF = _Layout(
    reference=re.compile(r"(?P<i>\d+)\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    single_file=re.compile(r"blocks\.(?P<i>\d+)\.self_attn\.ref_adapter\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    module="ref_adapter",
)


def read_shapes(path: Path) -> Shapes:
    """Every key of a safetensors file with its shape; reads the header alone.

    Raises:
        CheckpointError: the file is missing, unreadable or no safetensors file.
    """
    with _open(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


def is_full(id_shapes: Shapes) -> bool:
    """Whether these ID layers are Lynx full's (they alone have registers)."""
    return any(key.endswith("registers") for key in id_shapes)


def adapter_keys(path: Path, shapes: Shapes, layout: _Layout, *, stride: int = 1) -> dict[str, str]:
    """File key → state-dict key of ``LynxTransformer``.

    Args:
        stride: in the reference layout the i-th adapter sits in block ``i * stride`` (lite: 2);
            the single-file layout names the block itself.

    Raises:
        CheckpointError: a key belongs to neither layout.
    """
    keys = {}
    for key in shapes:
        if match := layout.reference.fullmatch(key):
            block = int(match["i"]) * stride
        elif match := layout.single_file.fullmatch(key):
            block = int(match["i"])
        else:
            raise CheckpointError(f"{path}: {key}: not a key of Lynx's {layout.module.split('_')[0]} layers")
        keys[key] = f"blocks.{block}.{layout.module}.{match['parameter']}"
    return keys


def load_resampler(path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Resampler:
    """The resampler, its sizes told from the file.

    Raises:
        CheckpointError: not a resampler, or unreadable.
    """
    shapes = read_shapes(path)
    try:
        with torch.device("meta"):
            resampler = Resampler.from_shapes(shapes)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}: expected in a resampler, not found") from None
    _check(resampler, {key: (path, key, shape) for key, shape in shapes.items()})
    _fill(resampler, ((key, tensor) for key, tensor in _tensors(path, device)), lambda _: dtype)
    return resampler.requires_grad_(False).eval()


def build_transformer(config: dict[str, Any], id_shapes: Shapes | None, ref_shapes: Shapes | None) -> LynxTransformer:
    """An empty ``LynxTransformer`` on the meta device, its adapters as these shapes ask.

    Args:
        config: diffusers' ``config.json`` of the transformer.
        id_shapes, ref_shapes: shapes by state-dict key (see ``adapter_keys``), or None without.
    """
    with torch.device("meta"):
        wan = WanTransformer3DModel.from_config(config)
        inner = wan.config.num_attention_heads * wan.config.attention_head_dim
        id_adapters = {
            block: IDProjection(
                id_shapes[f"blocks.{block}.id_adapter.to_k_ip.weight"][1],
                inner,
                id_shapes.get(f"blocks.{block}.id_adapter.registers", (0, 0, 0))[1],
            )
            for block in _blocks(id_shapes or {})
            if id_shapes and f"blocks.{block}.id_adapter.to_k_ip.weight" in id_shapes
        }
        ref_adapters = {block: RefProjection(inner, inner) for block in _blocks(ref_shapes or {})}
        return LynxTransformer(wan, id_adapters, ref_adapters)


def load_transformer(
    folder: Path,
    adapters: AdapterFiles | None = None,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> LynxTransformer:
    """Base transformer and adapters, ready to run.

    Args:
        folder: diffusers' ``transformer`` folder (config.json, safetensors in one or more files).
        adapters: without, the plain base model.
        dtype: of all weights but those that diffusers keeps in fp32 (norms, time embedder,
            scale_shift_table).

    Raises:
        CheckpointError: a file, key or shape does not fit; names it.
    """
    config = _read_json(folder / "config.json")
    # state-dict key → where it comes from
    sources: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in _weight_files(folder):
        sources |= {key: (path, key, shape) for key, shape in read_shapes(path).items() if "norm_added_q" not in key}
    id_shapes = ref_shapes = None
    if adapters is not None:
        shapes = read_shapes(adapters.id)
        # Lite's adapters sit in every other block.
        keys = adapter_keys(adapters.id, shapes, _ID, stride=1 if is_full(shapes) else 2)
        sources |= {keys[key]: (adapters.id, key, shape) for key, shape in shapes.items()}
        id_shapes = {keys[key]: shape for key, shape in shapes.items()}
        check_resampler(adapters)
        if adapters.ref is not None:
            shapes = read_shapes(adapters.ref)
            keys = adapter_keys(adapters.ref, shapes, _REF)
            sources |= {keys[key]: (adapters.ref, key, shape) for key, shape in shapes.items()}
            ref_shapes = {keys[key]: shape for key, shape in shapes.items()}
    _check_blocks(adapters, id_shapes, ref_shapes, config["num_layers"])

    transformer = build_transformer(config, id_shapes, ref_shapes)
    _check(transformer, sources)
    by_file: dict[Path, dict[str, str]] = {}
    for target, (path, key, _) in sources.items():
        by_file.setdefault(path, {})[key] = target
    tensors = (
        (targets[key], tensor)
        for path, targets in by_file.items()
        for key, tensor in _tensors(path, device)
        if key in targets
    )
    fp32 = WanTransformer3DModel._keep_in_fp32_modules
    _fill(
        transformer,
        tensors,
        lambda key: torch.float32 if any(part in fp32 for part in key.split(".")) else dtype,
    )
    # RoPE's tables are computed, not stored; on the meta device they were not.
    transformer.rope = WanRotaryPosEmbed(
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    ).to(device)
    return transformer


def check_resampler(adapters: AdapterFiles) -> None:
    """Lynx's well-known crash, said in one line: lite's resampler with full's ID layers or vice versa.

    Raises:
        CheckpointError: the resampler's output size is not the ID layers' input size.
    """
    found = read_shapes(adapters.resampler).get("proj_out.weight")
    wanted = next((s for k, s in read_shapes(adapters.id).items() if k.endswith("to_k_ip.weight")), None)
    if found and wanted and found[0] != wanted[1]:
        raise CheckpointError(
            f"{adapters.resampler}: proj_out.weight: makes tokens of size {found[0]}, but {adapters.id} takes "
            f"{wanted[1]}: resampler and ID layers must both be Lynx full's or both Lynx lite's"
        )


def load_vae(folder: Path, *, device: torch.device | str = "cpu") -> AutoencoderKLWan:
    """Wan's VAE in fp32: its decode loses visibly in bf16."""
    _read_json(folder / "config.json")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return vae.requires_grad_(False).eval().to(device)


def load_scheduler_config(folder: Path) -> dict[str, Any]:
    """Settings of UniPC as the base ships them.

    Raises:
        CheckpointError: another scheduler, or no flow matching.
    """
    config = _read_json(folder / "scheduler_config.json")
    name = config.get("_class_name")
    if name != UniPCMultistepScheduler.__name__ or not config.get("use_flow_sigmas"):
        raise CheckpointError(
            f"{folder / 'scheduler_config.json'}: {name}: expected UniPCMultistepScheduler with use_flow_sigmas"
        )
    return config


def _blocks(shapes: Shapes) -> list[int]:
    return sorted({int(key.split(".")[1]) for key in shapes})


def _check_blocks(
    adapters: AdapterFiles | None, id_shapes: Shapes | None, ref_shapes: Shapes | None, num_layers: int
) -> None:
    """Full and reference layers exist for every block, lite's for every other one."""
    if adapters is None:
        return
    expected = [(adapters.id, id_shapes or {}, range(0, num_layers, 1 if is_full(id_shapes or {}) else 2))]
    if adapters.ref is not None:
        expected.append((adapters.ref, ref_shapes or {}, range(num_layers)))
    for path, shapes, blocks in expected:
        if _blocks(shapes) != list(blocks):
            raise CheckpointError(
                f"{path}: layers for blocks {_blocks(shapes)}, expected {list(blocks)}: "
                f"made for another base than this one of {num_layers} blocks?"
            )


def _check(module: nn.Module, sources: dict[str, tuple[Path, str, tuple[int, ...]]]) -> None:
    """Every key used, none missing, every shape right; the first that is not, named by file and key."""
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key, (path, name, shape) in sources.items():
        if key not in wanted:
            raise CheckpointError(f"{path}: {name}: surplus key, no such parameter in the model")
        if shape != wanted[key]:
            raise CheckpointError(f"{path}: {name}: expected shape {list(wanted[key])}, found {list(shape)}")
    if missing := sorted(wanted.keys() - sources.keys()):
        files = ", ".join(sorted({str(path) for path, _, _ in sources.values()})) or "no file"
        raise CheckpointError(f"{files}: {missing[0]}: missing ({len(missing)} missing keys in all)")


def _fill(module: nn.Module, tensors: Iterator[tuple[str, torch.Tensor]], dtype_of: Any) -> None:
    state = {key: tensor.to(dtype_of(key)) for key, tensor in tensors}
    module.load_state_dict(state, strict=True, assign=True)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    return [folder / "diffusion_pytorch_model.safetensors"]


def _tensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
    with _open(path, str(device)) as file:
        for key in file.keys():
            yield key, file.get_tensor(key)


def _open(path: Path, device: str = "cpu") -> Any:
    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: is the folder a Wan2.1 model in diffusers layout?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
