"""LynxPipeline as notebooks call it: the pipeline file's settings, pictures, lists, hooks and errors."""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from lynx_parallel import LynxPipeline
from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.errors import InputErrors, SubjectError
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.pipeline import LynxOutput
from lynx_parallel.pipeline.notebook import _ARGUMENTS
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.schedulers import EulerScheduler, default_sigmas
from lynx_parallel.subject.detection import Face
from lynx_parallel.subject.person import Person
from lynx_parallel.subject.picture import read_picture
from tests.helpers.repository import REPOSITORY
from tests.helpers.tiny_bases import first_frame, weights_of, write_base

FACES = REPOSITORY / "manifests" / "faces"
PICTURE = FACES / "astronaut.jpg"
PROMPT = "A woman carves a pumpkin"


@pytest.fixture(scope="module")
def pipe(demo: Path) -> LynxPipeline:
    made = LynxPipeline.from_pipeline("demo-tiny", keep_text_encoder=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def video(pipe: LynxPipeline) -> LynxOutput:
    return pipe(PROMPT, image=PICTURE, seed=7)


def complain(call: Callable[..., Any], *arguments: Any, **named: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        call(*arguments, **named)
    return caught.value.lines


# Settings


def test_a_call_starts_from_the_pipeline_file(pipe: LynxPipeline, video: LynxOutput) -> None:
    spec = load_pipeline("demo-tiny")
    assert spec.sampling.negative_prompt
    assert (pipe.sampling, pipe.video, pipe.dtype) == (spec.sampling, spec.video, torch.float32)
    assert video.sampling == spec.sampling.model_copy(update={"seed": 7})
    assert (video.prompt, video.video) == (PROMPT, spec.video)
    assert (video.frames.dtype, video.frames.shape) == (np.uint8, (9, 48, 64, 3))
    assert repr(video) == "LynxOutput(9 frames, 64x48, 8 fps, seed 7)"
    plain = pipe(PROMPT, image=PICTURE, seed=7, negative_prompt="")
    assert not torch.equal(plain.latents, video.latents)


def test_all_that_an_own_file_names_is_loaded(demo: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "T2V-A14B", demo, "T2V-A14B")
    (tmp_path / "own.yaml").write_text(
        f"version: 1\nmodel:\n  base: {base}\n"
        f"  adapters: {{ref: {demo}/full/ref_layers.safetensors}}\n  adapters_expert: low_noise\n"
        "  dtype: bfloat16\n  vae_dtype: tf32\nsampling: {num_inference_steps: 3}\nvideo: {codec: h265, crf: 30}\n"
    )
    made = LynxPipeline.from_pipeline(tmp_path / "own.yaml")
    assert [expert.has_reference for expert in made.experts] == [False, True]
    assert (made.dtype, made.vae_precision, made.faces) == (torch.bfloat16, "tf32", None)
    assert made.sampling.num_inference_steps == 3
    assert made.video == Video(codec="h265", crf=30)


def test_without_a_file_the_defaults_stay(demo: Path) -> None:
    adapters = {"resampler": demo / "lite" / "resampler.safetensors", "id": demo / "lite" / "ip_layers.safetensors"}
    lite = LynxPipeline.from_pretrained(demo / "wan", adapters, dtype=torch.float32)
    lite.set_progress_bar_config(disable=True)
    assert lite.sampling == Sampling()
    made = lite(PROMPT, embedding=np.ones(512), width=64, height=48, num_frames=5, num_inference_steps=1)
    assert made.latents.isfinite().all()


def test_the_names_of_arguments_are_those_of_the_call() -> None:
    named = [name for name, one in inspect.signature(LynxPipeline.__call__).parameters.items() if one.kind != 4]
    assert tuple(named[1:]) == _ARGUMENTS  # without self, and without **sampling


# Pictures


def test_a_picture_may_be_a_path_a_pil_picture_or_an_array(pipe: LynxPipeline, video: LynxOutput) -> None:
    for image in (str(PICTURE), Image.open(PICTURE), read_picture(PICTURE)):
        assert torch.equal(pipe(PROMPT, image=image, seed=7).latents, video.latents)


def test_a_first_frame_may_be_a_pil_picture(demo: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "I2V", demo, "I2V")
    made = LynxPipeline.from_files(weights_of(base, demo), dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    picture = first_frame()
    given: dict[str, Any] = {
        "image": PICTURE, "embedding": FACES / "astronaut.safetensors", "landmarks": LANDMARKS["astronaut"],
        "width": 80, "height": 48, "num_frames": 5, "num_inference_steps": 1,
    }  # fmt: skip
    one, other = (made(PROMPT, start_image=start, **given).latents for start in (picture, Image.fromarray(picture)))
    assert torch.equal(one, other)
    with pytest.raises(SubjectError, match=r"^start_image: of type int: must be a path"):
        made(PROMPT, **{**given, "start_image": 3})


# Several prompts


def test_a_list_gives_the_videos_of_single_calls(pipe: LynxPipeline, video: LynxOutput) -> None:
    pipe.conditioning.clear()
    pipe.conditioning.counts.clear()
    both = pipe([PROMPT, "A walk along a beach"], image=PICTURE, seed=[7, 8])
    counts = dict(pipe.conditioning.counts)
    assert isinstance(both, list)
    assert [one.prompt for one in both] == [PROMPT, "A walk along a beach"]
    assert torch.equal(both[0].latents, video.latents)
    assert torch.equal(both[1].latents, pipe("A walk along a beach", image=PICTURE, seed=8).latents)
    # Both kinds of the subject's sets (his own and the unconditional one) are made once.
    assert (counts["identity"], counts["reference"]) == (2, 2)
    [single] = pipe([PROMPT], image=PICTURE, seed=7)
    assert torch.equal(single.latents, video.latents)


def test_the_subject_is_found_and_encoded_once_for_a_list(pipe: LynxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    found, encoded = [], []
    identify, encode = pipe.identify, pipe.inputs.reference_latents
    monkeypatch.setattr(pipe, "identify", lambda *a, **k: found.append(1) or identify(*a, **k))
    monkeypatch.setattr(pipe.inputs, "reference_latents", lambda *a: encoded.append(a[0] is None) or encode(*a))
    pipe(["a", "b", "c"], image=PICTURE)
    assert (len(found), encoded.count(False)) == (1, 1)
    encoded.clear()
    drawn = pipe(["a", "b", "c"], image=PICTURE, seed=[1, 2, 1], reference_latent="sample")
    assert encoded.count(False) == 2  # drawn with the seed
    monkeypatch.undo()
    assert torch.equal(drawn[1].latents, pipe("b", image=PICTURE, seed=2, reference_latent="sample").latents)


# The text encoder


def tiny(**options: Any) -> LynxPipeline:
    made = LynxPipeline.from_pipeline("demo-tiny", **options)
    made.set_progress_bar_config(disable=True)
    return made


def render(pipe: LynxPipeline, prompt: str, **sampling: Any) -> torch.Tensor:
    return pipe(prompt, image=PICTURE, num_inference_steps=1, **sampling).latents


def test_the_text_encoder_is_loaded_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * 10**9}))
    pipe = tiny()
    kept = pipe.inputs.text_encoder
    made = [render(pipe, prompt) for prompt in ("a", "b", "a")]
    assert kept.loads == 1
    assert torch.equal(made[0], made[2])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**9}))
    render(pipe, "a")
    assert kept.encoder is None  # the memory that is left is too small for a video beside it
    render(pipe, "c")
    assert (kept.loads, kept.encoder) == (2, None)


