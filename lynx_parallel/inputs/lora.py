"""Finds out from its header what a LoRA file changes in Wan's transformer. Imports neither torch nor Ray.

A file may have Wan's or diffusers' names, in the spelling of kohya, musubi, PEFT, DiffSynth, ComfyUI or lightx2v. It
may hold low-rank pairs, whole differences, or both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path
from typing import Any

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.tensor_headers import Header
from lynx_parallel.inputs.wan_names import spellings, without_prefix
from lynx_parallel.text import one_line

Shapes = Mapping[str, tuple[int, ...]]

_SUFFIX = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_down|lora_up|lora_A|lora_B|alpha|diff_b|diff_m|diff)(?:\.default)?(?:\.weight)?"
)
_UNDERSCORED = re.compile(r"^(?:lora_unet_{1,2}|lycoris_)")
_UNSUPPORTED = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT",
    "lora_mid": "LoCon with a core tensor (Tucker)", "w_norm": "norm differences of LyCORIS",
    "b_norm": "norm differences of LyCORIS",
}  # fmt: skip
_NO_MODULE = "not a part of Wan's transformer"
_NOT_HERE = "this base has no such part"
_OTHER_CHANNELS = "made for a base with other input channels"


@dataclass(frozen=True)
class Change:
    """One change of one parameter.

    Attributes:
        target: state-dict key of ``LynxTransformer``.
        diff: key of a difference that is added; or else
        up, down: keys of two matrices whose product is added.
        alpha: key of the number that is divided by the rank to scale the product.
        scale: factor of the product if there is no ``alpha``.
    """

    target: str
    diff: str = ""
    up: str = ""
    down: str = ""
    alpha: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read for one base.

    Attributes:
        changes: all that is applied.
        applied: number of keys that are applied.
        skipped: keys that are not applied, by the reason.
    """

    path: Path
    changes: tuple[Change, ...]
    applied: int
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns what was applied, in words."""
        total = self.applied + sum(map(len, self.skipped.values()))
        targets = len({change.target for change in self.changes})
        return f"{self.applied} of {total} keys change {targets} parameters"


def read_lora(path: Path, header: Header, model: Shapes) -> Lora:
    """Returns what a LoRA file changes.

    Args:
        model: shape of each parameter of the transformer, under diffusers' names.

    Raises:
        CheckpointError: an unsupported kind, a wrong shape, half of a pair, or nothing that fits this base.
    """
    return _Reader(path, header, model).read()


class _Reader:
    def __init__(self, path: Path, header: Header, model: Shapes):
        self._path, self._header, self._model = path, header, model
        blocks = {int(key.split(".")[1]) for key in model if key.startswith("blocks.")}
        self._modules = spellings(max(blocks, default=-1) + 1)
        self._skipped: dict[str, list[str]] = {}

    def read(self) -> Lora:
        parts: dict[str, dict[str, str]] = {}
        for key in self._header.tensors:
            if found := self._part_of(key):
                module, kind = found
                if (first := parts.setdefault(module, {}).setdefault(kind, key)) != key:
                    raise CheckpointError(f"{self._path}: {one_line(key)}: the same part as {one_line(first)}")
        changes = [change for module, keys in parts.items() for change in self._changes(module, keys)]
        if not changes:
            raise CheckpointError(f"{self._path}: nothing in it fits this base: {self._why_nothing()}")
        applied = len(self._header.tensors) - sum(map(len, self._skipped.values()))
        return Lora(self._path, tuple(changes), applied, self._skipped)

    def _why_nothing(self) -> str:
        if not self._skipped:
            return "it is empty"
        reason, keys = next(iter(self._skipped.items()))
        return f"{one_line(keys[0])} ({len(self._header.tensors)} keys in all): {reason}"

    def _part_of(self, key: str) -> tuple[str, str] | None:
        """Returns the module of a key under diffusers' name, and the kind of part; None if the key is skipped."""
        for sign, kind in _UNSUPPORTED.items():
            if f".{sign}" in key:
                raise CheckpointError(f"{self._path}: {one_line(key)}: {kind} is not supported")
        name = without_prefix(key)
        match = _SUFFIX.fullmatch(name)
        if match is None:
            self._skip(_NO_MODULE, key)
            return None
        module, kind = _UNDERSCORED.sub("", match["module"], count=1), match["kind"]
        kind = {"lora_A": "lora_down", "lora_B": "lora_up"}.get(kind, kind)
        if kind == "diff_m":
            module += ".modulation"
        if (ours := self._modules.get(module)) is None:
            beyond = re.match(r"blocks[._](\d+)[._]", module)
            self._skip(_NOT_HERE if beyond else _NO_MODULE, key)
            return None
        return ours, kind

    def _skip(self, reason: str, *keys: str) -> None:
        self._skipped.setdefault(reason, []).extend(keys)

    def _changes(self, module: str, keys: dict[str, str]) -> Iterable[Change]:
        weight = f"{module}.weight" if f"{module}.weight" in self._model else module
        if weight not in self._model:
            self._skip(_NOT_HERE, *keys.values())
            return
        pair = [keys.get("lora_up", ""), keys.get("lora_down", "")]
        if any(pair):
            if not all(pair):
                half = "lora_down" if pair[0] else "lora_up"
                raise CheckpointError(f"{self._path}: {one_line(pair[0] or pair[1])}: its {half} is missing")
            if self._pair_fits(weight, *pair):
                alpha = keys.get("alpha", "")
                yield Change(weight, up=pair[0], down=pair[1], alpha=alpha, scale=self._scale(module, pair[1]))
            else:
                self._skip(_OTHER_CHANNELS, *pair, *([keys["alpha"]] if "alpha" in keys else []))
        elif "alpha" in keys:
            self._skip("an alpha without a pair", keys["alpha"])
        for kind in ("diff", "diff_m"):
            if (key := keys.get(kind)) and self._fits(weight, key):
                yield Change(weight, diff=key)
        if key := keys.get("diff_b"):
            if f"{module}.bias" not in self._model:
                self._skip(_NOT_HERE, key)
            elif self._fits(f"{module}.bias", key):
                yield Change(f"{module}.bias", diff=key)

    def _pair_fits(self, target: str, up: str, down: str) -> bool:
        shapes = self._header.tensors[up].shape, self._header.tensors[down].shape
        wanted = self._model[target]
        if min(map(len, shapes)) < 2 or len(wanted) < 2 or shapes[0][1] != shapes[1][0] or prod(shapes[0][2:]) != 1:
            raise self._misfit(down, f"[rank, inputs] after {one_line(up)} {list(shapes[0])}")
        if shapes[0][0] == wanted[0] and prod(shapes[1][1:]) == prod(wanted[1:]):
            return True
        if target.startswith("patch_embedding.") and shapes[0][0] == wanted[0]:
            return False
        raise self._misfit(down if shapes[0][0] == wanted[0] else up, f"a change of {target} {list(wanted)}")

    def _fits(self, target: str, key: str) -> bool:
        shape, wanted = self._header.tensors[key].shape, self._model[target]
        if shape == wanted:
            return True
        if target == "patch_embedding.weight" and shape[:1] == wanted[:1] and len(shape) == len(wanted):
            self._skip(_OTHER_CHANNELS, key)
            return False
        raise self._misfit(key, f"a change of {target} {list(wanted)}")

    def _misfit(self, key: str, wanted: str) -> CheckpointError:
        shape = list(self._header.tensors[key].shape)
        return CheckpointError(
            f"{self._path}: {one_line(key)}: shape {shape}, expected {wanted}: was this LoRA made for another base?"
        )

    def _scale(self, module: str, down: str) -> float:
        """Returns the factor that PEFT's metadata gives to a pair; 1 without any."""
        settings = self._peft_settings()
        alpha = settings.get("lora_alpha")
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if module == pattern or module.endswith(f".{pattern}"):
                alpha = value
        if not isinstance(alpha, int | float):
            return 1.0
        rank = self._header.tensors[down].shape[0]
        return alpha / (sqrt(rank) if settings.get("use_rslora") else rank)

    def _peft_settings(self) -> dict[str, Any]:
        try:
            settings = json.loads(self._header.metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            return {}
        if not isinstance(settings, dict):
            return {}
        return {str(name).removeprefix("transformer."): value for name, value in settings.items()}
