"""The page of the report in a real browser: tiles, filters, keys, verdicts, details and the comparison."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from PIL import Image

from tests.helpers.chromium import Chromium, chromium_path
from tests.helpers.repository import REPOSITORY

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed")

TEMPLATE = REPOSITORY / "lynx_parallel" / "view" / "report.html"
SLOT = '<script type="application/json" id="data">{}</script>'
FRAMES = 8
LARGEST_SEED = "9223372036854775807"
HOSTILE = '<img src=x onerror="window.broken=1">'
HOSTILE_TEXT = '</script><script>window.broken=2</script> & "quotes", <b>bold</b>'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Chromium]:
    """The browser of this module. The test fails if the page raises or prints an error."""
    yield chromium
    assert [error for error in chromium.errors if "ERR_FILE_NOT_FOUND" not in error] == []


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of 16 frames, and a poster whose eight frames have eight colours."""
    folder = tmp_path_factory.mktemp("media")
    for name, hue in (("a", 0), ("b", 90), ("c", 180)):
        subprocess.run(
            [
                imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=s=64x64:r=16:d=1",
                "-vf", f"hue=h={hue}", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(folder / f"{name}.mp4"),
            ],
            check=True,
        )  # fmt: skip
    poster = Image.new("RGB", (64 * FRAMES, 64))
    for index in range(FRAMES):
        poster.paste((index * 30, 255 - index * 30, 90), (index * 64, 0, index * 64 + 64, 64))
    poster.save(folder / "poster.jpg")
    poster.crop((0, 0, 64, 64)).save(folder / "crop.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def shot(
    subject: str = "ada", prompt: str = "beach", take: int = 1, variant: str = "", **changes: Any
) -> dict[str, Any]:
    name = f"{subject}/{prompt}-t{take:02d}" + (f"-{variant}" if variant else "")
    return {
        "name": name, "subject": subject, "prompt": prompt, "variant": variant, "take": take, "seed": str(41 + take),
        "state": "done", "reason": "", "logs": None, "video": "abc"[take % 3] + ".mp4", "poster": "poster.jpg",
        "poster_frames": FRAMES, "width": 64, "height": 64, "fps": 16, "num_frames": 16, "text": f"A woman, {prompt}",
        "settings": None, "seconds": None, "scores": None, "take_state": "", "history": [], "warnings": [],
    } | changes  # fmt: skip


def failed(**changes: Any) -> dict[str, Any]:
    lost = {"state": "failed", "reason": "out of memory", "logs": "logs/a b.log", "video": None, "poster": None}
    return shot(**(lost | changes))


