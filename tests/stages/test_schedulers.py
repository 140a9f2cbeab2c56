"""Schedulers against loops written from their formulas, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.sampling import Sampling, SchedulerName, sampling_mistake
from lynx_parallel.stages.schedulers import (
    EulerScheduler,
    default_sigmas,
    make_scheduler,
    own_scheduler,
    step_noise,
)

CONFIG = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "solver_order": 2}
NAMES = get_args(get_args(SchedulerName)[0])
SHIFT_5 = [1.0, 0.9375, 5 / 6, 0.625]
COMFYUI = [1000, 970, 924, 845, 675, 60]
"""Timesteps of the published ComfyUI workflow: 6 steps, shift 8, which its scheduler applies twice."""
SHAPE = (1, 2, 3, 4, 5)
SEED = 7


def velocity(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A model that is not linear in anything."""
    return torch.sin(x * (1 + timestep / 700)) - 0.3 * x


def start() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def run(sampling: Sampling) -> torch.Tensor:
    scheduler, x = make_scheduler(CONFIG, sampling), start()
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(timestep)), timestep, x, return_dict=False)[0]
    return x


def noise(step: int) -> torch.Tensor:
    return step_noise(torch.empty(SHAPE), SEED, step).double()


def euler(sigmas: list[float]) -> torch.Tensor:
    x = start().double()
    for now, then in zip(sigmas, [*sigmas[1:], 0], strict=True):
        x = x + (then - now) * velocity(x, 1000 * now)
    return x


def lcm(sigmas: list[float]) -> torch.Tensor:
    x = start().double()
    for i, (now, then) in enumerate(zip(sigmas, [*sigmas[1:], 0], strict=True)):
        x = (1 - then) * (x - now * velocity(x, 1000 * now)) + then * noise(i)
    return x


def rcm(sigmas: list[float]) -> torch.Tensor:
    x = start().double() * sigmas[0]
    for i, (now, then) in enumerate(zip(sigmas, [*sigmas[1:], 0], strict=True)):
        x = (1 - then) * (x - now * velocity(x, 1000 * now)) + then * noise(i)
    return x


def dpm(sigmas: list[float], *, sde: bool = False) -> torch.Tensor:
    """DPM-Solver++ 2M, midpoint; the first and the last step are of first order."""
    x, last, h_last = start().double(), None, 0.0
    for i, (now, then) in enumerate(zip(sigmas, [*sigmas[1:], 0], strict=True)):
        video = x - now * velocity(x, 1000 * now)
        # The first step starts from pure noise and the last ends without any: both are infinitely long.
        h = math.inf if now == 1 or then == 0 else math.log((1 - then) / then) - math.log((1 - now) / now)
        slope = torch.zeros_like(x) if last is None or then == 0 else (video - last) * h / h_last
        grow = (1 - then) * (1 - math.exp(-2 * h if sde else -h))
        x = then / now * (math.exp(-h) if sde else 1) * x + grow * (video + slope / 2)
        if sde:
            x = x + then * math.sqrt(1 - math.exp(-2 * h)) * noise(i)
        last, h_last = video, h
    return x


