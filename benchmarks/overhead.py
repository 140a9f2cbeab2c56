"""What the engine adds to the work: a campaign of the demo's shots beside a bare loop that makes the same videos.

    python -m benchmarks.overhead

Both sides make the demo's clips (64×48, 9 frames, 4 steps, demo:tiny), in the same order, in two processes of one
thread each, as nice as Ray has its workers and with a rank's settings of malloc, that form a gang of Ulysses 2 over
gloo on the loopback device:

- campaign: ``lynx-render`` as a user runs it, with Ray, supervisor, journal, sidecars, saved latents, fsyncs, logs;
- bare: denoise, decode and write the mp4, shot after shot. Every shot's inputs lie ready before the clock starts;
  latents are not saved.

The first shot is left out on both sides, and so is all before it: a side's time runs from the end of its first shot to
the end of its last. Both sides' videos must be the same, byte for byte. They take turns, ``--rounds`` times.

Criterion: the campaign's median ≤ 1.10 × the bare loop's, each at least 60 s of work. Exits 1 if not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch.multiprocessing as mp

from benchmarks.machine import describe, describe_in_words, record, table
from lynx_parallel.rank.environment import KEEP_FREED_MEMORY

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
CRITERION, LEAST_S = 1.10, 60.0
NICENESS = 15
"""Ray's for its workers. On a machine at rest it changes nothing; on another, ranks alone would give way."""
SIDES = ("bare", "campaign")
STAGES = ("denoise", "decode", "encode")


@dataclass(frozen=True)
class Turn:
    """One side, once.

    Attributes:
        seconds: from the end of the first shot to the end of the last.
        stages: median seconds of a shot in each stage, on rank 0.
        used: cores that the side's own processes used, on average.
        others: cores that other processes used meanwhile.
    """

    seconds: float
    stages: dict[str, float]
    used: float
    others: float


class Cores:
    """Processor seconds between two points in time, of a process with its descendants and of all others."""

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.began, self.own, self.all = time.perf_counter(), self._own(), _busy()

    def stop(self) -> tuple[float, float]:
        seconds = time.perf_counter() - self.began
        own = self._own() - self.own
        return own / seconds, max(_busy() - self.all - own, 0.0) / seconds

    def _own(self) -> float:
        """Of those alive and those they have waited for: none that matters ends unwaited between two calls."""
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total