def report(shots: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    names = {field: list(dict.fromkeys(one[field] for one in shots)) for field in ("subject", "prompt", "variant")}
    return {
        "version": 1,
        "title": "spring.yaml",
        "made": "2026-11-27T06:30:00+00:00",
        "client": False,
        "subjects": [{"id": name, "crop": "crop.png", "labels": {"city": "Oslo"}} for name in names["subject"]],
        "prompts": [{"id": name, "text": f"A {{person}}, {name}"} for name in names["prompt"]],
        "variants": names["variant"],
        "counts": {},
        "shots": shots,
        "timings": [{"stage": "denoise", "shots": len(shots), "median": 1.2, "total": 5.0}],
    } | changes


def grid() -> list[dict[str, Any]]:
    """Two subjects and three prompts; one shot has failed, one cell has two takes."""
    return [
        shot("ada", "beach", scores={"identity": 0.7}),
        shot("ada", "beach", 2, scores={"identity": 0.4}),
        shot("ada", "kitchen", scores={"identity": 0.6}),
        shot("ada", "snow", variant="fast"),
        shot("bertil", "beach", scores={"identity": 0.9}),
        failed(subject="bertil", prompt="kitchen"),
        shot("bertil", "snow"),
    ]


def shown(
    browser: Chromium,
    media: Path,
    data: dict[str, Any],
    name: str,
    *,
    hash_: str = "",
    width: int = 1440,
    dark: bool = False,
) -> None:
    """Writes a page with the data, and opens it. Pages of one name share their verdicts."""
    written = json.dumps(data).replace("<", "\\u003c")
    path = media / f"{name}.html"
    path.write_text(TEMPLATE.read_text().replace(SLOT, SLOT.replace("{}", written)))
    browser.open(f"{path.as_uri()}{hash_}", width=width, dark=dark)
    browser.wait("document.documentElement.dataset.ready === 'true'")


def visible(browser: Chromium) -> list[str]:
    """Returns the names of the visible shots in order."""
    tiles: list[str] = browser.evaluate(
        "[...document.querySelectorAll('.tile')].filter(t => t.offsetParent).map(t => t.querySelector('.what').title)"
    )
    return tiles


def tile(browser: Chromium, name: str) -> str:
    """Returns a selector of a shot's tile."""
    index = browser.evaluate(
        "[...document.querySelectorAll('.tile')]"
        f".find(t => t.querySelector('.what').title === {json.dumps(name)}).dataset.i"
    )
    return f".tile[data-i='{index}']"


def focus(browser: Chromium, name: str) -> None:
    browser.evaluate(f'document.querySelector("{tile(browser, name)}").focus()')


def focused(browser: Chromium) -> str:
    name: str = browser.evaluate("(document.activeElement.querySelector('.what') || {title: ''}).title")
    return name


def choose(browser: Chromium, selector: str, value: str) -> None:
    """Sets a field, and tells the page as a user's change does."""
    browser.evaluate(
        f"(() => {{ const field = document.querySelector('{selector}'); field.value = {json.dumps(value)};"
        " for (const type of ['input', 'change']) field.dispatchEvent(new Event(type, {bubbles: true})); })()"
    )


def review(browser: Chromium) -> list[list[str]]:
    """Returns the lines of the exported table without the head."""
    lines = list(csv.reader(io.StringIO(browser.evaluate("reviewCsv()"), newline="")))
    assert lines[0] == ["shot", "subject", "prompt", "variant", "take", "seed", "verdict"]
    return lines[1:]


def test_the_template_has_one_slot_and_loads_nothing() -> None:
    text = TEMPLATE.read_text()
    assert text.count(SLOT) == 1
    assert "innerHTML" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_tile_for_every_shot(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid(), counts={"done": 6, "failed": 1}), "tiles")
    assert visible(browser) == [one["name"] for one in grid()]
    assert browser.evaluate("[...document.querySelectorAll('.rowhead h3')].map(e => e.textContent)") == [
        "ada",
        "bertil",
    ]
    heads = browser.evaluate("[...document.querySelectorAll('.col b')].map(e => e.textContent)")
    assert heads == ["beach", "kitchen", "snow"]
    assert browser.evaluate("[...document.querySelectorAll('.chip')].map(e => e.textContent)") == ["6done", "1failed"]
    assert browser.evaluate("document.title") == "spring.yaml"
    lost = browser.evaluate("document.querySelector('#failures tbody').innerText")
    assert "bertil/kitchen-t01" in lost
    assert "out of memory" in lost
    assert browser.evaluate("document.querySelector('#failures a').getAttribute('href')") == "./logs/a%20b.log"
    assert "denoise" in browser.evaluate("document.querySelector('#timings tbody').innerText")
    assert "out of memory" in browser.evaluate(
        f'document.querySelector("{tile(browser, "bertil/kitchen-t01")}").innerText'
    )


def test_an_empty_report_says_so(browser: Chromium, media: Path) -> None:
    shown(browser, media, {}, "empty")
    assert "This report has no shots." in browser.evaluate("document.body.innerText")
    assert not browser.evaluate("!!document.querySelector('#failures').offsetParent")


def test_missing_keys_are_tolerated(browser: Chromium, media: Path) -> None:
    bare = [{"name": "a", "subject": "s", "prompt": "p"}, {"name": "b", "subject": "t", "prompt": "p", "poster": None}]
    shown(browser, media, {"client": True, "shots": bare, "subjects": None, "prompts": [{"id": "p"}]}, "bare")
    assert visible(browser) == ["a", "b"]
    browser.click(tile(browser, "a"))
    assert "This shot has no video yet." in browser.evaluate("document.querySelector('#detail').innerText")


