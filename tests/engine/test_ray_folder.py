"""Where a Ray of our own has its folder, and what lies in it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from lynx_parallel.engine import ray_folder as ours
from lynx_parallel.engine.ray_folder import MAX_PARENT_BYTES, keep_logs, make_token, object_store_folder, ray_folder
from lynx_parallel.errors import ClusterError


@pytest.fixture
def short() -> Path:
    """A folder with a path that is short enough for sockets; pytest's own are not."""
    return Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))


def test_tmpdir_is_respected_and_nothing_stays(monkeypatch: pytest.MonkeyPatch, short: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    with ray_folder(tmp_path) as folder:
        assert folder.parent == short
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "session").mkdir()
    assert list(short.iterdir()) == []


@pytest.mark.parametrize("what", ["too long", "missing", "a file"])
def test_a_tmpdir_that_does_not_do_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, short: Path, tmp_path: Path, what: str
) -> None:
    place = short / ("x" * MAX_PARENT_BYTES if what == "too long" else "x")
    if what != "missing":
        place.mkdir() if what == "too long" else place.touch()
    monkeypatch.setenv("TMPDIR", str(place))
    with ray_folder(tmp_path) as folder:
        assert folder.parent == Path("/tmp")


def test_without_any_folder_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ours, "_parents", lambda private: [str(tmp_path / ("x" * 200)), "/proc"])
    with pytest.raises(
        ClusterError, match=r"Ray needs a folder for its sockets: none of .*/proc can be written"
    ) as one:
        ray_folder(tmp_path).__enter__()
    assert str(one.value).endswith("Set TMPDIR to such a folder.")


def test_the_longest_folder_leaves_room_for_the_socket() -> None:
    session = "/lynx-ray-abcd1234/session_2026-11-26_06-46-15_537539_4194304/sockets/plasma_store"
    assert MAX_PARENT_BYTES + len(session) == 107


def test_the_token_is_readable_by_us_alone_unless_the_user_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    make_token(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    make_token(tmp_path)
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert path == tmp_path / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) == 64


def test_the_object_store_goes_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared, folder = tmp_path / "shm", tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(ours, "SHARED_MEMORY", shared)
    assert object_store_folder(folder, tmp_path, 1) == folder  # no shared memory at all
    shared.mkdir()
    assert object_store_folder(folder, tmp_path, 1) == shared
    assert object_store_folder(folder, tmp_path, 2**80) == folder  # room nowhere: Ray says so


def test_the_logs_of_a_ray_that_failed_are_kept(tmp_path: Path) -> None:
    logs = tmp_path / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text("a" * 100_000 + "Address already in use")
    (logs / "raylet.err").write_text("")
    keep_logs(tmp_path, tmp_path / "ray.log")
    kept = (tmp_path / "ray.log").read_text()
    assert kept.startswith("\n=== gcs_server.out ===\na")
    assert kept.endswith("Address already in use")
    assert len(kept) < 70_000
    assert "raylet" not in kept


def test_temporary_files_go_there_if_the_system_has_no_other_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.chdir(tmp_path)
    for found in (str(tmp_path), "/var/tmp"):  # what tempfile falls back to, and what it usually finds
        monkeypatch.setattr(tempfile, "tempdir", found)
        with ray_folder(tmp_path) as folder:
            assert tempfile.gettempdir() == (str(folder) if found == str(tmp_path) else found)
            assert os.environ.get("TMPDIR") == (str(folder) if found == str(tmp_path) else None)
        assert tempfile.gettempdir() == found
        assert "TMPDIR" not in os.environ
