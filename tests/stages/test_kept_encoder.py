"""The text encoder between prompts: how often it is loaded, where it waits, and when it makes room."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import psutil
import pytest
import torch

from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.stages.kept_encoder import KeptEncoder, video_bytes, waiting_place
from lynx_parallel.stages.prompt import encode_prompts
from tests.helpers.small_renders import load

CPU = torch.device("cpu")
GB = 10**9


@pytest.mark.parametrize(
    ("device_free", "host_free", "needed", "place"),
    [
        (40, 100, 29, "device"),  # 11 + 29 fit
        (40, 100, 30, "host"),
        (40, 12, 30, None),  # a tenth of the host's memory stays free
        (40, 13, 30, "host"),
        (0, 0, 0, None),
    ],
)
def test_where_it_waits(device_free: int, host_free: int, needed: int, place: str | None) -> None:
    found = waiting_place(11 * GB, device_free=device_free * GB, host_free=host_free * GB, needed=needed * GB)
    assert found == place


def test_the_cpu_has_one_memory() -> None:
    assert waiting_place(11, device_free=40, host_free=40, needed=29, on_host=True) == "device"
    assert waiting_place(11, device_free=40, host_free=40, needed=30, on_host=True) is None


@pytest.fixture
def kept(demo: Path) -> KeptEncoder:
    return KeptEncoder(demo / "wan", dtype=torch.float32, device=CPU)


def free_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available}))


def test_by_default_it_is_freed_after_each_prompt(kept: KeptEncoder) -> None:
    into: dict[str, torch.Tensor] = {}
    for number, prompt in enumerate(("a", "b"), start=1):
        kept.encode([prompt, "grey"], into)
        assert (kept.loads, kept.encoder) == (number, None)
    kept.encode(["a", "grey"], into)
    assert kept.loads == 2  # nothing was missing


@pytest.mark.parametrize("keep", [True, None])
def test_kept_it_is_loaded_once_and_makes_the_same_embeddings(
    kept: KeptEncoder, keep: bool | None, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_memory(monkeypatch, 64 * GB)
    kept.keep = keep
    into: dict[str, torch.Tensor] = {}
    for prompt in ("a cat", "b", "a longer text about nothing"):
        kept.encode([prompt], into)
        kept.make_room(Sampling())
    assert kept.loads == 1
    assert kept.encoder is not None
    alone: dict[str, torch.Tensor] = {}
    encode_prompts(demo / "wan", into, alone, dtype=torch.float32, device=CPU)
    assert into.keys() == alone.keys()
    assert all(torch.equal(into[prompt], alone[prompt]) for prompt in alone)


def test_it_makes_room_for_a_video_that_does_not_fit_beside_it(
    kept: KeptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sampling] = []
    kept.keep = None
    kept.needed = lambda sampling: asked.append(sampling) or sampling.width * GB  # type: ignore[func-returns-value]
    free_memory(monkeypatch, 64 * GB)
    kept.encode(["a"], {})
    kept.make_room(Sampling(width=48))
    assert kept.encoder is not None
    kept.make_room(Sampling(width=80))
    assert kept.encoder is None
    assert [sampling.width for sampling in asked] == [48, 80]
    kept.encode(["a"], {})
    assert kept.loads == 2


def test_what_was_told_does_not_depend_on_memory(kept: KeptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 0)
    kept.keep = True
    kept.needed = lambda sampling: GB
    kept.encode(["a"], {})
    kept.make_room(Sampling())
    assert kept.encoder is not None


class OnGpu:
    """A text encoder of 11 GB, of which only the place matters."""

    bytes = 11 * GB

    def __init__(self, base: Path, *, dtype: torch.dtype, device: torch.device):
        self.device = device

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def __call__(self, prompt: str) -> torch.Tensor:
        assert self.device.type == "cuda"
        return torch.zeros(1)


def test_between_a_gpu_and_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: the tests replace what measures memory, and the encoder, of which they see the place."""
    free = {"cuda": 20 * GB}  # beside the encoder, wherever that is
    kept = KeptEncoder(Path(), dtype=torch.bfloat16, device=torch.device("cuda"))
    kept.keep, kept.needed = None, lambda sampling: sampling.num_frames * GB

    def measured(device: torch.device) -> int:
        assert kept.encoder is not None
        return free["cuda"] - OnGpu.bytes * (kept.encoder.device.type == "cuda")

    monkeypatch.setattr("lynx_parallel.stages.kept_encoder.TextEncoder", OnGpu)
    monkeypatch.setattr("lynx_parallel.stages.kept_encoder.free_bytes", measured)
    free_memory(monkeypatch, 64 * GB)
    places = []
    for frames in (9, 13, 9, 13):  # 9 + 11 GB fit, 13 + 11 GB do not
        kept.encode([f"{len(places)}"], {})
        kept.make_room(Sampling(num_frames=frames))
        places.append(kept.encoder and kept.encoder.device.type)
    assert places == ["cuda", "cpu", "cuda", "cpu"]
    kept.make_room(Sampling(num_frames=9))  # no prompt was new: it waits where it is, if that is allowed
    free_memory(monkeypatch, 0)
    kept.encode(["new"], {})
    kept.make_room(Sampling(num_frames=13))
    assert (kept.encoder, kept.loads) == (None, 1)


def test_freed_it_takes_no_memory(kept: KeptEncoder) -> None:
    kept.keep = True
    kept.encode(["a"], {})
    assert kept.encoder is not None
    weights = weakref.ref(kept.encoder.encoder)
    assert kept.encoder.bytes > 10_000
    kept.free()
    gc.collect()
    assert weights() is None


def test_a_larger_video_needs_more(demo: Path) -> None:
    experts = load(demo).experts
    small, large = (
        video_bytes(experts, Sampling(width=width, height=480, num_frames=81, num_inference_steps=1))
        for width in (64, 832)
    )
    assert 1.5 * GB < small < large
    # The decoder of the full size takes 51 frames of 96 channels, see decode_bytes.
    assert large - small > 0.9 * 51 * 96 * 4 * 480 * (832 - 64)
    tf32 = video_bytes(experts, Sampling(width=832, height=480), tf32_decode=True)
    assert tf32 > video_bytes(experts, Sampling(width=832, height=480))
