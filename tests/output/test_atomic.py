"""Atomic writes and digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.output.atomic import atomic_write, part_path, publish
from lynx_parallel.output.checksums import digest, sha256_file


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_write(target) as part:
        part.write_text("one")
        assert not target.exists()
        assert part.parent == tmp_path
        assert part.name.endswith(".part")
    assert target.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_no_trace(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    target = tmp_path / "a.json"
    if old:
        target.write_text(old)

    def broken_off() -> None:
        with atomic_write(target) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        broken_off()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"a.json": old} if old else {})


def test_an_exception_before_anything_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_write(tmp_path / "a"):
        raise ValueError
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        pass
    assert not os.listdir(tmp_path)


def test_a_reader_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with target.open() as reader, atomic_write(target) as part:
        part.write_text("new")
        publish(part, target)
        part.write_text("newer")
        assert reader.read() == "old"
    assert target.read_text() == "newer"


def test_content_is_on_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    names: dict[int, str] = {}
    real_open, real_replace = os.open, os.replace

    def open_(path: Any, *arguments: Any) -> int:
        descriptor = real_open(path, *arguments)
        names[descriptor] = Path(path).name
        return descriptor

    def replace(source: Any, target: Any) -> None:
        steps.append("replace")
        real_replace(source, target)

    (tmp_path / "a.part").write_text("x")
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(f"fsync {names[descriptor]}"))
    monkeypatch.setattr(os, "replace", replace)
    publish(tmp_path / "a.part", tmp_path / "a")
    assert steps == ["fsync a.part", "replace", f"fsync {tmp_path.name}"]


def test_part_path() -> None:
    assert part_path(Path("x/ada/walk-t01.mp4")) == Path("x/ada/walk-t01.mp4.1.part")


PINNED = {
    "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a": {},
    "12da9c8290aba28b34d687443e42c04b87af1bbdb06749c9a9bf77bae544aa49": {
        "seed": 2**63 - 1, "scale": 5.0, "tiny": 1e-7, "third": 1 / 3, "none": None, "yes": True,
        "prompt": "Ada läuft, 走 🙂", "points": [[1.0, 2.5]],
    },
}  # fmt: skip


def test_digests_never_change() -> None:
    """Every sidecar in the world holds such numbers: a new one would render all campaigns again."""
    assert {digest(value): value for value in PINNED.values()} == PINNED


def test_a_digest_does_not_depend_on_order_or_form() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest([1, 2]) == digest((1, 2))
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": "1"}) != digest({"a": 1})
    assert digest({"a": 1.0}) != digest({"a": 1})
    assert digest({"a": None}) != digest({})
    assert digest("\u00e9") != digest("e\u0301")  # one sign or two: another prompt
    assert digest({"x": 1}) == hashlib.sha256(b'{"x":1}').hexdigest()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_digest(value: float) -> None:
    with pytest.raises(ValueError):
        digest({"scale": value})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé走\0\n"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
    max_leaves=8,
)


@given(values)
def test_a_digest_survives_a_file(value: Any) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value)


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"LYNX_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"LYNX_CACHE": "~/c"}, "/home/ada/c"),
        ({"LYNX_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/lynx-parallel"),
        ({"XDG_CACHE_HOME": "x"}, "/home/ada/.cache/lynx-parallel"),
        ({}, "/home/ada/.cache/lynx-parallel"),
    ],
)
def test_cache_root(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for name in ("LYNX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(folder)
