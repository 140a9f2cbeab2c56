"""The same shot twice gives the same bits, also where the second run resumes from a state saved on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.resume_state import load_resume_state, save_resume_state
from tests.helpers.small_renders import prepare

STEPS = 6


class Stop(Exception):
    pass


def sampling() -> Sampling:
    return Sampling(width=64, height=48, num_frames=9, num_inference_steps=STEPS)


def test_two_runs_are_equal(pipeline: LynxPipeline) -> None:
    made = []
    for _ in range(2):
        pipeline.conditioning.clear()
        pipeline.inputs.encoded_prompts.clear()
        inputs = prepare(pipeline, sampling())
        latents = pipeline.denoise(inputs, sampling())
        made.append((latents, torch.from_numpy(pipeline.decode(latents))))
    (latents, frames), (latents_again, frames_again) = made
    assert latents.device.type == pipeline.device.type
    assert latents.isfinite().all()
    assert torch.equal(latents, latents_again)
    assert torch.equal(frames, frames_again)


@pytest.mark.parametrize("done", [1, 3, STEPS - 1])
def test_a_resumed_render_has_the_same_bits(pipeline: LynxPipeline, tmp_path: Path, done: int) -> None:
    inputs = prepare(pipeline, sampling())
    whole = pipeline.denoise(inputs, sampling())

    def stop(step: Step) -> None:
        if step.index + 1 == done:
            save_resume_state(tmp_path / "state", step.state(), "digest")
            raise Stop

    with pytest.raises(Stop):
        pipeline.denoise(inputs, sampling(), stop)
    state = load_resume_state(tmp_path / "state", "digest", pipeline.device)
    assert state.steps_done == done
    assert state.latents is not None
    assert state.latents.device.type == pipeline.device.type
    ran: list[int] = []
    resumed = pipeline.denoise(inputs, sampling(), lambda step: ran.append(step.index), state)
    assert ran == list(range(done, STEPS))
    assert torch.equal(resumed, whole)