def rests(browser: Chromium, strip: str) -> bool:
    """Returns whether a strip shows its middle frame, and still does so after more than two steps."""
    browser.wait(f"{strip}.dataset.frame === '{FRAMES // 2}'")
    later = browser.evaluate(f"new Promise(go => setTimeout(() => go({strip}.dataset.frame), 450))")
    return bool(later == str(FRAMES // 2))


def test_the_poster_steps_while_the_mouse_is_over_it(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "hover")
    strip = f'document.querySelector("{tile(browser, "ada/beach-t01")} .strip")'
    browser.wait(f"{strip}.complete && {strip}.naturalWidth === {64 * FRAMES}")
    box = browser.evaluate(f"[{strip}.getBoundingClientRect().width, {strip}.parentElement.clientWidth]")
    assert box[0] == pytest.approx(FRAMES * box[1], abs=1)
    assert browser.evaluate(f"{strip}.dataset.frame") == str(FRAMES // 2)
    browser.hover(f"{tile(browser, 'ada/beach-t01')} .poster")
    assert browser.evaluate(f"{strip}.dataset.frame") in ("0", "1")
    browser.wait(f"{strip}.dataset.frame === '3'")
    shift = browser.evaluate(
        f"{strip}.parentElement.getBoundingClientRect().left - {strip}.getBoundingClientRect().left"
    )
    assert shift == pytest.approx(int(browser.evaluate(f"{strip}.dataset.frame")) * box[1], abs=box[1] + 1)
    browser.hover("#title")
    assert rests(browser, strip)
    focus(browser, "ada/beach-t01")
    browser.wait(f"{strip}.dataset.frame === '2'")
    focus(browser, "ada/beach-t02")
    assert rests(browser, strip)


def test_filters_hide_shots_rows_and_columns(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "filters")
    choose(browser, "#search", "BERTIL snow")
    assert visible(browser) == ["bertil/snow-t01"]
    assert browser.evaluate("[...document.querySelectorAll('.row')].map(e => e.hidden)") == [True, False]
    assert browser.evaluate("[...document.querySelectorAll('.col')].map(e => e.hidden)") == [True, True, False]
    choose(browser, "#search", "nobody")
    assert visible(browser) == []
    assert "No shot matches the filters." in browser.evaluate("document.body.innerText")
    browser.click("#blank-clear")
    assert len(visible(browser)) == 7
    choose(browser, "#f-subject", "=bertil")
    choose(browser, "#f-prompt", "=beach")
    assert visible(browser) == ["bertil/beach-t01"]
    browser.click("#clear")
    choose(browser, "#f-variant", "=fast")
    assert visible(browser) == ["ada/snow-t01-fast"]
    choose(browser, "#f-variant", "=")
    assert len(visible(browser)) == 6
    browser.click("#clear")
    browser.click(".chip[data-state=failed]")
    assert visible(browser) == ["bertil/kitchen-t01"]
    browser.click(".chip[data-state=failed]")
    choose(browser, "#min", "0.65")
    assert visible(browser) == ["ada/beach-t01", "bertil/beach-t01"]
    choose(browser, "#min", "")
    focus(browser, "ada/kitchen-t01")
    browser.key("p")
    choose(browser, "#f-verdict", "=picked")
    assert visible(browser) == ["ada/kitchen-t01"]
    choose(browser, "#f-verdict", "=unreviewed")
    assert len(visible(browser)) == 6


def test_the_best_score_comes_first_on_request(browser: Chromium, media: Path) -> None:
    shots = [shot(take=take, scores={"identity": value}) for take, value in ((1, 0.4), (2, 0.9), (3, 0.7))]
    shown(browser, media, report(shots), "best")
    browser.click("#sort")
    assert visible(browser) == ["ada/beach-t02", "ada/beach-t03", "ada/beach-t01"]
    browser.click("#sort")
    assert visible(browser) == ["ada/beach-t01", "ada/beach-t02", "ada/beach-t03"]


def test_a_link_keeps_the_filters(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "link")
    choose(browser, "#search", "beach")
    choose(browser, "#f-subject", "=ada")
    link = browser.evaluate("location.hash")
    assert link == "#q=beach&subject=ada"
    shown(browser, media, report(grid()), "link", hash_=link)
    assert visible(browser) == ["ada/beach-t01", "ada/beach-t02"]
    assert browser.evaluate("document.querySelector('#search').value") == "beach"
    browser.click("#clear")
    assert browser.evaluate("location.hash") == ""
    assert len(visible(browser)) == 7


def test_a_verdict_under_a_filter_moves_the_focus_on(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "flow", hash_="#verdict=unreviewed")
    focus(browser, "ada/beach-t01")
    browser.key("p")
    assert focused(browser) == "ada/beach-t02"
    browser.key("x")
    assert focused(browser) == "ada/kitchen-t01"
    assert [line[-1] for line in review(browser)] == ["pick", "reject"]


def test_arrows_move_the_focus(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "arrows")
    browser.key("ArrowDown")
    assert focused(browser) == "ada/beach-t01"
    walk = [
        ("ArrowRight", "ada/beach-t02"), ("ArrowRight", "ada/kitchen-t01"), ("ArrowDown", "bertil/kitchen-t01"),
        ("ArrowRight", "bertil/snow-t01"), ("ArrowUp", "ada/snow-t01-fast"), ("ArrowRight", "bertil/beach-t01"),
        ("ArrowLeft", "ada/snow-t01-fast"), ("ArrowUp", "ada/snow-t01-fast"),
    ]  # fmt: skip
    for key, name in walk:
        browser.key(key)
        assert focused(browser) == name
    assert browser.evaluate("document.querySelectorAll('.tile[tabindex=\"0\"]').length") == 1


def test_arrows_in_a_sheet_of_one_subject(browser: Chromium, media: Path) -> None:
    shots = [shot(prompt=f"p{index}") for index in range(41)]
    shown(browser, media, report(shots), "ribbon")
    focus(browser, "ada/p0-t01")
    browser.key("ArrowDown")
    below = focused(browser)
    assert below != "ada/p0-t01"
    lefts = [
        browser.evaluate(f'document.querySelector("{tile(browser, name)}").getBoundingClientRect().left')
        for name in ("ada/p0-t01", below)
    ]
    assert lefts[0] == pytest.approx(lefts[1], abs=1)
    focus(browser, "ada/p40-t01")  # alone on the last line
    browser.key("ArrowRight")
    assert focused(browser) == "ada/p40-t01"
    browser.key("ArrowLeft")
    assert focused(browser) == "ada/p39-t01"


def test_verdicts_and_their_export(browser: Chromium, media: Path) -> None:
    shots = [
        shot(seed=LARGEST_SEED),
        shot(take=2, prompt='a,"b"', take_state="rejected"),
        shot(take=3, take_state="accepted"),
        shot(take=4),
    ]
    shown(browser, media, report(shots), "verdicts")
    assert browser.evaluate("document.querySelector('#summary').textContent") == "1 picked, 1 rejected"
    focus(browser, "ada/beach-t01")
    browser.key("p")
    focus(browser, "ada/beach-t03")
    browser.key("p")  # takes the pick back
    focus(browser, "ada/beach-t04")
    browser.key("p")
    browser.key("x")
    assert review(browser) == [
        ["ada/beach-t01", "ada", "beach", "", "1", LARGEST_SEED, "pick"],
        ['ada/a,"b"-t02', "ada", 'a,"b"', "", "2", "43", "reject"],
        ["ada/beach-t04", "ada", "beach", "", "4", "45", "reject"],
    ]
    assert browser.evaluate("reviewCsv().split('\\r\\n')[2]").startswith('"ada/a,""b""-t02",ada,"a,""b""",')
    assert browser.evaluate("document.querySelector('#summary').textContent") == "1 picked, 2 rejected"
    before = review(browser)
    shown(browser, media, report(shots), "verdicts")
    assert review(browser) == before
    browser.click(f"{tile(browser, 'ada/beach-t01')} .v.reject")
    assert review(browser)[0][-1] == "reject"


def test_the_button_exports_the_table(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(take_state="accepted")]), "export")
    browser.evaluate(
        "(() => { const make = URL.createObjectURL; URL.createObjectURL = blob => (window.saved = blob, make(blob));"
        " HTMLAnchorElement.prototype.click = function () { window.file = this.download; }; })()"
    )
    browser.click("#export")
    assert browser.evaluate("window.file") == "review.csv"
    assert browser.evaluate("window.saved.text()") == browser.evaluate("reviewCsv()")


def test_a_verdict_belongs_to_a_seed(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(seed=LARGEST_SEED), shot(take=2)]), "seeds")
    for name in ("ada/beach-t01", "ada/beach-t02"):
        focus(browser, name)
        browser.key("x")
    other = str(int(LARGEST_SEED) - 1)  # the same double-precision number
    shown(browser, media, report([shot(seed=other), shot(take=2)]), "seeds")
    assert [line[0] for line in review(browser)] == ["ada/beach-t02"]


