"""Weights files → modules: the base in diffusers layout, Lynx's adapters.

Modules are built on the meta device and filled tensor by tensor, each read straight to its dtype and
device, so that no second copy and no fp32 detour exists. Every key must be used and none may miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn
from torch.distributed.tensor import DTensor

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.model_config import check_sizes, read_config, transformer_config
from lynx_parallel.inputs.projections import is_projection
from lynx_parallel.inputs.tensor_headers import weight_files
from lynx_parallel.inputs.weight_files import EXPERTS, WeightFiles
from lynx_parallel.model.adapter_files import adapter_of, adapter_sources, blocks
from lynx_parallel.model.adapters import IDProjection, RefProjection, Resampler
from lynx_parallel.model.experts import Experts, move
from lynx_parallel.model.lora import Loras, MergedLoras, change_of
from lynx_parallel.model.projections import BorrowedProjections
from lynx_parallel.model.tensor_files import (
    LOADED,
    Shapes,
    Source,
    base_sources,
    check_rank,
    merge,
    open_file,
    read_shapes,
    read_tensor,
    stored_as,
    tensors,
    transformer_sources,
)
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.text import one_line

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


def load_transformer(
    weights: WeightFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    shard: Callable[[LynxTransformer], None] | None = None,
    keep_projections: bool = True,
    wait_on_cpu: bool = False,
) -> LynxTransformer:
    """Loads a transformer of the base and its adapters.

    Args:
        dtype: of all weights but those that diffusers keeps in fp32 (norms, time embedder,
            scale_shift_table).
        shard: marks the empty transformer as sharded (``parallel.shard.shard``); only the rows that this rank
            keeps are read then.
        keep_projections: False leaves the projections of static keys and values in the file, to be read
            when they are needed; see ``model.projections``.
        wait_on_cpu: leaves the weights on the CPU, for ``model.experts``. What is read later goes to the device.

    Raises:
        CheckpointError: a file, key or shape does not fit; names it.
    """
    folder = weights.transformer_folder
    config = transformer_config(weights)
    sources = transformer_sources(weights)
    adapters = adapter_sources(weights, config["num_layers"])
    try:
        transformer = build_transformer(config, {target: source.shape for target, source in adapters.items()})
    except Exception as error:  # diffusers and torch raise KeyError, TypeError, RuntimeError, … by the value
        raise CheckpointError(
            f"{folder / 'config.json'}: no Wan transformer can be built from it: {one_line(error)}"
        ) from error
    merge(sources, adapters)
    _check(transformer, sources, [weights.transformer] if weights.transformer else weight_files(folder))
    if shard is not None:
        shard(transformer)

    parameters = dict(transformer.named_parameters())
    paths = dict.fromkeys(source.path for source in sources.values())

    def make_readers(device: torch.device | str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the reader of each parameter, with LoRAs and without."""
        on_cpu = torch.device(device).type == "cpu"
        files = {path: open_file(path, str(device), mapped=not on_cpu or stored_as(path, dtype)) for path in paths}
        plain = {
            target: partial(read_tensor, files[one.path], one.key, loaded_dtype(target, dtype), scale=one.scale)
            for target, one in sources.items()
        }
        loras = Loras(weights.loras, {target: one.shape for target, one in sources.items()}, device)
        changed = {t: partial(plain[t], change=change) for t in plain if (change := change_of(loras, t))}
        return {**plain, **changed}, plain

    readers, plain = make_readers(device)
    start = make_readers("cpu")[0] if wait_on_cpu else readers
    left = set() if keep_projections else {target for target in sources if is_projection(target)}
    state = {target: parameters[target] for target in left}
    sizes = {t: _bytes_here(parameters[t], loaded_dtype(t, dtype)) for t in sources if t not in left}
    LOADED.to_read += sum(sizes.values())
    for target, size in sizes.items():
        state[target] = start[target](parameters[target])
        LOADED.read += size
    transformer.load_state_dict(state, strict=True, assign=True)
    if not weights.loras_on_reference:
        transformer.loras = MergedLoras(
            {target: (readers[target], plain[target]) for target in plain if readers[target] is not plain[target]}
        )
    if left:
        transformer.projections = BorrowedProjections(
            {target: readers[target] for target in left}, {target: plain[target] for target in left}
        )
    # RoPE's tables are computed, not stored; on the meta device they were not.
    transformer.rope = WanRotaryPosEmbed(
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    ).to("cpu" if wait_on_cpu else device)
    return transformer


