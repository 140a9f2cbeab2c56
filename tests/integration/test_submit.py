"""``ray job submit`` to a head with the dashboard and a token."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lynx_parallel.output.run_status import read_status
from tests.helpers.command import COMMAND, ONE_RANK, PATIENCE_S, ranks_of, sidecars, steps, wait_for
from tests.helpers.demo_output import NAMES, digests
from tests.helpers.listeners import is_loopback, listeners
from tests.helpers.ray_head import RAY, Head, ray_head


@pytest.fixture(scope="module")
def head(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home"), dashboard=True) as head:
        yield head


def status_of(output: Path) -> str | None:
    status = read_status(output / ".lynx" / "status.json")
    return status.state if status else None


def submission(job: str, *arguments: str) -> list[str]:
    """Arguments of ``ray job``: the working folder is uploaded, and ``lynx-render`` starts in its copy."""
    return ["submit", "--submission-id", job, "--working-dir", ".", "--", *COMMAND, *arguments]


def test_nobody_gets_in_without_the_token(head: Head, tmp_path: Path) -> None:
    stranger = subprocess.run(
        [*RAY, "job", "submit", "--", "touch", str(tmp_path / "touched")],
        env=head.env | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert stranger.returncode == 1
    assert "AuthenticationError" in stranger.stderr
    for header in ({}, {"Authorization": "Bearer " + "0" * len(head.token)}):
        request = urllib.request.Request(f"{head.url}/api/jobs/", headers=header)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code in (401, 403)
    assert not (tmp_path / "touched").exists()


def test_the_head_is_reached_from_this_machine_alone(head: Head) -> None:
    servers = {"gcs_server", "raylet"}
    wait_for(lambda: servers <= {name for name, _ in listeners(head.process)}, "all of the head")
    found = listeners(head.process)
    assert [one for one in found if not is_loopback(one[1])] == []


def test_a_campaign_is_submitted(head: Head, campaign: Path, tmp_path: Path) -> None:
    # What is rendered must not land in the folder that is uploaded, nor in its copy.
    output, working = tmp_path / "renders" / "demo", campaign.parent
    submitter = head.start(*submission("whole", "demo.yaml", *ONE_RANK, "--set", f"output={output}"), cwd=working)
    assert submitter.stdout is not None
    for line in submitter.stdout:
        if line == "starting 1 rank on cpu\n":
            break
    else:
        pytest.fail("the log did not come")
    # Lines come as they are printed, not when the job is over.
    assert head.info("whole")["status"] == "RUNNING"
    assert not list(output.rglob("*.mp4"))

    printed = submitter.communicate(timeout=PATIENCE_S)[0]
    assert submitter.returncode == 0, printed
    assert "4 rendered, 0 encoded, 0 already done, 0 failed" in printed
    info = head.info("whole")
    assert (info["status"], info["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert digests(output, ".mp4").keys() == digests(output, ".json").keys() == NAMES


def test_bad_input_is_1_for_the_submitter_and_2_for_the_job(head: Head, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nsubjekts: {}\n")
    code, printed = head.job(*submission("bad", "bad.yaml"), cwd=tmp_path)
    assert code == 1
    assert "subjekts" in printed
    info = head.info("bad")
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)


def test_a_stopped_job_is_resumed(head: Head, campaign: Path, tmp_path: Path) -> None:
    output, working = tmp_path / "renders" / "demo", campaign.parent
    settings = ("demo.yaml", *ONE_RANK, "--only", "astronaut/beach", "--set", "sampling.num_inference_steps=60")
    settings += ("--set", f"output={output}")
    submitter = head.start(*submission("stopped", *settings), cwd=working)
    wait_for(lambda: len(steps(output, 1)) >= 5, "rendering")
    ranks = ranks_of(head.process.pid)
    assert len(ranks) == 1
    ranks[0].suspend()  # it would perhaps make its last step before the job is asked to stop

    stop = head.start("stop", "stopped", cwd=working)
    wait_for(lambda: status_of(output) == "stopping", "the driver stopping")
    ranks[0].resume()
    printed, _ = stop.communicate(timeout=PATIENCE_S)
    assert stop.returncode == 0, printed
    assert head.info("stopped")["status"] == "STOPPED"
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    printed, _ = submitter.communicate(timeout=PATIENCE_S)
    done = steps(output, 1)[-1]
    assert f"saved and stopped after step {done} of 60" in printed
    assert submitter.returncode == 0  # Ray's submitter calls a stopped job no failure
    assert not (output / ".lynx" / "lock").exists()
    assert len(list((output / ".lynx" / "partial").iterdir())) == 1
    assert not list(output.rglob("*.part")) + sidecars(output)

    code, printed = head.job(*submission("resumed", *settings), cwd=working)
    assert code == 0, printed
    assert "1 rendered" in printed
    assert steps(output, 2) == list(range(done + 1, 61))
    assert not list((output / ".lynx" / "partial").iterdir())
