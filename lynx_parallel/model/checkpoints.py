"""Weights files → modules: the base in diffusers layout, Lynx's adapters in both known layouts.

Modules are built on the meta device and filled tensor by tensor, each read straight to its dtype and
device, so that no second copy and no fp32 detour exists. Every key must be used and none may miss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from lynx_parallel.errors import CheckpointError
from lynx_parallel.model.adapters import IDProjection, RefProjection, Resampler
from lynx_parallel.model.projections import BorrowedProjections, is_projection
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.weights import (
    WeightFiles,
    check_sizes,
    one_line,
    read_config,
    refuse_special,
    transformer_config,
)

Shapes = dict[str, tuple[int, ...]]

# Others would be converted without a word: quantised weights need scales, whole numbers are no weights.
_DTYPES = ("F16", "BF16", "F32", "F64")
# Number of dimensions, by the end of an adapter's parameter name.
_RANKS = {"weight": 2, "bias": 1, "registers": 3}
# The resampler's keys that fix its sizes.
_RESAMPLER_RANKS = {
    "latents": 3,
    "proj_in.weight": 2,
    "layers.0.0.to_q.weight": 2,
    "layers.0.1.1.weight": 2,
    "proj_out.weight": 2,
}
# As weights._TRANSFORMER_SIZES.
_VAE_SIZES = {"base_dim": 10_000, "decoder_base_dim": 10_000, "z_dim": 10_000, "num_res_blocks": 100}
_SCHEDULER_SIZES = {"num_train_timesteps": 10**6, "solver_order": 10}
# Blocks are numbered as Python prints numbers: with 00 beside 0, two keys would fill one parameter.
_NUMBER = r"(?P<i>0|[1-9][0-9]{0,3})"


class Source(NamedTuple):
    """Where a parameter comes from."""

    path: Path
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """How one adapter file's keys map to ``blocks.{block}.{module}.{parameter}``."""

    reference: re.Pattern[str]
    single_file: re.Pattern[str]
    module: str


_ID = _Layout(
    reference=re.compile(_NUMBER + r"\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"),
    single_file=re.compile(
        rf"blocks\.{_NUMBER}\.cross_attn\.ip_adapter\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"
    ),
    module="id_adapter",
)
_REF = _Layout(
    reference=re.compile(_NUMBER + r"\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    single_file=re.compile(rf"blocks\.{_NUMBER}\.self_attn\.ref_adapter\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    module="ref_adapter",
)


def read_shapes(path: Path) -> Shapes:
    """Every key of a safetensors file with its shape; reads the header alone.

    Raises:
        CheckpointError: the file is missing, unreadable, no safetensors file, or holds other than floats.
    """
    shapes = {}
    with _open(path) as file:
        for key in file.keys():
            try:
                tensor = file.get_slice(key)
                shapes[key], dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            except Exception as error:  # SafetensorError, and TypeError for kinds of number it does not know
                raise CheckpointError(f"{path}: {one_line(key)}: cannot be read: {one_line(error)}") from None
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {one_line(key)}: expected numbers of type {', '.join(_DTYPES)}, found {dtype}"
                )
    return shapes


def is_full(id_shapes: Shapes) -> bool:
    """Whether these ID layers are Lynx full's (they alone have registers)."""
    return any(key.endswith("registers") for key in id_shapes)


def adapter_keys(path: Path, shapes: Shapes, layout: _Layout, *, stride: int = 1) -> dict[str, str]:
    """File key → state-dict key of ``LynxTransformer``.

    Args:
        stride: in the reference layout the i-th adapter sits in block ``i * stride`` (lite: 2);
            the single-file layout names the block itself.

    Raises:
        CheckpointError: a key belongs to neither layout, or two keys to one parameter.
    """
    keys: dict[str, str] = {}
    taken: dict[str, str] = {}
    for key in shapes:
        if match := layout.reference.fullmatch(key):
            block = int(match["i"]) * stride
        elif match := layout.single_file.fullmatch(key):
            block = int(match["i"])
        else:
            raise CheckpointError(f"{path}: {one_line(key)}: not a key of Lynx's {layout.module.split('_')[0]} layers")
        keys[key] = f"blocks.{block}.{layout.module}.{match['parameter']}"
        if (first := taken.setdefault(keys[key], key)) != key:
            raise CheckpointError(f"{path}: {key}: fills the same parameter as {first}: two layouts in one file")
    return keys


