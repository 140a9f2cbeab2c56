"""The shell's completion, asked for as the scripts of bash, zsh and fish do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_parallel.inputs.shipped import shipped_names
from tests.helpers.light_command import COMMAND, light, lynx_render


def bash(line: str, cwd: Path) -> list[str]:
    """Returns what bash gets for a command line whose last word is incomplete."""
    words = line.split(" ")
    environment = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    run = lynx_render(cwd=cwd, _LYNX_RENDER_COMPLETE="complete_bash", **environment)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lynx-render pl", ["plan"]),
        ("lynx-render re", ["render", "report", "reroll"]),
        ("lynx-render dem", ["demo"]),
        ("lynx-render plan de", ["demo"]),
        ("lynx-render plan --ri", ["--ring"]),
        ("lynx-render plan demo --tiled", ["--tiled-decode"]),
        ("lynx-render m.yaml --ri", ["--ring"]),
        ("lynx-render --sample 6 m.yaml --save", ["--save-every"]),
        ("lynx-render status --w", ["--watch"]),
        ("lynx-render plan m.yaml --attention ", ["auto", "flash3", "flash", "cudnn", "sdpa"]),
        ("lynx-render plan m.yaml --device c", ["cuda", "cpu"]),
        ("lynx-render plan m.yaml --card=H1", ["H100"]),
        ("lynx-render fetch lynx-full-", ["lynx-full-fewstep", "lynx-full-upstream"]),
        ("lynx-render doctor demo", ["demo-tiny"]),
        ("lynx-render takes e", ["export"]),
        ("lynx-render plan xyz", []),
    ],
)
def test_words(line: str, expected: list[str], tmp_path: Path) -> None:
    assert bash(line, tmp_path) == expected


def test_files_beside_shipped_names(tmp_path: Path) -> None:
    for name in ("m.yaml", "manifests/dog.yaml", "notes.txt", "two words.yaml", ".hidden.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert bash("lynx-render plan ", tmp_path) == [*shipped_names("manifests"), "m.yaml", "manifests/"]
    assert bash("lynx-render plan manifests/d", tmp_path) == ["manifests/dog.yaml"]
    assert bash("lynx-render plan no", tmp_path) == [], "the shell completes other paths by itself"
    assert bash("lynx-render plan mani", tmp_path) == []
    assert bash("lynx-render plan none/", tmp_path) == []


@pytest.mark.parametrize(
    ("shell", "environment", "expected"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "lynx-render rero"}, '"reroll":"Give takes another seed."'),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "lynx-render rero", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            "reroll\tGive takes another seed.",
        ),
    ],
)
def test_other_shells(shell: str, environment: dict[str, str], expected: str, tmp_path: Path) -> None:
    run = lynx_render(cwd=tmp_path, _LYNX_RENDER_COMPLETE=f"complete_{shell}", **environment)
    assert run.returncode == 0
    assert expected in run.stdout


def test_it_imports_neither_torch_nor_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LYNX_RENDER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "lynx-render plan --")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert "--ulysses" in light(cwd=tmp_path).stdout.split()


def test_a_real_bash_completes(tmp_path: Path) -> None:
    """The script is loaded, and its function called as bash calls it."""
    program = tmp_path / "bin" / "lynx-render"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lynx_parallel.cli "$@"\n')
    program.chmod(0o755)
    script = lynx_render(cwd=tmp_path, _LYNX_RENDER_COMPLETE="source_bash").stdout
    (tmp_path / "script").write_text(script)
    call = "COMP_WORDS=(lynx-render plan --shard-); COMP_CWORD=2; _lynx_render_completion lynx-render"
    code = f'. ./script; complete -p lynx-render; {call}; echo "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    bash_ = shutil.which("bash")
    assert bash_
    run = subprocess.run([bash_, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[1] == "--shard-weights"


def test_install_and_show(tmp_path: Path) -> None:
    """A shell's child asks. Only files in the home folder are written."""
    command = " ".join(COMMAND)
    home = tmp_path / "home"
    home.mkdir()
    for option in ("--show-completion", "--install-completion"):
        run = subprocess.run(
            ["bash", "-c", f"{command} {option}; exit $?"],
            cwd=tmp_path, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (run.returncode, run.stderr) == (0, "")
        if option == "--show-completion":
            assert "_LYNX_RENDER_COMPLETE=complete_bash" in run.stdout
            assert not any(home.iterdir())
    assert ".bash_completions" in (home / ".bashrc").read_text()
