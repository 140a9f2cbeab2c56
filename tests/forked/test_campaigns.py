"""Several manifests in one run, and one manifest in shards side by side."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file

from tests.helpers import forked_command
from tests.helpers.command import sidecars
from tests.helpers.light_command import lynx_render

FAST = ("--ulysses", "1", "--set", "sampling.num_inference_steps=2")


def test_two_manifests_and_two_shards(campaign: Path, tmp_path: Path) -> None:
    other = campaign.parent / "other.yaml"
    text = re.sub(r"output: .*", "output: ../renders/other", campaign.read_text())
    other.write_text(text.replace("save_latents: true", "video: {crf: 30}\nsave_latents: true"))
    run = forked_command.render(campaign, other, *FAST, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines().count("loading the weights") == 1
    assert run.stdout.count("report: ") == 2
    assert "other.yaml: 4 rendered, 0 encoded, 0 already done" in run.stdout
    assert "subject 0 made, 4 reused" in run.stdout, "the same people: the first campaign has made them"
    folders = [tmp_path / "renders" / name for name in ("demo", "other")]
    for folder in folders:
        assert len(sidecars(folder)) == 4
    name = "drawn/beach-t01"
    records = [json.loads((folder / f"{name}.json").read_text()) for folder in folders]
    assert records[0]["digests"]["latents"] == records[1]["digests"]["latents"]
    assert [record["encoding"]["video.crf"] for record in records] == [18, 30]

    output = tmp_path / "shards"
    options = [(campaign, *FAST, "--set", f"output={output}", "--shard", shard) for shard in ("1/2", "2/2")]
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda arguments: forked_command.render(*arguments, cwd=tmp_path), options))
    assert [run.returncode for run in runs] == [0, 0], runs
    assert ["2 rendered" in run.stdout for run in runs] == [True, True]
    status = lynx_render("status", output, "--json", cwd=tmp_path)
    assert json.loads(status.stdout)["counts"]["done"] == 4
    made = [load_file(folder / f"{name}.latents.safetensors")["latents"] for folder in (folders[0], output)]
    assert made[0].equal(made[1])
    again = forked_command.render(campaign, *FAST, "--set", f"output={output}", cwd=tmp_path)
    assert "0 to render, 0 to encode, 4 done" in again.stdout
