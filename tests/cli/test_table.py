"""``lynx-render score`` and ``table`` with scorers of other packages, and the shipped benchmark."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.stages.clip_score import ClipScorer
from lynx_parallel.stages.video import encode_video
from tests.helpers.campaigns import finish
from tests.helpers.finished import ids_of
from tests.helpers.light_command import light, refused
from tests.helpers.real_pictures import astronaut, person, save

MANIFEST = """\
version: 1
pipeline: demo-tiny
output: out
subjects: {from: people, vars: {person: person}}
prompts: {walk: "A {person} walks."}
variants: {full: {}, fast: {sampling: {num_inference_steps: 2}}}
scorers: {length: {factor: 2}}
"""
PACKAGE = """\
from pathlib import Path

class Length:
    scale = "bytes"
    def __init__(self, options, folder):
        self.factor = options["factor"]
    def score(self, video, prompt, picture):
        if "fast" in video.name:
            raise RuntimeError("too fast\\nfor me")
        return self.factor * len(prompt)
"""


@pytest.fixture
def folder(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished videos of two people in two variants, and an installed package with a scorer."""
    site = tmp_path / "site"
    (site / "length-1.dist-info").mkdir(parents=True)
    (site / "length_scorer.py").write_text(PACKAGE)
    (site / "length-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: length\nVersion: 1\n")
    (site / "length-1.dist-info" / "entry_points.txt").write_text(
        "[lynx_parallel.scorers]\nlength = length_scorer:Length\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.syspath_prepend(str(site))
    for name, picture in (("ada", astronaut()), ("bob", person(0))):
        save(picture, tmp_path / "people" / f"{name}.png")
    (tmp_path / "m.yaml").write_text(MANIFEST)
    campaign = load_campaign(str(tmp_path / "m.yaml"))
    for shot in campaign.shots:
        face = astronaut()[:320, 64:384] if shot.subject.id == "ada" else person(0)
        encode_video(np.stack([face] * 2), tmp_path / "made.mp4", fps=8, codec="h264", crf=12)
        finish(campaign, shot, video=(tmp_path / "made.mp4").read_bytes(), name=shot.name, shot=ids_of(shot))
    return tmp_path


def test_a_scorer_of_another_package(folder: Path) -> None:
    done = light("score", "m.yaml", "--jobs", "1", cwd=folder)
    assert done.returncode == 1
    assert "ada/walk-t01: length: 30.000" in done.stdout
    assert "ada/walk-t01-fast: not scored: RuntimeError: too fast" in done.stdout
    table = json.loads(light("table", "out", "--json", "--csv", "v.csv", cwd=folder, allowed="numpy").stdout)
    assert table["columns"]["dlib"] == "identity, 1 − Euclidean distance"
    assert (table["rows"]["full"]["length"]["mean"], table["rows"]["fast"]["length"]["unscored"]) == (30.0, 2)
    assert table["rows"]["full"]["dlib"]["subjects"] == 2
    with (folder / "v.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    assert all(float(row["dlib"]) > 0.7 for row in rows.values())


def test_wrong_scorers(folder: Path) -> None:
    text = (folder / "m.yaml").read_text()
    (folder / "m.yaml").write_text(text.replace("length:", "lenght:"))
    assert refused("plan", "m.yaml", cwd=folder) == [
        "m.yaml:7: scorers.lenght: no such scorer is installed; did you mean 'length'? (installed: clip, length)"
    ]


def test_a_table_without_scores(folder: Path) -> None:
    done = light("table", "out", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "out: no video has scores: run lynx-render score out\n")


def test_the_shipped_benchmark(folder: Path) -> None:
    [line] = refused("plan", "benchmark", cwd=folder)
    assert line.endswith("subjects.from: 'people': matches no file; --set subjects=FOLDER names your pictures")
    page = json.loads(light("plan", "benchmark", "--set", "subjects=people", "--json", cwd=folder).stdout)
    assert len(page["shots"]) == 2 * 20 * 3
    campaign = load_campaign("benchmark", [f"subjects={folder / 'people'}"])
    assert len({prompt.text for prompt in campaign.prompts}) == 20
    scales = {shot.variant: (shot.sampling.ip_scale, shot.sampling.ref_scale) for shot in campaign.shots}
    assert scales == {"full": (1.0, 1.0), "id-only": (1.0, 0.0), "ref-only": (0.0, 1.0)}


def write_clip(folder: Path) -> None:
    """Writes a tiny CLIP with random weights, in the format of transformers."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 60,
        "max_position_embeddings": 16,
        "bos_token_id": 57,
        "eos_token_id": 58,
        "pad_token_id": 58,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), ".</w>", ",</w>", "!</w>", "-</w>", "'</w>",
              "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32},
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }))  # fmt: skip


def test_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    scorer = ClipScorer({"model": "clip"}, tmp_path)
    encode_video(np.stack([astronaut()[:320, 64:384]] * 3), tmp_path / "a.mp4", fps=8, codec="h264", crf=12)
    first, second = (scorer.score(tmp_path / "a.mp4", prompt, None) for prompt in ("a walk", "zzz"))
    assert -1 <= first <= 1
    assert first != second
    assert scorer.score(tmp_path / "a.mp4", "a walk", None) == first


def test_clip_that_cannot_be_loaded(tmp_path: Path) -> None:
    from lynx_parallel.errors import CheckpointError, InputErrors

    with pytest.raises(CheckpointError, match="CLIP cannot be loaded"):
        ClipScorer({"model": "nowhere"}, tmp_path)
    with pytest.raises(InputErrors, match="give model: FOLDER alone"):
        ClipScorer({"modle": "x"}, tmp_path)
