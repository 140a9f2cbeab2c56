"""What plan finds before any work, and that render finds the same: no Ray, no torch, nothing written."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from lynx_parallel.cli.load import load as load_all
from tests.helpers.campaigns import FULL, MANIFEST, draw, finish, tree, write
from tests.helpers.light_command import errors_of, light, refused

LONG = "A {person} walks. " + " ".join(f"word{number}" for number in range(110))


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    write(tmp_path)
    draw(tmp_path)
    return tmp_path


def edit(folder: Path, old: str, new: str, name: str = "m.yaml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def refused_by(command: str, *options: str, cwd: Path) -> list[str]:
    """Lines of a refusal by plan or render; the latter says first what there is to do. Nothing may be written."""
    if command == "plan":
        return refused(command, "m.yaml", *options, cwd=cwd)
    before = tree(cwd)
    run = light(command, "m.yaml", *options, cwd=cwd)
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert len(run.stdout.splitlines()) <= 1
    assert tree(cwd) == before
    return errors_of(run)


def finish_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finishes every shot with the digests that plan will look for."""
    monkeypatch.chdir(folder)
    loaded = load_all("m.yaml", None, None, False, download=False)
    for shot in loaded.campaign.shots:
        finish(loaded.campaign, shot, weights=loaded.parts[0].digests)


