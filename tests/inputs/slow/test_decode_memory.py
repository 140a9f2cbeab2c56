"""Predicted peak of decoding against bytes held: Wan2.1's VAE with fake tensors, on fake tensors."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.machine import RESULTS
from lynx_parallel.inputs.decode_memory import TILE, VAE_BASE_DIM, VideoSize, decode_bytes
from lynx_parallel.parallel.room import VAE_BYTES
from lynx_parallel.stages.latents import decode, latent_shape
from tests.helpers.live import LiveBytes

P480, P720 = VideoSize(832, 480, 81), VideoSize(1280, 720, 81)


def fake_decode(size: VideoSize, *, tiled: bool = False, base_dim: int = VAE_BASE_DIM) -> tuple[int, int]:
    """Peak of decoding and of making frames, and bytes of the weights; on fake tensors, whose bytes are true."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=base_dim)
    shapes = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    with FakeTensorMode(), torch.no_grad():
        vae.load_state_dict({key: torch.empty(shape) for key, shape in shapes.items()}, assign=True)
        if tiled:
            vae.enable_tiling()
        latents = torch.empty(latent_shape(*size))
        with LiveBytes([*vae.parameters(), latents]) as live:
            video = decode(vae, latents)
            # As stages.latents.to_frames, which ends in numpy.
            ((video[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return live.peak, sum(tensor.numel() * tensor.element_size() for tensor in vae.parameters())


@pytest.mark.parametrize("size", [P480, P720, VideoSize(832, 480, 33)], ids=str)
def test_decoding_on_one_rank_is_close(size: VideoSize) -> None:
    peak, weights = fake_decode(size)
    assert decode_bytes(size) == pytest.approx(peak, rel=0.01)
    assert weights == VAE_BYTES


@pytest.mark.parametrize("base_dim", [VAE_BASE_DIM, 1])
def test_tiles_stay_below_their_bound(base_dim: int) -> None:
    """With Wan's channels one tile's work is the larger part, with few channels the tiles' videos are."""
    size = VideoSize(384, 256, 5 if base_dim > 1 else 17)
    peak, _ = fake_decode(size, tiled=True, base_dim=base_dim)
    bound = decode_bytes(size, tiled=True, base_dim=base_dim)
    assert 0.8 * bound <= peak <= bound


def test_tiling_leaves_a_small_video_whole() -> None:
    small = VideoSize(TILE, TILE, 5)
    assert decode_bytes(small, tiled=True) == decode_bytes(small)


def test_more_ranks_than_rows_of_latents_decode_on_one() -> None:
    assert decode_bytes(P480, ranks=61) == decode_bytes(P480) > decode_bytes(P480, ranks=60)


@pytest.mark.parametrize(("convolutions", "tf32"), [("fp32", False), ("tf32", True)])
@pytest.mark.parametrize(("video", "size"), [("480p", P480), ("720p", P720)])
def test_the_peak_measured_on_an_h200(video: str, size: VideoSize, convolutions: str, tf32: bool) -> None:
    recorded = json.loads((RESULTS / "gpu_nvidia_h200.json").read_text())["found"][f"decode {video}"][convolutions]
    assert decode_bytes(size, tf32=tf32) + VAE_BYTES == pytest.approx(recorded["peak_bytes"], rel=0.01)


def test_the_vae_is_wans() -> None:
    with torch.device("meta"):
        assert AutoencoderKLWan().config.base_dim == VAE_BASE_DIM
