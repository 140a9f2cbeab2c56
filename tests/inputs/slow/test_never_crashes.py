"""Whatever the files hold: a campaign, or InputErrors whose lines say where."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.pipeline_files import load_pipeline

WHERE = re.compile(r"(m\.yaml|lite\.yaml|p\.yaml|t\.csv|t\.xlsx)(:\d+)?: .|--(set|only) .")
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

MANIFEST: dict[str, Any] = {
    "version": 1,
    "pipeline": "lite.yaml",
    "output": "out",
    "sampling": {"seed": 1, "width": 64, "guidance_scale_i": None},
    "subjects": {
        "ada": {
            "image": "faces/ada.jpg",
            "embedding": "faces/ada.npy",
            "landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]],
            "vars": {"person": "woman"},
            "sampling": {"fps": 8},
            "consent": {"ref": "r", "scope": "s", "expires": "2027-01-31"},
            "labels": {"a": 1, "b": "c"},
        },
        "bob": {"embedding": "faces/bob.npy", "vars": {"person": "man"}},
    },
    "prompts": {"walk": "A {person} walks.", "run": {"text": "A {person}.", "sampling": {"num_frames": 5}}},
    "shots": [
        {"subject": "ada", "prompt": "walk", "seeds": [1, 2]},
        {"subject": "*", "prompt": ["run"], "takes": 2, "priority": 3, "sampling": {"ip_scale": 0.5}},
    ],
    "save_latents": True,
    "name": "{subject}/{prompt}-t{take:02}",
}
PIPELINE: dict[str, Any] = {
    "version": 1,
    "model": {
        "base": "demo:tiny",
        "adapters": {"resampler": "demo:lite", "id": {"file": "demo:lite", "license": "x"}},
        "dtype": "float32",
    },
    "sampling": {"width": 64, "height": 48, "num_frames": 9, "negative_prompt": "x"},
    "video": {"container": "mp4", "codec": "h264", "crf": 18},
}

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["{", "}", "{person.x}", "{seed}", "{take:{take}}", "../x", "/", "~", "~nobody/x", "*", "", ".", "faces",
         "a\0b", "x" * 5000, "hub:a/b/c", "demo:x", 10**400, -(10**30), 2**63, "faces/*", "faces/[", "9" * 5000]
    ),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.just({"from": "t.csv"}),
    st.just({"from": "faces/*.jpg"}),
    st.just({"from": "people.csv", "vars": {"person": "x"}}),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in places(data) if p]))
        parent = data
        for part in path[:-1]:
            parent = parent[part]
        what = draw(st.sampled_from(["drop", "replace", "rename"]))
        if what == "drop":
            del parent[path[-1]]
        elif what == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(path[-1])
        else:
            parent[path[-1]] = copy.deepcopy(draw(ODD))  # a later mutation may change it
        if not data:
            break
    return data


def check(run: Any) -> None:
    lines = None
    try:
        run()
    except InputErrors as errors:
        lines = errors.lines
    assert lines != []
    for line in lines or []:
        assert WHERE.match(line), line
        assert len(line.splitlines()) == 1, line
        assert len(line) < 3000
        line.encode()


def dump(file: Path, data: Any) -> None:
    file.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), errors="surrogatepass")


@pytest.fixture(autouse=True)
def _table(folder: Path) -> None:
    (folder / "t.csv").write_text("subject,prompt\nada,walk\n")
    (folder / "people.csv").write_text("id,embedding\nada,faces/ada.npy\nbob,faces/bob.npy\n")


def test_the_original_is_right(folder: Path) -> None:
    dump(folder / "m.yaml", MANIFEST)
    dump(folder / "lite.yaml", PIPELINE)
    assert len(load_campaign("m.yaml").shots) == 6


@QUICK
@given(mutated(MANIFEST))
def test_mutated_manifests(folder: Path, data: dict[str, Any]) -> None:
    dump(folder / "m.yaml", data)
    check(lambda: load_campaign("m.yaml"))


@QUICK
@given(mutated(PIPELINE))
def test_mutated_pipelines(folder: Path, data: dict[str, Any]) -> None:
    dump(folder / "p.yaml", data)
    check(lambda: load_pipeline("p.yaml"))


@QUICK
@given(st.one_of(st.binary(max_size=200), st.text("{}[]:,-&*!|>'\"%@`#? \n\tab1.<", max_size=60).map(str.encode)))
def test_random_bytes(folder: Path, content: bytes) -> None:
    (folder / "m.yaml").write_bytes(content)
    check(lambda: load_campaign("m.yaml"))
    check(lambda: load_pipeline("m.yaml"))


@QUICK
@given(st.one_of(st.binary(max_size=200), st.text('subject,prom_text"\n\r*adwlk01{}', max_size=80).map(str.encode)))
def test_random_tables(folder: Path, content: bytes) -> None:
    dump(folder / "m.yaml", {**MANIFEST, "shots": {"from": "t.csv"}})
    for head in (b"", b"subject,prompt_text,seed,sampling.fps\n"):
        (folder / "t.csv").write_bytes(head + content)
        check(lambda: load_campaign("m.yaml"))


CELLS = st.lists(
    st.lists(
        st.text('ada.npyjg/{}|"\'\r\n\t,;=#*1é\ufeff', max_size=8)
        | st.sampled_from(["id", "image", "embedding", "face", "landmarks", "vars.person", "labels.x", "consent.ref",
                           "consent.expires", "sampling.fps", "subject", "prompt", "prompt_text", "_x", "note", "",
                           "ada", "faces/ada.npy", "faces/ada.jpg", "walk", "sep=;", "2027-01-31"]),
        max_size=5,
    ),
    max_size=5,
)  # fmt: skip


@QUICK
@given(CELLS, st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.booleans())
def test_random_cells(folder: Path, cells: list[list[str]], separator: str, encoding: str, quoted: bool) -> None:
    quote = '"' if quoted else ""
    rows = [separator.join(quote + cell + quote for cell in row) for row in cells]
    (folder / "t.csv").write_bytes("\r\n".join(rows).encode(encoding, "replace"))
    for section in ("shots", "subjects"):
        dump(folder / "m.yaml", {**MANIFEST, section: {"from": "t.csv"}})
        check(lambda: load_campaign("m.yaml"))


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text("ada/{}|=#é", max_size=8)


@example([], 2352, b"\0")  # the compressed cells are damaged
@settings(QUICK, max_examples=50)
@given(st.lists(st.lists(VALUES, max_size=4), max_size=4), st.integers(0, 6000), st.binary(max_size=3))
def test_random_workbooks(folder: Path, cells: list[list[Any]], place: int, damage: bytes) -> None:
    book = openpyxl.Workbook()
    for row in [["id", "embedding", "vars.person", "face"], *cells]:
        book.active.append(row)
    book.save(folder / "t.xlsx")
    content = (folder / "t.xlsx").read_bytes()
    (folder / "t.xlsx").write_bytes(content[:place] + damage + content[place + len(damage) :])
    for section in ("shots", "subjects"):
        dump(folder / "m.yaml", {**MANIFEST, section: {"from": "t.xlsx"}})
        check(lambda: load_campaign("m.yaml"))


@QUICK
@given(st.text("faces/*?[]!.jpgadb~{}\0é", max_size=12))
def test_random_patterns(folder: Path, pattern: str) -> None:
    pattern = "./" + pattern.replace("..", "")  # not the whole disk
    dump(folder / "m.yaml", {**MANIFEST, "subjects": {"from": pattern}})
    check(lambda: load_campaign("m.yaml"))


@QUICK
@given(st.lists(st.text(max_size=20) | st.sampled_from(["sampling.seed=1", "output=x"]), max_size=3), st.text())
def test_random_options(folder: Path, overrides: list[str], only: str) -> None:
    dump(folder / "m.yaml", MANIFEST)
    check(lambda: load_campaign("m.yaml", overrides, [only]))
