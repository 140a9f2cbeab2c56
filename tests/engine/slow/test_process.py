"""The process of the command line: its streams, its folders, its module path, its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.repository import REPOSITORY

MARK = "import os; open(os.environ['MARKER'], 'a').write(__name__ + ' '); raise ImportError('a client file')\n"
SHADOWS = ("typing", "statistics", "yaml", "psutil", "typer", "__future__")


def python(
    *arguments: str, cwd: Path, stdin: int | None = None, check: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=check, stdin=stdin,
    )  # fmt: skip


def without_home(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs as a user without a home and without a name, as a container's ``--user`` does."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "env", "-i"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **environment}
    if subprocess.run(
        [*user, sys.executable, "-c", "import yaml"], cwd="/", capture_output=True, check=False
    ).returncode:
        pytest.skip("another user cannot run this Python")
    cwd.chmod(0o777)
    for parent in cwd.parents:
        if parent.owner() == "root" and parent != Path(parent.root) and parent.is_relative_to("/tmp"):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o011)
    return subprocess.run(
        [*user, *(f"{name}={value}" for name, value in env.items()), *command],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A working folder with files that are named like modules."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(MARK)
    return tmp_path


def test_no_module_is_looked_for_in_the_working_folder(client: Path) -> None:
    """Neither by ``python -m``, nor through an empty or relative entry of PYTHONPATH in what the command starts."""
    marker = client / "marker"
    command = ["-m", "lynx_parallel.cli", "plan", "missing.yaml"]
    run = python(*command, cwd=client, MARKER=str(marker))
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("missing.yaml: ")
    child = (
        "import subprocess, sys; from lynx_parallel.engine.isolation import isolate\n"
        "isolate(); print(*sys.path, sep='|');"
    )
    child += "subprocess.run([sys.executable, '-c', 'import sys; print(*sys.path, sep=chr(124)); import statistics'])"
    for path in ("", ".", os.pathsep, f"{os.pathsep}."):
        env = {"MARKER": str(marker), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), path])}
        run = python("-P", "-c", child, cwd=client, **env)
        for line in run.stdout.splitlines():
            assert not {"", ".", str(client)} & set(line.split("|"))
        assert len(run.stdout.splitlines()) == 2
    assert not marker.exists()


def test_the_folder_of_the_package_and_what_the_user_named_stay(tmp_path: Path) -> None:
    code = "from lynx_parallel.engine.isolation import isolate; isolate(); import os; print(os.environ['PYTHONPATH'])"
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(tmp_path), "x", ""]))
    assert run.stdout.strip() == os.pathsep.join([str(REPOSITORY), str(tmp_path)])


def test_the_users_own_programs_get_the_users_variables(tmp_path: Path) -> None:
    code = (
        "from lynx_parallel.engine.isolation import isolate, users_environment; isolate(); isolate()\n"
        "print([users_environment().get(name) for name in ('PYTHONPATH', 'PYTHONSAFEPATH', 'MARKER')])"
    )
    path = os.pathsep.join([str(REPOSITORY), "x"])
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=path, MARKER="m")
    assert run.stdout == f"[{path!r}, None, 'm']\n"


CLOSED = """
import os, sys
for descriptor in {descriptors}:
    os.close(descriptor)
sys.stdin = sys.stdin if 0 not in {descriptors} else None
sys.stdout = sys.stdout if 1 not in {descriptors} else None
sys.stderr = sys.stderr if 2 not in {descriptors} else None
from lynx_parallel.engine.process import open_streams
open_streams()
with open("file", "w") as file:
    os.write(1, b"noise"), os.write(2, b"noise")
    print("a line"), print("another", file=sys.stderr)
    file.write(str(file.fileno() > 2))
