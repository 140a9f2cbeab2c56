"""A slow encoder: the gang renders the next shots meanwhile, and a crash loses none of them."""

from __future__ import annotations

import json
from pathlib import Path

import imageio_ffmpeg
import psutil
import pytest
from safetensors.torch import load_file

from tests.helpers import forked_command
from tests.helpers.command import lynx_render, wait_for

SLOW = """\
#!/bin/sh
# The self-check's three frames of 64 x 48 pixels are encoded at once. Videos wait until the file "go" appears.
cat > "$0.$$"
if [ "$(wc -c < "$0.$$")" -gt 27648 ]; then while [ ! -e "{go}" ]; do sleep 0.1; done; fi
{ffmpeg} "$@" < "$0.$$"
status=$?
rm "$0.$$"
exit $status
"""
ONE_GANG = ("--ulysses", "1", "--gangs", "1")


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder that waits. Returns the file that lets it go on."""
    script, go = tmp_path / "ffmpeg", tmp_path / "go"
    script.write_text(SLOW.format(ffmpeg=imageio_ffmpeg.get_ffmpeg_exe(), go=go))
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    return go


def events(output: Path) -> list[tuple[str, str]]:
    journal = output / ".lynx" / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [(record["event"], record.get("name", "")) for record in map(json.loads, lines)]


def decoded(output: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (output / ".lynx" / "latents").rglob("*.safetensors"))


def test_the_gang_does_not_wait(campaign: Path, tmp_path: Path, encoder: Path) -> None:
    """While no video can be encoded, one shot is encoded, one waits, and a third one is rendered."""
    output = tmp_path / "renders" / "demo"
    with forked_command.started(campaign, *ONE_GANG, cwd=tmp_path) as driver:
        wait_for(lambda: len(decoded(output)) == 3, "three decoded shots")
        begun = [name for event, name in events(output) if event == "attempt"]
        assert len(begun) == 3
        assert not [name for event, name in events(output) if event == "done"]
        encoder.touch()
        run = driver.ended()
        assert run.returncode == 0, run.stdout + run.stderr
    order = events(output)
    done = [name for event, name in order if event == "done"]
    assert done == [name for event, name in order if event == "attempt"]
    assert len(done) == 4
    assert order.index(("attempt", done[2])) < order.index(("done", done[0]))
    assert not decoded(output)


def test_a_crash_loses_no_decoded_shot(campaign: Path, tmp_path: Path, encoder: Path) -> None:
    """The driver and its ranks are killed while a shot is encoded and others are ready."""
    output = tmp_path / "renders" / "demo"
    with forked_command.started(campaign, *ONE_GANG, cwd=tmp_path) as driver:
        wait_for(lambda: len(decoded(output)) == 3, "three decoded shots")
        ranks = psutil.Process(driver.pid).children()
        assert ranks
        driver.kill()
        assert not psutil.wait_procs(ranks, timeout=30)[1]
    waiting = output / ".lynx" / "latents"
    found = waiting.rglob("*.safetensors")
    latents = {path.relative_to(waiting): load_file(path)["latents"] for path in found}
    encoder.touch()
    again = forked_command.render(campaign, *ONE_GANG, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 rendered, 3 encoded" in again.stdout
    for name, before in latents.items():
        assert load_file(output / name)["latents"].equal(before)
    assert lynx_render("verify", output, cwd=tmp_path).returncode == 0
