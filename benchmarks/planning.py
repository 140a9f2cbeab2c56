"""Seconds and memory of planning a large campaign: from the manifest's file to what is left to do.

    python -m benchmarks.planning

Writes a campaign of 1,000 subjects and 100 prompts to a temporary folder, in four forms:

- matrix: every subject with every prompt, nothing made yet;
- table: the same shots row by row in a CSV file, nothing made yet;
- seeds: such a table where every shot has a seed of its own, so that none shares its settings with another;
- done: the matrix, every shot of it finished (sidecars as the driver writes them, outputs of one byte).

Each is planned several times, always by a fresh process, which does what ``lynx-render plan`` does before it
prints. Criteria for the first three: the median of the whole process, start and imports included, under 10 s, and a
peak of resident memory under 1 GB. The last is told, without a criterion: it is the file system's as much as ours.

Exits 1 if one fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXPECTED = {"matrix": "to render", "table": "to render", "seeds": "to render", "done": "done"}
"""The forms, and what the plan must say of all their shots."""
MOST_S, MOST_BYTES = 10.0, 1e9
WITHOUT_CRITERION = ("done",)

# Lynx full as it is meant to be used, except that the weights are the demo's.
PIPELINE = """\
version: 1
model:
  base: demo:tiny
  adapters: {resampler: demo:full, id: demo:full, ref: demo:full}
  dtype: bfloat16
face: {detector: demo:faces, recognizer: demo:faces}
sampling:
  width: 832
  height: 480
  num_frames: 81
  guidance_scale: 5.0
  guidance_scale_i: 2.0
  negative_prompt: >-
    bright tones, overexposed, static, blurred details, subtitles, watermark, painting, still picture, grey,
    worst quality, low quality, compression artefacts, ugly, extra fingers, badly drawn hands, badly drawn face