def planned(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """The plan as JSON."""
    run = light("plan", "m.yaml", "--json", *options, cwd=folder)
    assert run.returncode == code, run.stderr
    return json.loads(run.stdout)


def actions(plan: Mapping[str, Any]) -> list[str]:
    return [shot["action"] for shot in plan["shots"]]


def kinds(plan: Mapping[str, Any]) -> list[str]:
    return [warning["kind"] for warning in plan["warnings"]]


# Texts


def test_a_prompt_that_is_cut(folder: Path) -> None:
    edit(folder, "A {person} walks.", LONG)
    run = light("plan", "m.yaml", cwd=folder)
    assert run.returncode == 0
    (line,) = run.stderr.splitlines()
    assert line.startswith(
        "warning: longer than 512 tokens: the model does not see the end; shorten the text (1): prompt walk: "
    )
    assert "the model reads 512; lost: 'word" in line  # once, though each subject has a text of its own
    assert refused("plan", "m.yaml", "--strict", cwd=folder) == [line]
    assert refused("render", "m.yaml", "--strict", cwd=folder) == [line]
    (warning,) = planned(folder)["warnings"]
    assert (warning["kind"], warning["count"]) == ("prompt-too-long", 1)


@pytest.mark.parametrize("where", ["pipeline", "manifest", "prompt", "--set"])
def test_a_negative_prompt_that_is_cut(folder: Path, where: str) -> None:
    negative = " ".join(["schön"] * 150)
    options = []
    match where:
        case "pipeline":
            edit(folder, "num_frames: 9", f"num_frames: 9, negative_prompt: {negative}", "full.yaml")
        case "manifest":
            edit(folder, "output: out", f"output: out\nsampling: {{negative_prompt: {negative}}}")
        case "prompt":
            text = f"{{text: 'A {{person}} runs.', sampling: {{negative_prompt: {negative}}}}}"
            edit(folder, "'A {person} runs.'", text)
        case _:
            options = ["--set", f"sampling.negative_prompt={negative}"]
    (warning,) = planned(folder, *options)["warnings"]
    assert warning["count"] == 1
    assert warning["examples"][0].startswith("negative prompt: ")
    assert "lost: 'schön schön" in warning["examples"][0]


def test_texts_that_fit(folder: Path) -> None:
    edit(folder, "A {person} walks.", "A {person} walks. " + "word " * 80)
    assert planned(folder)["warnings"] == []


# The base


@pytest.mark.parametrize("command", ["plan", "render"])
def test_a_base_of_another_family(folder: Path, demo: Path, command: str) -> None:
    shutil.copytree(demo / "wan", folder / "base")
    index = json.loads((folder / "base" / "model_index.json").read_text())
    (folder / "base" / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": True}))
    edit(folder, "demo:tiny", "./base", "full.yaml")
    (line,) = refused_by(command, cwd=folder)
    assert line.startswith(f"{folder}/base: this is Wan2.2-TI2V-5B, which is not supported: supported are Wan2.1 T2V")


@pytest.mark.parametrize("command", ["plan", "render"])
def test_a_base_of_36_channels(folder: Path, demo: Path, command: str) -> None:
    shutil.copytree(demo / "wan", folder / "base")
    config = json.loads((folder / "base" / "transformer" / "config.json").read_text())
    (folder / "base" / "transformer" / "config.json").write_text(json.dumps({**config, "in_channels": 36}))
    edit(folder, "demo:tiny", "./base", "full.yaml")
    (line,) = refused_by(command, cwd=folder)
    assert line.startswith(f"{folder}/base/transformer/config.json: in_channels: 36: not supported: must be 16")


# Layout options, as render's


@pytest.mark.parametrize("command", ["plan", "render"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ulysses", "3"], "--ulysses 3: does not divide the model's 4 attention heads"),
        (["--guidance", "3", "--set", "sampling.guidance_scale=1"], "--guidance 3: the shot has 1 guidance branches"),
        (["--set", "sampling.ref_blocks=0-9"], "sampling.ref_blocks '0-9': the model has blocks 0 to 2 (ada/walk-t01)"),
        (["--set", "sampling.num_frames=4101"], "sampling.num_frames 4101: 1026 positions, the model has 1024"),
        (["--attention", "flash"], "--attention flash: does not run in float32, the pipeline's dtype"),
        (["--device", "gpu"], "--device gpu: must be 'auto', 'cuda' or 'cpu'"),
        (["--hung-after", "1s"], "--hung-after 1s: must be 5s or more"),
        (["--device", "cuda", "--max-gpus", "1", "--ulysses", "2"], "--max-gpus 1: a shot needs 2"),
        (["--device", "cuda", "--max-gpus", "3", "--gangs", "4"], "--gangs 4: needs 4 ranks, the cluster has 3"),
    ],
)
def test_what_does_not_fit(folder: Path, command: str, options: list[str], expected: str) -> None:
    (line,) = refused_by(command, *options, cwd=folder)
    assert line.startswith(expected)


def test_a_kernel_for_cuda_with_device_cpu(folder: Path) -> None:
    edit(folder, "dtype: float32", "dtype: bfloat16", "full.yaml")
    assert planned(folder, "--attention", "flash")["shots"]
    (line,) = refused("plan", "m.yaml", "--attention", "flash", "--device", "cpu", cwd=folder)
    assert line == "--attention flash: runs on CUDA only, not with --device cpu: use auto or sdpa"


def test_every_reason_at_once(folder: Path) -> None:
    edit(folder, "crf: 18", "crf: 0", "full.yaml")
    options = ["--ulysses", "3", "--attention", "flash", "--set", "sampling.ref_blocks=0-9"]
    lines = refused("plan", "m.yaml", *options, cwd=folder)
    assert [line.split(": ")[0] for line in lines] == [
        "full.yaml", "--attention flash", "sampling.ref_blocks '0-9'", "--ulysses 3",
    ]  # fmt: skip


def test_all_of_renders_options_are_taken(folder: Path) -> None:
    options = ["--ulysses", "2", "--ring", "1", "--guidance", "2", "--gangs", "1", "--max-gpus", "8", "--shard-weights",
               "--attention", "sdpa", "--tiled-decode", "--device", "cpu", "--address", "head:6379", "--stop-after",
               "3h", "--max-failures", "3", "--hung-after", "90s", "--save-every", "60s"]  # fmt: skip
    assert actions(planned(folder, *options)) == ["render"] * 4


def test_finished_shots_need_to_fit_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish_all(folder, monkeypatch)
    assert actions(planned(folder, "--ulysses", "3")) == ["done"] * 4


# Exit codes


def test_detailed_exit_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(folder, "--detailed-exitcode", code=4)
    finish_all(folder, monkeypatch)
    planned(folder, "--detailed-exitcode", code=0)
    planned(folder, "--detailed-exitcode", "--set", "video.crf=30", code=4)
    edit(folder, "2027-01-31", "2020-01-31")
    assert set(actions(planned(folder, "--detailed-exitcode", "--only", "ada/*", code=0))) == {"blocked"}
    planned(folder, code=0)
    refused("plan", "m.yaml", "--detailed-exitcode", "--set", "video.crf=99", cwd=folder)
    run = light("plan", "m.yaml", "--detailed-exitcode", "--set", "video.crf=30", "--only", "bob/*", cwd=folder)
    assert (run.returncode, run.stdout.splitlines()[0]) == (
        4, "m.yaml: 2 shots: 0 to render, 2 to encode, 0 done, 0 blocked",
    )  # fmt: skip


# Pictures


@pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_a_broken_picture_blocks_its_own_shots(folder: Path, content: bytes) -> None:
    (folder / "ada.jpg").write_bytes(content)
    plan = planned(folder, "--detailed-exitcode", code=4)
    assert actions(plan) == ["blocked", "blocked", "render", "render"]
    assert plan["shots"][0]["reason"].startswith("ada.jpg: ")
    assert kinds(plan) == ["picture-unreadable"]
    (line,) = refused("plan", "m.yaml", "--strict", cwd=folder)
    assert line.startswith("warning: pictures cannot be read; the shots that need them are blocked (1): ada.jpg: ")


@pytest.mark.parametrize(("orientation", "inside"), [(1, False), (3, False), (6, True), (8, True)])
def test_written_landmarks_outside_the_upright_picture(folder: Path, orientation: int, inside: bool) -> None:
    """The last point, [9, 10], lies outside 40x9 pixels, and inside 9x40, to which EXIF turns them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 9)).save(folder / "ada.jpg", exif=exif)
    plan = planned(folder, "--detailed-exitcode", code=4)
    expected = ["render", "render"] if inside else ["blocked", "blocked"]
    assert actions(plan) == [*expected, "render", "render"]
    assert kinds(plan) == ([] if inside else ["landmarks-outside"])
    if not inside:
        reason = "ada.jpg: landmarks: [9, 10] lies outside the 40x9 picture: give pixels of the upright picture, or "
        assert plan["shots"][0]["reason"].startswith(reason)
        (line,) = refused("plan", "m.yaml", "--strict", cwd=folder)
        what = "landmarks lie outside their picture; the shots that need them are blocked"
        assert line.startswith(f"warning: {what} (1): {reason}")


def test_many_pictures_of_a_phone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pillow-heif: one line for all of them."""
    (folder / "none").mkdir()
    (folder / "none" / "pillow_heif.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'none'}:{Path(__file__).parents[2]}")
    for name in ("ada", "bob"):
        (folder / f"{name}.jpg").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100))
    run = light("plan", "m.yaml", cwd=folder)
    assert run.stdout.splitlines()[0] == "m.yaml: 4 shots: 0 to render, 0 to encode, 0 done, 4 blocked"
    assert run.stderr.splitlines() == [
        "warning: HEIC pictures cannot be read; the shots that need them are blocked: pip install 'lynx-parallel[heic]'"
        " (pillow-heif), or save it as JPEG or PNG (2): ada.jpg; bob.jpg"
    ]