"""


@pytest.mark.parametrize("descriptors", [(1,), (2,), (0, 1, 2)])
def test_a_closed_stream_is_no_file_of_ours(tmp_path: Path, descriptors: tuple[int, ...]) -> None:
    run = python("-c", CLOSED.format(descriptors=descriptors), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "file").read_text() == "True"
    assert ("a line" in run.stdout) == (1 not in descriptors)
    assert ("another" in run.stderr) == (2 not in descriptors)


DIVERTED = """
import os, subprocess, sys
from pathlib import Path
from lynx_parallel.view.lines import Lines
from lynx_parallel.engine.process import diverted, open_streams
open_streams()
say = Lines(sys.stdout)
with diverted(Path("logs/ray.log")):
    say("ours")
    print("python")
    os.write(2, b"library\\n")
    subprocess.run(["echo", "child"])
    print("\\x1b[31mcolours\\x1b[0m", file=sys.stderr)
print("after")
print("error", file=sys.stderr)
os.write(2, b"thread\\n")
"""


def test_only_our_lines_reach_the_user(tmp_path: Path) -> None:
    run = python("-c", DIVERTED, cwd=tmp_path, check=True)
    assert run.stdout == "ours\nafter\n"
    assert run.stderr == "error\n"
    said = (tmp_path / "logs" / "ray.log").read_text().splitlines()
    assert said == ["python", "library", "child", "\x1b[31mcolours\x1b[0m", "thread"]


def test_a_log_that_holds_nothing_goes(tmp_path: Path) -> None:
    code = "from pathlib import Path; from lynx_parallel.engine.process import diverted\n"
    code += "with diverted(Path('a.log')): pass"
    python("-c", code, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["demo"], ["plan", "demo"], ["forget", "ada"]])
def test_a_deleted_working_folder_is_one_line(tmp_path: Path, command: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir('../gone'); from lynx_parallel.cli import main; main()"
    run = python("-P", "-c", code, *command, cwd=gone)
    assert run.returncode == 3
    assert run.stderr.splitlines() == [
        "the working folder was deleted. Change to an existing folder (cd) and run again.",
        "help: lynx-render help LX201",
    ]
    assert run.stdout == ""


def test_without_a_home_folder_one_line_says_what_to_set(tmp_path: Path) -> None:
    for command in (["plan", "demo"], ["doctor"], ["forget", "ada"]):
        run = without_home([sys.executable, "-P", "-m", "lynx_parallel.cli", *command], tmp_path)
        assert run.returncode == 3
        assert run.stderr.startswith("no home folder: HOME is not set, and user 54321 has no entry in the password")
        line, _help = run.stderr.splitlines()
        assert line.endswith("Set LYNX_CACHE to a folder for the cache, or set HOME.")


def test_a_cache_folder_serves_as_home(tmp_path: Path) -> None:
    code = "from pathlib import Path; from lynx_parallel.engine.process import ensure_home\n"
    code += "ensure_home(); print(Path.home())"
    run = without_home([sys.executable, "-P", "-c", code], tmp_path, LYNX_CACHE=str(tmp_path / "cache"))
    assert run.stdout.strip() == str(tmp_path / "cache"), run.stderr
    run = without_home([sys.executable, "-P", "-c", code], tmp_path, LYNX_CACHE="/elsewhere", HOME="/nonexistent")
    assert run.stdout.strip() == "/nonexistent"


STUCK = """
import atexit, sys, threading
from lynx_parallel.engine.process import give_up, leave
if {stuck}:
    give_up("test")
atexit.register(print, "interpreter ended")
sys.stdout.write("flushed ")
leave({code})
"""


@pytest.mark.parametrize(("code", "status"), [(0, 0), (130, 130), (None, 0)])
def test_a_thread_that_was_given_up_does_not_hold_the_end(tmp_path: Path, code: int | None, status: int) -> None:
    run = python("-c", STUCK.format(stuck=True, code=code), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (status, "flushed ")
    run = python("-c", STUCK.format(stuck=False, code=code), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (status, "flushed interpreter ended\n")