def test_the_text_encoder_is_freed_when_told(demo: Path) -> None:
    pipe = tiny(keep_text_encoder=False)
    kept = pipe.inputs.text_encoder
    pipe(["a", "b"], image=PICTURE, num_inference_steps=1)
    assert (kept.loads, kept.encoder) == (1, None)  # one load for all texts of a call
    pipe.keep_text_encoder(True)
    render(pipe, "c")
    render(pipe, "d")
    assert kept.loads == 2
    assert kept.encoder is not None
    pipe.keep_text_encoder(False)
    assert kept.encoder is None


def test_ranks_keep_no_text_encoder(demo: Path) -> None:
    made = LynxPipeline.from_files(weights_of(demo / "wan", demo), dtype=torch.float32)
    made.inputs.encode_prompts(["a", "b"])
    assert (made.inputs.text_encoder.loads, made.inputs.text_encoder.encoder) == (1, None)


def test_a_dropped_pipeline_frees_its_weights_at_once(demo: Path) -> None:
    """Reference counting alone frees them: with a cycle, a GPU would hold both the old and the new weights."""
    gc.collect()
    gc.disable()
    try:
        pipe = tiny()
        render(pipe, "a")
        alive = weakref.ref(pipe.inputs)
        del pipe
        assert alive() is None
    finally:
        gc.enable()


