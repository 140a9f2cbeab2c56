"""What is read to make something new is checked first: one wrong bit is noticed, whatever its file's time says."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lynx_parallel.errors import DamagedError, RenderError
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.output.checksums import add_checksum, metadata_of, read_metadata
from lynx_parallel.output.finished_latents import latents_metadata
from lynx_parallel.plan.weights import find_weights
from lynx_parallel.rank.messages import EncodeOrder, RankConfig
from lynx_parallel.rank.output_writer import OutputWriter
from lynx_parallel.stages.prompt import PromptFolder
from lynx_parallel.stages.resume_state import ResumeState, load_resume_state, save_resume_state
from tests.helpers.damage import flip, state

CPU = torch.device("cpu")


def bits(path: Path, count: int = 150) -> Iterator[int]:
    """Some bits of a file, of its header above all."""
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    chosen = random.Random(0)
    yield from (chosen.randrange(8 * header) for _ in range(count))
    yield from (chosen.randrange(8 * header, 8 * size) for _ in range(count))


def test_any_wrong_bit_of_a_resume_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_resume_state(path, state(), "d" * 64)
    data = path.read_bytes()
    damaged: list[Path] = []
    found = load_resume_state(path, "d" * 64, CPU, damaged.append)
    assert (found.steps_done, damaged) == (3, [])
    for bit in bits(path):
        path.write_bytes(data)
        flip(path, bit)
        assert load_resume_state(path, "d" * 64, CPU, damaged.append) == ResumeState(), bit
        assert damaged.pop() == path


def test_resume_states_of_earlier_versions(tmp_path: Path) -> None:
    """They have no checksum. Their size is checked, and that they are of this shot."""
    path, damaged = tmp_path / "state", list[Path]()
    save_file(vars(state()), path, {"latents_digest": "one"})
    assert load_resume_state(path, "one", CPU, damaged.append).steps_done == 3
    assert load_resume_state(path, "another", CPU, damaged.append) == ResumeState()
    assert load_resume_state(tmp_path / "none", "one", CPU, damaged.append) == ResumeState()
    assert damaged == []
    path.write_bytes(path.read_bytes()[:-1])
    assert load_resume_state(path, "one", CPU, damaged.append) == ResumeState()
    assert damaged == [path]


def test_any_wrong_bit_of_a_prompts_embedding(tmp_path: Path) -> None:
    damaged: list[Path] = []
    folder = PromptFolder(lambda prompt: tmp_path / prompt, damaged.append)
    embeds = torch.arange(24).reshape(3, 8).bfloat16()
    folder["walk"] = embeds
    assert torch.equal(folder["walk"], embeds)
    data = (tmp_path / "walk").read_bytes()
    for bit in bits(tmp_path / "walk"):
        (tmp_path / "walk").write_bytes(data)
        flip(tmp_path / "walk", bit)
        # A header that has lost its checksum to one bit is of intact numbers.
        assert "walk" not in folder or torch.equal(folder["walk"], embeds), bit
    assert len(damaged) > 290
    folder["walk"] = embeds
    assert torch.equal(folder["walk"], embeds)
    assert "none" not in folder


@pytest.fixture
def shot(campaign: Path) -> Shot:
    return load_campaign(campaign).shots[0]


class Decoded(OutputWriter):
    """A finisher that needs no VAE.

    Attributes:
        seen: the latents that were decoded.
    """

    seen: torch.Tensor | None = None

    def load(self) -> None:
        self.vae = "loaded"

    def _frames(self, vae: Any, latents: torch.Tensor) -> np.ndarray:
        self.seen = latents
        return np.zeros((9, 48, 64, 3), np.uint8)


@pytest.fixture
def finisher(campaign: Path) -> Decoded:
    return Decoded(
        RankConfig(find_weights(load_campaign(campaign).pipeline.model), "float32", denoise=False),
        CPU,
        lambda what: None,
    )


def written(folder: Path) -> tuple[Path, torch.Tensor]:
    latents = torch.randn(1, 16, 3, 6, 8)
    path = folder / "a.latents.safetensors"
    path.write_bytes(add_checksum(save({"latents": latents}), latents_metadata("d" * 64, {})))
    return path, latents


@pytest.mark.parametrize("sidecar", [True, False])
def test_any_wrong_bit_of_latents(tmp_path: Path, finisher: Decoded, shot: Shot, sidecar: bool) -> None:
    """Whether the sidecar has their checksum, or only they themselves."""
    path, latents = written(tmp_path)
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    parts = {"video": tmp_path / "video.part"}
    made = finisher.encode(EncodeOrder(shot, Video(), path, parts, tmp_path, sha256 if sidecar else None))
    assert finisher.seen is not None
    assert torch.equal(finisher.seen, latents)
    assert made.outputs["latents"] == {"size": len(data), "sha256": sha256}
    finisher.seen = None
    for bit in bits(path, 40):
        path.write_bytes(data)
        flip(path, bit)
        with pytest.raises(DamagedError, match=r"a\.latents\.safetensors: the latents are damaged"):
            finisher.encode(EncodeOrder(shot, Video(), path, parts, tmp_path, sha256 if sidecar else None))
    assert finisher.seen is None
    path.unlink()
    with pytest.raises(RenderError, match=r"a\.latents\.safetensors: No such file"):
        finisher.encode(EncodeOrder(shot, Video(), path, parts, tmp_path, sha256))


def test_latents_of_earlier_versions(tmp_path: Path, finisher: Decoded, shot: Shot) -> None:
    """They have no checksum in their header; their sidecar has it."""
    path = tmp_path / "old.latents.safetensors"
    save_file({"latents": torch.zeros(1, 16, 3, 6, 8)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    parts = {"video": tmp_path / "video.part"}
    assert finisher.encode(EncodeOrder(shot, Video(), path, parts, tmp_path, sha256)).outputs["video"]
    with pytest.raises(DamagedError):
        finisher.encode(EncodeOrder(shot, Video(), path, parts, tmp_path))


def test_latents_are_there_before_the_video_is_made(
    tmp_path: Path, finisher: Decoded, shot: Shot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RenderError("cannot encode: ffmpeg ended with status 1")

    monkeypatch.setattr("lynx_parallel.rank.output_writer.encode_video", refuse)
    latents, frames = torch.randn(1, 16, 3, 6, 8), np.zeros((9, 48, 64, 3), np.uint8)
    parts = {"video": tmp_path / "video.part", "latents": tmp_path / "new" / "folder" / "a.safetensors"}
    finisher.save_latents(latents, parts["latents"], latents_metadata("d" * 64, {"seed": 1}))
    with pytest.raises(RenderError, match="cannot encode"):
        finisher.write(frames, EncodeOrder(shot, Video(), tmp_path, parts, tmp_path), {}, {})
    assert torch.equal(load_file(parts["latents"])["latents"], latents)
    assert (read_metadata(parts["latents"]) or {})["latents_digest"] == "d" * 64
    assert [path.name for path in parts["latents"].parent.iterdir()] == ["a.safetensors"]


def test_what_is_no_file_of_tensors() -> None:
    for data in (b"", b"\0" * 8, b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}x"):
        assert metadata_of(data) is None
    deep = b"[" * 100_000
    assert metadata_of(len(deep).to_bytes(8, "little") + deep) is None
    assert metadata_of((2).to_bytes(8, "little") + b"{}") == {}
    assert metadata_of(save({"a": torch.zeros(2)}, {"a": "b"})) == {"a": "b"}
