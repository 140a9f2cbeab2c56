"""What others see while a campaign is rendered: the status, the report, and never a torn file or a wrong count."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from lynx_parallel.output.run_status import read_status
from lynx_parallel.stages.video import probe
from tests.helpers.command import ONE_RANK, environment
from tests.helpers.demo_output import NAMES
from tests.helpers.ray_head import Head
from tests.helpers.reports import data_of

STEPS = 30
"""Of each shot. The run renders for several seconds, because Ray's metrics get a new status every 2 s."""

# Reads the output folder again and again, as another machine would, and fails at the first thing that is torn.
READER = """
import json, os, sys, time
from pathlib import Path
from lynx_parallel.output.folder import Output
from lynx_parallel.output.run_status import read_status
from lynx_parallel.output.shot_states import count_states, shot_states
output, names, most, seen = Output(Path(sys.argv[1])), sys.argv[3:], 0, 0
parent = os.getppid()
while not Path(sys.argv[2]).exists() and os.getppid() == parent:
    there = output.status.exists()
    run = read_status(output.status)
    assert run is not None or not there, "a torn status"
    states = shot_states(output, names)
    done = count_states(states)["done"]
    assert done >= most, (done, most)
    # The status was read first, so each shot that it counts is there by now.
    assert run is None or done >= run.rendered + run.encoded, (done, run)
    for shot in states:
        for kind, made in (shot.sidecar or {"outputs": {}})["outputs"].items():
            assert output.path(shot.name, kind).stat().st_size == made["size"], (shot.name, kind)
    for line in output.journal.read_bytes().splitlines() if output.journal.exists() else ():
        json.loads(line)
    for file in output.files():
        if file.endswith(".mp4"):
            (output.folder / file).read_bytes()
    most, seen = done, seen + 1
    time.sleep(0.05)
print(seen)
"""


def samples_of(text: str, output: Path) -> dict[str, float]:
    """Returns the samples of an output folder. A name has the sample's stage, state or gang in braces."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("output") == str(output):
                own = [value for label, value in sample.labels.items() if label in ("stage", "state", "gang")]
                found[sample.name + (f"{{{own[0]}}}" if own else "")] = sample.value
    return found


@contextlib.contextmanager
def scraped(head: Head, output: Path) -> Iterator[dict[str, float]]:
    """Reads the metrics of a head's node again and again, as Prometheus does. Yields the highest of each sample."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.2):
            with contextlib.suppress(OSError), urllib.request.urlopen(head.metrics, timeout=10) as answer:
                for name, value in samples_of(answer.read().decode(), output).items():
                    found[name] = max(found.get(name, 0.0), value)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def test_a_reader_never_sees_a_torn_file_or_a_wrong_count(head: Head, tmp_path: Path) -> None:
    output, stop = tmp_path / "out", tmp_path / "stop"
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(output), str(stop), *sorted(NAMES)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with scraped(head, output) as metrics:
            run = head.render(
                "demo", "--set", f"output={output}", "--events", "events.jsonl", "--metrics-file", "lynx.prom",
                "--sample", "2", *ONE_RANK, "--on-finish", "env > finished; echo heard",
                "--set", f"sampling.num_inference_steps={STEPS}", cwd=tmp_path,
            )  # fmt: skip
        assert reader.poll() is None, reader.communicate()[1]
    finally:
        stop.touch()
        printed, errors = reader.communicate(timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert reader.returncode == 0, errors
    assert int(printed) > 20, "it hardly looked"

    status = read_status(output / ".lynx" / "status.json")
    assert status is not None
    assert (status.state, status.exit_code, status.rendered, status.fraction) == ("ended", 0, 4, 1.0)
    assert status.gpu_seconds > 0

    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert all(event["schema"] == 1 for event in events)
    assert sum(event["event"] == "done" for event in events) == 4
    assert events[0]["event"] == "run_started"
    assert events[-1]["event"] == "run_ended"
    [gang] = [event for event in events if event["event"] == "gang_started"]
    assert gang["device"] == "cpu"

    written = samples_of((tmp_path / "lynx.prom").read_text(), output)
    assert written["lynx_shots{done}"] == written["lynx_shots_rendered_total"] == 4
    assert written["lynx_steps_total"] == status.steps == 4 * STEPS
    assert written["lynx_run_exit_code"] == 0
    assert written["lynx_stage_seconds_count{denoise}"] == written["lynx_stage_seconds_count{total}"] == 4
    assert written["lynx_stage_seconds_sum{total}"] > written["lynx_stage_seconds_sum{denoise}"] > 0
    # Ray's endpoint had the same metrics during the run, but no counter that is zero, and perhaps not the last values.
    during = {name.removeprefix("ray_").partition("{")[0] for name in metrics}
    assert during >= {name.partition("{")[0] for name, value in written.items() if value}
    assert 1 <= metrics["ray_lynx_shots{done}"] <= 4
    assert 1 <= metrics["ray_lynx_shots{left}"] <= 4
    assert metrics["ray_lynx_ranks"] == 1
    assert metrics["ray_lynx_shots_rendered_total"] >= 1
    assert metrics["ray_lynx_stage_seconds_count{denoise}"] >= 1

    assert "heard" in run.stdout
    finished = dict(line.split("=", 1) for line in (tmp_path / "finished").read_text().splitlines() if "=" in line)
    assert (finished["LYNX_RENDERED"], finished["LYNX_FAILED"], finished["LYNX_EXIT_CODE"]) == ("4", "0", "0")
    assert finished["LYNX_REPORT"] == str(output / "report.html")

    data = data_of(output / "report.html")
    assert data["counts"] == {"done": 4}
    for shot in data["shots"]:
        with Image.open(output / shot["poster"]) as poster:
            assert poster.size == (8 * 64, 48)
        assert probe(output / shot["video"]).frames == shot["num_frames"]
        assert shot["seconds"]["denoise"] > 0
    assert all((output / subject["crop"]).is_file() for subject in data["subjects"])