# Progress


def test_a_bar_counts_the_steps(pipe: LynxPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[Step] = []
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    try:
        pipe(["a", "b"], image=PICTURE, on_step=steps.append)
        printed = capsys.readouterr().err
        assert "video 1/2: 100%" in printed
        assert "video 2/2: 100%" in printed
        assert "4/4" in printed
        pipe.set_progress_bar_config(disable=False, desc="mine")
        pipe("a", image=PICTURE)
        assert "mine: 100%" in capsys.readouterr().err
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert [(step.index, step.total) for step in steps] == [(0, 4), (1, 4), (2, 4), (3, 4)] * 2
    pipe("a", image=PICTURE)
    assert "%" not in capsys.readouterr().err


def test_ranks_show_no_bar(pipe: LynxPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.set_progress_bar_config(disable=False)
    try:
        person = pipe.identify(pipe.sampling, image=PICTURE)
        pipe.denoise(pipe.prepare("a", pipe.sampling, person), pipe.sampling)
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert capsys.readouterr().err == ""


# Hooks


class MyEuler(EulerScheduler):
    """x' = x + (σ' − σ)·v, written again."""

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        now, then = (float(sigma) for sigma in self.sigmas[self._step_index : self._step_index + 2])
        self._step_index += 1
        return (sample + (then - now) * model_output,)


def my_euler(sampling: Sampling) -> MyEuler:
    return MyEuler(default_sigmas(sampling))


def test_an_own_scheduler(pipe: LynxPipeline, video: LynxOutput) -> None:
    expected = pipe(PROMPT, image=PICTURE, seed=7, scheduler="euler").latents
    assert not torch.equal(expected, video.latents)
    for own in (my_euler, my_euler(pipe.sampling)):
        assert torch.equal(pipe(PROMPT, image=PICTURE, seed=7, scheduler=own).latents, expected)
    both = pipe([PROMPT, PROMPT], image=PICTURE, seed=7, scheduler=my_euler(pipe.sampling))
    assert all(torch.equal(one.latents, expected) for one in both)


def test_a_scheduler_of_diffusers(pipe: LynxPipeline) -> None:
    own = UniPCMultistepScheduler.from_config({**pipe.scheduler_config, "flow_shift": pipe.sampling.flow_shift})
    expected = pipe(PROMPT, image=PICTURE, sigma_schedule="diffusers").latents
    assert torch.equal(pipe(PROMPT, image=PICTURE, scheduler=own).latents, expected)


class MyPipeline(LynxPipeline):
    """As the class's documentation shows it."""

    def make_scheduler(self, sampling: Sampling) -> MyEuler:
        return my_euler(sampling)

    def identify(self, sampling: Sampling, *, image: Any = None, **given: Any) -> Person:
        assert image.dtype == np.uint8
        self.seen = image.shape
        return super().identify(
            sampling, image=image, landmarks=LANDMARKS["astronaut"], embedding=np.float32([1] + [0] * 511)
        )


def test_an_own_pipeline(pipe: LynxPipeline, demo: Path) -> None:
    own = MyPipeline.from_pipeline("demo-tiny", face_models=False)
    own.set_progress_bar_config(disable=True)
    assert own.faces is None
    vector = np.float32([1] + [0] * 511)
    expected = pipe(
        PROMPT, image=PICTURE, landmarks=LANDMARKS["astronaut"], embedding=vector, scheduler="euler"
    ).latents
    assert torch.equal(own(PROMPT, image=PICTURE).latents, expected)
    assert own.seen == (512, 512, 3)


class MyFaceModels:
    """Any object with a detector and a recogniser will do. These find the astronaut's face, as often as told."""

    def __init__(self, count: int = 1):
        self.detector = self.recognizer = self
        self.count = count

    def detect(self, image: np.ndarray) -> list[Face]:
        points = np.float32(LANDMARKS["astronaut"])
        return [Face(points, (10.0 * number, 0, 20.0 * number + 9, 9), 1.0) for number in range(self.count)]

    def embed(self, crop: np.ndarray) -> np.ndarray:
        assert crop.shape == (112, 112, 3)
        return np.float32([1] + [0] * 511)


def test_own_face_models(pipe: LynxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.float32([1] + [0] * 511)
    expected = pipe(PROMPT, image=PICTURE, landmarks=LANDMARKS["astronaut"], embedding=vector).latents
    monkeypatch.setattr(pipe, "faces", MyFaceModels())
    assert torch.equal(pipe(PROMPT, image=PICTURE).latents, expected)


# Errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"image": np.zeros((300, 300, 3), np.uint8)}, "image: no face found: use a picture of one face"),
        ({"image": None}, "image: a picture is needed: to find the face, or for the reference branch"),
        ({"landmarks": [[1, 2]] * 3}, "landmarks: shape [3, 2]: five [x, y] pairs are needed"),
        ({"landmarks": [[1, 2], [3]]}, "landmarks: not numbers: five [x, y] pairs are needed"),
        ({"landmarks": LANDMARKS["astronaut"][:4] + [[999, 9]]}, "landmarks: [999, 9] lies outside the 512x512 pict"),
        ({"embedding": np.zeros(512)}, "embedding: all zero: no face has this embedding"),
        ({"embedding": "no.npy"}, "embedding: no.npy: cannot be read"),
        ({"face": 3}, "image: face 3 from the left: 1 face found"),
    ],
)
def test_a_subject_that_cannot_be_used(pipe: LynxPipeline, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(SubjectError) as caught:
        pipe("a", **{"image": PICTURE, **arguments})
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_mistakes_of_a_call_come_before_any_work(pipe: LynxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(pipe, "identify", work)
    monkeypatch.setattr(pipe.inputs, "encode_prompts", work)
    lines = complain(pipe, 3, image=PICTURE, num_frames=80, num_frame=81)
    assert lines[:2] == [
        "prompt: 3: must be a string or a list of strings",
        "num_frames=80: must be a whole number 4k+1 (1, 5, 9, … up to 100001)",
    ]
    assert lines[2].startswith("num_frame: unknown argument; did you mean 'num_frames'? (allowed: prompt, image, ")
    assert complain(pipe, "a", scheduler=3)[0].startswith("scheduler: of type int: must be a name")


def test_mistakes_of_loading(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'demo-tiny'?" in complain(LynxPipeline.from_pipeline, "demo-tyny")[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [line] = complain(LynxPipeline.from_pipeline, "demo-tiny", device="cuda:1")
    assert line.startswith("device='cuda:1': torch ")
    assert complain(LynxPipeline.from_pipeline, "demo-tiny", attention="flsh") == [
        "attention='flsh': must be 'auto', 'flash3', 'flash', 'cudnn' or 'sdpa'"
    ]
    lines = complain(LynxPipeline.from_pretrained, "x", {"ip": "a"}, vae_dtype="f")
    assert lines[0].startswith("adapters.ip: unknown key")
    assert lines[1] == "vae_dtype: 'f': must be 'float32', 'tf32' or 'bfloat16'"


def test_a_guess_is_a_warning(pipe: LynxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a", image=PICTURE, num_inference_steps=1)
    monkeypatch.setattr(pipe, "faces", MyFaceModels(count=2))
    guess = r"^image: 2 faces found, took the largest, number 2 from the left$"
    with pytest.warns(UserWarning, match=guess) as caught:
        pipe("a", image=PICTURE, num_inference_steps=1)
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.raises(SubjectError, match=r"^image: 2 faces found, one alone is allowed"):
        pipe("a", image=PICTURE, face="only")
