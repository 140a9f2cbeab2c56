"""lynx-render each: a user's tool on every finished video."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from lynx_parallel.output.folder import Output
from tests.helpers.campaigns import finish, load, tree
from tests.helpers.command import started, wait_for
from tests.helpers.finished import finished_campaign, ids_of
from tests.helpers.light_command import light, lynx_render, refused

SHOUT = "import sys; open(sys.argv[2], 'w').write(open(sys.argv[1]).read().upper())"
TOOL = ["--", sys.executable, "-c", SHOUT, "{in}", "{out}"]
NAMES = ["ada/run-t01", "ada/walk-t01", "bob/run-t01", "bob/walk-t01"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    finished_campaign(tmp_path)
    return tmp_path


def results(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*.mp4"))
        if ".lynx-made" not in path.parts
    }


def test_every_video_once(folder: Path) -> None:
    done = light("each", "out", *TOOL, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert results(folder / "out-each") == {f"{name}.mp4": f"VIDEO OF {name.upper()}" for name in NAMES}
    assert done.stdout.splitlines()[-1] == "out-each: 4 made, 0 already done"
    before = tree(folder / "out-each")
    again = light("each", "out", *TOOL, cwd=folder)
    assert (again.returncode, again.stdout) == (0, "out-each: 0 made, 4 already done\n")
    assert tree(folder / "out-each") == before


def test_the_next_run_does_what_is_left_or_has_changed(folder: Path) -> None:
    campaign = load(folder)
    light("each", "m.yaml", "--only", "ada/*", *TOOL, cwd=folder)
    shot = next(shot for shot in campaign.shots if shot.name == "ada/walk-t01")
    finish(campaign, shot, word=", again", shot=ids_of(shot))
    (folder / "out-each" / "ada" / "run-t01.mp4").unlink()
    done = light("each", "m.yaml", "--only", "ada/*", "--only", "bob/run", "--json", *TOOL, cwd=folder)
    assert json.loads(done.stdout)["made"] == ["ada/walk-t01.mp4", "ada/run-t01.mp4", "bob/run-t01.mp4"]
    assert results(folder / "out-each")["ada/walk-t01.mp4"] == "VIDEO OF ADA/WALK-T01, AGAIN"


def test_placeholders_names_and_suffix(folder: Path) -> None:
    tool = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:]))"]
    words = ["{subject}-{prompt}-{take}-{seed}", "{width}x{height}@{fps}", "in={in}", "{x}"]
    options = ["--to", "to", "--suffix", ".mov", "--name", "{prompt}/{subject}", "--only", "ada/walk"]
    done = light("each", *options, "m.yaml", "--", *tool, "{out}", *words, cwd=folder)
    assert done.stdout.splitlines()[-1] == "to: 1 made, 0 already done"
    text = (folder / "to" / "walk" / "ada.mov").read_text()
    assert text == f"ada-walk-1-42 64x48@16 in={folder}/out/ada/walk-t01.mp4 {{x}}"


def test_a_failure_is_listed_and_the_others_go_on(folder: Path) -> None:
    code = (
        "import sys; print('to stdout'); name = sys.argv[3]\n"
        "open(sys.argv[2], 'w').write('half' if name != 'ada/walk-t01' else '')\n"
        "print('10 %\\r20 %', file=sys.stderr); print('no memory', file=sys.stderr)\n"
        "sys.exit(7 if name == 'bob/run-t01' else 0)"
    )
    done = light("each", "out", "--", sys.executable, "-c", code, "{in}", "{out}", "{name}", cwd=folder)
    assert done.returncode == 1
    failed = [line.partition("] ")[2] for line in done.stdout.splitlines() if ": failed: " in line]
    log = "out-each/.lynx-made/logs"
    assert failed == [
        "ada/walk-t01: failed: exit status 0, but {out} is empty: 10 %; 20 %; no memory "
        f"(log: {log}/ada/walk-t01.mp4.stderr.log)",
        f"bob/run-t01: failed: exit status 7: 10 %; 20 %; no memory (log: {log}/bob/run-t01.mp4.stderr.log)",
    ]
    assert done.stdout.splitlines()[-1] == "out-each: 2 made, 0 already done, 2 failed"
    assert (folder / log / "bob" / "run-t01.mp4.stdout.log").read_text() == "to stdout\n"
    assert results(folder / "out-each").keys() == {"ada/run-t01.mp4", "bob/walk-t01.mp4"}
    output = Output(folder / "out")
    output.path("bob/run-t01", "video").write_bytes(b"video of bob/run-t99")
    again = light("each", "out", "--only", "bob/run", "--json", *TOOL, cwd=folder)
    assert json.loads(again.stdout)["failed"] == {"bob/run-t01": "its video is damaged; render again to replace it"}


def test_files_that_it_has_not_made_are_never_replaced(folder: Path) -> None:
    light("each", "out", "--only", "ada/*", *TOOL, cwd=folder)
    (folder / "out-each" / "ada" / "walk-t01.mp4").write_text("edited")
    (folder / "out-each" / "bob").mkdir()
    (folder / "out-each" / "bob" / "run-t01.mp4").write_text("mine")
    kept = "exists, and was not made by this command or was changed since; it is kept"
    assert refused("each", "out", *TOOL, cwd=folder) == [
        f"out-each/ada/walk-t01.mp4: {kept}", f"out-each/bob/run-t01.mp4: {kept}",
    ]  # fmt: skip
    assert refused("each", "out", "--replace", *TOOL, cwd=folder) == [
        f"out-each/ada/walk-t01.mp4: {kept}", f"out-each/bob/run-t01.mp4: {kept}",
    ]  # fmt: skip


def test_another_command_needs_replace(folder: Path) -> None:
    light("each", "out", *TOOL, cwd=folder)
    other = ["--", "cp", "{in}", "{out}"]
    assert refused("each", "out", *other, cwd=folder) == [
        "out-each: 4 files made with another command or other settings, such as ada/run-t01.mp4; add --replace, or "
        "choose another --to"
    ]
    assert light("each", "out", "--replace", *other, cwd=folder).returncode == 0
    assert results(folder / "out-each") == {f"{name}.mp4": f"video of {name}" for name in NAMES}


def test_bad_commands(folder: Path) -> None:
    assert refused("each", "out", cwd=folder) == [
        "COMMAND is missing: end with -- and a command, such as: -- upscale {in} {out}"
    ]
    assert refused("each", "out", "--", "no-such-tool", "{in}", "{out}", cwd=folder) == [
        "COMMAND: 'no-such-tool': no such program"
    ]
    assert refused("each", "out", "--to", "out", "--", "cp", "{in}", "{out}", cwd=folder) == [
        "--to out: is the output folder, or inside; choose a folder outside"
    ]
    assert refused("each", "out", "cp", "{in}", "{out}", cwd=folder) == [
        "cp {in} {out}: unexpected argument; put -- before the command"
    ]


def test_the_commands_own_options_are_its_own(folder: Path) -> None:
    script = folder / "tool"
    script.write_text('#!/bin/sh\necho "$1 $2" > "$4"\n')
    script.chmod(0o755)
    done = light("each", "--only", "ada/walk", "--", "./tool", "--debug", "-h", "{in}", "{out}", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert results(folder / "out-each") == {"ada/walk-t01.mp4": "--debug -h\n"}


def test_each_task_has_a_gpu_of_its_own(folder: Path) -> None:
    """Two tasks wait for each other, so they run at the same time."""
    code = (
        "import os, pathlib, sys, time; gpu = os.environ['CUDA_VISIBLE_DEVICES']; pathlib.Path('at-' + gpu).touch()\n"
        "while len(list(pathlib.Path().glob('at-*'))) < 2: time.sleep(0.01)\n"
        "open(sys.argv[2], 'w').write(gpu)"
    )
    tool = ["--", sys.executable, "-c", code, "{in}", "{out}"]
    done = lynx_render("each", "out", "--only", "ada/*", *tool, cwd=folder, CUDA_VISIBLE_DEVICES="3,GPU-7")
    assert done.returncode == 0, done.stdout
    assert sorted(results(folder / "out-each").values()) == ["3", "GPU-7"]
    more = [*tool[:-1], "{out}", "again"]
    options = ["--jobs", "4", "--replace", "--to", "out-each"]
    done = lynx_render("each", "out", *options, *more, cwd=folder, CUDA_VISIBLE_DEVICES="3,GPU-7")
    assert sorted(results(folder / "out-each").values()) == ["3", "3", "GPU-7", "GPU-7"]


def test_the_tool_gets_the_users_environment(folder: Path) -> None:
    """The command's own settings for Python would keep a script from its modules."""
    (folder / "beside.py").write_text("WORD = 'found'\n")
    (folder / "tool.py").write_text("import sys, beside; open(sys.argv[2], 'w').write(beside.WORD)\n")
    done = lynx_render("each", "--only", "ada/walk", "--", sys.executable, "tool.py", "{in}", "{out}", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert results(folder / "out-each") == {"ada/walk-t01.mp4": "found"}


SLOW = (
    "import os, pathlib, sys, time; pathlib.Path(sys.argv[2]).write_text('half')\n"
    "pathlib.Path(sys.argv[3] + '.pid').write_text(str(os.getpid())); time.sleep(600)"
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_at_work(folder: Path, number: int, code: int) -> None:
    """Nothing half-done looks done, no tool lives on, and the next run does the rest."""
    light("each", "out", "--only", "ada/run", "--to", "to", *TOOL, cwd=folder)
    slow = ["--", sys.executable, "-c", SLOW, "{in}", "{out}", "{subject}"]
    arguments = ["each", "out", "--only", "*/walk", "--to", "to", "--jobs", "2", *slow]
    with started(*arguments, cwd=folder, env={**os.environ}) as command:
        pids = [folder / f"{name}.pid" for name in ("ada", "bob")]
        wait_for(lambda: all(path.is_file() and path.read_text() for path in pids), "two tools")
        tools = [psutil.Process(int(path.read_text())) for path in pids]
        command.send_signal(number)
        assert command.wait(60) == code
    wait_for(lambda: not any(tool.is_running() for tool in tools), "the end of the tools", within=30)
    assert results(folder / "to").keys() == {"ada/run-t01.mp4"}
    again = light("each", "out", "--to", "to", *TOOL, cwd=folder)
    assert again.stdout.splitlines()[-1] == "to: 3 made, 1 already done"
    assert not list((folder / "to" / ".lynx-made").rglob("*parts*"))
