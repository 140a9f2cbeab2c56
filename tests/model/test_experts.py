"""Two experts: which denoises which step, how LoRAs act on each, and one at a time on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.weight_files import LoraFile, WeightFiles
from lynx_parallel.model.experts import Experts
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.denoise import Step
from tests.helpers.lora_files import LAYOUTS, make_known
from tests.helpers.lora_files import write as write_lora
from tests.helpers.small_renders import prepare
from tests.helpers.tiny_bases import write_base

STEPS: dict[str, Any] = {
    "width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 4, "flow_shift": 5.0,
    "sigma_schedule": "diffusers",
}  # fmt: skip
"""Two steps of high noise, two of low noise."""


@pytest.fixture(scope="module")
def weights(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightFiles:
    base, full = write_base(tmp_path_factory.mktemp("base") / "a14b", demo, "T2V-A14B"), demo / "full"
    return WeightFiles(base, *(full / f"{name}.safetensors" for name in ("resampler", "ip_layers", "ref_layers")))


def load(weights: WeightFiles, **settings: Any) -> LynxPipeline:
    return LynxPipeline.from_files(weights, dtype=torch.float32, **settings)


def latents(pipeline: LynxPipeline, **changes: Any) -> torch.Tensor:
    sampling = Sampling(**{**STEPS, **changes})
    return pipeline.denoise(prepare(pipeline, sampling), sampling)


def test_the_expert_of_a_timestep() -> None:
    experts = Experts([None, None], 0.875)  # type: ignore[list-item]
    assert [experts.index(t) for t in (999, 875, 874.9, 1)] == [0, 0, 1, 1]
    assert [experts.index(t, 0.5) for t in (875, 500, 499)] == [0, 0, 1]
    assert Experts([None]).index(1, 0.5) == 0  # type: ignore[list-item]


def test_forwards_of_each_expert(weights: WeightFiles) -> None:
    pipeline = load(weights)
    calls = {t.name: 0 for t in pipeline.experts}
    for transformer in pipeline.experts:
        transformer.register_forward_hook(lambda module, *_: calls.__setitem__(module.name, calls[module.name] + 1))
    latents(pipeline)
    assert calls == {"high_noise": 6, "low_noise": 6}
    latents(pipeline, guidance_scale_2=1.0)
    assert calls == {"high_noise": 12, "low_noise": 8}


def test_a_lora_on_one_expert_is_the_same_as_its_merged_file(weights: WeightFiles, tmp_path: Path) -> None:
    from dataclasses import replace

    state = load_file(weights.base / "transformer_2" / "diffusion_pytorch_model.safetensors")
    known = make_known(state)
    write_lora(tmp_path / "low.safetensors", LAYOUTS["ComfyUI"](known))
    lora = LoraFile(tmp_path / "low.safetensors", 0.7, "low_noise")
    made = latents(load(replace(weights, loras=(lora,))))
    merged = load(replace(weights, loras=(LoraFile(lora.path, 0.7),))).experts.transformers[1].state_dict()
    save_file({k: v for k, v in merged.items() if "_adapter." not in k}, tmp_path / "merged.safetensors")
    assert torch.equal(made, latents(load(replace(weights, transformer_2=tmp_path / "merged.safetensors"))))
    plain = latents(load(weights))
    high = latents(load(replace(weights, loras=(replace(lora, expert="high_noise"),))))
    both = latents(load(replace(weights, loras=(replace(lora, expert=None),))))
    found = [plain, made, high, both]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("keep", [True, False])
def test_conditioning_is_kept_for_each_expert(weights: WeightFiles, keep: bool) -> None:
    pipeline = load(weights, keep_projections=keep)
    first = latents(pipeline)
    made = dict(pipeline.conditioning.counts)
    assert made == {"text": 6, "identity": 4, "reference": 4, "text kept": 4, "identity kept": 2, "reference kept": 2}
    pipeline.conditioning.counts.clear()
    assert torch.equal(latents(pipeline), first)
    assert not any(pipeline.conditioning.counts[kind] for kind in ("text", "identity", "reference"))


@pytest.mark.parametrize("keep", [True, False])
def test_only_the_expert_in_use_is_on_the_device(weights: WeightFiles, keep: bool) -> None:
    """The meta device stands for a GPU: it is another device, and what is on it takes no memory of the CPU."""
    made = load(weights, keep_projections=keep).experts
    experts = Experts(made.transformers, made.boundary_ratio, torch.device("meta"))
    expected = [{name: tensor.clone() for name, tensor in values(t).items()} for t in experts]

    def on_cpu(index: int) -> set[str]:
        return set(values(experts.transformers[index]))

    assert on_cpu(0) == on_cpu(1) == set(expected[0])
    assert any("rope" in name for name in expected[0])
    for index in (0, 1, 0):
        assert experts.use(index) is experts.transformers[index]
        assert (on_cpu(index), on_cpu(1 - index)) == (set(), set(expected[0]))
    assert all(torch.equal(tensor, expected[1][name]) for name, tensor in values(experts.transformers[1]).items())
    assert experts.moves == 3


def values(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    both = {**dict(transformer.named_parameters()), **dict(transformer.named_buffers())}
    return {name: tensor for name, tensor in both.items() if not tensor.is_meta}


@pytest.mark.parametrize("keep", [True, False])
def test_one_at_a_time_gives_equal_bits(weights: WeightFiles, keep: bool) -> None:
    """On the CPU nothing can be moved away, but every step of the moves is taken."""
    both, one = load(weights, keep_projections=keep), load(weights, keep_projections=keep, one_expert=True)
    expected = latents(both)
    assert torch.equal(latents(one), expected)
    assert (both.experts.moves, one.experts.moves) == (0, 2)
    assert torch.equal(latents(one), expected)
    assert one.experts.moves == 4
    latents(one, num_inference_steps=1)  # high noise only
    assert one.experts.moves == 5


def test_two_shots_through_one_expert_and_then_through_the_other(weights: WeightFiles) -> None:
    """As a gang does it, with resume states between: equal bits, and half the moves."""
    one = load(weights, one_expert=True)
    samplings = [Sampling(**STEPS, seed=seed) for seed in (1, 2)]
    expected = [one.denoise(prepare(one, sampling), sampling) for sampling in samplings]
    assert one.experts.moves == 4
    assert [one.steps_before_switch(sampling) for sampling in samplings] == [2, 2]
    assert one.steps_before_switch(Sampling(**{**STEPS, "num_inference_steps": 1})) is None
    states = []
    for sampling in samplings:
        steps: list[Step] = []
        one.denoise(prepare(one, sampling), sampling, steps.append, until=2)
        assert len(steps) == 2
        states.append(steps[-1].state())
    made = [one.denoise(prepare(one, s), s, start=state) for s, state in zip(samplings, states, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert one.experts.moves == 6
