"""The arithmetic of a shot against the counted figures of the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks.flops import forward_flops as by_part
from benchmarks.shapes import WAN_14B as FULL_14B
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.plan.work import WAN_14B, forward_flops, shot_flops


@pytest.mark.parametrize("tokens", [32_760, 75_600])
def test_a_forward_of_the_14b(tokens: int) -> None:
    """The closed formula leaves out embeddings and the 16 registers: less than 1 %."""
    assert forward_flops(WAN_14B, tokens) == pytest.approx(sum(by_part(FULL_14B, tokens).values()), rel=0.01)


def test_a_shot_of_upstreams_settings() -> None:
    """150 forwards of 1.68 PFLOP."""
    sampling = Sampling(guidance_scale=5.0, guidance_scale_i=2.0)
    assert shot_flops(sampling, WAN_14B, has_reference=True) == pytest.approx(150 * 1.678e15, rel=0.01)
    assert shot_flops(sampling, WAN_14B, has_reference=False) == pytest.approx(100 * 1.678e15, rel=0.01)
