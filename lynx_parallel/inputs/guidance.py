"""Classifier-free guidance with identity: which branches run, and how they are summed.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Literal

from lynx_parallel.inputs.sampling import Sampling

BranchName = Literal["c", "i", "u"]
"""c: prompt and identity; i: negative prompt and identity; u: negative prompt without identity."""


def guidance_coefficients(
    guidance_scale: float, guidance_scale_i: float | None, *, identity: bool = True
) -> dict[BranchName, float]:
    """Returns the coefficients of the branches, in summing order, without those that are 0.

    v = u + g_i·(i − u) + g·(c − i) = g·c + (g_i − g)·i + (1 − g_i)·u; without g_i: g·c + (1 − g)·u.
    g ≤ 1 runs c alone, as upstream does.

    Args:
        identity: whether any identity acts. If none does, i = u, and two branches are left.
    """
    if guidance_scale <= 1:
        return {"c": 1.0}
    if guidance_scale_i is None or not identity:
        return {"c": guidance_scale, "u": 1 - guidance_scale}
    coefficients: dict[BranchName, float] = {
        "c": guidance_scale,
        "i": guidance_scale_i - guidance_scale,
        "u": 1 - guidance_scale_i,
    }
    return {name: coefficient for name, coefficient in coefficients.items() if coefficient != 0}


def sampling_coefficients(
    sampling: Sampling, *, has_reference: bool, has_identity: bool = True, inside: bool = True
) -> dict[BranchName, float]:
    """Returns the coefficients of a shot's branches inside or outside its identity window.

    Args:
        has_reference: False for lite, which has no branch i: upstream ignores ``guidance_scale_i`` there.
        has_identity: whether the transformer has an ID adapter.
    """
    acts = (has_identity and sampling.ip_scale > 0) or (has_reference and sampling.ref_scale > 0)
    g_i = sampling.guidance_scale_i if has_reference else None
    return guidance_coefficients(sampling.guidance_scale, g_i, identity=inside and acts)


def inside_window(step: int, steps: int, window: tuple[float, float]) -> bool:
    """Returns whether identity acts in step ``step`` (from 0) of ``steps``."""
    return window[0] <= step / steps < window[1]
