"""Every scheduler in every layout: the noise that a step adds does not depend on the rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.sampling import Sampling, SchedulerName
from lynx_parallel.pipeline import ShotInputs
from lynx_parallel.stages.resume_state import ResumeState, load_resume_state, save_resume_state
from tests.helpers.golden_cases import relative_error
from tests.helpers.processes import run_gang
from tests.helpers.small_renders import load, prepare

LAYOUTS = [Layout(1, 1, 2), Layout(2, 1, 1)]
NAMES = get_args(get_args(SchedulerName)[0])


def settings(name: str) -> Sampling:
    return Sampling(width=64, height=48, num_frames=9, num_inference_steps=4, scheduler=name)


def render(rank: int, store: Any, demo: Path, folder: Path) -> dict[tuple[Layout, str], list[torch.Tensor]]:
    """Latents of each layout and scheduler: of the whole shot, and resumed after two of its four steps."""
    from torch.distributed import PrefixStore

    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import localize, parallelize
    from lynx_parallel.parallel.broadcast import broadcast

    pipeline, device, made = load(demo), torch.device("cpu"), {}
    for layout in LAYOUTS:
        membership = xdit.join(
            layout, rank=rank, store=PrefixStore(str(layout), store), device=device,
            transformer_config=pipeline.transformer.config,
        )  # fmt: skip
        parallelize(pipeline, membership)
        for name in NAMES:
            sampling = settings(name)
            states: list[ResumeState] = []
            inputs = broadcast(prepare(pipeline, sampling) if rank == 0 else None, ShotInputs, device=device)
            assert inputs is not None
            whole = pipeline.denoise(inputs, sampling, lambda step, states=states: states.append(step.state()))
            path = folder / f"{name}-{layout}-{rank}"
            save_resume_state(path, states[1], "digest")
            resumed = pipeline.denoise(inputs, sampling, start=load_resume_state(path, "digest", device))
            made[layout, name] = [whole, resumed]
        xdit.leave()
        localize(pipeline)
    return made


def test_latents_do_not_depend_on_the_layout(demo: Path, tmp_path: Path) -> None:
    ranks = run_gang(2, render, demo, tmp_path)
    alone = load(demo)
    for name in NAMES:
        serial = alone.denoise(prepare(alone, settings(name)), settings(name))
        for layout in LAYOUTS:
            for made in ranks:
                whole, resumed = made[layout, name]
                assert relative_error(whole, serial) <= 1e-6, (name, layout)
                assert torch.equal(resumed, whole), (name, layout)
