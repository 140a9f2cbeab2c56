"""The files in .github name targets and files that exist."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import lynx_parallel
from tests.helpers.repository import REPOSITORY

GITHUB = REPOSITORY / ".github"
TARGETS = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted((GITHUB / "workflows").iterdir()), ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    used = {target for command in commands for target in re.findall(r"\bmake ([a-z]+)", command)}
    assert used
    assert used <= TARGETS


def test_continuous_integration_runs_everything() -> None:
    commands = {step.get("run") for step in steps(GITHUB / "workflows" / "ci.yml")}
    assert {"make check", "make quick", "make test", "make wheel"} <= commands


def test_a_release_compares_the_tag_with_the_version(tmp_path: Path) -> None:

    [command] = [
        step["run"] for step in steps(GITHUB / "workflows" / "release.yml") if "tag is" in step.get("name", "")
    ]
    for tag, code in ((f"v{lynx_parallel.__version__}", 0), ("v99", 1)):
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        run = subprocess.run(
            ["bash", "-ec", command], cwd=REPOSITORY, env=environment, check=False, capture_output=True
        )
        assert run.returncode == code


def test_the_image_is_built_from_a_file_that_exists() -> None:
    [build] = [step for step in steps(GITHUB / "workflows" / "release.yml") if "build-push" in step.get("uses", "")]
    assert (REPOSITORY / build["with"]["file"]).is_file()


def test_pre_commit_uses_the_tested_ruff() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    [ruff] = [repo for repo in config["repos"] if repo["repo"].endswith("ruff-pre-commit")]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