def _bytes_here(parameter: torch.Tensor, dtype: torch.dtype) -> int:
    """Returns the bytes of a parameter that this rank keeps."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel() * dtype.itemsize


def load_experts(
    weights: WeightFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    shard: Callable[[LynxTransformer], None] | None = None,
    keep_projections: bool = True,
    one_at_a_time: bool = False,
) -> Experts:
    """Loads every transformer of a base: one, or two experts.

    Args:
        one_at_a_time: of two, the device holds only the one in use.

    Other arguments and errors as in ``load_transformer``.
    """
    boundary = base_parts(weights.base).boundary_ratio
    load = partial(load_transformer, dtype=dtype, device=device, shard=shard, keep_projections=keep_projections)
    if boundary is None:
        return Experts([load(weights)])
    transformers = []
    for expert in EXPERTS:
        transformer = load(weights.of(expert), wait_on_cpu=one_at_a_time and shard is None)
        transformer.name = expert
        transformers.append(transformer)
        if one_at_a_time and shard is not None:
            move(transformer, torch.device("cpu"))
    return Experts(transformers, boundary, torch.device(device) if one_at_a_time else None)


def build_transformer(config: dict[str, Any], adapter_shapes: Shapes) -> LynxTransformer:
    """Returns an empty ``LynxTransformer`` on the meta device, with adapters of these shapes.

    Args:
        config: diffusers' ``config.json`` of the transformer.
        adapter_shapes: of both adapters, by state-dict key (see ``adapter_keys``).
    """
    with torch.device("meta"):
        wan = WanTransformer3DModel.from_config(config)
        inner = wan.config.num_attention_heads * wan.config.attention_head_dim
        id_adapters, ref_adapters = {}, {}
        for block in blocks(adapter_shapes, "id_adapter"):
            prefix = f"blocks.{block}.id_adapter"
            id_dim = adapter_shapes.get(f"{prefix}.to_k_ip.weight", (inner, inner))[1]
            id_adapters[block] = IDProjection(id_dim, inner, adapter_shapes.get(f"{prefix}.registers", (1, 0))[1])
        for block in blocks(adapter_shapes, "ref_adapter"):
            ref_adapters[block] = RefProjection(inner, inner)
        return LynxTransformer(wan, id_adapters, ref_adapters)


def loaded_dtype(target: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the type of a parameter in a transformer of ``dtype``: diffusers keeps some in fp32."""
    stays = any(part in WanTransformer3DModel._keep_in_fp32_modules for part in target.split("."))
    return torch.float32 if stays else dtype


def load_resampler(path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Resampler:
    """Loads the resampler. Its sizes come from the file.

    Raises:
        CheckpointError: not a resampler, or unreadable.
    """
    shapes = read_shapes(path)
    for key, rank in _RESAMPLER_RANKS.items():
        if key in shapes:
            check_rank(path, key, shapes[key], rank)
    try:
        with torch.device("meta"):
            resampler = Resampler.from_shapes(shapes)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}: expected in a resampler, not found") from None
    _check(resampler, {key: Source(path, key, shape) for key, shape in shapes.items()})
    _fill(resampler, ((key, tensor.to(dtype)) for key, tensor in tensors(path, device)))
    return resampler.requires_grad_(False).eval()


def load_vae(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> AutoencoderKLWan:
    """Loads Wan's VAE.

    Args:
        dtype: of its weights. Decoding in bf16 loses visible detail.

    Raises:
        CheckpointError: a file, key, shape or setting does not fit.
    """
    path = folder / "config.json"
    config = read_config(path)
    check_sizes(path, config, _VAE_SIZES, required=False)
    sources = base_sources(folder)
    try:
        with torch.device("meta"):
            vae = AutoencoderKLWan.from_config(config)
        known = len(vae.config.latents_mean), len(vae.config.latents_std)
    except Exception as error:  # as in load_transformer
        raise CheckpointError(f"{path}: no VAE of Wan2.1 can be built from it: {one_line(error)}") from error
    if known != (vae.config.z_dim,) * 2:
        raise CheckpointError(f"{path}: latents_mean, latents_std: expected {vae.config.z_dim} numbers, found {known}")
    _check(vae, sources, weight_files(folder))
    files = dict.fromkeys(source.path for source in sources.values())
    _fill(vae, ((key, tensor.to(dtype)) for file in files for key, tensor in tensors(file, device)))
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


def _check(module: nn.Module, sources: Mapping[str, Source], home: Sequence[Path] = (Path("no file"),)) -> None:
    """Checks that every key is used, none is missing, and every shape fits. Names file and key of the first mistake.

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
        part = adapter_of(missing[0])
        first, *others = dict.fromkeys([s.path for target, s in sources.items() if adapter_of(target) == part] or home)
        files = ", ".join([str(first), *(path.name for path in others)])
        raise CheckpointError(f"{files}: {missing[0]}: missing ({len(missing)} missing keys in all)")


def _fill(module: nn.Module, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    module.load_state_dict(dict(named), strict=True, assign=True)
