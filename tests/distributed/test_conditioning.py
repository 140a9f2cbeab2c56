"""One subject, four prompts, two takes on a gang: what is computed once is computed once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import FACES
from tests.helpers.weight_files import files

PROMPTS = ["at a desk", "on a beach", "in the rain", "under a tree"]
TAKES = 2


def render_campaign(rank: int, store: Any, demo: Path, keep_projections: bool) -> Counter[str]:
    """Counts, by hooks and wrappers from outside, of one rank."""
    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.broadcast import broadcast

    device = torch.device("cpu")
    pipeline = LynxPipeline.from_files(files(demo), dtype=torch.float32, keep_projections=keep_projections)
    layout, config = Layout(ulysses=2), pipeline.transformer.config
    parallelize(pipeline, xdit.join(layout, rank=rank, store=store, device=device, transformer_config=config))
    counts: Counter[str] = Counter()
    first = pipeline.transformer.blocks[0]
    for name in ("attn2.to_k", "attn2.to_v", "id_adapter", "ref_adapter"):
        first.get_submodule(name).register_forward_hook(lambda *_, name=name: counts.update([name]))
    plain = pipeline.transformer.reference_features

    def counted(*args: Any) -> Any:
        counts["reference pass"] += 1
        return plain(*args)

    pipeline.transformer.reference_features = counted  # type: ignore[method-assign]
    for prompt in PROMPTS:
        for take in range(TAKES):
            sampling = Sampling(width=64, height=48, num_frames=5, num_inference_steps=2, seed=take)
            inputs = None
            if rank == 0:
                person = pipeline.identify(
                    sampling, image=FACES / "astronaut.jpg", landmarks=LANDMARKS["astronaut"],
                    embedding=FACES / "astronaut.safetensors",
                )  # fmt: skip
                inputs = pipeline.prepare(prompt, sampling, person)
            pipeline.denoise(broadcast(inputs, ShotInputs, device=device), sampling)
            if not keep_projections:
                living = [n for n, p in pipeline.transformer.named_parameters() if not p.is_meta]
                assert not [n for n in living if "attn2.to_k" in n or "attn2.to_v" in n or "adapter" in n]
    xdit.leave()
    return counts


def test_once_per_subject_once_per_prompt(demo: Path) -> None:
    for keep_projections in (True, False):
        for counts in run_gang(2, render_campaign, demo, keep_projections):
            # The subject and the unconditional picture.
            assert counts["reference pass"] == counts["ref_adapter"] == counts["id_adapter"] == 2
            # Each prompt, the negative prompt, and the reference pass's own text.
            assert counts["attn2.to_k"] == counts["attn2.to_v"] == len(PROMPTS) + 2