"""


def write_campaigns(folder: Path, subjects: int, prompts: int, *, embeddings: bool = True) -> dict[str, Path]:
    """The manifests by form, and the files they name.

    Args:
        embeddings: whether half of the subjects have an embedding and landmarks, instead of a picture alone.
    """
    import numpy as np
    import yaml
    from PIL import Image

    faces = folder / "faces"
    faces.mkdir()
    rng = np.random.default_rng(0)
    people: dict[str, Any] = {}
    for number in range(subjects):
        name = f"person-{number:04}"
        with (faces / f"{name}.jpg").open("wb") as picture:  # its header is read and its content hashed
            Image.new("RGB", (1024, 1024)).save(picture, "JPEG")
            picture.write(rng.bytes(50_000 - picture.tell()))
        person = people[name] = {
            "image": f"faces/{name}.jpg",
            "vars": {"person": ("woman", "man")[number % 2], "coat": ("green", "blue", "red")[number % 3]},
            "consent": {"ref": f"release-{number:04}", "scope": "web, one year", "expires": "2099-01-31"},
            "labels": {"team": f"team {number % 7}", "wave": number % 4},
        }
        if embeddings and number % 2:  # the others' are found in the picture
            np.save(faces / f"{name}.npy", rng.standard_normal(512).astype(np.float32))
            person["embedding"] = f"faces/{name}.npy"
            person["landmarks"] = (rng.random((5, 2)) * 500).round(1).tolist()
        if number % 10 == 0:
            person["sampling"] = {"ip_scale": 0.9}
    texts: dict[str, Any] = {}
    for number in range(prompts):
        text = (
            f"Scene {number}: a {{person}} in a {{coat}} coat walks along a quiet beach at sunrise, waves rolling in "
            "behind, the wind in the hair, seen from the front by a slowly moving camera."
        )
        texts[f"prompt-{number:02}"] = text if number % 10 else {"text": text, "sampling": {"num_frames": 121}}

    head = "subject,prompt,seed,priority,sampling.guidance_scale"
    pairs = [(person, prompt) for person in people for prompt in texts]
    for form in ("table", "seeds"):
        rows = [
            f"{person},{prompt},{42 if form == 'table' else n * 7919},0,{'5.0' if n % 2 else ''}"
            for n, (person, prompt) in enumerate(pairs)
        ]
        (folder / f"{form}.csv").write_text("\n".join([head, *rows]) + "\n")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    manifests = {form: folder / f"{form}.yaml" for form in EXPECTED}
    for form, path in manifests.items():
        manifest: dict[str, Any] = {
            "version": 1, "pipeline": "./pipeline.yaml", "output": f"renders/{form}",
            "sampling": {"seed": 42}, "subjects": people, "prompts": texts,
        }  # fmt: skip
        if (folder / f"{form}.csv").exists():
            manifest["shots"] = {"from": f"{form}.csv"}
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return manifests


def plan(manifest: Path) -> None:
    """Plans a campaign and says on stdout what that took."""
    began = time.perf_counter()
    from datetime import date

    from lynx_parallel.inputs.cluster import ClusterSpec
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.plan.checks import as_warnings, check_work, long_texts, unreadable_pictures
    from lynx_parallel.plan.digests import needs_face_models
    from lynx_parallel.plan.hashing import weight_digests
    from lynx_parallel.plan.plan import Known, make_plan
    from lynx_parallel.plan.present_weights import find_present

    imported = time.perf_counter()
    campaign = load_campaign(manifest)
    loaded = time.perf_counter()
    present = find_present(campaign.pipeline.model, campaign.pipeline.face if needs_face_models(campaign) else None)
    digests = weight_digests(present.weights, present.face)
    hashed = time.perf_counter()
    unreadable, _ = unreadable_pictures(campaign)
    cuts, _ = long_texts(campaign, present.weights.base)
    checked = time.perf_counter()
    made = make_plan(campaign, Known(digests, unreadable=unreadable, cut=as_warnings(cuts)), today=date.today())
    planned = time.perf_counter()
    check_work(campaign, made.of("render", "encode"), present.weights, ClusterSpec(ulysses=2))
    fitted = time.perf_counter()
    say = {
        "import_s": imported - began,
        "load_s": loaded - imported,
        "weights_s": hashed - loaded,
        "check_s": checked - hashed + fitted - planned,
        "plan_s": planned - checked,
        "cpu_s": time.process_time(),
        "peak": _peak(),
        "plan": str(made),
    }
    checksum = hashlib.sha256()
    for item in made.items:
        checksum.update(f"{item.shot.name} {item.digests.latents} {item.digests.video}\n".encode())
    print(json.dumps({**say, "digests": checksum.hexdigest()}))


def _peak() -> int:
    """VmHWM; ru_maxrss begins with the peak of the process that started this one."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def finish(manifest: Path) -> None:
    """Makes every shot of a campaign done, in the driver's way, with outputs of one byte."""
    from datetime import date

    from lynx_parallel.engine.sidecar import make_sidecar
    from lynx_parallel.inputs.layout import Layout
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.output.atomic import part_path
    from lynx_parallel.output.folder import Output
    from lynx_parallel.plan.hashing import weight_digests
    from lynx_parallel.plan.plan import make_plan
    from lynx_parallel.plan.weights import find_face_models, find_weights
    from lynx_parallel.rank.rank import Hello, Rendered

    os.fsync = lambda fd: None  # nothing here needs to survive a power cut, and 600,000 of them take an hour
    campaign = load_campaign(manifest)
    digests = weight_digests(find_weights(campaign.pipeline.model), find_face_models(campaign.pipeline.face))
    output, kinds = Output(campaign.output), ("latents", "video")
    ranks = [Hello(4000 + rank, "node-1", f"cuda:{rank}", "flash", "0.1.0") for rank in range(8)]
    record = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    made = Rendered(
        outputs=dict.fromkeys(kinds, record),
        seconds={"conditioning": 1.234, "denoising": 123.456, "decoding": 4.567, "encoding": 1.234},
        exactness={"layout": "sum order"},
        conditioning={f"{kind}{kept}": 1 for kind in ("subject", "reference", "text") for kept in ("", " kept")},
    )
    for item in make_plan(campaign, digests, today=date.today()).items:
        name = item.shot.name
        for kind in kinds:
            part = part_path(output.path(name, kind))
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(b"x")
        outputs = {kind: {"file": output.path(name, kind).name, **record} for kind in kinds}
        sidecar = make_sidecar(
            item, campaign.pipeline.model, made, outputs, layout=Layout(ulysses=8), ranks=ranks, sharded=False,
            attempt=1, seconds=130.5,
        )  # fmt: skip
        output.commit(name, kinds, sidecar)


