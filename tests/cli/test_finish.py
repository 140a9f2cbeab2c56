"""What follows a run: exit codes and the user's own command."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.cli.finish import Ended, run_command
from lynx_parallel.engine.summary import Summary
from tests.helpers.campaigns import draw, load, write
from tests.helpers.light_command import light


@pytest.mark.parametrize(
    ("summary", "plain", "allowed"),
    [
        ({"rendered": ["a"]}, 0, 0),
        ({"blocked": [("a", "expired")]}, 1, 0),
        ({"failed": [("a", "no face")]}, 1, 1),
        ({"failed": [("a", "no face")], "blocked": [("b", "expired")]}, 1, 1),
        ({"blocked": [("a", "expired")], "fault": "no room"}, 3, 3),
        ({"blocked": [("a", "expired")], "stopped_by": signal.SIGTERM}, 143, 143),
    ],
)
def test_blocked_shots_alone_can_be_allowed(summary: dict[str, Any], plain: int, allowed: int) -> None:
    codes = [Ended(None, Summary(**summary), "", allow_blocked=allow).exit_code for allow in (False, True)]
    assert codes == [plain, allowed]


def test_a_command_gets_counts_and_paths(tmp_path: Path) -> None:
    write(tmp_path)
    campaign = load(tmp_path)
    campaign.output.mkdir()
    (campaign.output / "report.html").touch()
    summary = Summary(rendered=["a", "b"], blocked=[("c", "x")], left=3, seconds=61.4)
    with (tmp_path / "said").open("w") as output:
        run_command("env | grep ^LYNX_", campaign, summary, 1, output=output)
    told = dict(line.split("=", 1) for line in (tmp_path / "said").read_text().splitlines())
    expected = {
        "MANIFEST": str(tmp_path / "m.yaml"), "OUTPUT": str(tmp_path / "out"), "EXIT_CODE": "1", "RENDERED": "2",
        "ENCODED": "0", "SKIPPED": "0", "FAILED": "0", "BLOCKED": "1", "LEFT": "3", "SECONDS": "61", "FAULT": "",
        "REPORT": str(tmp_path / "out" / "report.html"),
    }  # fmt: skip
    assert told.items() >= {f"LYNX_{name}": value for name, value in expected.items()}.items()


def test_a_command_that_fails_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    with (tmp_path / "said").open("w") as output:
        run_command("exit 7", load(tmp_path), None, 3, "no Ray", output=output)
    assert capfd.readouterr().err == "--on-finish: exit 7: exit 7\n"


def test_it_also_runs_if_the_run_could_not_begin(tmp_path: Path, demo: Path) -> None:
    write(tmp_path)
    draw(tmp_path)
    command = 'echo "$LYNX_EXIT_CODE $LYNX_FAULT" > finished; echo "[$PYTHONSAFEPATH]" > python'
    done = light("m.yaml", "--deadline", "soon", "--on-finish", command, cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "finished").read_text().startswith("2 --deadline soon: must be a time")
    assert (tmp_path / "python").read_text() == "[]\n", "a script in Python finds the modules beside it"
