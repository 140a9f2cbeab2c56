"""Runs commands that need neither Ray nor torch."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.campaigns import tree
from tests.helpers.fork_server import HEAVY, INTERPRETER, PYTHON, Fork, NoFork

COMMAND = [INTERPRETER, "-m", "lynx_parallel.cli"]
WITHIN_S = 120.0


# Runs the module as `python -m` does and says at the end which heavy packages it has imported.
WATCHED = f"""\
import atexit, os, runpy, sys
sys.executable = os.environ.get("{PYTHON}", sys.executable)
atexit.register(lambda: open("imported", "w").write(" ".join(m for m in {HEAVY} if m in sys.modules)))
sys.path.insert(0, "")
runpy.run_module("lynx_parallel.cli.__main__", run_name="__main__", alter_sys=True)
"""


def lynx_render(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end; the result holds exit code, stdout and stderr."""
    done = _run(arguments, cwd, {**os.environ, **environment})
    (cwd / "imported").unlink(missing_ok=True)
    return done


def light(*arguments: str | Path, cwd: Path, allowed: str = "") -> subprocess.CompletedProcess[str]:
    """``lynx_render``, and neither torch nor Ray may have been imported by its end. Embeddings are read with numpy."""
    done = _run(arguments, cwd, os.environ)
    assert (cwd / "imported").read_text() in ("", "numpy" if any(cwd.rglob("*.npy")) else "", allowed)
    (cwd / "imported").unlink()
    return done


def _run(arguments: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The result lacks the lines that are printed on a slow machine alone, see ``Lines.if_slow``."""
    program = ["-c", WATCHED, *map(str, arguments)]
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors, open(os.devnull) as nothing:
        streams = [file.fileno() for file in (nothing, printed, errors)]
        try:
            code = Fork("light", program, cwd, env, streams).wait(WITHIN_S)
        except NoFork:
            code = subprocess.run(
                [INTERPRETER, *program], cwd=cwd, env=env, stdin=nothing, stdout=printed, stderr=errors,
                timeout=WITHIN_S, check=False,
            ).returncode  # fmt: skip
        if code is None:
            raise subprocess.TimeoutExpired(program, WITHIN_S)
        for file in (printed, errors):
            file.seek(0)
        done = subprocess.CompletedProcess(program, code, printed.read().decode(), errors.read().decode())
    done.stdout, done.stderr = _IF_SLOW.sub("", done.stdout), _IF_SLOW.sub("", done.stderr)
    return done


_IF_SLOW = re.compile(r"^(reading .* and the weights|comparing the campaign with its output folder)\n", re.M)


def refused(*arguments: str | Path, cwd: Path) -> list[str]:
    """Lines of a refusal: exit 2, nothing on stdout, no traceback, and no file made or changed."""
    before = tree(cwd), sorted(cwd.rglob("*"))
    run = light(*arguments, cwd=cwd)
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert (tree(cwd), sorted(cwd.rglob("*"))) == before
    return errors_of(run)


def errors_of(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the lines of a failed command's errors, without the last one, which names the help."""
    *lines, last = run.stderr.splitlines()
    assert re.fullmatch(r"help: lynx-render help LX\d{3}( LX\d{3})*", last)
    return lines


def of_shots(printed: str) -> list[str]:
    """Returns the lines of ``plan --shots`` about shots and orphans, with their texts."""
    shown = r"(render|encode|done|blocked|unknown|orphan) +\S|        "
    return [line for line in printed.splitlines() if re.match(shown, line)]


def without_texts(lines: list[str]) -> list[str]:
    """Returns the lines of shots without their texts."""
    return [line for line in lines if not line.startswith(" ")]