def test_verdicts_work_without_storage(browser: Chromium, media: Path) -> None:
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }})"
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    try:
        shown(browser, media, report([shot(), shot(take=2)]), "refused")
        focus(browser, "ada/beach-t01")
        browser.key("p")
        assert [line[-1] for line in review(browser)] == ["pick"]
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def test_space_plays_in_place(browser: Chromium, media: Path) -> None:
    shown(browser, media, report(grid()), "space")
    assert browser.evaluate("document.querySelectorAll('video').length") == 0
    focus(browser, "ada/beach-t01")
    browser.key(" ")
    video = f'document.querySelector("{tile(browser, "ada/beach-t01")} video")'
    browser.wait(f"{video} && !{video}.paused && {video}.currentTime > 0")
    assert browser.evaluate(f"[{video}.muted, {video}.loop]") == [True, True]
    browser.key(" ")
    assert browser.evaluate(f"{video}.paused")
    focus(browser, "ada/kitchen-t01")
    browser.key(" ")
    assert browser.evaluate("document.querySelectorAll('video').length") == 1
    browser.key("Escape")
    assert browser.evaluate("document.querySelectorAll('video').length") == 0


def test_the_details_of_a_shot(browser: Chromium, media: Path) -> None:
    rich = shot(
        seed=LARGEST_SEED,
        settings={"sampling": {"steps": 30, "sizes": [1, 2]}, "off": None},
        seconds={"denoise": 160.2, "total": 164.0},
        history=[{"seed": "41", "state": "rejected", "time": "2026-11-26T22:00:00+00:00"}],
        warnings=["the face is small"],
        made_by="Ulysses 2 on NVIDIA H200",
    )
    shown(browser, media, report([rich, shot(take=2), failed(take=3)]), "details")
    focus(browser, "ada/beach-t01")
    browser.key("Enter")
    words = browser.evaluate("document.querySelector('#d-info').innerText")
    for line in (
        "sampling.steps\t30",
        "sampling.sizes\t1, 2",
        "off\tnone",
        "denoise\t2 min 40 s",
        f"seed\t{LARGEST_SEED}",
    ):
        assert line in words
    for word in ("A woman, beach", "Ulysses 2 on NVIDIA H200", "the face is small", "rejected"):
        assert word in words
    browser.wait("document.querySelector('#d-stage video').readyState >= 2")
    browser.key("p")
    assert browser.evaluate("document.querySelector('#d-pick').getAttribute('aria-pressed')") == "true"
    browser.key("ArrowRight")
    assert browser.evaluate("document.querySelector('#d-name').textContent") == "ada/beach-t02"
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert browser.evaluate("document.querySelector('#d-name').textContent") == "ada/beach-t03"
    assert "out of memory" in browser.evaluate("document.querySelector('#d-info').innerText")
    browser.key("ArrowLeft")
    browser.key("Escape")
    assert not browser.evaluate("document.querySelector('#detail').open")
    # The browser first restores the old focus. The page moves it in the event that follows.
    browser.wait("(document.activeElement.querySelector('.what') || {title: ''}).title === 'ada/beach-t02'")
    assert [line[0] for line in review(browser)] == ["ada/beach-t01"]


