"""Estimates how long a plan takes: from shots that were rendered before, else by arithmetic with a card's rate.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.cards import Card
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.work import config_of, shot_flops, work_key
from lynx_parallel.text import counted

MOST_READ = 40
"""Finished shots from which rates are fitted."""
SHARE_REACHED = 0.5
"""Part of a card's bf16 peak that a forward of the 14B reaches. 0.51 was measured on one H200 at 480p."""
DECODE_ON_H200 = {"float32": 0.31, "tf32": 0.086, "bfloat16": 0.086}
"""Seconds in which one H200 decodes a million pixels, by precision. That of bfloat16 is a guess."""
H200_TFLOPS = 989.0


@dataclass(frozen=True)
class Rates:
    """How fast shots are made.

    Attributes:
        flops: operations of denoising per second of one rank.
        decode: seconds of one rank that decode a million pixels.
        overhead: further seconds of a shot, in which its ranks do nothing else.
        source: where the rates are from, in words.
    """

    flops: float
    decode: float
    overhead: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """How long the remaining work takes.

    Attributes:
        shot_seconds: median over the shots.
        seconds: of the whole run, without its start.
        rank_hours: hours of all ranks together; GPU-hours on GPUs.
        source: of the rates, in words.
    """

    shot_seconds: float
    seconds: float
    rank_hours: float
    source: str


def rates_of_card(card: Card, vae_dtype: str) -> Rates:
    """Returns the rates that arithmetic gives for a card."""
    decode = DECODE_ON_H200[vae_dtype] * H200_TFLOPS / card.tflops
    source = f"arithmetic: {SHARE_REACHED:.0%} of the {card.tflops:.0f} TFLOP/s of {card.name}"
    return Rates(SHARE_REACHED * card.tflops * 1e12, decode, 0.0, source)


def fit(part: Part, sidecars: Iterable[Mapping[str, Any]]) -> Rates | None:
    """Returns the rates of finished shots, medians over them; None if no sidecar tells any."""
    config, has_reference = config_of(part), part.weights.ref is not None
    flops, decode, overhead = [], [], []
    for sidecar in sidecars:
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError, ValidationError):
            seconds, ranks = sidecar["seconds"], len(sidecar["ranks"])
            sampling = _sampling(sidecar["settings"])
            work = shot_flops(sampling, config, has_reference=has_reference)
            flops.append(work / (seconds["denoise"] * ranks))
            decode.append(seconds["decode"] * ranks / _megapixels(sampling))
            spent = seconds["denoise"] + seconds["decode"] + seconds["encode"]
            overhead.append(max(seconds["total"] - spent, 0.0))
    if not flops:
        return None
    source = f"{counted(len(flops), 'shot')} of this folder"
    return Rates(statistics.median(flops), statistics.median(decode), statistics.median(overhead), source)


def sidecars_of(part: Part, output: Output, made: Sequence[Item]) -> list[Mapping[str, Any]]:
    """Returns the sidecars of some shots that were made, spread over all of them."""
    mine = part.of(made)
    step = max(len(mine) // MOST_READ, 1)
    found = (output.sidecar(item.shot.name) for item in mine[::step][:MOST_READ])
    return [sidecar for sidecar in found if sidecar is not None]


def remember(part: Part, device: str, rates: Rates) -> None:
    """Stores the rates of this machine for plans of other folders. An error is ignored: they only save time."""
    path = _store()
    with contextlib.suppress(OSError):
        known = _read_store(path)
        known[_key(part, device)] = {**asdict(rates), "source": "earlier runs on this machine"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part_file:
            part_file.write_text(json.dumps(known, indent=1))


def remembered(part: Part, device: str) -> Rates | None:
    """Returns the rates of this machine, or None."""
    with contextlib.suppress(KeyError, TypeError):
        return Rates(**_read_store(_store())[_key(part, device)])
    return None


def estimate(part: Part, items: Sequence[Item], rates: Rates, *, ranks: int, gangs: int) -> Estimate:
    """Returns how long some shots take on gangs that render them side by side.

    Args:
        items: to render or to encode. Encoding counts as nothing.
        ranks: of a gang. A shot is taken to be faster by their number.
        gangs: that are at work at the same time.
    """
    config, has_reference = config_of(part), part.weights.ref is not None
    known: dict[tuple[Any, ...], float] = {}
    each = []
    for item in items:
        if item.action == "encode":
            continue
        sampling = item.shot.sampling
        if (key := work_key(sampling)) not in known:
            work = shot_flops(sampling, config, has_reference=has_reference) / rates.flops
            known[key] = (work + rates.decode * _megapixels(sampling)) / ranks + rates.overhead
        each.append(known[key] * item.share)
    if not each:
        return Estimate(0.0, 0.0, 0.0, rates.source)
    whole = max(sum(each) / gangs, max(each))
    return Estimate(statistics.median(each), whole, sum(each) * ranks / 3600, rates.source)


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """Returns the settings of a sidecar that decide the work of its shot."""
    names = {name: settings[f"sampling.{name}"] for name in Sampling.model_fields if f"sampling.{name}" in settings}
    return Sampling.model_validate({**names, "identity_window": tuple(names.get("identity_window", (0.0, 1.0)))})


def _megapixels(sampling: Sampling) -> float:
    return sampling.width * sampling.height * sampling.num_frames / 1e6


def _key(part: Part, device: str) -> str:
    config = config_of(part)
    model = "×".join(str(config[name]) for name in ("num_layers", "num_attention_heads", "attention_head_dim"))
    return f"{device}, {model}, {part.campaign.pipeline.model.dtype}, {part.campaign.pipeline.model.vae_dtype}"


def _store() -> Path:
    return cache_root() / "rates.json"


def _read_store(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
