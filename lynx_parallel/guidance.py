"""Classifier-free guidance with identity: which branches run, and how they are summed.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from typing import Literal

BranchName = Literal["c", "i", "u"]
"""c: prompt and identity; i: negative prompt and identity; u: negative prompt, no one's identity."""


def guidance_weights(
    guidance_scale: float, guidance_scale_i: float | None, *, has_reference: bool = True
) -> dict[BranchName, float]:
    """Coefficients of the branches, in summing order; a branch whose coefficient is 0 is left out.

    v = u + g_i·(i − u) + g·(c − i) = g·c + (g_i − g)·i + (1 − g_i)·u; without g_i: g·c + (1 − g)·u.
    g ≤ 1 runs c alone, as the reference does.

    Args:
        has_reference: False for lite, which has no branch i: ``guidance_scale_i`` is ignored there, as in
            the reference.
    """
    if guidance_scale <= 1:
        return {"c": 1.0}
    if guidance_scale_i is None or not has_reference:
        return {"c": guidance_scale, "u": 1 - guidance_scale}
    weights: dict[BranchName, float] = {
        "c": guidance_scale,
        "i": guidance_scale_i - guidance_scale,
        "u": 1 - guidance_scale_i,
    }
    return {name: weight for name, weight in weights.items() if weight != 0}
