"""Resume states: an interrupted render resumes and ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.resume_state import ResumeState, load_resume_state, save_resume_state
from tests.helpers.small_renders import load, prepare

STEPS = 6
CPU = torch.device("cpu")


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def pipeline(demo: Path) -> LynxPipeline:
    return load(demo)


@pytest.mark.parametrize("schedule", ["lynx", "diffusers"])
@pytest.mark.parametrize("done", range(1, STEPS + 1))
def test_a_resumed_render_is_bitwise_the_same(pipeline: LynxPipeline, tmp_path: Path, done: int, schedule: str) -> None:
    sampling = Sampling(
        width=64, height=48, num_frames=5, num_inference_steps=STEPS, sigma_schedule=schedule,
        identity_window=(0.0, 0.5),
    )  # fmt: skip
    inputs = prepare(pipeline, sampling)
    whole = pipeline.denoise(inputs, sampling)

    def stop(step: Step) -> None:
        if step.index + 1 == done:
            save_resume_state(tmp_path / "state", step.state(), "digest")
            raise Stop

    with pytest.raises(Stop):
        pipeline.denoise(inputs, sampling, stop)
    state = load_resume_state(tmp_path / "state", "digest", CPU)
    assert state.steps_done == done
    ran: list[int] = []
    resumed = pipeline.denoise(inputs, sampling, lambda step: ran.append(step.index), state)
    assert ran == list(range(done, STEPS))
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("scheduler", ["dpm++", "dpm++_sde", "euler", "lcm", "rcm"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_every_scheduler_resumes_with_the_same_bits(
    pipeline: LynxPipeline, tmp_path: Path, scheduler: str, done: int
) -> None:
    sampling = Sampling(width=64, height=48, num_frames=5, num_inference_steps=4, scheduler=scheduler)
    inputs, states = prepare(pipeline, sampling), []
    whole = pipeline.denoise(inputs, sampling, lambda step: states.append(step.state()))
    save_resume_state(tmp_path / "state", states[done - 1], "digest")
    state = load_resume_state(tmp_path / "state", "digest", CPU)
    assert state.steps_done == done
    assert torch.equal(pipeline.denoise(inputs, sampling, start=state), whole)


def test_what_is_no_state_of_this_shot_is_the_beginning(pipeline: LynxPipeline, tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert load_resume_state(path, "digest", CPU) == ResumeState()
    path.write_bytes(b"torn")
    assert load_resume_state(path, "digest", CPU) == ResumeState()
    sampling = Sampling(width=64, height=48, num_frames=5, num_inference_steps=1)
    pipeline.denoise(prepare(pipeline, sampling), sampling, lambda step: save_resume_state(path, step.state(), "one"))
    assert load_resume_state(path, "another", CPU) == ResumeState()
    assert load_resume_state(path, "one", CPU).steps_done == 1
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert load_resume_state(path, "one", CPU) == ResumeState()