RCM = [80 / 81, *(math.tan(angle) / (1 + math.tan(angle)) for angle in (1.5, 1.4, 1.0))]
LOOPS: dict[str, Callable[[list[float]], torch.Tensor]] = {
    "euler": euler, "lcm": lcm, "rcm": rcm, "dpm++": dpm, "dpm++_sde": lambda sigmas: dpm(sigmas, sde=True),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_four_steps_are_those_of_the_formula(name: str) -> None:
    made = run(Sampling(scheduler=name, num_inference_steps=4, flow_shift=5.0, seed=SEED))
    torch.testing.assert_close(made.double(), LOOPS[name](RCM if name == "rcm" else SHIFT_5), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("field", ["sigmas", "timesteps"])
def test_a_given_list_is_not_shifted(name: str, field: str) -> None:
    sigmas = [t / 1000 for t in COMFYUI]
    given: dict[str, Any] = {field: sigmas if field == "sigmas" else COMFYUI}
    sampling = Sampling(scheduler=name, num_inference_steps=6, flow_shift=8.0, seed=SEED, **given)
    assert make_scheduler(CONFIG, sampling).timesteps.tolist() == pytest.approx(COMFYUI)
    torch.testing.assert_close(run(sampling).double(), LOOPS[name](sigmas), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("schedule", ["lynx", "diffusers"])
def test_unipc_is_diffusers_own(schedule: str) -> None:
    theirs = UniPCMultistepScheduler.from_config({**CONFIG, "flow_shift": 5.0})
    sigmas = None
    if schedule == "lynx":
        sigmas = (1 - torch.linspace(1, 1 / 1000, 6, dtype=torch.float64)).flip(0)[:5].numpy()
    theirs.set_timesteps(5, sigmas=sigmas)
    x = start()
    for timestep in theirs.timesteps:
        x = theirs.step(velocity(x, float(timestep)), timestep, x, return_dict=False)[0]
    made = run(Sampling(num_inference_steps=5, flow_shift=5.0, sigma_schedule=schedule))
    torch.testing.assert_close(made, x, rtol=1e-6, atol=1e-6)


def test_unipc_with_given_sigmas_is_diffusers_with_their_inverse_shift() -> None:
    before = [1.0, 0.75, 0.5, 0.25]  # shift 5 gives SHIFT_5
    theirs = UniPCMultistepScheduler.from_config({**CONFIG, "flow_shift": 5.0})
    theirs.set_timesteps(4, sigmas=torch.tensor(before, dtype=torch.float64).numpy())
    given = make_scheduler(CONFIG, Sampling(num_inference_steps=4, sigmas=tuple(SHIFT_5)))
    torch.testing.assert_close(given.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-6)


def test_the_shift_is_applied_once() -> None:
    for name in set(NAMES) - {"unipc", "rcm"}:
        scheduler = make_scheduler(CONFIG, Sampling(scheduler=name, num_inference_steps=4, flow_shift=5.0))
        assert scheduler.sigmas.tolist() == pytest.approx([*SHIFT_5, 0], abs=2e-6), name


def test_noise_depends_on_seed_and_step_alone() -> None:
    like = torch.empty(SHAPE)
    assert torch.equal(step_noise(like, 3, 1), step_noise(like.double(), 3, 1))
    assert not torch.equal(step_noise(like, 3, 1), step_noise(like, 3, 2))
    assert not torch.equal(step_noise(like, 3, 1), step_noise(like, 31, 1))
    torch.manual_seed(0)
    first = run(Sampling(scheduler="lcm", num_inference_steps=4))
    torch.manual_seed(1)
    assert torch.equal(first, run(Sampling(scheduler="lcm", num_inference_steps=4)))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"timesteps": (1000, 500)}, "timesteps has 2 values, num_inference_steps is 50"),
        ({"sigmas": (1, 0.5), "timesteps": (1000, 500), "num_inference_steps": 2}, "both given"),
        ({"scheduler": "euler", "sigma_schedule": "diffusers"}, "for scheduler unipc only, not for euler"),
        ({"scheduler": "rcm"}, "has 1 to 4 steps, num_inference_steps is 50"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], part: str) -> None:
    mistake = sampling_mistake(Sampling(**settings))
    assert mistake is not None
    assert part in mistake
    assert sampling_mistake(Sampling()) is None


# A caller's own


def walk(scheduler: Any) -> torch.Tensor:
    x = start() * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(timestep)), timestep, x, return_dict=False)[0]
    return x


def test_a_scheduler_of_diffusers_is_copied_and_set_to_the_steps() -> None:
    sampling = Sampling(num_inference_steps=5, flow_shift=5.0, sigma_schedule="diffusers")
    own = UniPCMultistepScheduler.from_config({**CONFIG, "flow_shift": 5.0})
    for _ in range(2):  # the first walk leaves no trace
        assert torch.equal(walk(own_scheduler(own, sampling)), run(sampling))
    assert own.num_inference_steps is None


def test_a_function_gets_the_settings() -> None:
    sampling = Sampling(num_inference_steps=4, scheduler="euler", flow_shift=3.0)
    made = own_scheduler(lambda given: EulerScheduler(default_sigmas(given)), sampling)
    assert torch.equal(walk(made), run(sampling))


def test_a_scheduler_without_set_timesteps_is_used_as_it_is() -> None:
    own = EulerScheduler(SHIFT_5)
    for _ in range(2):
        assert torch.equal(walk(own_scheduler(own, Sampling(num_inference_steps=50))), walk(EulerScheduler(SHIFT_5)))
    assert own.step_index == 0


def test_a_flow_matching_class_of_diffusers_needs_no_factor() -> None:
    """``tests/docs/slow/test_notebook.py`` makes a video with one."""
    made = own_scheduler(FlowMatchEulerDiscreteScheduler(), Sampling(num_inference_steps=3))
    assert len(made.timesteps) == 3
    assert walk(made).isfinite().all()


def test_what_is_no_scheduler_is_one_line() -> None:
    for own in (3, lambda sampling: "euler"):
        with pytest.raises(InputErrors, match=r"^scheduler: of type (int|str): must be a name, a scheduler of diffuse"):
            own_scheduler(own, Sampling())
    sigmas = Sampling(sigmas=SHIFT_5, num_inference_steps=4)
    with pytest.raises(InputErrors, match=r"^scheduler: UniPC.*: gets no sigmas or timesteps: give a function"):
        own_scheduler(UniPCMultistepScheduler.from_config(CONFIG), sigmas)
