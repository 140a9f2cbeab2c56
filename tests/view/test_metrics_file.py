"""The file of metrics: what Prometheus' own parser reads from it, and when it is written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lynx_parallel.output.metrics import METRICS
from lynx_parallel.output.run_status import GangStatus, RunStatus
from lynx_parallel.view.metrics_file import WRITE_EVERY_S, MetricsFile, check_metrics_file, exposition

GANG = GangStatus("denoising", "ada/walk-t01", 3, 50, 3.3, memory=41, memory_total=141, ranks=2)
STATUS = RunStatus(
    "r", "m.yaml", "node-1", 7, "2026-11-27T06:00:00+00:00", "2026-11-27T06:01:00+00:00", "running", total=9, done=2,
    rendered=1, left_seconds=30.0, gangs=(GANG,),
)  # fmt: skip


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples by name and labels but for ``output``; each of them once."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    by_name = {
        (one.name, frozenset((k, v) for k, v in one.labels.items() if k != "output")): one.value for one in found
    }
    assert len(by_name) == len(found)
    return by_name


def test_the_parser_reads_every_metric() -> None:
    text = exposition(replace(STATUS, exit_code=75), {"denoise": [7.0, 9.25], "total": [8.0, 10.0]}, "/renders")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families.keys() == {metric.name.removesuffix("_total") for metric in METRICS}
    types = {"gauge": "gauge", "counter": "counter", "distribution": "summary"}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (types[metric.kind], metric.help)
        assert all(sample.labels["output"] == "/renders" for sample in family.samples)
    found = parsed(text)
    denoise = frozenset({("stage", "denoise")})
    assert (found["lynx_stage_seconds_sum", denoise], found["lynx_stage_seconds_count", denoise]) == (16.25, 2)
    assert found["lynx_run_exit_code", frozenset()] == 75
    assert found["lynx_shots", frozenset({("state", "left")})] == 6


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "line\nbreak", "ümlaut", "a,b}c", "\\n"])
def test_labels_of_any_characters(name: str) -> None:
    text = exposition(replace(STATUS, manifest=name), {}, name)
    info = next(f for f in text_string_to_metric_families(text) if f.name == "lynx_run_info")
    assert (info.samples[0].labels["manifest"], info.samples[0].labels["output"]) == (name, name)


def test_a_name_of_another_encoding() -> None:
    text = exposition(STATUS, {}, os.fsdecode(b"/renders/\xff"))
    text.encode()
    assert all(
        sample.labels["output"] == r"/renders/\udcff"
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def test_it_is_written_every_few_seconds_and_at_the_end(tmp_path: Path) -> None:
    path, clock = tmp_path / "lynx.prom", [100.0]
    file = MetricsFile(path, str(tmp_path), lambda: clock[0])

    def rendered() -> float:
        return parsed(path.read_text())["lynx_shots_rendered_total", frozenset()]

    file.watch(STATUS)
    assert rendered() == 1
    clock[0] += WRITE_EVERY_S / 2
    file.watch(replace(STATUS, rendered=2))
    assert rendered() == 1
    clock[0] += WRITE_EVERY_S
    file.watch(replace(STATUS, rendered=3))
    assert rendered() == 3
    file.event({"event": "done", "seconds": 9.5, "stages": {"denoise": 7.0}})
    file.watch(replace(STATUS, rendered=4))
    file.end(1, lambda: pytest.fail("there was a run"))
    found = parsed(path.read_text())
    assert (found["lynx_run_exit_code", frozenset()], rendered()) == (1, 4)
    assert found["lynx_stage_seconds_count", frozenset({("stage", "total")})] == 1
    assert found["lynx_gangs", frozenset()] == 0
    assert not {"lynx_run_left_seconds", "lynx_gang_step_seconds"} & {name for name, _ in found}
    assert found["lynx_run_update_time_seconds", frozenset()] > 1795759260
    assert os.listdir(tmp_path) == ["lynx.prom"]


def test_without_a_run(tmp_path: Path) -> None:
    path = tmp_path / "lynx.prom"
    MetricsFile(path, str(tmp_path)).end(0, lambda: RunStatus(total=3, done=3))
    assert parsed(path.read_text())["lynx_shots", frozenset({("state", "done")})] == 3


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    """The temporary goes as well where the file cannot be replaced."""
    (tmp_path / "is" / "lynx.prom").mkdir(parents=True)
    for path in (tmp_path / "gone" / "lynx.prom", tmp_path / "is" / "lynx.prom"):
        file = MetricsFile(path, str(tmp_path))
        file.watch(STATUS)
        file.end(0, RunStatus)
    assert os.listdir(tmp_path / "is") == ["lynx.prom"]


def test_the_temporary_is_no_prom_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node exporter would read half of it."""
    seen: list[str] = []
    replaced = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(str(a)), replaced(a, b)))
    MetricsFile(tmp_path / "lynx.prom", str(tmp_path)).watch(STATUS)
    assert len(seen) == 1
    assert seen[0].endswith(".part")


def test_a_path_is_tried_before_the_run(tmp_path: Path) -> None:
    check_metrics_file(tmp_path / "lynx.prom")
    assert os.listdir(tmp_path) == []
    (tmp_path / "lynx.prom").write_text("old")
    check_metrics_file(tmp_path / "lynx.prom")
    assert (tmp_path / "lynx.prom").read_text() == "old"
    for wrong in (tmp_path, tmp_path / "none" / "lynx.prom", Path("/dev/null"), Path("/proc/lynx.prom")):
        with pytest.raises(OSError):
            check_metrics_file(wrong)
