"""``parallelize`` splits a pipeline over a gang. ``localize`` undoes it."""

from __future__ import annotations

from typing import Protocol

from lynx_parallel.model.attention import Attention, LocalTokens, sdpa
from lynx_parallel.model.experts import Experts
from lynx_parallel.parallel.xdit import Membership
from lynx_parallel.stages.denoise import LocalGuidance


class Model(Protocol):
    """The attributes of ``LynxPipeline`` that a layout changes."""

    experts: Experts
    guidance: LocalGuidance


def parallelize(pipeline: Model, membership: Membership) -> None:
    """Splits tokens and guidance branches as the gang's layout says; weights stay as they are."""
    for transformer in pipeline.experts:
        transformer.tokens = membership.tokens
    pipeline.guidance = membership.guidance


def localize(pipeline: Model, kernel: Attention = sdpa) -> None:
    """Returns the pipeline to one rank."""
    for transformer in pipeline.experts:
        transformer.tokens = LocalTokens(kernel)
    pipeline.guidance = LocalGuidance()