def test_heic_with_the_extra(folder: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48))).save(folder / "ada.heic")
    edit(folder, "ada.jpg", "ada.heic")
    plan = planned(folder)
    assert (actions(plan), plan["warnings"]) == (["render"] * 4, [])


def test_a_picture_that_no_shot_needs(folder: Path) -> None:
    """Lite with a given embedding."""
    (folder / "ada.jpg").write_bytes(b"no picture")
    edit(folder, "./full.yaml", "./lite.yaml")
    plan = planned(folder)
    assert (actions(plan), plan["warnings"]) == (["render"] * 4, [])


def test_finished_shots_stay_done_without_a_readable_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ada.jpg").write_bytes(b"no picture")
    finish_all(folder, monkeypatch)
    assert actions(planned(folder)) == ["done"] * 4


# The video


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("command", ["plan", "render"])
def test_crf_0_is_refused_for_new_work(folder: Path, command: str, codec: str) -> None:
    edit(folder, "{crf: 18}", f"{{crf: 0, codec: {codec}}}", "full.yaml")
    (line,) = refused_by(command, cwd=folder)
    assert line.startswith("full.yaml: video.crf: 0: browsers and QuickTime do not play such a file")
    assert line.endswith("use 1 or more, or video.lossless: true")
    edit(folder, "output: out", "output: out\nvideo: {crf: 0}")
    (line,) = refused_by(command, cwd=folder)
    assert line.startswith("m.yaml:4: video.crf: 0: browsers ")
    (line,) = refused_by(command, "--set", "video.crf=0", cwd=folder)
    assert line.startswith("--set video.crf=0: browsers ")


def test_crf_0_of_a_variants_own_pipeline(folder: Path) -> None:
    own = (folder / "full.yaml").read_text()
    (folder / "own.yaml").write_text(own.replace("crf: 18", "crf: 0, codec: h265"))
    variants = "variants: {a: {}, b: {pipeline: ./own.yaml}}"
    edit(folder, "output: out", f"output: out\nvideo: {{crf: 0}}\n{variants}")
    lines = refused("plan", "m.yaml", cwd=folder)
    assert [line.partition(": browsers")[0] for line in lines] == ["m.yaml:4: video.crf: 0", "own.yaml: video.crf: 0"]