def load_resampler(path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Resampler:
    """The resampler, its sizes told from the file.

    Raises:
        CheckpointError: not a resampler, or unreadable.
    """
    shapes = read_shapes(path)
    for key, rank in _RESAMPLER_RANKS.items():
        if key in shapes:
            _check_rank(path, key, shapes[key], rank)
    try:
        with torch.device("meta"):
            resampler = Resampler.from_shapes(shapes)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}: expected in a resampler, not found") from None
    _check(resampler, {key: Source(path, key, shape) for key, shape in shapes.items()})
    _fill(resampler, ((key, tensor.to(dtype)) for key, tensor in _tensors(path, device)))
    return resampler.requires_grad_(False).eval()


def build_transformer(config: dict[str, Any], adapter_shapes: Shapes) -> LynxTransformer:
    """An empty ``LynxTransformer`` on the meta device, its adapters as these shapes ask.

    Args:
        config: diffusers' ``config.json`` of the transformer.
        adapter_shapes: of both adapters, by state-dict key (see ``adapter_keys``).
    """
    with torch.device("meta"):
        wan = WanTransformer3DModel.from_config(config)
        inner = wan.config.num_attention_heads * wan.config.attention_head_dim
        id_adapters, ref_adapters = {}, {}
        for block in _blocks(adapter_shapes, "id_adapter"):
            prefix = f"blocks.{block}.id_adapter"
            id_dim = adapter_shapes.get(f"{prefix}.to_k_ip.weight", (inner, inner))[1]
            id_adapters[block] = IDProjection(id_dim, inner, adapter_shapes.get(f"{prefix}.registers", (1, 0))[1])
        for block in _blocks(adapter_shapes, "ref_adapter"):
            ref_adapters[block] = RefProjection(inner, inner)
        return LynxTransformer(wan, id_adapters, ref_adapters)


def load_transformer(
    weights: WeightFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    shard: Callable[[LynxTransformer], None] | None = None,
    keep_projections: bool = True,
) -> LynxTransformer:
    """Base transformer and adapters, ready to run.

    Args:
        dtype: of all weights but those that diffusers keeps in fp32 (norms, time embedder,
            scale_shift_table).
        shard: marks the empty transformer as sharded (``parallel.shard.shard``); only the rows that this rank
            keeps are read then.
        keep_projections: False leaves the projections of static keys and values in the file, to be read
            when they are needed; see ``model.projections``.

    Raises:
        CheckpointError: a file, key or shape does not fit; names it.
    """
    folder = weights.base / "transformer"
    config = transformer_config(weights)
    sources = _base_sources(folder)
    adapters = adapter_sources(weights, config["num_layers"])
    try:
        transformer = build_transformer(config, {target: source.shape for target, source in adapters.items()})
    except Exception as error:  # diffusers and torch raise KeyError, TypeError, RuntimeError, … by the value
        raise CheckpointError(
            f"{folder / 'config.json'}: no Wan2.1 transformer can be built from it: {one_line(error)}"
        ) from error
    _merge(sources, adapters)
    _check(transformer, sources, _weight_files(folder))
    if shard is not None:
        shard(transformer)

    parameters = dict(transformer.named_parameters())
    paths = dict.fromkeys(source.path for source in sources.values())
    on_cpu = torch.device(device).type == "cpu"
    files = {path: _open(path, str(device), mapped=not on_cpu or _stored_as(path, dtype)) for path in paths}
    readers = {
        target: partial(_read_tensor, files[source.path], source.key, torch.float32 if _stays_fp32(target) else dtype)
        for target, source in sources.items()
    }
    left = set() if keep_projections else {target for target in sources if is_projection(target)}
    state = {t: parameters[t] if t in left else readers[t](parameters[t]) for t in sources}
    transformer.load_state_dict(state, strict=True, assign=True)
    if left:
        transformer.projections = BorrowedProjections({target: readers[target] for target in left})
    # RoPE's tables are computed, not stored; on the meta device they were not.
    transformer.rope = WanRotaryPosEmbed(
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    ).to(device)
    return transformer


