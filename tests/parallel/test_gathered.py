"""Counts the bytes that each call of a sharded model gathers."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_parallel.inputs.memory import parameter_bytes
from lynx_parallel.inputs.projections import is_projection
from lynx_parallel.model.block import BlockConditioning
from lynx_parallel.model.checkpoints import load_transformer
from lynx_parallel.parallel.shard import shard
from tests.helpers.fake_gang import Collectives, fake_group
from tests.helpers.shapes import shapes_of
from tests.helpers.weight_files import files

BF16 = torch.bfloat16
PART = {"text": ".attn2.to_", "identity": ".id_adapter.", "reference": ".ref_adapter."}
"""Of the keys of each kind of projections."""


def gathered(function: Callable[..., Any], *args: Any) -> int:
    """Calls the function. Returns the bytes that its collectives gather; all of them must be all-gathers."""
    with Collectives() as sent:
        function(*args)
    assert {call.name for call in sent.calls} == {"_allgather_base_"}
    return sum(call.whole - call.sent for call in sent.calls)


@torch.no_grad()
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ranks", [2, 5])
def test_a_forward_gathers_no_projections(keep: bool, ranks: int, demo: Path) -> None:
    """Kept projections come whole for the calls that use them; borrowed ones are read from the file instead."""
    whole = shapes_of(load_transformer(files(demo), dtype=BF16))
    # Every rank sends as many rows as the fullest holds.
    shapes = {key: (ranks * ceil(rows / ranks), *rest) for key, (rows, *rest) in whole.items()}
    used = parameter_bytes({key: shape for key, shape in shapes.items() if not is_projection(key)}, 2)

    with fake_group(ranks) as group:
        transformer = load_transformer(
            files(demo), dtype=BF16, keep_projections=keep,
            shard=lambda model: shard(model, group, keep_projections=keep),
        )  # fmt: skip
        prompt, latents = torch.zeros(1, 512, 64, dtype=BF16), torch.zeros(1, 16, 1, 32, 32, dtype=BF16)
        id_tokens = torch.zeros(1, 16, whole["blocks.0.id_adapter.to_k_ip.weight"][1], dtype=BF16)
        text = transformer.text_kv(prompt)
        features = transformer.reference_features(latents, text)
        branch = [BlockConditioning(kv) for kv in text]
        assert gathered(transformer, latents, torch.zeros(1), branch) == used
        assert gathered(transformer.reference_features, latents, text) == used
        for kind, argument in (("text", prompt), ("identity", id_tokens), ("reference", features)):
            mine = {key: shape for key, shape in shapes.items() if is_projection(key) and PART[kind] in key}
            assert parameter_bytes(mine, 2) > 0
            expected = used + (parameter_bytes(mine, 2) if keep else 0)
            assert gathered(getattr(transformer, f"{kind}_kv"), argument) == expected, kind