def test_crf_1_and_lossless_are_taken(folder: Path) -> None:
    assert planned(folder, "--set", "video.crf=1")["warnings"] == []
    edit(folder, "crf: 18", "crf: 0, lossless: true", "full.yaml")
    plan = planned(folder)
    assert (actions(plan), kinds(plan)) == (["render"] * 4, ["video-lossless"])
    (line,) = refused("plan", "m.yaml", "--strict", cwd=folder)
    assert line == (
        "warning: lossless videos are large, and browsers and QuickTime do not play them (1): video.lossless with h264"
    )


def test_finished_shots_of_crf_0_stay_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(folder, "crf: 18", "crf: 0", "full.yaml")
    finish_all(folder, monkeypatch)
    assert actions(planned(folder)) == ["done"] * 4
    assert actions(planned(folder, "--set", "video.lossless=true")) == ["encode"] * 4
    edit(folder, "A {person} runs.", "A {person} runs on.")
    (line,) = refused("plan", "m.yaml", cwd=folder)  # two of four are new work
    assert line.startswith("full.yaml: video.crf: 0: ")


@pytest.mark.parametrize("fps", ["0.0004", "1e-9", "0", "241"])
def test_rates_that_ffmpeg_does_not_take(folder: Path, fps: str) -> None:
    (line,) = refused("plan", "m.yaml", "--set", f"sampling.fps={fps}", cwd=folder)
    assert line == f"--set sampling.fps={fps}: must be a number from 1/2000 (0.0005) to 240"


def test_full_is_what_this_file_edits() -> None:
    assert "crf: 18" in FULL
    assert "image: ada.jpg" in MANIFEST


# Embeddings


def _npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


GOOD = np.full(512, 0.5, np.float32)
EMBEDDINGS = {
    "shape": ("npy", _npy(GOOD[:511]), "shape [511]: [512] floats are needed"),
    "dtype": ("npy", _npy(np.ones(512, np.int64)), "dtype int64: [512] floats are needed"),
    "NaN": ("npy", _npy(np.where(np.arange(512) == 3, np.nan, GOOD)), "holds NaN or infinity"),
    "zero": ("npy", _npy(0 * GOOD), "all zero: no face has this embedding"),
    "pickle": ("npy", _npy(np.array([print], dtype=object)), "cannot be read: "),
    "empty": ("npy", b"", "cannot be read: "),
    "size": ("npy", _npy(np.ones(2**18)), "2097280 bytes: an embedding has 2 to 4 KB: [512] floats are needed"),
    "key": ("safetensors", save({"vector": GOOD}), "no key face_embedding, but vector"),
    "cut": ("safetensors", save({"face_embedding": GOOD})[:-1], "cannot be read: "),
}


@pytest.mark.parametrize("command", ["plan", "render"])
@pytest.mark.parametrize("damage", EMBEDDINGS)
def test_an_embedding_that_cannot_be_used(folder: Path, command: str, damage: str) -> None:
    """One line for each file, however many shots it has; before any work."""
    kind, data, reason = EMBEDDINGS[damage]
    edit(folder, "embedding: ada.npy", f"embedding: ada.{kind}")
    (folder / f"ada.{kind}").write_bytes(data)
    (line,) = refused_by(command, cwd=folder)
    assert line.startswith(f"ada.{kind}: {reason}")


def test_an_embedding_that_is_a_pipe(folder: Path) -> None:
    (folder / "ada.npy").unlink()
    os.mkfifo(folder / "ada.npy")
    (line,) = refused("plan", "m.yaml", cwd=folder)
    assert "ada.npy" in line


def test_an_embedding_that_no_shot_needs(folder: Path) -> None:
    (folder / "ada.npy").write_bytes(b"")
    assert set(actions(planned(folder, "--only", "bob/*"))) == {"render"}
    (folder / "ada.npy").write_bytes(_npy(GOOD))
    assert len(planned(folder)["shots"]) == 4


def test_a_shard_without_the_weights(folder: Path) -> None:
    """A laptop that has no weights plans the same division."""
    edit(folder, "base: demo:tiny", "base: Wan-AI/Wan2.1-T2V-14B-Diffusers", "full.yaml")
    plans = [light("plan", "m.yaml", "--shard", f"{number}/2", "--json", cwd=folder) for number in (1, 2)]
    assert [run.returncode for run in plans] == [0, 0], plans[0].stderr
    names = [[shot["name"] for shot in json.loads(run.stdout)["shots"]] for run in plans]
    assert names == [["ada/walk-t01", "ada/run-t01"], ["bob/walk-t01", "bob/run-t01"]]
