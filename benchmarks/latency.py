"""Seconds until a user sees something: help, plan, status and report of 800 finished shots, and the report's page.

    python -m benchmarks.latency

Writes a campaign of 40 subjects and 20 prompts to a temporary folder, every shot of it finished, with a poster of true
size. Subjects are photographs; with embedding files plan imports numpy, which takes 0.1 s more. Each command runs
several times, always as a fresh process, start and imports included. The page is opened in headless Chromium, if it is
installed; its time is from the navigation to the built sheet.

Criteria for the medians: help 0.3 s, plan 1 s, status 0.5 s, report 10 s, page 2 s. Exits 1 if one is not met.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.planning import run, write_campaigns

SUBJECTS, PROMPTS = 40, 20
MOST_S = {"--help": 0.3, "plan": 1.0, "status": 0.5, "report": 10.0, "page": 2.0}
POSTER = (8 * 256, 148)


_READY = """new Promise(done => {
  const look = () => {
    const mark = performance.getEntriesByName('ready')[0];
    if (mark) done(mark.startTime); else setTimeout(look, 10);
  };
  look();
})"""


def write_posters(output: Path) -> int:
    """Gives each finished shot a poster. Returns the bytes of one."""
    import numpy as np
    from PIL import Image

    from lynx_parallel.output.folder import Output

    rng, folder = np.random.default_rng(0), Output(output)
    size = 0
    for name, _ in folder.sidecars():
        small = Image.fromarray(rng.integers(0, 255, (12, 8 * 20, 3), dtype=np.uint8))
        path = folder.poster(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize(POSTER, Image.Resampling.BICUBIC).save(path, quality=82)
        size = path.stat().st_size
    return size


def seconds_of(*arguments: str) -> float:
    """Returns the seconds of ``lynx-render`` with these arguments, in a fresh process.

    Raises:
        RuntimeError: it failed.
    """
    # An installed package is compiled once, not at every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lynx_parallel.cli", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr}")
    return seconds


def seconds_to_open(page: Path) -> float:
    """Returns the seconds in which Chromium opens the report and builds its sheet."""
    from tests.helpers.chromium import Chromium

    with Chromium() as browser:
        browser.open(page.as_uri(), width=1440, height=900)
        return float(str(browser.evaluate(_READY))) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="leave results/ as it is")
    options = parser.parse_args()
    from benchmarks.machine import describe, describe_in_words, record, table
    from tests.helpers.chromium import chromium_path

    machine = describe()
    found: dict[str, list[float]] = {name: [] for name in MOST_S}
    with tempfile.TemporaryDirectory() as temporary:
        manifest = write_campaigns(Path(temporary), SUBJECTS, PROMPTS, embeddings=False)["done"]
        run("finish", manifest)
        output = Path(temporary) / "renders" / "done"
        (output / ".lynx").mkdir()
        poster = write_posters(output)
        for command in (["--help"], ["plan", str(manifest)], ["status", str(output)], ["report", str(manifest)]):
            seconds_of(*command)  # compiles the modules
        for _ in range(options.rounds):
            found["--help"].append(seconds_of("--help"))
            found["plan"].append(seconds_of("plan", str(manifest)))
            found["status"].append(seconds_of("status", str(output)))
            found["report"].append(seconds_of("report", str(manifest)))
        for _ in range(options.rounds if chromium_path() else 0):  # afterwards, because it is still busy when it ends
            found["page"].append(seconds_to_open(output / "report.html"))
        page = (output / "report.html").stat().st_size
    rows, met = [], True
    for name, seconds in found.items():
        if not seconds:
            rows.append([name, "not measured: no Chromium", "", "", f"{MOST_S[name]:g} s"])
            continue
        median = statistics.median(seconds)
        met = met and median <= MOST_S[name]
        verdict = "met" if median <= MOST_S[name] else "**not met**"
        rows.append([name, f"{median:.2f}", f"{min(seconds):.2f} … {max(seconds):.2f}", verdict, f"{MOST_S[name]:g} s"])
    text = (
        f"# Seconds until something is seen, {SUBJECTS * PROMPTS} shots\n\n{describe_in_words(machine)}\n"
        f"{SUBJECTS} subjects × {PROMPTS} prompts, all finished; a poster of {poster / 1000:.0f} kB each; the page has "
        f"{page / 1e6:.1f} MB. Medians of {options.rounds} fresh processes; files warm in the page cache.\n\n"
        + table(["what", "median, s", "least … most", "", "aim"], rows)
    )
    print(text)
    if not options.no_record:
        data = {"machine": machine, "seconds": found, "poster_bytes": poster, "page_bytes": page}
        record(f"latency_{os.cpu_count()}cores", data, text)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
