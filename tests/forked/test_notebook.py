"""A call of LynxPipeline gives the bits of the command line, with nothing but the pipeline file and the prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lynx_parallel import LynxPipeline
from lynx_parallel.rank.environment import threads_here
from lynx_parallel.stages.video import read_frames
from tests.helpers import forked_command
from tests.helpers.lora_files import LAYOUTS, make_known
from tests.helpers.lora_files import write as write_lora
from tests.helpers.mp4_boxes import without_mark
from tests.helpers.processes import run_gang
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
def rendered(campaign: Path, demo: Path, tmp_path: Path) -> Path:
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
    run = forked_command.render(campaign, "--only", "astronaut/*", "--ulysses", "1", "--max-gpus", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    return tmp_path / "renders" / "demo" / "astronaut"


def call(rank: int, store: object, pipeline: str | Path, picture: Path, folder: Path) -> list[torch.Tensor]:
    """Saves a video of each prompt. Returns their latents."""
    # As many threads as the only rank of a machine has. On the CPU, another number of them moves the last bits.
    torch.set_num_threads(threads_here(sharing=1))
    videos = LynxPipeline.from_pipeline(pipeline)(list(PROMPTS.values()), image=picture)
    for name, video in zip(PROMPTS, videos, strict=True):
        video.save(folder / f"{name}.mp4")
        assert read_frames(folder / f"{name}.mp4").shape == video.frames.shape
    return [video.latents for video in videos]


def test_the_bits_of_the_command_line(rendered: Path, campaign: Path, tmp_path: Path) -> None:
    picture = campaign.parent / "faces" / "astronaut.jpg"
    for pipeline, suffix in (("demo-tiny", ""), (campaign.parent / "own.yaml", "-own")):
        # In a process of its own, like a rank: how many threads this one has used before also moves bits.
        [made] = run_gang(1, call, pipeline, picture, tmp_path)
        for name, latents in zip(PROMPTS, made, strict=True):
            shot = rendered / f"{name}-t01{suffix}"
            assert torch.equal(latents, load_file(f"{shot}.latents.safetensors")["latents"]), shot
            mine, theirs = ((tmp_path / f"{name}.mp4").read_bytes(), Path(f"{shot}.mp4").read_bytes())
            assert without_mark(mine) == without_mark(theirs), shot  # the marks differ: a call knows no digest
    plain, own = (load_file(rendered / f"beach-t01{end}.latents.safetensors")["latents"] for end in ("", "-own"))
    assert not torch.equal(plain, own)