def test_a_video_that_cannot_play_shows_its_poster(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(video="broken.mp4"), shot(take=2)]), "broken")
    browser.click(tile(browser, "ada/beach-t01"))
    browser.wait("document.querySelector('#d-stage').innerText.includes('This browser cannot play this file')")
    assert "broken.mp4" in browser.evaluate("document.querySelector('#d-stage').innerText")
    assert browser.evaluate("document.querySelectorAll('#d-stage .strip').length") == FRAMES


def test_paths_may_be_percent_encoded_or_not(browser: Chromium, media: Path) -> None:
    names = {
        "a b.jpg": "a%20b.jpg",
        "a%20b.jpg": "a%20b.jpg",
        "100%/#?.jpg": "100%25/%23%3F.jpg",
        "ü.jpg": "%C3%BC.jpg",
    }
    shots = [shot(take=take, poster=name) for take, name in enumerate(names, 1)]
    for name in ("a b.jpg", "ü.jpg", "100%/#?.jpg"):
        (media / name).parent.mkdir(exist_ok=True)
        (media / name).write_bytes((media / "poster.jpg").read_bytes())
    shown(browser, media, report(shots), "paths")
    browser.wait("document.querySelectorAll('.strip').length === 4")
    sources = browser.evaluate("[...document.querySelectorAll('.strip')].map(e => e.getAttribute('src'))")
    assert sources == [f"./{name}" for name in names.values()]
    browser.wait("[...document.querySelectorAll('.strip')].every(e => e.complete && e.naturalWidth)")


