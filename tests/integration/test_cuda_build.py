"""The whole command with PyPI's default torch, which is built for CUDA, on a machine without a GPU.

The build is simulated: CI installs torch for the CPU alone. In each process, torch says that it is built for CUDA, and
any use of CUDA raises, as it does without a driver.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers.command import COMMAND, ONE_RANK, PATIENCE_S, environment

# Python imports this module at the start of every process, before anything imports torch.
SITECUSTOMIZE = '''
import importlib.abc, importlib.machinery, sys


class Finder(importlib.abc.MetaPathFinder):
    """Changes torch once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            pretend(module)

        spec.loader.exec_module = exec_module
        return spec


def pretend(torch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Found no NVIDIA driver on your system.")

    torch.version.cuda = "13.0"
    torch.cuda._lazy_init = refuse
    torch.cuda.set_device = lambda device: refuse(device)
    torch.cuda.is_available = lambda: False
    torch.cuda.device_count = lambda: 0


sys.meta_path.insert(0, Finder())
'''


def test_the_demo_renders_on_the_cpu(campaign: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}
    env.pop("CUDA_VISIBLE_DEVICES")  # a user has not hidden anything
    proof = subprocess.run(
        [COMMAND[0], "-c", "import torch; print(torch.version.cuda); torch.zeros(1, device='cuda')"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert proof.stdout.strip() == "13.0"
    assert "Found no NVIDIA driver" in proof.stderr

    ended = subprocess.run(
        [*COMMAND, str(campaign), *ONE_RANK],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 rendered, 0 encoded, 0 already done, 0 failed" in ended.stdout
