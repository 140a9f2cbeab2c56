"""The report of ``benchmarks.gpu``, and a description of the card on which it ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.machine import describe, describe_in_words, table
from lynx_parallel.doctor.machine import nvidia_driver

AIM_S, AIM_CARD = 2.5, "H200"
"""Target seconds of one forward at 480p, and the card for which the target is set."""
AIM = (
    f"Aim: ≤ {AIM_S} s a forward at 480p on an {AIM_CARD}. That is 85 % of the 790 TFLOP/s that large bf16 matrix "
    "products reach there."
)


def describe_gpu() -> dict[str, Any]:
    """Returns ``machine.describe()`` with the driver, CUDA, cuDNN and the attention packages."""
    machine = describe()
    for name in ("flash-attn", "flash-attn-3"):
        try:
            machine["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    return machine | {"driver": nvidia_driver()[0], "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def slug(machine: Mapping[str, Any]) -> str:
    """Returns the first card's name as part of a file name."""
    name = machine["gpus"][0] if machine["gpus"] else "none"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def report(machine: Mapping[str, Any], configuration: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Returns the Markdown report of what was found so far."""
    rate = max((one["tflop_per_s"] for one in _rows(found, "matmul").values()), default=None)
    sections = [
        f"# One GPU and the 14B\n\n{describe_in_words(machine)}"
        f"Driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}\n\n"
        f"Weights: {configuration['weights']}. Medians of up to {configuration['repeats']} repeats after one to warm "
        "up, the device synchronised around each.\nGB are 10⁹ bytes; peaks are of allocated memory.\n\n"
        f"{AIM} {_verdict(machine, found)}\n",
        _matmul(found),
        *(_forward(found, video, rate) for video in ("480p", "720p")),
        _compiled(found),
        _decode(found),
        _prepare(found),
        _shot(found),
        _not_measured(found),
    ]
    return "\n".join(section for section in sections if section)


def _rows(found: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns the entries of a part that are mappings."""
    return {name: value for name, value in found.get(part, {}).items() if isinstance(value, Mapping)}


def _verdict(machine: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    medians = [one["median"] for one in found.get("forward 480p", {}).get("kernels", {}).values() if "median" in one]
    if not any(AIM_CARD in name for name in machine["gpus"]) or not medians:
        return "Not decided by this run."
    return f"Here: {min(medians):.2f} s, {'met' if min(medians) <= AIM_S else 'NOT MET'}."


def _matmul(found: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{1000 * one['seconds']:.2f}", f"{one['tflop_per_s']:.0f}"]
        for name, one in _rows(found, "matmul").items()
    ]
    return "## Matrix products, bf16\n\n" + table(["shape", "ms", "TFLOP/s"], rows) if rows else ""


def _forward(found: Mapping[str, Any], video: str, rate: float | None) -> str:
    part = found.get(f"forward {video}", {})
    if "kernels" not in part:
        return ""
    rows = []
    for name, one in part["kernels"].items():
        if "median" not in one:
            rows.append([name, "not available here" if "missing" in one else "FAILED", *[""] * 5])
            continue
        share = f"{100 * one['tflop_per_s'] / rate:.0f} %" if rate else ""
        spread = f"{min(one['seconds']):.3f} … {max(one['seconds']):.3f} ({len(one['seconds'])})"
        peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e9:.1f}"
        text = f"{one['median']:.3f}" if one["finite"] else "NOT FINITE"
        predicted = f"{part['predicted_bytes'] / 1e9:.1f}"
        rows.append([name, text, spread, f"{one['tflop_per_s']:.0f}", share, peak, predicted])
    head = ["kernel", "s, median", "least … most (repeats)", "TFLOP/s", "of matrix products", "peak, GB"]
    head.append("predicted, GB")
    return (
        f"## One forward at {video}\n\n{part['tokens']} tokens, one branch, {part['tflop']:.0f} TFLOP. "
        f"`--attention auto` takes {part['auto']}.\n\n" + table(head, rows)
    )


def _compiled(found: Mapping[str, Any]) -> str:
    part = found.get("compiled 480p", {})
    if "compiled" not in part:
        return ""
    rows = [
        [name, f"{part[name]['median']:.3f}", "" if peak is None else f"{peak / 1e9:.1f}"]
        for name in ("eager", "compiled")
        for peak in (part[name]["peak_bytes"],)
    ]
    return (
        "## One forward at 480p, blocks compiled\n\nThe renderer compiles nothing. Attention: "
        f"{part['attention']}. The first compiled forward takes {part['first']:.1f} s.\nThe results differ by "
        f"{100 * part['difference']:.1f} % (relative norm, random bf16 weights).\n\n"
        + table(["blocks", "s, median", "peak, GB"], rows)
    )


def _decode(found: Mapping[str, Any]) -> str:
    rows = []
    for video in ("480p", "720p"):
        for name, one in _rows(found, f"decode {video}").items():
            peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e9:.1f}"
            rows.append([video, name, f"{one['median']:.2f}", str(len(one["seconds"])), peak])
    head = ["video", "convolutions", "s, median", "repeats", "peak, GB"]
    return "## Decoding on one rank\n\n" + table(head, rows) if rows else ""


def _prepare(found: Mapping[str, Any]) -> str:
    modes = _rows(found, "prepare")
    if "encoders" not in modes:
        return ""
    encoders = modes.pop("encoders")
    names = list(dict.fromkeys(name for one in modes.values() for name in one))
    rows = [[name, *[f"{seconds:.3f}"] * len(modes)] for name, seconds in encoders.items()]
    rows += [[name, *(f"{one[name]:.3f}" for one in modes.values())] for name in names]
    return (
        "## Loading and preparing, seconds\n\n"
        "Load: the transformer with its adapters, from files in the page cache; without files, the making of random "
        "weights.\nNew prompt: text encoder and text K/V, without loading the text encoder. New subject: VAE, "
        "resampler, reference pass,\nreference and identity K/V, without finding the face and ArcFace.\n\n"
        + table(["", *(f"projections {name}" for name in modes)], rows)
    )


def _shot(found: Mapping[str, Any]) -> str:
    part = found.get("shot", {})
    if "wall" not in part:
        return ""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in part["seconds"].items())
    return (
        f"## One shot of {part['steps']} steps through lynx-render\n\n"
        f"{part['wall']:.1f} s in all, from starting the command to its end; hashing the weights, starting Ray and "
        f"loading included.\nSeconds in the sidecar: {stages}. {part['forward']:.2f} s a forward, conditioning "
        f"included. Attention: {part['attention']}.\n"
    )


def _not_measured(found: Mapping[str, Any]) -> str:
    lines = []
    for name, part in found.items():
        kernels = {f"{name}, {kernel}": one for kernel, one in part.get("kernels", {}).items()}
        for what, one in {name: part, **kernels}.items():
            lines += [f"- {what}: {why}: {one[why]}" for why in ("left out", "failed") if why in one]
    return "## Not measured\n\n" + "\n".join(lines) + "\n" if lines else ""