def frames(browser: Chromium) -> list[float]:
    """Returns the times of the compared videos once no video seeks."""
    browser.wait("[...document.querySelectorAll('#videos video')].every(v => v.readyState >= 2 && !v.seeking)")
    times: list[float] = browser.evaluate("[...document.querySelectorAll('#videos video')].map(v => v.currentTime)")
    return times


def compared(browser: Chromium, media: Path, name: str) -> None:
    shown(browser, media, report([shot(take=take) for take in (1, 2, 3, 4)]), name)
    for take in (1, 2):
        focus(browser, f"ada/beach-t{take:02d}")
        browser.key("c")
    browser.hover(f"{tile(browser, 'ada/beach-t03')} .poster")
    browser.click(f"{tile(browser, 'ada/beach-t03')} .sel input")
    assert browser.evaluate("document.querySelector('#tray-count').textContent") == "3 selected"
    browser.click("#tray-open")
    assert browser.evaluate("document.querySelectorAll('#videos video').length") == 3


def test_compared_videos_step_together(browser: Chromium, media: Path) -> None:
    compared(browser, media, "compare")
    names = browser.evaluate("[...document.querySelectorAll('.pane .what')].map(e => e.textContent)")
    assert names == ["ada/beach-t01", "ada/beach-t02", "ada/beach-t03"]
    for keys, frame in (("", 0), ("...", 3), (",", 2), (",,,", 15), (".", 0)):
        for key in keys:
            browser.key(key)
        assert frames(browser) == pytest.approx([(frame + 0.5) / 16] * 3, abs=1e-3)
        assert browser.evaluate("document.querySelector('#c-frame').textContent") == f"Frame {frame} of 15"
    choose(browser, "#scrub", "9")
    assert frames(browser) == pytest.approx([9.5 / 16] * 3, abs=1e-3)
    browser.key("Escape")
    assert not browser.evaluate("document.querySelector('#compare').open")
    browser.click("#tray-clear")
    assert browser.evaluate("document.querySelectorAll('.sel :checked').length") == 0


def test_compared_videos_play_and_loop_together(browser: Chromium, media: Path) -> None:
    compared(browser, media, "loop")
    frames(browser)
    browser.evaluate(
        "(() => { window.loops = 0; let last = 0; const frame = () => Number(document.querySelector('#scrub').value);"
        " new MutationObserver(() => { if (frame() < last) window.loops += 1; last = frame(); })"
        ".observe(document.querySelector('#c-frame'), {childList: true, characterData: true, subtree: true}); })()"
    )
    browser.key(" ")
    browser.wait("[...document.querySelectorAll('#videos video')].every(v => !v.paused)")
    browser.wait("window.loops >= 2 && Number(document.querySelector('#scrub').value) > 2")
    browser.key(" ")
    times = frames(browser)
    frame = int(browser.evaluate("document.querySelector('#scrub').value"))
    assert times == pytest.approx([(frame + 0.5) / 16] * 3, abs=1e-3)
    assert browser.evaluate("[...document.querySelectorAll('#videos video')].every(v => v.paused)")
    browser.click("#speeds .btn")
    assert browser.evaluate("[...document.querySelectorAll('#videos video')].map(v => v.playbackRate)") == [0.25] * 3


def test_at_most_nine_videos_are_compared(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(take=take) for take in range(1, 12)]), "nine")
    for take in range(1, 12):
        focus(browser, f"ada/beach-t{take:02d}")
        browser.key("c")
    assert browser.evaluate("document.querySelector('#tray-count').textContent") == "9 selected"
    assert browser.evaluate("document.querySelectorAll('.sel :checked').length") == 9


