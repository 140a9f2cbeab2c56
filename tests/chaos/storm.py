"""A campaign under random faults until every shot is done, and what must hold then.

python -m tests.chaos.storm --faults 100 --seed 1 --write benchmarks/results/chaos.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from safetensors.torch import load_file

from lynx_parallel.stages.video import probe
from tests.chaos.faults import FAULTS, MEMORY_MONITOR, Target, watch_memory
from tests.helpers.command import COMMAND, environment
from tests.helpers.repository import REPOSITORY

DISK_BYTES = 32 * 2**20
GONE_WITHIN_S = 20.0
RUN_WITHIN_S = 900.0
STORMY = ("--hung-after", "12s", "--save-every", "0s")


@dataclass
class Report:
    """What a storm was, and how it ended.

    Attributes:
        faults: made, by name.
        ends: of drivers, by exit code; -9 where it was killed.
        gone_s: seconds from a driver's kill to the end of its last process.
        worst: largest relative difference of final latents to the undisturbed run's.
    """

    seed: int
    shots: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    gone_s: list[float] = field(default_factory=list)
    same_bits: int = 0
    worst: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        gone = f"{statistics.median(self.gone_s):.1f}, at most {max(self.gone_s):.1f}" if self.gone_s else "–"
        rows = {
            "shots": f"{self.shots}, each done once",
            "faults": sum(self.faults.values()),
            **{f"· {name}": count for name, count in sorted(self.faults.items())},
            "attempts": self.events["attempt"],
            **{f"· tried again: {kind}": count for kind, count in sorted(self.retries.items())},
            "given up in one run, made by the next": self.events["failed"],
            "drivers, by exit code": ", ".join(f"{code}: {count}" for code, count in sorted(self.ends.items())),
            "seconds until a killed driver's last process was gone (median)": gone,
            "latents of the same bits as undisturbed": f"{self.same_bits} of {self.shots}",
            "largest relative difference of latents": f"{self.worst:.1e}",
            "seconds": f"{self.seconds:.0f}",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of ``DISK_BYTES`` mounted at ``folder``, where that is allowed; whether it is."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Driver(Protocol):
    """A running ``lynx-render``, as ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float, /) -> int: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Path, Mapping[str, str], Path], Driver]
"""Starts a driver with these arguments, in a folder, with variables beside those of this process. Its output is added
to a file."""


def start_process(arguments: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path) -> Driver:
    """Starts ``lynx-render`` as a user does."""
    with log.open("a") as file:
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=folder, env=environment() | variables, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def storm(
    folder: Path, seed: int, *, faults: int, takes: int, steps: int, pause: tuple[float, float], alone: bool,
    start: Start = start_process,
) -> Report:  # fmt: skip
    """Renders 2 subjects × 2 prompts × ``takes`` in two gangs of two ranks, with faults until they are spent.

    Args:
        folder: empty; everything is made in it.
        steps: of each shot, which say how long it takes.
        pause: least and most seconds between two faults.
        alone: nothing else is at work on the machine, so Ray's memory monitor may be one of them.

    Raises:
        AssertionError: a shot is lost, made twice or differs; something is left behind.
    """
    began, report, chance = time.monotonic(), Report(seed), random.Random(seed)
    command = ("manifest.yaml", "--gangs", "2", "--ulysses", "2", "--max-gpus", "4")
    shutil.copytree(REPOSITORY / "manifests" / "faces", folder / "faces")
    text = (REPOSITORY / "manifests" / "demo.yaml").read_text()
    text += f'\nsampling: {{num_inference_steps: {steps}}}\nshots:\n- {{subject: "*", prompt: "*", takes: {takes}}}\n'
    (folder / "manifest.yaml").write_text(text)
    calm, output = folder / "calm", folder / "storm"
    undisturbed = start([*command, "--set", f"output={calm}"], folder, {}, folder / "calm.log")
    assert undisturbed.wait(RUN_WITHIN_S) == 0, (folder / "calm.log").read_text()

    with small_disk(output) as mounted:
        names = [name for name in FAULTS if (mounted or name != "a full disk") and (alone or name != MEMORY_MONITOR)]
        spells = Spells(names, chance)
        while report.ends[0] == 0:
            watch, memory = watch_memory() if alone else ({}, None)
            driver = start([*command, *STORMY, "--set", f"output={output}"], folder, watch, folder / "log")
            target = Target(psutil.Process(driver.pid), output, mounted, memory, chance)
            try:
                _run(driver, target, spells, faults, pause, report)
            finally:
                driver.kill()
            assert time.monotonic() - began < RUN_WITHIN_S + 20 * faults, "the campaign does not end"
        report.seconds = time.monotonic() - began
        _check(calm, output, report)
    return report


