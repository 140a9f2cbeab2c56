"""A few-step pipeline on two ranks: a LoRA on a scaled fp8 file, four forwards, resumed with equal bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file

from tests.helpers import forked_command
from tests.helpers.command import sidecars
from tests.helpers.lora_files import make_known, whole_file
from tests.helpers.lora_files import write as write_lora
from tests.helpers.packagings import PACKAGINGS
from tests.helpers.packagings import write as write_single
from tests.helpers.repository import REPOSITORY

NAME = "astronaut/beach-t01"


def test_a_lora_on_a_scaled_file(campaign: Path, tmp_path: Path, demo: Path) -> None:
    base = load_file(demo / "wan" / "transformer" / "diffusion_pytorch_model.safetensors")
    folder = campaign.parent
    write_single(folder / "model.safetensors", PACKAGINGS["fp8 scaled, Kijai"](base)[0])
    write_lora(folder / "fewstep.safetensors", whole_file(make_known(base, whole=True)))
    pipeline = (REPOSITORY / "pipelines" / "demo-tiny.yaml").read_text()
    pipeline = pipeline.replace(
        "  dtype: float32\n",
        "  dtype: float32\n  transformer: ./model.safetensors\n  loras: [{file: ./fewstep.safetensors, weight: 0.8}]\n",
    )
    pipeline = re.sub(r"guidance_scale: 5.0\n.*guidance_scale_i: 2.0", "guidance_scale: 1.0", pipeline)
    (folder / "fewstep.yaml").write_text(
        pipeline.replace("  flow_shift: 3.0\n  sigma_schedule: lynx\n", "  scheduler: lcm\n")
    )
    campaign.write_text(campaign.read_text().replace("pipeline: demo-tiny", "pipeline: ./fewstep.yaml"))
    made = []
    for ranks in ("1", "2"):
        output = tmp_path / f"ranks{ranks}"
        run = forked_command.render(
            campaign, "--only", "astronaut/beach", "--ulysses", ranks, "--set", f"output={output}", cwd=tmp_path
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert re.search(
            r"^LoRA fewstep.safetensors, weight 0.8: (\d+) of \1 keys change \d+ parameters$", run.stdout, re.M
        )
        made.append(load_file(output / f"{NAME}.latents.safetensors")["latents"])
        [path] = sidecars(output)
        sidecar = json.loads(path.read_text())
        assert sidecar["packaging"] == {"transformer": "fp8_e4m3 scaled", "id": "fp32", "ref": "fp32"}
        assert sidecar["settings"]["model.loras.weights"] == [0.8]
        assert sidecar["settings"]["sampling.scheduler"] == "lcm"
        # One branch: the prompt's text, and that of the reference pass. The unconditional branch is never prepared.
        assert {kind: sidecar["conditioning"][kind] for kind in ("reference", "identity", "text")} == {
            "reference": 1, "identity": 1, "text": 2,
        }  # fmt: skip
    difference = (made[0] - made[1]).norm() / made[0].norm()
    assert difference <= 1e-6
