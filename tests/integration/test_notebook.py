"""A call of LynxPipeline gives the bits of the command line, with nothing but the pipeline file and the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lynx_parallel import LynxPipeline
from lynx_parallel.rank.environment import threads_here
from lynx_parallel.stages.video import read_frames
from tests.helpers.lora_files import LAYOUTS, make_known
from tests.helpers.lora_files import write as write_lora
from tests.helpers.mp4_boxes import without_mark
from tests.helpers.ray_head import Head
from tests.helpers.repository import REPOSITORY

PROMPTS = {
    "pumpkin": "A woman carves a pumpkin on a porch in the evening.",
    "beach": "A woman walks along a beach at sunrise, the wind in the hair.",
}
OWN_SAMPLING = """\
  sigma_schedule: diffusers
  reference_latent: sample
  identity_window: [0, 0.8]
  seed: 11
"""


@pytest.fixture
def rendered(head: Head, campaign: Path, demo: Path, tmp_path: Path) -> Path:
    """The output of ``lynx-render`` on one rank, with a shipped pipeline and with one that changes what it can."""
    text = (REPOSITORY / "pipelines" / "demo-tiny.yaml").read_text()
    known = make_known(load_file(demo / "wan" / "transformer" / "diffusion_pytorch_model.safetensors"))
    lora = write_lora(tmp_path / "lora.safetensors", LAYOUTS["diffusers"](known))
    text = text.replace("  dtype: float32\n", f"  dtype: float32\n  loras: [{{file: {lora}, weight: 0.7}}]\n")
    text = text.replace("sampling:\n", f"sampling:\n{OWN_SAMPLING}").replace("  sigma_schedule: lynx\n", "")
    text = re.sub("video: .*", "video: {codec: h265, crf: 30}", text)
    (campaign.parent / "own.yaml").write_text(text)
    with campaign.open("a") as manifest:
        manifest.write("\nvariants: {plain: {}, own: {pipeline: ./own.yaml}}\n")
    run = head.render(campaign, "--only", "astronaut/*", "--ulysses", "1", "--max-gpus", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    return tmp_path / "renders" / "demo" / "astronaut"


@pytest.fixture
def threads_of_a_rank() -> Iterator[None]:
    """As many threads as the only rank of a machine has. On the CPU, another number of them moves the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_here(sharing=1))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_a_rank")
def test_the_bits_of_the_command_line(rendered: Path, campaign: Path, tmp_path: Path) -> None:
    picture = campaign.parent / "faces" / "astronaut.jpg"
    for pipeline, suffix in (("demo-tiny", ""), (campaign.parent / "own.yaml", "-own")):
        pipe = LynxPipeline.from_pipeline(pipeline)
        videos = pipe(list(PROMPTS.values()), image=picture)
        for name, video in zip(PROMPTS, videos, strict=True):
            shot = rendered / f"{name}-t01{suffix}"
            assert torch.equal(video.latents, load_file(f"{shot}.latents.safetensors")["latents"]), shot
            video.save(tmp_path / "mine.mp4")
            mine, theirs = ((tmp_path / "mine.mp4").read_bytes(), Path(f"{shot}.mp4").read_bytes())
            assert without_mark(mine) == without_mark(theirs), shot  # the marks differ: a call knows no digest
        assert read_frames(tmp_path / "mine.mp4").shape == videos[-1].frames.shape
    plain, own = (load_file(rendered / f"beach-t01{end}.latents.safetensors")["latents"] for end in ("", "-own"))
    assert not torch.equal(plain, own)
