"""Makes the pictures of the documentation: terminals as SVG, the report's page as PNG.

    python docs/pictures.py [terminal] [report]

Terminals are real: tmux runs the commands on the demo, with more steps than usual, so that there is something to see.
The reports of 80 and 800 shots show made-up shots, because the demo's videos are noise. Needs tmux and Chromium.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
IMAGES = REPOSITORY / "docs" / "images"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([*map(str, command)], cwd=cwd, check=True, capture_output=True, text=True).stdout


class Terminal:
    """A terminal of a given size in tmux."""

    def __init__(self, columns: int, rows: int, cwd: Path, name: str = "first"):
        self.columns, self.rows = columns, rows
        self.name = f"pictures-{name}-{columns}"
        shell = "env PS1='$ ' TERM=xterm-256color bash --norc --noprofile"
        run("tmux", "new-session", "-d", "-s", self.name, "-x", str(columns), "-y", str(rows), "-c", cwd, shell)
        self.type(f"export PATH={Path(sys.executable).parent}:$PATH PS1='$ ' OMP_NUM_THREADS=1; clear")
        time.sleep(1)

    def type(self, line: str) -> None:
        run("tmux", "send-keys", "-t", self.name, line, "Enter")

    def wait_for(self, pattern: str, within: float = 300) -> None:
        end = time.monotonic() + within
        while not re.search(pattern, self.text(), re.MULTILINE):
            if time.monotonic() > end:
                raise SystemExit(f"{pattern}: not seen in {within} s:\n{self.text()}")
            time.sleep(0.2)

    def text(self, *options: str) -> str:
        return run("tmux", "capture-pane", "-t", self.name, "-p", *options)

    def save(self, name: str) -> None:
        """Saves what is seen, light and dark."""
        from rich.console import Console
        from rich.terminal_theme import MONOKAI, TerminalTheme
        from rich.text import Text

        light = TerminalTheme((255, 255, 255), (36, 41, 47), list(_ANSI[:8]), list(_ANSI[8:]))
        screen = Text.from_ansi(self.text("-e").rstrip("\n"))
        for theme, suffix in ((light, "light"), (MONOKAI, "dark")):
            console = Console(record=True, width=self.columns, file=io.StringIO(), force_terminal=True)
            console.print(screen, no_wrap=True, crop=False)
            svg = console.export_svg(title=f"{self.columns} columns", theme=theme)
            svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no network
            (IMAGES / f"{name}-{self.columns}-{suffix}.svg").write_text(svg)

    def close(self) -> None:
        run("tmux", "kill-session", "-t", self.name)


_ANSI = (
    (36, 41, 47), (207, 34, 46), (17, 99, 41), (130, 80, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131),
    (110, 119, 129), (87, 96, 106), (164, 14, 38), (26, 127, 55), (154, 103, 0), (33, 139, 255), (164, 117, 249),
    (49, 146, 170), (140, 149, 159),
)  # fmt: skip


def terminals(folder: Path) -> None:
    """Captures plan, render and status of the demo at 80 and 140 columns."""
    shutil.copytree(REPOSITORY / "manifests", folder / "manifests")
    slow = "--set sampling.num_inference_steps=60"
    for columns in (80, 140):
        shutil.rmtree(folder / "renders", ignore_errors=True)
        terminal, other = Terminal(columns, 18, folder), None
        try:
            terminal.type(f"lynx-render plan manifests/demo.yaml {slow}")
            terminal.wait_for(r"^licence")
            time.sleep(1)
            terminal.save("plan")
            terminal.type("clear")
            terminal.type(f"lynx-render manifests/demo.yaml {slow}")
            terminal.wait_for(r"^\[2/4\] rendered")
            terminal.wait_for(r"denoising .* [1-5]\d/60")
            terminal.save("render")
            other = Terminal(columns, 18, folder, "second")
            other.type("clear; lynx-render status")
            other.wait_for(r"^\$ *$")
            other.wait_for(r"shots done")
            time.sleep(1)
            other.save("status")
            terminal.wait_for(r"^report: ")
        finally:
            terminal.close()
            if other is not None:
                other.close()


def draw(hue: float, place: float) -> object:
    """Returns a picture: a figure on a gradient. ``place`` moves it from left (0) to right (1)."""
    from PIL import Image, ImageDraw

    def colour(shift: float, light: float) -> tuple[int, int, int]:
        r, g, b = colorsys.hls_to_rgb((hue + shift) % 1, light, 0.5)
        return round(255 * r), round(255 * g), round(255 * b)

    picture = Image.new("RGB", (256, 148), colour(0, 0.35))
    pen = ImageDraw.Draw(picture)
    for row in range(148):
        pen.line((0, row, 256, row), colour(0.08 * row / 148, 0.3 + 0.4 * row / 148))
    x = 60 + 136 * place
    pen.rounded_rectangle((x - 38, 100, x + 38, 190), 20, colour(0.5, 0.35))
    pen.ellipse((x - 24, 42, x + 24, 104), colour(0.1, 0.75))
    return picture


def made_up(folder: Path, subjects: int, prompts: int, takes: int) -> Path:
    """Writes a finished campaign of made-up shots. Returns its manifest."""
    from PIL import Image

    from benchmarks.planning import run as in_process
    from benchmarks.planning import write_campaigns
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.output.crops import faces_folder
    from lynx_parallel.output.folder import Output
    from lynx_parallel.output.journal import Journal

    manifest = write_campaigns(folder, subjects, prompts)["done"]
    if takes > 1:
        manifest.write_text(manifest.read_text() + f"shots:\n- {{subject: '*', prompt: '*', takes: {takes}}}\n")
    in_process("finish", manifest)
    campaign = load_campaign(manifest)
    output = Output(campaign.output)
    for number, shot in enumerate(campaign.shots):
        hue = (hash_of(shot.prompt.id) + 0.07 * hash_of(shot.subject.id) + 0.03 * shot.take) % 1
        strip = Image.new("RGB", (8 * 256, 148))
        for frame in range(8):
            strip.paste(draw(hue, (frame / 8 + hash_of(shot.name)) % 1), (256 * frame, 0))
        path = output.poster(shot.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        strip.save(path, quality=80)
        faces = faces_folder(output.folder) / shot.subject.id
        if not faces.exists():
            faces.mkdir(parents=True)
            draw(hash_of(shot.subject.id), 0.5).resize((96, 56)).save(faces / "ref-256.png")  # type: ignore[attr-defined]
        if number % 97 == 40:
            output.path(shot.name, "sidecar").unlink()
    journal = Journal(output.journal)
    for number, shot in enumerate(campaign.shots):
        if number % 97 == 40:
            journal.append("failed", name=shot.name, reason=f"{shot.subject.id}.jpg: no face was found")
    journal.close()
    return manifest


def hash_of(text: str) -> float:
    """Returns a number from 0 to 1 that depends on a text alone."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def reports(folder: Path) -> None:
    """Takes pictures of reports of 4, 80 and 800 shots."""
    from lynx_parallel.inputs.load import load_campaign
    from lynx_parallel.output.folder import Output
    from lynx_parallel.view.report import write_report
    from tests.helpers.chromium import Chromium

    shutil.copytree(REPOSITORY / "manifests", folder / "manifests")
    run(sys.executable, "-m", "lynx_parallel.cli", folder / "manifests" / "demo.yaml", cwd=REPOSITORY)
    pages = {4: folder / "renders" / "demo" / "report.html"}
    for count, subjects, prompts, takes in ((80, 10, 4, 2), (800, 40, 20, 1)):
        place = folder / str(count)
        place.mkdir()
        campaign = load_campaign(made_up(place, subjects, prompts, takes))
        pages[count] = write_report(Output(campaign.output), campaign)
    with Chromium() as browser:
        for count, page in pages.items():
            for dark in (False, True):
                browser.open(page.as_uri(), width=1280, height=800, dark=dark)
                time.sleep(1)  # posters
                shrink(browser.screenshot, IMAGES / f"report-{count}-{'dark' if dark else 'light'}.png")
        browser.open(pages[4].as_uri(), width=1280, height=800)
        browser.key("ArrowRight")
        browser.key("Enter")
        time.sleep(1)
        shrink(browser.screenshot, IMAGES / "report-detail.png")


def shrink(screenshot: Callable[[Path], object], path: Path) -> None:
    """Saves a screenshot with 128 colours: a third of the bytes, and no visible difference."""
    from PIL import Image

    screenshot(path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["terminal", "report"], choices=["terminal", "report"])
    options = parser.parse_args()
    os.chdir(REPOSITORY)  # the benchmarks are run as modules
    IMAGES.mkdir(exist_ok=True)
    for name, make in (("terminal", terminals), ("report", reports)):
        if name in options.what:
            with tempfile.TemporaryDirectory(prefix="lynx-") as folder:
                make(Path(folder))


if __name__ == "__main__":
    main()