def _busy() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def campaign(manifest: Path, shots: int) -> Turn:
    """The engine's turn, into a folder without videos and with no subject known yet."""
    output = manifest.parents[1] / "renders" / "demo"
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(Path(os.environ["LYNX_CACHE"]) / "subjects", ignore_errors=True)
    driver = subprocess.Popen(
        [sys.executable, "-m", "lynx_parallel.cli", manifest, "--ulysses", str(RANKS), "--device", "cpu"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdout is not None
    used, said = (0.0, 0.0), []
    for line in driver.stdout:
        said.append(line)
        if line.startswith(f"[1/{shots}] rendered"):
            cores = Cores(driver.pid)
        elif line.startswith(f"[{shots}/{shots}] rendered"):
            used = cores.stop()
    if driver.wait():
        sys.exit("".join(said))
    journal = map(json.loads, (output / ".lynx" / "journal.jsonl").read_text().splitlines())
    done = [datetime.fromisoformat(event["time"]) for event in journal if event["event"] == "done"]
    assert len(done) == shots, f"{len(done)} of {shots} shots done"
    made = [json.loads(path.read_text())["seconds"] for path in output.glob("[!.]*/*.json")]
    return Turn((done[-1] - done[0]).total_seconds(), _medians(made), *used)


def bare(manifest: Path, shots: int) -> Turn:
    """The bare loop's turn."""
    output = manifest.parents[1] / "renders" / "bare"
    shutil.rmtree(output, ignore_errors=True)
    context = mp.get_context("spawn")
    os.environ |= KEEP_FREED_MEMORY
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe()
        processes = [
            context.Process(target=bare_rank, args=(rank, f"{folder}/store", manifest, output, theirs), daemon=True)
            for rank in range(RANKS)
        ]
        for process in processes:
            process.start()
        assert ours.recv() == "first"
        cores = Cores(os.getpid())
        seconds, stages = ours.recv()
        used = cores.stop()
        for process in processes:
            process.join(60)
    assert len(stages) == shots
    return Turn(seconds, _medians(stages), *used)


def bare_rank(rank: int, store: str, manifest: Path, output: Path, pipe: Any) -> None:
    """One of the bare loop's processes; rank 0 tells ``pipe`` of the first shot's end, and of seconds and stages."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.nice(NICENESS)
    import torch
    from torch.distributed import FileStore

    from lynx_parallel.inputs.layout import Layout
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.inputs.model_config import transformer_config
    from lynx_parallel.parallel import xdit
    from lynx_parallel.parallel.apply import parallelize
    from lynx_parallel.parallel.vae import split_decoder
    from lynx_parallel.pipeline import LynxPipeline
    from lynx_parallel.plan.plan import in_order
    from lynx_parallel.plan.weights import find_face_models, find_weights
    from lynx_parallel.stages.latents import decode, to_frames
    from lynx_parallel.stages.video import encode_video

    torch.set_num_threads(1)
    campaign = load_campaign(manifest)
    shots, video = in_order(campaign.shots), campaign.pipeline.video
    weights = find_weights(campaign.pipeline.model)
    # As ranks on the CPU load it.
    pipeline = LynxPipeline.from_files(
        weights, find_face_models(campaign.pipeline.face), dtype=torch.float32, keep_projections=False
    )
    pipeline.inputs.encode_prompts([text for shot in shots for text in (shot.text, shot.sampling.negative_prompt)])
    persons = {s.subject.id: pipeline.identify(s.sampling, image=s.subject.image) for s in shots}
    inputs = [pipeline.prepare(shot.text, shot.sampling, persons[shot.subject.id]) for shot in shots]
    membership = xdit.join(
        Layout(ulysses=RANKS), rank=rank, store=FileStore(store, RANKS), device=torch.device("cpu"),
        transformer_config=transformer_config(weights),
    )  # fmt: skip
    parallelize(pipeline, membership)
    vae = split_decoder(pipeline.vae)
    for shot in shots:
        (output / shot.name).parent.mkdir(parents=True, exist_ok=True)

    stages, ends = [], []
    for shot, ready in zip(shots, inputs, strict=True):
        times = [time.perf_counter()]
        latents = pipeline.denoise(ready, shot.sampling)
        times.append(time.perf_counter())
        frames = to_frames(decode(vae, latents))
        times.append(time.perf_counter())
        if rank == 0:
            path = output / f"{shot.name}.mp4"
            encode_video(frames, path, fps=shot.sampling.fps, codec=video.codec, crf=video.crf)
            times.append(time.perf_counter())
            stages.append(dict(zip(STAGES, (b - a for a, b in itertools.pairwise(times)), strict=True)))
            ends.append(times[-1])
            if len(ends) == 1:
                pipe.send("first")
    if rank == 0:
        pipe.send((ends[-1] - ends[0], stages))
    xdit.leave()


def _medians(shots: list[dict[str, float]]) -> dict[str, float]:
    return {stage: round(statistics.median(shot[stage] for shot in shots), 4) for stage in STAGES}


def _same_videos(renders: Path, shots: int) -> None:
    made = {path.relative_to(renders / "bare"): path for path in (renders / "bare").rglob("*.mp4")}
    assert len(made) == shots
    for name, path in made.items():
        assert path.read_bytes() == (renders / "demo" / name).read_bytes(), f"{name}: the two sides' videos differ"


def run(takes: int, rounds: int) -> tuple[dict[str, list[Turn]], int]:
    """Every side's turns, and the number of shots."""
    turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LYNX_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        os.environ.pop("RAY_ADDRESS", None)
        manifest = Path(folder) / "manifests" / "demo.yaml"
        shutil.copytree(ROOT / "manifests", manifest.parent)
        with manifest.open("a") as file:
            file.write(f'\nshots:\n- {{subject: "*", prompt: "*", takes: {takes}}}\n')
        from lynx_parallel.inputs.load import load_campaign

        shots = len(load_campaign(manifest).shots)
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                turn = {"bare": bare, "campaign": campaign}[side](manifest, shots)
                turns[side].append(turn)
                print(f"round {number + 1}/{rounds}: {side} {turn}", flush=True)
            _same_videos(manifest.parents[1] / "renders", shots)
    return turns, shots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--takes", type=int, default=60, help="of each of the demo's four shots")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    options = parser.parse_args()
    machine = describe()
    if machine["cores"] < RANKS:
        sys.exit(f"needs {RANKS} cores, this process may use {machine['cores']}")
    turns, shots = run(options.takes, options.rounds)
    medians = {side: statistics.median(turn.seconds for turn in turns[side]) for side in SIDES}
    ratio = medians["campaign"] / medians["bare"]
    long_enough = min(turn.seconds for side in SIDES for turn in turns[side]) >= LEAST_S
    met = ratio <= CRITERION and long_enough

    rows = []
    for number in range(options.rounds):
        for side in SIDES:
            turn = turns[side][number]
            stages = [turn.stages[stage] for stage in STAGES]
            shot = turn.seconds / (shots - 1)
            figures = [shot, *stages, shot - sum(stages)]
            rows.append(
                [str(number + 1), side, f"{turn.seconds:.2f}", *(f"{1000 * figure:.1f}" for figure in figures),
                 f"{turn.used:.2f}", f"{turn.others:.2f}"]
            )  # fmt: skip
    head = ["round", "side", "s", "ms a shot", *STAGES, "rest", "cores used", "by others"]
    verdict = ["met" if met else "NOT MET" if long_enough else f"less than {LEAST_S:.0f} s of work"]
    cores = machine["cores"]
    text = (
        f"# What the engine adds to the work\n\n{describe_in_words(machine)}\n"
        f"The demo's clips as shipped (64×48, 9 frames, 4 steps, demo:tiny, fp32), {shots} shots of which the first is "
        f"left out,\none gang of {RANKS} ranks (Ulysses {RANKS}), one thread a rank, gloo over the loopback device; "
        f"{options.rounds} rounds, sides interleaved.\nThe campaign saves latents, the bare loop writes the mp4 alone; "
        "both made the same videos, byte for byte.\n\n"
        + table(["", "s, median", "ms a shot", f"campaign over bare, ≤ {CRITERION:.2f}", ""], [
            [side, f"{medians[side]:.2f}", f"{1000 * medians[side] / (shots - 1):.1f}",
             *([f"{ratio:.3f}", *verdict] if side == "campaign" else ["", ""])]
            for side in SIDES
        ])
        + "\nStages: median ms on rank 0 (the campaign's denoising includes handing the inputs to the other rank); "
        f"rest: all else of a shot.\nCores: of {cores}, on average; the side's own processes, and all others.\n\n"
        + table(head, rows)
    )  # fmt: skip
    print(text)
    if not options.no_record:
        configuration = {"shots": shots, "ranks": RANKS, "rounds": options.rounds}
        data = {"machine": machine, "configuration": configuration}
        measured = {side: [asdict(turn) for turn in turns[side]] for side in SIDES}
        record(
            f"overhead_{cores}cores",
            {**data, "turns": measured, "medians": medians, "ratio": ratio, "criterion": CRITERION, "met": met},
            text,
        )
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