class Spells:
    """Names of faults, in random order, each as often as any other."""

    def __init__(self, names: list[str], chance: random.Random):
        self._names, self._chance = names, chance
        self._left: list[str] = []

    def next(self) -> str:
        self._left = self._left or self._chance.sample(self._names, len(self._names))
        return self._left.pop(0)

    def again(self, name: str) -> None:
        """Of one that could not be made."""
        self._left.append(name)


def _run(
    driver: Driver, target: Target, spells: Spells, faults: int, pause: tuple[float, float],
    report: Report,
) -> None:  # fmt: skip
    """One driver, from its start to its end."""
    chance, process = target.random, target.driver
    family: set[psutil.Process] = set()
    due = time.monotonic() + chance.uniform(*pause)
    last = time.monotonic() + RUN_WITHIN_S + 20 * faults
    while driver.poll() is None:
        assert time.monotonic() < last, "the driver does not end: see the log"
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= set(process.children(recursive=True))
        late = time.monotonic() - due
        if late >= 0 and sum(report.faults.values()) < faults and target.ripe(late):
            name = spells.next()
            if FAULTS[name](target):
                report.faults[name] += 1
                with (target.output.parent / "log").open("a") as log:
                    log.write(f"--- {time.strftime('%H:%M:%S')} {name}\n")
            else:
                spells.again(name)
            due = time.monotonic() + chance.uniform(*pause)
        time.sleep(0.1)
    report.ends[driver.returncode] += 1
    assert report.ends.keys() <= {0, 1, -9}, "see the log"
    ended = time.monotonic()
    while alive := [member for member in family if _lives(member)]:
        assert time.monotonic() - ended < GONE_WITHIN_S, f"left behind: {alive}"
        time.sleep(0.05)
    if driver.returncode == -9:
        report.gone_s.append(time.monotonic() - ended)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _check(calm: Path, output: Path, report: Report) -> None:
    """Every shot ended once, plays, and has the latents of the undisturbed run; nothing else is left."""
    sidecars = {path.relative_to(calm): json.loads(path.read_text()) for path in calm.glob("[!.]*/*.json")}
    records = [json.loads(line) for line in (output / ".lynx" / "journal.jsonl").read_text().splitlines()]
    report.shots = len(sidecars)
    report.events = Counter(record["event"] for record in records)
    report.retries = Counter(record["kind"] for record in records if record["event"] == "retry")
    assert sorted(path.relative_to(output) for path in output.glob("[!.]*/*.json")) == sorted(sidecars)
    done = Counter(record["video"] for record in records if record["event"] == "done")
    assert done == Counter(sidecar["digests"]["video"] for sidecar in sidecars.values()), "done once each"
    for path, sidecar in sidecars.items():
        name = path.with_suffix("")
        assert probe(output / f"{name}.mp4").frames == 9
        assert json.loads((output / path).read_text())["digests"] == sidecar["digests"]
        ours, theirs = (load_file(folder / f"{name}.latents.safetensors")["latents"] for folder in (output, calm))
        report.same_bits += torch.equal(ours, theirs)
        difference = float((ours - theirs).norm() / theirs.norm())
        report.worst = max(report.worst, difference)
        assert difference <= 1e-6, name
    private = output / ".lynx"
    assert not list(output.rglob("*.part"))
    assert not list((private / "partial").iterdir())
    assert not (private / "lock").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--takes", type=int, default=20, help="four times so many shots")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 3.0), help="seconds between faults")
    parser.add_argument("--write", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LYNX_CACHE", folder + "/cache")
        try:
            report = storm(
                Path(folder) / "storm", options.seed, faults=options.faults, takes=options.takes,
                steps=options.steps, pause=options.pause, alone=True,
            )  # fmt: skip
        except BaseException:
            shutil.copy(Path(folder) / "storm" / "log", "chaos.log")
            raise
    least, most = options.pause
    text = (
        f"# Chaos: {sum(report.faults.values())} faults\n\n"
        f"`{' '.join(['python -m tests.chaos.storm', *sys.argv[1:]])}`, {date.today()}, on {os.cpu_count()} CPU cores: "
        f"two gangs of two ranks, the next fault {least:g} to {most:g} s after the last, when a shot is rendered; "
        f"seed {report.seed}.\n\n{report}\n"
    )
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