def _base_sources(folder: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for path in _weight_files(folder):
        _merge(sources, {key: Source(path, key, shape) for key, shape in read_shapes(path).items()})
    return sources


def _merge(sources: dict[str, Source], more: Mapping[str, Source]) -> None:
    """Adds to ``sources``; no file may overrule another."""
    for target, source in more.items():
        if (first := sources.setdefault(target, source)) is not source:
            raise CheckpointError(
                f"{source.path}: {one_line(source.key)}: fills the same parameter as "
                f"{one_line(first.key)} of {first.path}"
            )


def _stays_fp32(target: str) -> bool:
    return any(part in WanTransformer3DModel._keep_in_fp32_modules for part in target.split("."))


def _stored_as(path: Path, dtype: torch.dtype) -> bool:
    """Whether most of a file's tensors are of this type: then it is mapped, and a node's ranks share its pages.

    Others are read tensor by tensor: mapped pages would stay beside their converted copies.
    """
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    with _open(path) as file:
        types = [file.get_slice(key).get_dtype() for key in file.keys()]
    return 2 * types.count(name) > len(types)


def _read_tensor(file: Any, key: str, dtype: torch.dtype, parameter: torch.Tensor | None = None) -> torch.Tensor:
    """One tensor of a file; for a sharded parameter, only the rows that this rank keeps are read."""
    if not isinstance(parameter, DTensor):
        return file.get_tensor(key).to(dtype)
    rows, ranks = parameter.shape[0], parameter.device_mesh.size()
    chunk = -(-rows // ranks)  # as fully_shard cuts: the last ranks may get fewer rows, or none
    start = min(parameter.device_mesh.get_local_rank() * chunk, rows)
    stop = min(start + chunk, rows)
    if start < stop:
        mine = file.get_slice(key)[start:stop].to(dtype).contiguous()
    else:  # a file that is not mapped refuses an empty slice
        mine = torch.empty(0, *parameter.shape[1:], dtype=dtype, device=parameter.device_mesh.device_type)
    return DTensor.from_local(
        mine, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def adapter_sources(weights: WeightFiles, num_layers: int) -> dict[str, Source]:
    """State-dict key of ``LynxTransformer`` → the adapter file's tensor that fills it.

    Raises:
        CheckpointError: a key of neither layout, layers for other blocks than the base has, or a
            resampler that belongs to other ID layers.
    """
    check_resampler(weights)
    shapes = read_shapes(weights.id)
    # Lite's i-th adapter sits in block 2i.
    stride = 1 if is_full(shapes) else 2
    sources = _adapter_file(weights.id, shapes, _ID, stride, num_layers)
    if weights.ref is not None:
        sources |= _adapter_file(weights.ref, read_shapes(weights.ref), _REF, 1, num_layers)
    return sources


def _adapter_file(path: Path, shapes: Shapes, layout: _Layout, stride: int, num_layers: int) -> dict[str, Source]:
    keys = adapter_keys(path, shapes, layout, stride=stride)
    for key, shape in shapes.items():
        _check_rank(path, key, shape, _RANKS[key.rpartition(".")[2]])
    sources = {keys[key]: Source(path, key, shape) for key, shape in shapes.items()}
    found, expected = _blocks(sources, layout.module), list(range(0, num_layers, stride))
    if found != expected:
        raise CheckpointError(
            f"{path}: has layers for blocks {found}, expected {expected}: "
            f"were they made for another base than this one of {num_layers} blocks?"
        )
    return sources


def check_resampler(weights: WeightFiles) -> None:
    """Lynx's well-known crash, said in one line: lite's resampler with full's ID layers or vice versa.

    Raises:
        CheckpointError: the resampler's output size is not the ID layers' input size.
    """
    found = read_shapes(weights.resampler).get("proj_out.weight")
    wanted = next((s for k, s in read_shapes(weights.id).items() if k.endswith("to_k_ip.weight")), None)
    # Of another rank they are named later, by _check_rank.
    if found and wanted and len(found) == len(wanted) == 2 and found[0] != wanted[1]:
        raise CheckpointError(
            f"{weights.resampler}: proj_out.weight: makes tokens of size {found[0]}, but {weights.id} takes "
            f"{wanted[1]}: resampler and ID layers must both be Lynx full's or both Lynx lite's"
        )


def load_vae(folder: Path, *, device: torch.device | str = "cpu") -> AutoencoderKLWan:
    """Wan's VAE in fp32: its decode loses visibly in bf16.

    Raises:
        CheckpointError: a file, key, shape or setting does not fit.
    """
    path = folder / "config.json"
    config = read_config(path)
    check_sizes(path, config, _VAE_SIZES, required=False)
    sources = _base_sources(folder)
    try:
        with torch.device("meta"):
            vae = AutoencoderKLWan.from_config(config)
        known = len(vae.config.latents_mean), len(vae.config.latents_std)
    except Exception as error:  # as in load_transformer
        raise CheckpointError(f"{path}: no VAE of Wan2.1 can be built from it: {one_line(error)}") from error
    if known != (vae.config.z_dim,) * 2:
        raise CheckpointError(f"{path}: latents_mean, latents_std: expected {vae.config.z_dim} numbers, found {known}")
    _check(vae, sources, _weight_files(folder))
    files = dict.fromkeys(source.path for source in sources.values())
    _fill(vae, ((key, tensor.float()) for file in files for key, tensor in _tensors(file, device)))
    return vae.requires_grad_(False).eval().to(device)


def load_scheduler_config(folder: Path) -> dict[str, Any]:
    """Settings of UniPC as the base ships them.

    Raises:
        CheckpointError: another scheduler, or no flow matching.
    """
    path = folder / "scheduler_config.json"
    config = read_config(path)
    name = config.get("_class_name")
    if name != UniPCMultistepScheduler.__name__ or not config.get("use_flow_sigmas"):
        raise CheckpointError(f"{path}: {one_line(name)}: expected UniPCMultistepScheduler with use_flow_sigmas")
    check_sizes(path, config, _SCHEDULER_SIZES, required=False)
    try:
        UniPCMultistepScheduler.from_config(config)
    except Exception as error:  # as in load_transformer
        raise CheckpointError(f"{path}: no scheduler can be built from it: {one_line(error)}") from error
    return config


def _blocks(keys: Iterable[str], module: str) -> list[int]:
    return sorted({int(key.split(".")[1]) for key in keys if f".{module}." in key})


def _check(module: nn.Module, sources: Mapping[str, Source], home: Sequence[Path] = (Path("no file"),)) -> None:
    """Every key used, none missing, every shape right; the first that is not, named by file and key.

    Args:
        home: the base's files, to be named where not one of its keys was found.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for target, source in sources.items():
        if target not in wanted:
            raise CheckpointError(
                f"{source.path}: {one_line(source.key)}: surplus key, the model has no such parameter"
            )
        if source.shape != wanted[target]:
            raise CheckpointError(
                f"{source.path}: {source.key}: expected shape {list(wanted[target])}, found {list(source.shape)}"
            )
    if missing := sorted(wanted.keys() - sources.keys()):
        part = _part(missing[0])
        first, *others = dict.fromkeys([s.path for target, s in sources.items() if _part(target) == part] or home)
        files = ", ".join([str(first), *(path.name for path in others)])
        raise CheckpointError(f"{files}: {missing[0]}: missing ({len(missing)} missing keys in all)")


def _part(target: str) -> str | None:
    """The adapter whose file has this parameter; None for the base's."""
    return next((layout.module for layout in (_ID, _REF) if f".{layout.module}." in target), None)


def _check_rank(path: Path, key: str, shape: tuple[int, ...], rank: int) -> None:
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{path}: {key}: expected {rank} dimensions, none of size 0, found shape {list(shape)}")


def _fill(module: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.exists():
        match read_config(index).get("weight_map"):
            case dict(names) if names and all(isinstance(name, str) for name in names.values()):
                return [folder / name for name in sorted(set(names.values()))]
        raise CheckpointError(f"{index}: weight_map: expected the file of each key")
    return [folder / "diffusion_pytorch_model.safetensors"]


def _tensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
    with _open(path, str(device)) as file:
        for key in file.keys():
            yield key, file.get_tensor(key)


def _open(path: Path, device: str = "cpu", *, mapped: bool = True) -> Any:
    refuse_special(path)
    try:
        return safe_open(path, framework="pt", device=device, backend="mmap" if mapped else "pread")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {one_line(error)}") from None
