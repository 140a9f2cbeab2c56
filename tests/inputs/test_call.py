"""The arguments of a call of LynxPipeline: what wins, and the message about a wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.call import read_call, read_spec
from lynx_parallel.inputs.pipeline import FaceSpec, ModelSpec
from lynx_parallel.inputs.sampling import Sampling

DEFAULTS = Sampling(negative_prompt="grey", num_inference_steps=4, seed=7)


def read(prompt: Any = "a", seed: Any = None, **given: Any) -> list[tuple[str, Sampling]]:
    return read_call(DEFAULTS, prompt, seed, given, arguments=("prompt", "image", "seed", "scheduler", "on_step"))


def complain(prompt: Any = "a", seed: Any = None, **given: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        read(prompt, seed, **given)
    assert all("\n" not in line for line in caught.value.lines)
    return caught.value.lines


def test_a_call_starts_from_the_defaults() -> None:
    assert read() == [("a", DEFAULTS)]
    [(_, changed)] = read(num_frames=5, guidance_scale_i=None)
    assert changed == DEFAULTS.model_copy(update={"num_frames": 5, "guidance_scale_i": None})


def test_each_prompt_has_the_one_seed_or_its_own() -> None:
    assert [(text, made.seed) for text, made in read(["a", "b"])] == [("a", 7), ("b", 7)]
    assert [(text, made.seed) for text, made in read(("a", "b"), 3)] == [("a", 3), ("b", 3)]
    for seeds in ([3, 4], range(3, 5), np.arange(3, 5)):
        assert [(text, made.seed) for text, made in read(["a", "b"], seeds)] == [("a", 3), ("b", 4)]


def test_numbers_of_numpy_are_numbers() -> None:
    [(_, made)] = read(seed=np.int64(5), guidance_scale=np.float32(1.5), identity_window=np.array([0.0, 0.5]))
    assert (made.seed, made.guidance_scale, made.identity_window) == (5, 1.5, (0.0, 0.5))
    assert type(made.seed) is int
    [(_, made)] = read(num_inference_steps=2, sigmas=[np.float64(1.0), 0.5])
    assert made.sigmas == (1.0, 0.5)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"num_frames": 80}, "num_frames=80: must be a whole number 4k+1 (1, 5, 9, … up to 100001)"),
        ({"width": "832"}, "width='832': must be a multiple of 16 from 16 to 4096"),
        ({"negative_prompt": None}, "negative_prompt=null: must be a value (leave the key out to keep the setting)"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0 to 2^63-1"),
        ({"scheduler": "ddim"}, "scheduler='ddim': must be 'unipc', 'dpm++', 'dpm++_sde', 'euler', 'lcm' or 'rcm'"),
        ({"sigmas": [1, 0.5]}, "sigmas has 2 values, num_inference_steps is 4: set it to 2"),
        ({"prompt": 3}, "prompt: 3: must be a string or a list of strings"),
        ({"prompt": ["a", None]}, "prompt: null: must be a string or a list of strings"),
        ({"prompt": []}, "prompt: an empty list: must be a string or a list of strings"),
        ({"seed": [1, 2]}, "seed: 2 values for one prompt: give a list of prompts, or one seed"),
        (
            {"prompt": ["a", "b"], "seed": [1]},
            "seed: 1 value for 2 prompts: must be one seed, or a list of one for each prompt",
        ),
        ({"prompt": ["a", "b"], "seed": [1, -1]}, "seed=-1: must be a whole number from 0 to 2^63-1"),
        ({"crf": 18}, "crf: unknown argument; give it to save: video.save('video.mp4', crf=…)"),
        ({"ref_image": "a"}, "ref_image: unknown argument; did you mean 'image'?"),
        ({"callback_on_step_end": "a"}, "callback_on_step_end: unknown argument; did you mean 'on_step'?"),
        (
            {"num_videos_per_prompt": 2},
            "num_videos_per_prompt: unknown argument; did you mean 'seed'? Give a list of prompts and a list of seeds.",
        ),
    ],
)
def test_a_mistake_names_the_argument_the_value_and_what_is_allowed(given: dict[str, Any], line: str) -> None:
    assert complain(**given) == [line]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("num_frame", "num_frames"), ("steps", "num_inference_steps"), ("generator", "seed"), ("imag", "image")],
)
def test_an_unknown_argument_names_the_nearest(name: str, meant: str) -> None:
    [line] = complain(**{name: 1})
    assert line.startswith(f"{name}: unknown argument; did you mean {meant!r}?")
    assert "(allowed: prompt, image, seed, scheduler, on_step, width, " in line


def test_all_mistakes_come_at_once() -> None:
    lines = complain(["a", 1], [1, 2, 3], num_frames=80, steps=3)
    assert [line.partition(":")[0].partition("=")[0] for line in lines] == ["prompt", "seed", "num_frames", "steps"]


@pytest.mark.parametrize("face", ["biggest", 0, True, 1.5, None])
def test_face_is_checked_before_a_picture_is_read(face: Any) -> None:
    with pytest.raises(InputErrors, match=r"^face=.*: must be 'largest', 'only' or a number from 1, from the left$"):
        read_call(DEFAULTS, "a", None, {}, face=face)
    assert read_call(DEFAULTS, "a", None, {}, face=2)


def test_specs_from_arguments() -> None:
    with pytest.raises(InputErrors) as caught:
        read_spec(ModelSpec, {"base": "x", "adapters": {"idd": "y"}, "loras": [{"weight": "a"}], "vae_dtype": "f"})
    lines = caught.value.lines
    assert lines[0].startswith("adapters.idd: unknown key; did you mean 'id'?")
    assert lines[1:] == [
        "loras[0].file: missing",
        "loras[0].weight: 'a': must be a number from -100 to 100",
        "vae_dtype: 'f': must be 'float32', 'tf32' or 'bfloat16'",
    ]
    with pytest.raises(InputErrors, match=r"^face.det_size: 3: must be a multiple of 32 from 64 to 2048$"):
        read_spec(FaceSpec, {"detector": "a", "recognizer": "b", "det_size": 3}, "face")
