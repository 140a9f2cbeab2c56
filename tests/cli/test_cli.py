"""The command line as a user meets it: each command a process of its own; no Ray, no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lynx_parallel
from tests.helpers.campaigns import MANIFEST, draw, finish, load, write
from tests.helpers.light_command import COMMAND, errors_of, light, lynx_render, of_shots, refused, without_texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    draw(tmp_path)
    return tmp_path


def test_version(tmp_path: Path) -> None:
    run = light("--version", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, f"lynx-render {lynx_parallel.__version__}\n")


def test_plan_of_the_demo(tmp_path: Path, demo: Path) -> None:
    run = light("plan", "demo", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:3] == [
        "demo.yaml: 4 shots: 4 to render, 0 to encode, 0 done, 0 blocked",
        "  astronaut: 2 to render (new)",
        "  drawn: 2 to render (new)",
    ]
    assert run.stdout.splitlines()[-1] == "licence: Apache-2.0: demo:tiny, demo:full, demo:faces"
    each = light("plan", "demo", "--shots", cwd=tmp_path).stdout
    assert without_texts(of_shots(each)) == [
        "render  astronaut/pumpkin-t01",
        "render  astronaut/beach-t01",
        "render  drawn/pumpkin-t01",
        "render  drawn/beach-t01",
    ]
    assert os.listdir(tmp_path) == []
    as_json = json.loads(light("plan", "demo", "--json", cwd=tmp_path).stdout)
    assert as_json["output"] == str(tmp_path / "renders" / "demo")
    assert as_json["orphans"] == []
    assert as_json["shots"][0] == {"name": "astronaut/pumpkin-t01", "action": "render", "reason": "", "seed": 42}


def test_plan_builds_the_demo_weights_without_importing_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LYNX_CACHE", str(cache))
    (tmp_path / "here").mkdir()
    assert light("plan", "demo", cwd=tmp_path / "here").returncode == 0
    assert sorted(path.name for path in cache.iterdir()) == ["demo-faces-v1", "demo-tiny-v1", "digests.json"]


def test_plan_tells_what_and_why(folder: Path, demo: Path) -> None:
    (folder / "faces").mkdir()
    expired = MANIFEST.replace("2027-01-31", "2020-01-31")
    campaign = load(folder, expired)
    for shot in campaign.shots:
        finish(campaign, shot)
    load(folder, expired.replace(", run: 'A {person} runs.'", ""))
    run = light("plan", folder / "m.yaml", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:6] == [
        "m.yaml: 2 shots: 1 to render, 0 to encode, 0 done, 1 blocked",
        "  ada: 1 blocked (consent form-1 expired on 2020-01-31)",
        "  bob: 1 to render (changed: weights)",
        "orphan  ada/run-t01",
        "orphan  bob/run-t01",
        "1 finished shot to render again: weights",
    ]
    each = light("plan", folder / "m.yaml", "--shots", cwd=folder)
    assert without_texts(of_shots(each.stdout)) == [
        "blocked ada/walk-t01: consent form-1 expired on 2020-01-31",
        "render  bob/walk-t01: changed: weights",
        "orphan  ada/run-t01",
        "orphan  bob/run-t01",
    ]
    only = light("plan", "m.yaml", "--only", "bob/*", "--set", "sampling.seed=7", cwd=folder)
    assert only.stdout.splitlines()[1:3] == [
        "  bob: 1 to render (changed: sampling.seed, weights)",
        "1 finished shot to render again: sampling.seed 42 → 7, weights",
    ]


WRONG = {
    "unknown key": ("output: out", "output: out\nouptut: x", "m.yaml:4: ouptut: unknown key; did you mean 'output'?"),
    "wrong type": ("output: out", "output: [out]", "m.yaml:3: output: "),
    "no version": ("version: 1\n", "", "m.yaml:1: version: missing"),
    "newer version": ("version: 1", "version: 2", "m.yaml:1: version: 2: must be 1"),
    "missing picture": ("image: ada.jpg", "image: eva.jpg", "m.yaml:6: subjects.ada.image: 'eva.jpg': missing file"),
    "missing pipeline": ("./full.yaml", "./ful.yaml", "m.yaml:2: pipeline: './ful.yaml': missing file; did"),
    "unknown pipeline": ("./full.yaml", "lynx-ful", "m.yaml:2: pipeline: 'lynx-ful': no shipped pipeline of that"),
    "duplicate key": ("output: out", "output: out\noutput: b", "m.yaml:4: "),
    "duplicate id": ("  bob:\n", "  Ada:\n", "m.yaml:12: subjects.Ada: given twice, first as 'ada' on line 5"),
    "wrong id": ("  bob:\n", "  b b:\n", "m.yaml:12: subjects.'b b': 'b b': an id is"),
    "empty prompt": ("'A {person} walks.'", "' '", "m.yaml:17: prompts.walk: the prompt is empty"),
    "unknown var": ("A {person} walks", "A {persn} walks", "m.yaml:17: prompts.walk: {persn}: subject 'ada' has no"),
    "odd size": ("output: out", "output: out\nsampling: {width: 100}", "m.yaml:4: sampling.width: 100: must be a"),
    "frames": ("output: out", "output: out\nsampling: {num_frames: 80}", "m.yaml:4: sampling.num_frames: 80: must be"),
    "not a number": ("output: out", "output: out\nsampling: {ip_scale: .nan}", "m.yaml:4: sampling.ip_scale: "),
    "escape": ("output: out", 'output: out\nname: "../{subject}/{prompt}"', "m.yaml:4: name: "),
    "absolute name": ("output: out", 'output: out\nname: "/{subject}/{prompt}"', "m.yaml:4: name: "),
    "our folder": ("output: out", 'output: out\nname: ".lynx/{subject}/{prompt}"', "m.yaml:4: name: "),
    "one name twice": ("output: out", 'output: out\nname: "{subject}"', "m.yaml:4: name: shots ada/walk/1 and ada/run"),
    "bad YAML": ("output: out", "output: 'out", "m.yaml:"),
    "a tab": ("output: out", "output: out\nsampling:\n\tseed: 1", "m.yaml:5: "),
    "not a mapping": (MANIFEST, "[1]", "m.yaml:1: "),
    "empty": (MANIFEST, "", "m.yaml:1: "),
    "bad row": ("prompts:", "shots: {from: shots.csv}\nprompts:", "shots.csv:3: column seed: 'x': must be a whole"),
    "output is a file": ("output: out", "output: ada.jpg", "m.yaml:3: output: 'ada.jpg': not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("command", ["render", "plan"])
def test_wrong_manifests(folder: Path, mistake: str, command: str) -> None:
    old, new, expected = WRONG[mistake]
    assert old in MANIFEST
    (folder / "m.yaml").write_text(MANIFEST.replace(old, new, 1))
    (folder / "shots.csv").write_text("subject,prompt,seed\nada,walk,1\nbob,walk,x\n")
    lines = refused(command, "m.yaml", cwd=folder)
    assert any(line.startswith(expected) for line in lines), lines
    assert all(re.match(r"[\w.]+:[0-9]+: ", line) for line in lines), lines


def test_every_mistake_at_once(folder: Path) -> None:
    text = MANIFEST.replace("ada.jpg", "eva.jpg").replace("output: out", "output: out\nsampling: {width: 1}\nnmae: x")
    (folder / "m.yaml").write_text(text)
    lines = refused("m.yaml", "--set", "sampling.seed=x", "--set", "nothing", cwd=folder)
    assert [line.split(": ")[0] for line in lines] == [
        "--set sampling.seed=x", "--set nothing", "m.yaml:4", "m.yaml:5", "m.yaml:8",
    ]  # fmt: skip


def test_a_pipeline_file_is_named_as_well(folder: Path) -> None:
    pipeline = folder / "full.yaml"
    pipeline.write_text(pipeline.read_text().replace("crf: 18", "crf: 99"))
    assert refused("m.yaml", cwd=folder) == ["full.yaml:7: video.crf: 99: must be a whole number from 0 to 51"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "sampling.seed"], "--set sampling.seed: must be key=value"),
        (["--set", "sampling.sed=7"], "--set sampling.sed=7: unknown setting; did you mean 'sampling.seed'?"),
        (["--set", "sampling.width=100"], "--set sampling.width=100: must be a multiple of 16"),
        (["--only", "eva/*"], "--only 'eva/*': fits no shot"),
        (["--device", "gpu"], "--device gpu: must be 'auto', 'cuda' or 'cpu'"),
        (["--ulysses", "0"], "--ulysses 0: must be a whole number from 1"),
        (["--address", "ray://head:10001"], "--address ray://head:10001: Ray Client (ray://) is not supported"),
        (["--address", "head"], "--address head: must be auto, local or host:port"),
    ],
)
def test_wrong_options(folder: Path, arguments: list[str], expected: str) -> None:
    (line,) = refused("m.yaml", *arguments, cwd=folder)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.yaml"], "none.yaml: no such manifest"),
        (["plan", "none.yaml"], "none.yaml: no such manifest"),
        (["demoo"], "demoo: no such file, and no shipped manifest of that name; did you mean 'demo'?"),
        (["./out/"], "out: no such manifest"),
        (["./ful.yml"], "ful.yml: no such manifest; did you mean 'full.yaml'?"),
        (["plan", "nm.yaml"], "nm.yaml: no such manifest; did you mean 'm.yaml'?"),
        (["plan", "./"], ".: a folder, not a manifest"),
        (["status", "./m.yml"], "./m.yml: no such manifest or output folder; did you mean 'm.yaml'?"),
        (["report", "--out", "x", "--inline", "./nm.yaml"], "./nm.yaml: no such manifest or output folder; did you"),
        (["verify", "./nm.yaml"], "./nm.yaml: no such manifest or output folder; did you mean 'm.yaml'?"),
        (["forget", "ada", "--from", "./nm.yaml"], "--from ./nm.yaml: no such manifest or output folder; did you"),
        (["fetch", "ful.yaml"], "ful.yaml: no such pipeline file; did you mean 'full.yaml'?"),
        (["fetch", "lynx-ful"], "pipeline 'lynx-ful': no shipped pipeline of that name; did you mean 'lynx-full'?"),
        (["doctor", "lynx-ful"], "pipeline 'lynx-ful': no shipped pipeline of that name; did you mean 'lynx-full'?"),
        ([""], ".: no such file"),
    ],
)
def test_no_such_manifest(folder: Path, arguments: list[str], expected: str) -> None:
    (line,) = refused(*arguments, cwd=folder)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["render"], "render: MANIFEST is missing; usage: lynx-render render [OPTIONS] MANIFEST..."),
        (["plan"], "plan: MANIFEST is missing; usage: lynx-render plan [OPTIONS] MANIFEST..."),
        (["forget"], "forget: SUBJECT is missing; usage: lynx-render forget [OPTIONS] SUBJECT..."),
        (["m.yaml", "--sampling", "7"], "--sampling: no such option of render; did you mean '--sample'?"),
        (["plan", "m.yaml", "--verfy"], "--verfy: no such option of plan; did you mean '--verify'?"),
        (["m.yaml", "--shrad", "1/2"], "--shrad: no such option of render; did you mean '--shard'?"),
        (["status", "--wach"], "--wach: no such option of status; did you mean '--watch'?"),
        (["report", "--only", "x"], "--only: no such option of report; render and plan have it"),
        (["report", "--cfg=5"], "--cfg: no such option of report; lynx-render report --help lists the options"),
        (["--vrsion"], "--vrsion: no such option of render; did you mean '--version'?"),
        (
            ["m.yaml", "--cfg=5"],
            "--cfg: no such option of render; settings are given as --set sampling.guidance_scale=5",
        ),
        (
            ["--steps", "4", "m.yaml"],
            "--steps: no such option of render; settings are given as --set sampling.num_inference_steps=4",
        ),
        (
            ["m.yaml", "--num-frames", "--strict"],
            "--num-frames: no such option of render; settings are given as --set sampling.num_frames=VALUE",
        ),
        (["fetch", "a", "b"], "b: unexpected argument; one pipeline at a time"),
        (["m.yaml", "plan"], "plan: put the command first: lynx-render plan m.yaml"),
        (["takes", "export", "a", "b"], "b: unexpected argument; see lynx-render takes --help"),
        (["m.yaml", "--ulysses", "two"], "--ulysses two: must be a whole number"),
        (["m.yaml", "--sample=0"], "--sample 0: must be a whole number from 1"),
        (["m.yaml", "--set"], "--set: needs a value: --set KEY=VALUE"),
        (["m.yaml", "--json=1"], "--json: takes no value"),
    ],
)
def test_usage(folder: Path, arguments: list[str], expected: str) -> None:
    assert refused(*arguments, cwd=folder) == [expected]


def test_a_word_that_is_neither_command_nor_manifest(folder: Path) -> None:
    lines = refused("xyzzy", "n.yaml", cwd=folder)
    assert lines[0].startswith("xyzzy: no such file, and no shipped manifest of that name")
    assert lines[1:] == ["n.yaml: no such manifest; did you mean 'm.yaml'?"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["paln", "m.yaml"], "plan"),
        (["forgt", "ada"], "forget"),
        (["Fetch", "lynx-full"], "fetch"),
        (["docter"], "doctor"),
        (["stats", "m.yaml"], "status"),
        (["resume", "m.yaml"], "render"),
        (["LS"], "status"),
    ],
)
def test_a_mistyped_command(folder: Path, arguments: list[str], meant: str) -> None:
    (line,) = refused(*arguments, cwd=folder)
    assert line.startswith(f"{arguments[0]}: no such command; did you mean '{meant}'? (commands: render, plan, ")


def test_a_manifest_whose_name_is_near_a_command(folder: Path, demo: Path) -> None:
    shutil.copy(folder / "m.yaml", folder / "plans")
    (folder / "plans").write_text((folder / "plans").read_text().replace("ada.jpg", "eva.jpg"))
    (line,) = refused("plans", cwd=folder)
    assert line.startswith("plans:6: subjects.ada.image")


def test_short_and_spoken_forms(tmp_path: Path) -> None:
    for short, whole in (["-h"], ["--help"]), (["plan", "-h"], ["plan", "--help"]), (["help", "plan"], ["plan", "-h"]):
        assert light(*short, cwd=tmp_path).stdout == light(*whole, cwd=tmp_path).stdout
    assert light("version", cwd=tmp_path).stdout == light("--version", cwd=tmp_path).stdout
    assert light("help", cwd=tmp_path).stdout == light("--help", cwd=tmp_path).stdout


def test_without_arguments(tmp_path: Path) -> None:
    run = light(cwd=tmp_path)
    assert run.returncode == 2
    assert "Usage: lynx-render" in run.stdout + run.stderr


def test_options_may_come_first(folder: Path) -> None:
    """Told by a mistake in the manifest that only ``render`` itself can find."""
    (folder / "m.yaml").write_text(MANIFEST.replace("ada.jpg", "eva.jpg"))
    (line,) = refused("--ulysses", "2", "--set", "sampling.seed=7", "m.yaml", cwd=folder)
    assert line.startswith("m.yaml:6: subjects.ada.image")


@pytest.mark.parametrize("name", ["plan", "render"])
def test_a_manifest_named_like_a_command(folder: Path, demo: Path, name: str) -> None:
    shutil.copy(folder / "m.yaml", folder / name)
    for arguments in (["plan", name], ["plan", f"./{name}"]):
        run = light(*arguments, cwd=folder)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"{name}: 4 shots")
    wrong = (folder / name).read_text().replace("ada.jpg", "eva.jpg")
    (folder / name).write_text(wrong)
    for arguments in (["render", name], [f"./{name}"]):
        (line,) = refused(*arguments, cwd=folder)
        assert line.startswith(f"{name}:6: ")


def test_debug_shows_the_log(folder: Path) -> None:
    quiet, debug = (lynx_render("plan", "m.yaml", *options, cwd=folder) for options in ((), ("--debug",)))
    assert quiet.stdout == debug.stdout
    assert "lynx_parallel." not in quiet.stderr
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} lynx_parallel\.inputs\.load: reading m\.yaml$", debug.stderr, re.M)
    assert "lynx_parallel.plan.plan: compared 4 shots with " in debug.stderr


def test_debug_shows_where_and_leaves_the_exit_code(folder: Path) -> None:
    run = lynx_render("none.yaml", "--debug", cwd=folder)
    assert run.returncode == 2
    assert "Traceback" in run.stderr
    assert run.stderr.endswith("InputErrors: none.yaml: no such manifest\n")


def test_a_file_that_cannot_be_read_is_one_line(folder: Path) -> None:
    """Here: the output folder is a loop of links, which no check of the manifest looks into."""
    (folder / "out").symlink_to("out")
    run = lynx_render("plan", "m.yaml", cwd=folder)
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) <= 2


def test_a_reader_that_goes_away(folder: Path, demo: Path) -> None:
    text = MANIFEST + "shots: [{subject: '*', prompt: '*', takes: 3000}]\n"
    (folder / "m.yaml").write_text(text)
    process = subprocess.Popen([*COMMAND, "plan", "m.yaml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert b"12000 shots" in process.stdout.readline()
    process.stdout.close()
    # A slow machine says that it is reading, see ``Lines.if_slow``.
    assert [line for line in process.stderr.read().splitlines() if not line.startswith(b"reading ")] == []
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE, "as other programs; 1 has a meaning of its own"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["verify", "out"], ["plan", "m.yaml", "--json"]])
def test_a_reader_that_has_gone_before(folder: Path, demo: Path, arguments: list[str]) -> None:
    (folder / "out" / ".lynx").mkdir(parents=True)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run([*COMMAND, *arguments], cwd=folder, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        (["plan", "none.yaml"], ["none.yaml: no such manifest"]),
        (["m.yaml", "--ulysses", "two"], ["--ulysses two: must be a whole number"]),
        (["fetch", "none.yaml"], ["none.yaml: no such pipeline file"]),
        (["doctor", "--device", "gpu"], ["--device gpu: must be 'auto', 'cuda' or 'cpu'"]),
    ],
)
def test_json_of_a_refusal(folder: Path, arguments: list[str], errors: list[str]) -> None:
    run = light(*arguments, "--json", cwd=folder)
    assert (run.returncode, errors_of(run)) == (2, errors)
    told = json.loads(run.stdout)
    assert run.stderr.splitlines()[-1] == f"help: lynx-render help {told.pop('code')}"
    assert told == {"errors": errors, "exit_code": 2}


def test_json_of_strict(folder: Path, demo: Path) -> None:
    text = (folder / "m.yaml").read_text().partition("prompts:")[0] + "prompts:\n  run: A {person} on track #1 runs.\n"
    (folder / "m.yaml").write_text(text)
    run = light("plan", "m.yaml", "--strict", "--json", cwd=folder)
    assert run.returncode == 2
    [warning] = json.loads(run.stdout)["errors"]
    assert warning.startswith("warning: YAML dropped a part of an unquoted text")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_names_in_any_terminal(folder: Path, demo: Path, encoding: str) -> None:
    (folder / "m.yaml").write_text(MANIFEST + 'name: "走/{subject}-{prompt}"\n', encoding="utf-8")
    run = subprocess.run(
        [*COMMAND, "plan", "m.yaml", "--shots"],
        cwd=folder, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, b"")
    name = "走" if encoding == "utf-8" else "\\u8d70"
    assert f"render  {name}/ada-walk\n".encode(encoding) in run.stdout


def test_ctrl_c_while_planning(folder: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "cache"
    cache.mkdir()
    (cache / demo.name).symlink_to(demo)
    os.mkfifo(cache / "digests.json")  # plan waits here for a writer
    monkeypatch.setenv("LYNX_CACHE", str(cache))
    process = subprocess.Popen([*COMMAND, "plan", "m.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True)
    with (cache / "digests.json").open("w"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_kernel_for_cuda_alone_is_refused_before_any_work_in_float32(campaign: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lynx_parallel.cli", str(campaign), "--attention", "flash"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert errors_of(ended) == ["--attention flash: does not run in float32, the pipeline's dtype: use auto or sdpa"]


def test_plan_shows_the_text_of_each_shot(folder: Path, demo: Path) -> None:
    text = (folder / "m.yaml").read_text().replace("'A {person} runs.'", '"A {person}\\n\\e runs."')
    (folder / "m.yaml").write_text(text)
    run = light("plan", "m.yaml", "--shots", "--only", "ada/*", cwd=folder)
    assert of_shots(run.stdout) == [
        "render  ada/walk-t01",
        "        A woman walks.",
        "render  ada/run-t01",
        "        A woman\\n\\x1b runs.",
    ]
    rows = json.loads(light("plan", "m.yaml", "--shots", "--json", cwd=folder).stdout)["shots"]
    assert [row["text"] for row in rows[:2]] == ["A woman walks.", "A woman\n\x1b runs."]
    assert rows[0]["negative_prompt"] == ""


def test_a_text_cut_by_a_comment_is_reported_and_strict_refuses_it(folder: Path, demo: Path) -> None:
    text = (folder / "m.yaml").read_text().partition("prompts:")[0] + "prompts:\n  run: A {person} on track #1 runs.\n"
    (folder / "m.yaml").write_text(text)
    warning = (
        "warning: YAML dropped a part of an unquoted text; put the text in quotes (1): "
        f"m.yaml:{text.count(chr(10))}: prompts.run: '#1 runs.'"
    )
    run = light("plan", "m.yaml", cwd=folder)
    assert (run.returncode, run.stderr.splitlines()) == (0, [warning])
    assert refused("plan", "m.yaml", "--strict", cwd=folder) == [warning]


def test_a_workbook_of_people_is_planned(folder: Path, demo: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (
        ["id", "image", "vars.person"],
        ["E 1", "ada.jpg", "woman"],
        ["E2", "bob.jpg", "man"],
        ["E3", "x.jpg", "child"],
    ):
        book.active.append(row)
    book.save(folder / "people.xlsx")
    head, _, prompts = (folder / "m.yaml").read_text().partition("prompts:")
    (folder / "m.yaml").write_text(head.partition("subjects:")[0] + "subjects: {from: people.xlsx}\nprompts:" + prompts)
    (folder / "m.yaml").write_text((folder / "m.yaml").read_text().replace("./full.yaml", "demo-tiny"))
    run = light("plan", "m.yaml", cwd=folder, allowed="numpy")  # which openpyxl imports
    assert (run.returncode, run.stdout) == (2, "")
    assert errors_of(run) == [
        "people.xlsx:2: column id: 'E 1': an id is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'"
        " (ASCII); for example E-1",
        "people.xlsx:4: column image: 'x.jpg': missing file",
    ]
    book.active["A2"], book.active["B4"] = "E1", "ada.jpg"
    book.save(folder / "people.xlsx")
    run = light("plan", "m.yaml", "--shots", cwd=folder, allowed="numpy")
    assert (run.returncode, run.stderr) == (0, "")
    assert of_shots(run.stdout)[-2:] == ["render  E3/run-t01", "        A child runs."]


# Stops in the import of one module, says so, and waits; "swallow" turns what ends the wait into an ImportError.
SLOW_IMPORT = """\
import importlib.abc, runpy, sys, time
wanted, how = sys.argv.pop(1), sys.argv.pop(1)
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            print("importing", flush=True)
            try:
                for _ in range(600):  # one long sleep may begin just after the signal
                    time.sleep(0.1)
            except BaseException:
                if how == "swallow":
                    raise ImportError("not there")
                raise
