"""An encoder that passes the check and refuses the real video: the next run only encodes."""

from __future__ import annotations

import os
from pathlib import Path

import imageio_ffmpeg
import pytest
from safetensors import safe_open

from lynx_parallel.stages.video import probe
from tests.helpers import forked_command
from tests.helpers.command import lynx_render

REFUSES = """\
#!/bin/sh
# Three frames of 64 x 48 pixels pass, more do not.
head -c 27649 > "$0.input"
[ "$(wc -c < "$0.input")" -le 27648 ] || {{ echo "no video of more than three frames" >&2; exit 1; }}
exec {ffmpeg} "$@" < "$0.input"
"""


@pytest.mark.parametrize("save_latents", ["true", "false"])
def test_the_next_run_only_encodes(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_latents: str
) -> None:
    output, name = tmp_path / "renders" / "demo", "astronaut/beach-t01"
    options = (campaign, "--only", name.removesuffix("-t01") + "*", "--set", f"save_latents={save_latents}")
    one_rank = ("--ulysses", "1", "--max-gpus", "1")
    script = tmp_path / "ffmpeg"
    script.write_text(REFUSES.format(ffmpeg=imageio_ffmpeg.get_ffmpeg_exe()))
    script.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
        failed = forked_command.render(*options, *one_rank, cwd=tmp_path)
    assert failed.returncode == 1
    assert "no video of more than three frames" in failed.stdout
    logs = output / ".lynx" / "logs" / name
    assert [path.read_text().count(" step ") for path in sorted(logs.glob("*/rank0.log"))] == [4, 0]

    waiting = output if save_latents == "true" else output / ".lynx" / "latents"
    with safe_open(waiting / f"{name}.latents.safetensors", framework="pt") as file:
        assert len(file.metadata()["latents_digest"]) == 64
    planned = lynx_render("plan", "--shots", *options, cwd=tmp_path)
    assert f"encode  {name}: its latents are finished, its video is not" in planned.stdout
    assert lynx_render("verify", output, cwd=tmp_path).stdout.count("missing     ") == 1

    again = forked_command.render(*options, *one_rank, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 rendered, 1 encoded" in again.stdout
    assert probe(output / f"{name}.mp4").frames == 9
    assert os.path.exists(output / f"{name}.latents.safetensors") is (save_latents == "true")
    assert not [path for path in (output / ".lynx" / "latents").rglob("*") if path.is_file()]
    assert lynx_render("verify", output, cwd=tmp_path).returncode == 0