def test_keys_in_the_search_only_type(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(subject="pxc", take=take) for take in (1, 2)]), "typing")
    browser.key("ArrowRight")
    browser.key("/")
    for key in "pxc":
        browser.key(key)
    assert browser.evaluate("document.querySelector('#search').value") == "pxc"
    browser.key("?")
    browser.key(" ")
    assert browser.evaluate("document.querySelector('#search').value") == "pxc? "
    assert review(browser) == []
    assert browser.evaluate("document.querySelectorAll('dialog[open], .compared, video').length") == 0


def test_keys_with_control_do_nothing(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot(), shot(take=2)]), "control")
    focus(browser, "ada/beach-t01")
    for modifiers in (1, 2, 4):
        for key in "xc":
            browser.key(key, modifiers)
    assert review(browser) == []
    assert browser.evaluate("document.querySelectorAll('.compared').length") == 0


def test_help_lists_the_keys(browser: Chromium, media: Path) -> None:
    shown(browser, media, report([shot()]), "help")
    browser.key("?")
    assert "Reject" in browser.evaluate("document.querySelector('#help[open]').innerText")
    browser.key("Escape")
    assert not browser.evaluate("document.querySelector('#help').open")


def test_hostile_names_are_text(browser: Chromium, media: Path) -> None:
    hostile = shot(
        HOSTILE, HOSTILE_TEXT, text=HOSTILE_TEXT, variant=HOSTILE, made_by=HOSTILE, scores={HOSTILE: 0.5},
        settings={HOSTILE: {"__proto__": HOSTILE_TEXT}}, warnings=[HOSTILE], seconds={HOSTILE: 1.0},
        history=[{"seed": HOSTILE, "state": HOSTILE, "time": HOSTILE}], video="javascript:window.broken=3",
    )  # fmt: skip
    lost = failed(subject="__proto__", prompt="constructor", reason=HOSTILE_TEXT, logs="javascript:window.broken=4")
    odd = shot(subject="//example.org/x", state=HOSTILE, take_state=HOSTILE, poster="//example.org/x.jpg")
    data = report([hostile, lost, odd], title=HOSTILE_TEXT, timings=[{"stage": HOSTILE, "shots": 1, "total": 1.0}])
    data["subjects"][0]["labels"] = {HOSTILE: HOSTILE_TEXT}
    shown(browser, media, data, "hostile")
    assert visible(browser) == [one["name"] for one in (hostile, lost, odd)]
    assert browser.evaluate("document.querySelector('#title').textContent") == HOSTILE_TEXT
    assert browser.evaluate("document.querySelector('.rowhead h3').textContent") == HOSTILE
    assert browser.evaluate("document.querySelector('.col b').textContent") == HOSTILE_TEXT
    browser.click("#rows .tile")
    words = browser.evaluate("document.querySelector('#detail').textContent")
    assert HOSTILE in words
    assert HOSTILE_TEXT in words
    addresses = browser.evaluate("[...document.querySelectorAll('[src], a[href]')].map(e => e.src || e.href)")
    assert all(one.startswith(("file:///", "data:")) for one in addresses)
    assert browser.evaluate("document.querySelectorAll('img[onerror], #sheet b b').length") == 0
    assert browser.evaluate("typeof window.broken") == "undefined"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1440, 2560])
def test_the_body_never_scrolls_sideways(browser: Chromium, media: Path, width: int, dark: bool) -> None:
    long = [shot(subject="x" * 80, prompt="y" * 80), failed(subject="x" * 80, prompt="z", reason="r" * 300)]
    shots = [*grid(), *long, *(shot(prompt=f"p{index}") for index in range(12))]
    shown(browser, media, report(shots, title="t" * 200), "wide", width=width, dark=dark)
    widths = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert browser.evaluate(widths) == [width, width]
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 100) is dark
    browser.evaluate("document.querySelector('.tile').scrollIntoView()")
    browser.click("#rows .tile .what")
    assert browser.evaluate(widths) == [width, width]
    assert browser.evaluate(
        "document.querySelector('#detail').scrollWidth <= document.querySelector('#detail').clientWidth"
    )
    browser.key("Escape")