sys.meta_path.insert(0, Slow())
sys.path.insert(0, "")
runpy.run_module("lynx_parallel.cli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")],
)
@pytest.mark.parametrize("what", ["raise", "swallow"])
@pytest.mark.parametrize(
    "module", ["typer", "lynx_parallel.cli.render", "lynx_parallel.inputs.load", "lynx_parallel.plan.plan"]
)
def test_a_signal_while_modules_are_imported(
    folder: Path, demo: Path, number: signal.Signals, code: int, line: str, what: str, module: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, module, what, "plan", "m.yaml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, line)


def test_a_signal_in_generated_code(folder: Path, demo: Path) -> None:
    """With ``-m``, CPython would end by SIGINT, whatever the exit code: a KeyboardInterrupt went through ``exec``."""
    (folder / "slow").mkdir()
    slow = "import time\\nprint('importing', flush=True)\\nfor _ in range(600): time.sleep(0.1)"
    (folder / "slow" / "yaml.py").write_text(f'exec("""{slow}""")\n')
    process = subprocess.Popen(
        [*COMMAND, "plan", "m.yaml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{folder / 'slow'}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, "stopped by SIGTERM\n")


def test_an_ignored_ctrl_c_stays_ignored(folder: Path, demo: Path) -> None:
    """A shell's jobs in the background are not to be stopped by a Ctrl-C that is meant for another."""
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", SLOW_IMPORT.replace("600", "10"),
         "lynx_parallel.inputs.load", "raise", "plan", "m.yaml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "4 shots" in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["plan", "m.yaml"], ["plan", "m.yaml", "--json"]])
def test_standard_output_that_cannot_be_written(folder: Path, demo: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lynx_parallel.cli", *arguments]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (
        3, "standard output: No space left on device\nhelp: lynx-render help LX306\n",
    )  # fmt: skip