def run(task: str, manifest: Path) -> tuple[float, str]:
    """Seconds and stdout of a fresh process that does this."""
    command = [sys.executable, "-m", "benchmarks.planning", "--task", task, "--manifest", str(manifest)]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    for name in ("--task", "--manifest"):  # for the processes this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        {"plan": plan, "finish": finish}[options.task](Path(options.manifest))
        return

    from benchmarks.machine import describe, describe_in_words, record, table

    machine = describe()
    shots = options.subjects * options.prompts
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in EXPECTED}
    with tempfile.TemporaryDirectory() as temporary:
        manifests = write_campaigns(Path(temporary), options.subjects, options.prompts)
        run("finish", manifests["done"])  # also builds the demo's weights and models, if they are not there
        sizes = {path.name: path.stat().st_size for path in Path(temporary).iterdir() if path.is_file()}
        a_sidecar = next((Path(temporary) / "renders" / "done").rglob("*.json"))
        sizes["a sidecar"] = a_sidecar.stat().st_size
        for number in range(options.rounds):
            for form, manifest in manifests.items():
                seconds, said = run("plan", manifest)
                runs[form].append({"seconds": seconds, **json.loads(said)})
            told = ", ".join(f"{form} {runs[form][-1]['seconds']:.2f} s" for form in EXPECTED)
            print(f"round {number + 1}/{options.rounds}: {told}", flush=True)

    if len({result["digests"] for form in ("matrix", "table", "done") for result in runs[form]}) != 1:
        raise SystemExit("matrix, table and done plan different shots")
    for form, words in EXPECTED.items():
        if any(f"{shots} {words}" not in result["plan"] for result in runs[form]):
            raise SystemExit(f"{form}: {runs[form][0]['plan']}")

    rows, met = [], {}
    for form in EXPECTED:
        medians = {
            key: statistics.median(result[key] for result in runs[form])
            for key in ("seconds", "cpu_s", "import_s", "load_s", "weights_s", "check_s", "plan_s", "peak")
        }
        times = [result["seconds"] for result in runs[form]]
        verdict = ""
        if form not in WITHOUT_CRITERION:
            met[form] = medians["seconds"] < MOST_S and medians["peak"] < MOST_BYTES
            verdict = "met" if met[form] else "NOT MET"
        steps = (f"{medians[key]:.2f}" for key in ("import_s", "load_s", "weights_s", "check_s", "plan_s"))
        spread = f"{min(times):.2f} … {max(times):.2f}"
        rows.append(
            [
                form,
                f"{medians['seconds']:.2f}",
                spread,
                f"{medians['cpu_s']:.2f}",
                *steps,
                f"{medians['peak'] / 1e9:.3f}",
                verdict,
            ]
        )
    head = [
        "", "whole process, s", "least … most", "of a core, s", "imports", "manifest → shots", "weights' digests",
        "pictures, texts, layout", "shots → plan", "peak, GB", "< 10 s, < 1 GB",
    ]  # fmt: skip
    text = (
        f"# Planning {shots:,} shots\n\n{describe_in_words(machine)}\n"
        f"{options.subjects:,} subjects (half with embedding and landmarks given) × {options.prompts} prompts; "
        f"pictures of 50 kB, all different;\nmanifest {sizes['matrix.yaml'] / 1e3:.0f} kB, table "
        f"{sizes['table.csv'] / 1e6:.1f} MB, a sidecar {sizes['a sidecar'] / 1e3:.1f} kB. Medians of {options.rounds} "
        "runs, each a fresh process; files warm\nin the page cache. GB are 10⁹ bytes; peaks are VmHWM.\n\n"
        + table(head, rows)
    )  # fmt: skip
    print(text)
    if not options.no_record:
        configuration = {"subjects": options.subjects, "prompts": options.prompts, "bytes": sizes}
        record("planning_2cores", {"machine": machine, "configuration": configuration, "runs": runs, "met": met}, text)
    if not all(met.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
