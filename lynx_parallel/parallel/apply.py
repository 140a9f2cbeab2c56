"""parallelize: the one verb that puts a pipeline on a gang; ``localize`` takes it back."""

from __future__ import annotations

from lynx_parallel.model.attention import Attention, LocalTokens, sdpa
from lynx_parallel.parallel.xdit import Membership
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.denoise import LocalGuidance


def parallelize(pipeline: LynxPipeline, membership: Membership) -> None:
    """Splits tokens and guidance branches as the gang's layout says; weights stay as they are."""
    pipeline.transformer.tokens = membership.tokens
    pipeline.guidance = membership.guidance


def localize(pipeline: LynxPipeline, kernel: Attention = sdpa) -> None:
    """Back to one rank."""
    pipeline.transformer.tokens = LocalTokens(kernel)
    pipeline.guidance = LocalGuidance()
