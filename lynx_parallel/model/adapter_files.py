"""Maps the keys of Lynx's adapter files, in the three known layouts, to parameters of ``LynxTransformer``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model.tensor_files import Shapes, Source, check_rank, read_shapes, read_sources
from lynx_parallel.text import one_line

# Number of dimensions, by the end of an adapter's parameter name.
_RANKS = {"weight": 2, "bias": 1, "registers": 3}
# Blocks are numbered as Python prints numbers: with 00 beside 0, two keys would fill one parameter.
_NUMBER = r"(?P<i>0|[1-9][0-9]{0,3})"


@dataclass(frozen=True)
class _Layout:
    """How one adapter file's keys map to ``blocks.{block}.{module}.{parameter}``.

    Attributes:
        reference: upstream's layout.
        single_file: of ComfyUI.
        combined: of WanGP, whose file holds both adapters.
    """

    reference: re.Pattern[str]
    single_file: re.Pattern[str]
    combined: re.Pattern[str]
    module: str


_ID = _Layout(
    reference=re.compile(_NUMBER + r"\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"),
    single_file=re.compile(
        rf"blocks\.{_NUMBER}\.cross_attn\.ip_adapter\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"
    ),
    combined=re.compile(rf"blocks\.{_NUMBER}\.cross_attn\.(?P<parameter>to_[kv]_ip\.(?:weight|bias)|registers)"),
    module="id_adapter",
)
_REF = _Layout(
    reference=re.compile(_NUMBER + r"\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    single_file=re.compile(rf"blocks\.{_NUMBER}\.self_attn\.ref_adapter\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    combined=re.compile(rf"blocks\.{_NUMBER}\.self_attn\.(?P<parameter>to_[kv]_ref\.(?:weight|bias))"),
    module="ref_adapter",
)


def is_full(id_shapes: Shapes) -> bool:
    """Returns whether these ID layers are those of Lynx full, which alone has registers."""
    return any(key.endswith("registers") for key in id_shapes)


def adapter_keys(path: Path, shapes: Shapes, layout: _Layout, *, stride: int = 1) -> dict[str, str]:
    """Returns the state-dict key of ``LynxTransformer`` for each key of a file.

    Args:
        stride: in upstream's layout the i-th adapter belongs to block ``i * stride`` (lite: 2);
            the other layouts name the block itself.

    Raises:
        CheckpointError: a key belongs to no layout, or two keys to one parameter.
    """
    keys: dict[str, str] = {}
    taken: dict[str, str] = {}
    for key in shapes:
        if match := layout.reference.fullmatch(key):
            block = int(match["i"]) * stride
        elif match := layout.single_file.fullmatch(key) or layout.combined.fullmatch(key):
            block = int(match["i"])
        elif any(other.combined.fullmatch(key) for other in (_ID, _REF)):
            continue  # one file holds both adapters
        else:
            raise CheckpointError(f"{path}: {one_line(key)}: not a key of Lynx's {layout.module.split('_')[0]} layers")
        keys[key] = f"blocks.{block}.{layout.module}.{match['parameter']}"
        if (first := taken.setdefault(keys[key], key)) != key:
            raise CheckpointError(f"{path}: {key}: fills the same parameter as {first}: two layouts in one file")
    return keys


def adapter_sources(weights: WeightFiles, num_layers: int) -> dict[str, Source]:
    """Returns the adapter tensor that fills each state-dict key of ``LynxTransformer``.

    Raises:
        CheckpointError: a key of neither layout, layers for other blocks than the base has, or a
            resampler that belongs to other ID layers.
    """
    sources: dict[str, Source] = {}
    if weights.id is not None:
        check_resampler(weights)
        read = read_sources(weights.id)
        # Lite's i-th adapter sits in block 2i.
        stride = 1 if is_full(_shapes(read)) else 2
        sources |= _adapter_file(weights.id, read, _ID, stride, num_layers)
    if weights.ref is not None:
        sources |= _adapter_file(weights.ref, read_sources(weights.ref), _REF, 1, num_layers)
    return sources


def _shapes(sources: Mapping[str, Source]) -> Shapes:
    return {key: source.shape for key, source in sources.items()}


def _adapter_file(
    path: Path, read: Mapping[str, Source], layout: _Layout, stride: int, num_layers: int
) -> dict[str, Source]:
    keys = adapter_keys(path, _shapes(read), layout, stride=stride)
    for key in keys:
        check_rank(path, key, read[key].shape, _RANKS[key.rpartition(".")[2]])
    sources = {target: read[key] for key, target in keys.items()}
    found, expected = blocks(sources, layout.module), list(range(0, num_layers, stride))
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
    assert weights.resampler is not None
    assert weights.id is not None
    found = read_shapes(weights.resampler).get("proj_out.weight")
    wanted = next((s for k, s in read_shapes(weights.id).items() if k.endswith("to_k_ip.weight")), None)
    # Of another rank they are named later, by check_rank.
    if found and wanted and len(found) == len(wanted) == 2 and found[0] != wanted[1]:
        raise CheckpointError(
            f"{weights.resampler}: proj_out.weight: makes tokens of size {found[0]}, but {weights.id} takes "
            f"{wanted[1]}: resampler and ID layers must both be Lynx full's or both Lynx lite's"
        )


def blocks(keys: Iterable[str], module: str) -> list[int]:
    """Numbers of the blocks that have this kind of adapter, from state-dict keys."""
    return sorted({int(key.split(".")[1]) for key in keys if f".{module}." in key})


def adapter_of(target: str) -> str | None:
    """Returns the adapter whose file has this parameter, or None for the base's."""
    return next((layout.module for layout in (_ID, _REF) if f".{layout.module}." in target), None)
