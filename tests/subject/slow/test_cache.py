"""The cache of face data: what was put comes back exactly or not at all, for its owner alone, and can be forgotten."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.subject.cache import STALE_PART_S, SubjectCache, faces

KEYS = [f"{number:064x}" for number in range(10)]
A, B, C, D = KEYS[:4]
OUT = Path("/nowhere/out")

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays_of(seed: int = 0) -> Arrays:
    """What one picture yields, at its true shapes."""
    random_ = np.random.default_rng(seed)
    return {
        "embedding": random_.standard_normal(512).astype(np.float32),
        "landmarks": random_.uniform(0, 500, (5, 2)),
        "id_crop": random_.integers(0, 256, (112, 112, 3), dtype=np.uint8),
        "ref_crop": random_.integers(0, 256, (256, 256, 3), dtype=np.uint8),
        "reference_latent": random_.standard_normal((1, 16, 1, 32, 32)).astype(np.float32),
    }


SMALL: Arrays = {"embedding": np.arange(16, dtype=np.float32), "landmarks": np.ones((5, 2))}
SIZE = 100_000


def one(number: int = 0) -> Arrays:
    """An array of ``SIZE`` bytes; its header adds less than 1000."""
    return {"x": np.full(SIZE, number, np.uint8)}


def same(got: Arrays | None, expected: Arrays) -> bool:
    return (
        got is not None
        and got.keys() == expected.keys()
        and all(
            got[name].dtype == value.dtype and got[name].shape == value.shape and (got[name] == value).all()
            for name, value in expected.items()
        )
    )


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> Iterator[SubjectCache]:
    """A cache that leaves no temporaries and warns in single lines that name a path."""
    cache = SubjectCache(tmp_path / "user" / "subjects", warn=warnings.append)
    yield cache
    assert all(line.count("\n") == 0 and ": " in line for line in warnings)
    if cache.root.is_dir():
        assert not list(cache.root.glob("*.part"))


def entry(cache: SubjectCache, key: str = A) -> Path:
    return cache.root / f"{key}.safetensors"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(cache: SubjectCache) -> list[Path]:
    return sorted(cache.root.iterdir())


def output(tmp_path: Path, name: str, *subjects: str) -> Path:
    """An output folder with crops of these subjects."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for subject in subjects:
        faces(folder, subject).mkdir(parents=True)
        for crop in ("id.png", "ref.png"):
            (faces(folder, subject) / crop).write_bytes(b"png")
    return folder


def test_what_was_put_comes_back(cache: SubjectCache, warnings: list[str]) -> None:
    assert cache.get(A) is None
    assert not cache.root.exists()
    for key, seed in ((A, 1), (B, 2)):
        cache.put(key, arrays_of(seed), subject="ada", output=OUT)
    for found in (cache, SubjectCache(cache.root)):
        assert same(found.get(A), arrays_of(1))
        assert same(found.get(B), arrays_of(2))
        assert found.get(C) is None
    assert (cache.hits, cache.misses) == (2, 2)
    cache.put(A, SMALL, subject="ada", output=OUT)
    assert same(cache.get(A), SMALL)
    assert warnings == []


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5) * np.ones((), np.float32),
        np.zeros((0, 3), np.int64),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::2, ::-1],
        np.array([np.nan, np.inf, -0.0], np.float32),
        np.array([True, False]),
    ],
)
def test_arrays_of_every_kind(cache: SubjectCache, value: Any) -> None:
    cache.put(A, {"x": value}, subject="ada", output=OUT)
    found = cache.get(A)
    assert found is not None
    assert found["x"].dtype == value.dtype
    assert found["x"].shape == np.shape(value)
    assert found["x"].tobytes() == np.asarray(value).tobytes()
    found["x"][...] = 0  # the user's own: torch.from_numpy warns of others
    cache.put(B, {}, subject="ada", output=OUT)
    assert cache.get(B) == {}


def test_an_entry_is_a_plain_safetensors_file(cache: SubjectCache) -> None:
    from safetensors.numpy import load_file

    cache.put(A, arrays_of(), subject="ada", output=OUT)
    assert same(load_file(entry(cache)), arrays_of())


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path))
    assert SubjectCache().root == cache_root() / "subjects" == tmp_path / "subjects"


@pytest.mark.parametrize("key", ["", "../" + A, "a/b", A.replace("0", "x"), "abc", "A" * 64, A + "\n", "0" * 200])
def test_a_key_is_a_digest(cache: SubjectCache, key: str) -> None:
    for use in (
        lambda: cache.get(key),
        lambda: cache.put(key, SMALL, subject="ada", output=OUT),
        lambda: cache.refer(key, subject="ada", output=OUT),
    ):
        with pytest.raises(ValueError, match="hex digest"):
            use()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_modes_under_any_umask(cache: SubjectCache, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache.root.parent.mkdir(mode=0o755)
        cache.root.parent.chmod(0o755)
        cache.put(A, SMALL, subject="ada", output=OUT)
        cache.refer(A, subject="bob", output=OUT)
        assert same(cache.get(A), SMALL)
    finally:
        os.umask(before)
    assert mode(cache.root) == 0o700
    assert [mode(path) for path in files(cache)] == [0o600] * 3


@pytest.mark.parametrize("use", ["get", "put", "refer", "forget"])
def test_a_wider_folder_is_closed(cache: SubjectCache, use: str) -> None:
    cache.put(A, SMALL, subject="ada", output=OUT)
    cache.root.chmod(0o777)
    for path in files(cache):
        path.chmod(0o666)
    {
        "get": lambda: cache.get(B),
        "put": lambda: cache.put(B, SMALL, subject="ada", output=OUT),
        "refer": lambda: cache.refer(A, subject="bob", output=OUT),
        "forget": lambda: cache.forget(["eva"]),
    }[use]()
    assert mode(cache.root) == 0o700
    assert {mode(path) for path in files(cache)} == {0o600}


def test_a_folder_that_cannot_be_closed_is_not_used(
    cache: SubjectCache, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's: they could read the data, or plant another face."""
    cache.put(A, SMALL, subject="ada", output=OUT)
    cache.root.chmod(0o777)

    def not_ours(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = files(cache)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", not_ours)
        patch.setattr(os, "geteuid", lambda: cache.root.stat().st_uid + 1)
        assert cache.get(A) is None
        cache.put(B, SMALL, subject="ada", output=OUT)
        with pytest.raises(PermissionError):
            cache.forget(["ada"])
    assert files(cache) == before
    assert len(warnings) == 2
    assert all("Operation not permitted" in line for line in warnings)


@pytest.mark.parametrize("refused", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_permissions_costs_one_warning(
    cache: SubjectCache, warnings: list[str], monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """FAT, SMB or FUSE: the cache works, one warning names the folder that others can read."""
    cache.root.mkdir(parents=True)
    cache.root.chmod(0o755)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    cache.put(A, SMALL, subject="ada", output=OUT)
    cache.refer(A, subject="bob", output=OUT)
    assert same(cache.get(A), SMALL)
    assert warnings == [
        f"{cache.root}: cannot be closed to others: {os.strerror(refused)}. Its file system decides who can read "
        "the face data. Set LYNX_CACHE to a folder on another file system."
    ]


def test_forget_in_one_output_folder(cache: SubjectCache, warnings: list[str], tmp_path: Path) -> None:
    """Another campaign's subject of the same id keeps its crops and is still known; the shared entry goes."""
    spring, autumn = output(tmp_path, "spring", "ada"), output(tmp_path, "autumn", "ada")
    cache.put(A, SMALL, subject="ada", output=spring)
    cache.refer(A, subject="ada", output=autumn)
    cache.put(B, SMALL, subject="ada", output=autumn)
    assert cache.uses(["ada", "eva"]) == {"ada": {spring, autumn}}
    assert len(cache.kept({"ada": [spring]})) == 2
    assert cache.forget({"ada": [spring]}) == {"ada": [spring]}
    assert warnings == [f"{autumn}: uses the same picture: its crops and videos stay, and its next run caches it again"]
    assert not faces(spring, "ada").exists()
    assert faces(autumn, "ada").exists()
    assert cache.get(A) is None
    assert same(cache.get(B), SMALL)
    assert cache.uses(["ada"]) == {"ada": {autumn}}


def test_looking_removes_nothing(cache: SubjectCache, warnings: list[str]) -> None:
    cache.put(A, SMALL, subject="ada", output=OUT)
    cache.put(B, SMALL, subject="bob", output=OUT)
    (reference,) = cache.root.glob(f"{B}.*.json")
    reference.write_text("{")
    before = files(cache)
    assert cache.uses(["ada", "bob"]) == {"ada": {OUT}}
    assert [path.name.partition(".")[0] for path in cache.kept(["ada", "bob"])] == [A, A]
    assert (files(cache), warnings) == (before, [])


def test_a_hit_makes_an_entry_young_and_closes_it(cache: SubjectCache) -> None:
    cache.put(A, SMALL, subject="ada", output=OUT)
    os.utime(entry(cache), (1, 1))
    entry(cache).chmod(0o644)
    assert cache.get(A)
    assert entry(cache).stat().st_mtime > 10**9
    assert mode(entry(cache)) == 0o600


def test_the_least_recently_used_go_first(cache: SubjectCache, warnings: list[str]) -> None:
    cache.max_bytes = 3 * (SIZE + 1000)
    for age, key in enumerate((A, B, C)):
        cache.put(key, one(age), subject="ada", output=OUT)
        os.utime(entry(cache, key), (1000 + age, 1000 + age))
    assert same(cache.get(A), one(0))  # B is the oldest now
    cache.put(D, one(3), subject="ada", output=OUT)
    assert [entry(cache, key).exists() for key in (A, B, C, D)] == [True, False, True, True]
    os.utime(entry(cache, D), (1, 1))
    cache.put(B, one(1), subject="ada", output=OUT)
    assert [entry(cache, key).exists() for key in (A, B, C, D)] == [True, True, True, False]
    assert warnings == []


def test_the_bound_holds(cache: SubjectCache, warnings: list[str]) -> None:
    cache.max_bytes = 3 * SIZE
    for number, key in enumerate(KEYS * 2):
        cache.put(key, one(number), subject="ada", output=OUT)
        assert sum(path.stat().st_size for path in cache.root.glob("*.safetensors")) <= cache.max_bytes
        assert same(cache.get(key), one(number))
    cache.put(A, {"x": np.zeros(3 * SIZE, np.uint8)}, subject="ada", output=OUT)
    (line,) = warnings
    assert "not cached: " in line
    assert line.endswith("more than the cache holds, 300000")


def test_replacing_an_entry_evicts_no_other(cache: SubjectCache) -> None:
    cache.max_bytes = 2 * (SIZE + 1000)
    for key in (A, B, B, B):
        cache.put(key, one(), subject="ada", output=OUT)
    assert entry(cache, A).exists()


def test_other_files_in_the_folder_stay(cache: SubjectCache) -> None:
    cache.put(A, one(), subject="ada", output=OUT)
    cache.max_bytes = SIZE + 1000
    (cache.root / "notes.txt").write_bytes(b"x" * SIZE)
    cache.put(B, one(), subject="ada", output=OUT)
    cache.forget(["ada"])
    assert [path.name for path in files(cache)] == ["notes.txt"]


def test_half_written_entries_of_a_killed_process(cache: SubjectCache) -> None:
    cache.put(A, one(), subject="ada", output=OUT)
    young, old = (cache.root / f"{C}.safetensors.{name}.part" for name in ("young", "old"))
    for part, age in ((young, 0.0), (old, STALE_PART_S + 60)):
        part.write_bytes(b"face")
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    cache.put(B, one(), subject="ada", output=OUT)
    assert young.exists()
    assert not old.exists()
    young.unlink()


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from lynx_parallel.subject import cache, cache_folder
def killed(*_): os._exit(9)
cache_folder.publish = lambda part, path: killed() if path.suffix == sys.argv[2] else os.replace(part, path)
cache.SubjectCache(Path(sys.argv[1])).put("a" * 64, {"x": np.zeros(9)}, subject="ada", output=Path("/nowhere/out"))
"""


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_whatever_a_killed_process_leaves_can_be_forgotten(cache: SubjectCache, suffix: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(cache.root), suffix], check=False)
    assert killed.returncode == 9
    assert cache.get("a" * 64) is None
    assert [mode(path) for path in cache.root.glob("*.part")] == [0o600]
    if suffix == ".safetensors":
        assert cache.forget(["ada"]) == {"ada": []}
        assert files(cache) == []
    else:  # nothing of the face is there yet
        (part,) = files(cache)
        assert "safetensors" not in part.name
        part.unlink()


def damages(whole: bytes, seed: int) -> Iterator[bytes]:
    random_ = random.Random(seed)
    for _ in range(100):
        yield whole[: random_.randrange(len(whole))]
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(200):
        flipped = bytearray(whole)
        # Every other one in the header, where a flip may still leave a file that can be read.
        for _ in range(random_.randrange(1, 4)):
            bit = random_.randrange(8 * (header if number % 2 else len(whole)))
            flipped[bit // 8] ^= 1 << bit % 8
        if flipped != whole:
            yield bytes(flipped)
    yield from (b"", b"\0" * 8, b"\xff" * 100, whole + b"\0", whole * 2, b"not ours " * 1000, b'"sha256":"' + b"0" * 64)


def test_a_damaged_entry_is_a_miss(cache: SubjectCache, warnings: list[str]) -> None:
    """Whatever is flipped or cut off: None, one line, and the entry is gone. Never other arrays."""
    cache.put(A, SMALL, subject="ada", output=OUT)
    whole = entry(cache).read_bytes()
    for number, damaged in enumerate(damages(whole, seed=1), start=1):
        entry(cache).write_bytes(damaged)
        assert cache.get(A) is None
        assert warnings.pop().startswith(f"{entry(cache)}: damaged")
        assert warnings == []
        assert not entry(cache).exists()
        assert cache.misses == number
    assert number > 290
    cache.put(A, SMALL, subject="ada", output=OUT)
    assert same(cache.get(A), SMALL)


def test_an_entry_under_another_key_is_a_miss(cache: SubjectCache, warnings: list[str]) -> None:
    cache.put(A, SMALL, subject="ada", output=OUT)
    entry(cache, B).write_bytes(entry(cache).read_bytes())
    assert cache.get(B) is None
    assert len(warnings) == 1
    assert cache.get(A)


def test_somebody_elses_safetensors_file(cache: SubjectCache, warnings: list[str]) -> None:
    from safetensors.numpy import save_file

    cache.put(A, SMALL, subject="ada", output=OUT)
    save_file(SMALL, entry(cache))
    assert cache.get(A) is None
    assert not entry(cache).exists()
    assert len(warnings) == 1


PLACES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("elsewhere"),
    "huge": lambda path: path.touch() or os.truncate(path, 2**40),
}


@pytest.mark.parametrize("kind", PLACES)
def test_something_else_in_an_entrys_place(cache: SubjectCache, warnings: list[str], kind: str) -> None:
    cache.put(B, SMALL, subject="ada", output=OUT)
    elsewhere = cache.root / "elsewhere"
    elsewhere.write_bytes(b"kept")
    PLACES[kind](entry(cache))
    assert cache.get(A) is None
    assert warnings == [f"{entry(cache)}: not a plain file, or too large; removed, to be computed again"]
    assert elsewhere.read_bytes() == b"kept"
    cache.put(A, SMALL, subject="ada", output=OUT)
    assert same(cache.get(A), SMALL) or kind == "folder"
    assert same(cache.get(B), SMALL)


def test_a_folder_that_cannot_be_made(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "file").chmod(0o644)
    for root in (tmp_path / "file", tmp_path / "file" / "subjects"):
        cache = SubjectCache(root, warn=warnings.append)
        cache.put(A, SMALL, subject="ada", output=OUT)
        cache.refer(A, subject="ada", output=OUT)
        assert cache.get(A) is None
        assert any("not cached: " in line for line in warnings)
    assert (tmp_path / "file").read_text() == "a file"
    assert mode(tmp_path / "file") == 0o644


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("a file")
    SubjectCache(tmp_path / "file").put(A, SMALL, subject="ada", output=OUT)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a file system can only be mounted by a root that may")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(tiny_disk: Path, warnings: list[str]) -> None:
    cache = SubjectCache(tiny_disk / "subjects", warn=warnings.append)
    cache.put(A, one(1), subject="ada", output=OUT)
    large = {"x": np.zeros(600_000, np.uint8)}
    cache.put(B, large, subject="ada", output=OUT)
    assert warnings == [f"{entry(cache, B)}: not cached: No space left on device"]
    assert cache.get(B) is None
    cache.put(A, large, subject="ada", output=OUT)  # an entry that cannot be replaced stays as it was
    assert same(cache.get(A), one(1))
    assert not list(cache.root.glob("*.part"))
    with (tiny_disk / "filler").open("wb", buffering=0) as filler:
        for size in (4096, 1):
            while True:
                try:
                    filler.write(b"x" * size)
                except OSError:
                    break
    cache.put(C, SMALL, subject="eva", output=OUT)
    assert cache.get(C) is None
    assert same(cache.get(A), one(1))
    assert cache.forget(["ada"]) == {"ada": []}  # to forget needs no room
    assert not list(cache.root.glob("*.safetensors"))


def test_a_disk_that_can_only_be_read(tiny_disk: Path, warnings: list[str]) -> None:
    cache = SubjectCache(tiny_disk / "subjects", warn=warnings.append)
    cache.put(A, SMALL, subject="ada", output=OUT)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert same(cache.get(A), SMALL)
    assert warnings == []
    cache.put(B, SMALL, subject="ada", output=OUT)
    cache.refer(A, subject="bob", output=OUT)
    assert len(warnings) == 2
    assert all(line.endswith(": not cached: Read-only file system") for line in warnings)
    assert cache.get(B) is None
    with pytest.raises(OSError, match="Read-only"):
        cache.forget(["ada"])


def hammer(root: Path, gate: Any, seed: int, results: Any) -> None:
    warnings: list[str] = []
    cache = SubjectCache(root, max_bytes=5 * SIZE, warn=warnings.append)
    random_, wrong = random.Random(seed), 0
    gate.wait()
    for _ in range(60):
        number = random_.randrange(3) if seed % 2 else random_.randrange(8)
        found = cache.get(KEYS[number])
        if found is None:
            cache.put(KEYS[number], one(number), subject=f"s{number}", output=root / f"out{seed}")
        else:
            wrong += not same(found, one(number))
            cache.refer(KEYS[number], subject=f"s{number}", output=root / f"out{seed}")
    results.put((wrong, warnings, cache.hits))


def test_many_processes_at_once(cache: SubjectCache) -> None:
    """The same keys put, read and evicted by six: no wrong array, no warning, no reference lost."""
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(6), context.Queue()
    arguments = [(cache.root, gate, seed, results) for seed in range(6)]
    processes = [context.Process(target=hammer, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [(wrong, warnings) for wrong, warnings, _ in outcomes] == [(0, [])] * 6
    assert sum(hits for _, _, hits in outcomes) > 0
    for seed in range(6):
        (cache.root / f"out{seed}").mkdir()
    forgotten = cache.forget(["s0", "s1", "s2"])
    everyone = [cache.root / f"out{seed}" for seed in range(6)]
    assert all(set(everyone[1::2]) <= set(forgotten[f"s{number}"]) for number in range(3))


def put_same(root: Path, gate: Any, results: Any) -> None:
    warnings: list[str] = []
    cache = SubjectCache(root, warn=warnings.append)
    gate.wait()
    for _ in range(20):
        cache.put(A, arrays_of(), subject="ada", output=OUT)
        if not same(cache.get(A), arrays_of()):
            warnings.append("other arrays")
    results.put(warnings)


def test_two_processes_put_the_same_key(cache: SubjectCache) -> None:
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=put_same, args=(cache.root, gate, results), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [[], []]
    for process in processes:
        process.join()
    assert len(files(cache)) == 2  # one entry, one reference
    assert same(cache.get(A), arrays_of())


def test_forget(cache: SubjectCache, warnings: list[str], tmp_path: Path) -> None:
    spring, autumn = output(tmp_path, "spring", "ada", "bob"), output(tmp_path, "autumn", "ada")
    cache.put(A, SMALL, subject="ada", output=spring)
    cache.refer(A, subject="ada", output=autumn)
    cache.put(B, SMALL, subject="ada", output=autumn)  # another picture of hers
    cache.put(C, SMALL, subject="bob", output=spring)
    assert cache.forget(["ada", "eva"]) == {"ada": [autumn, spring]}
    assert [path.name for path in files(cache) if path.suffix == ".safetensors"] == [f"{C}.safetensors"]
    assert not any("ada" in path.read_text() for path in cache.root.glob("*.json"))
    assert not faces(spring, "ada").exists()
    assert not faces(autumn, "ada").exists()
    assert sorted(path.name for path in faces(spring, "bob").iterdir()) == ["id.png", "ref.png"]
    assert cache.forget(["ada"]) == {}
    assert cache.get(A) is None
    assert same(cache.get(C), SMALL)
    assert cache.forget({"bob"}) == {"bob": [spring]}
    assert files(cache) == []
    assert warnings == []


def test_forget_before_anything_was_cached(cache: SubjectCache) -> None:
    assert cache.forget(["ada"]) == {}
    assert not cache.root.exists()


def test_forget_a_picture_that_another_subject_shares(cache: SubjectCache, warnings: list[str], tmp_path: Path) -> None:
    out = output(tmp_path, "out", "ada", "bob")
    cache.put(A, SMALL, subject="ada", output=out)
    cache.refer(A, subject="bob", output=out)
    assert cache.forget(["ada"]) == {"ada": [out]}
    assert cache.get(A) is None
    assert warnings == ["bob: has the same picture as a subject forgotten here, and is not forgotten itself"]
    assert faces(out, "bob").exists()
    assert cache.forget(["bob"]) == {"bob": [out]}
    assert not faces(out, "bob").exists()


@pytest.mark.parametrize("gone", ["evicted", "damaged"])
def test_forget_knows_the_outputs_of_an_entry_that_is_gone(cache: SubjectCache, tmp_path: Path, gone: str) -> None:
    out = output(tmp_path, "out", "ada")
    cache.put(A, one(), subject="ada", output=out)
    if gone == "evicted":
        cache.max_bytes = SIZE + 1000
        cache.put(B, one(), subject="bob", output=out)
    else:
        entry(cache).write_bytes(b"")
        cache.get(A)
    assert not entry(cache).exists()
    assert cache.forget(["ada"]) == {"ada": [out]}
    assert not faces(out, "ada").exists()


def test_forget_an_output_that_is_gone(cache: SubjectCache, warnings: list[str], tmp_path: Path) -> None:
    out = output(tmp_path, "out", "ada")
    cache.put(A, SMALL, subject="ada", output=out)
    cache.refer(A, subject="ada", output=tmp_path / "away")
    assert cache.forget(["ada"]) == {"ada": [out]}
    assert warnings == [
        f"{tmp_path / 'away'}: missing; if it is on a disk that is not connected, "
        f"remove {tmp_path / 'away' / '.lynx' / 'faces' / 'ada'} by hand"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"subject": 1, "output": 2}', '{"subject": "../x", "output": "/"}'])
def test_an_entry_of_nobody_known_is_forgotten(cache: SubjectCache, warnings: list[str], text: str) -> None:
    """Its reference is damaged: it could be anybody's."""
    cache.put(A, SMALL, subject="ada", output=OUT)
    cache.put(B, SMALL, subject="bob", output=OUT)
    (reference,) = cache.root.glob(f"{A}.*.json")
    reference.write_text(text)
    assert cache.forget(["eva"]) == {}
    assert len(warnings) == 1
    assert not entry(cache, A).exists()
    assert not reference.exists()
    assert same(cache.get(B), SMALL)


def test_a_damaged_reference_is_written_anew(cache: SubjectCache, tmp_path: Path) -> None:
    cache.put(A, SMALL, subject="ada", output=tmp_path)
    (reference,) = cache.root.glob("*.json")
    whole = reference.read_text()
    reference.write_text(whole[:10])
    cache.refer(A, subject="ada", output=tmp_path)
    assert reference.read_text() == whole
    assert json.loads(whole) == {"version": 1, "subject": "ada", "output": str(tmp_path)}


def test_forget_never_leaves_the_crops_folder(cache: SubjectCache, tmp_path: Path) -> None:
    """A link in the crops' place is removed, what it points to is not; a wrong id is refused before anything."""
    out, album = output(tmp_path, "out"), tmp_path / "album"
    album.mkdir()
    (album / "photo").write_bytes(b"kept")
    faces(out, "ada").parent.mkdir(parents=True)
    faces(out, "ada").symlink_to(album)
    cache.put(A, SMALL, subject="ada", output=out)
    for wrong in ("../x", "", ".", "a/b", "ada\n", "é", "a" * 101, "-x"):
        with pytest.raises(InputErrors, match="an id is a letter or digit") as caught:
            cache.forget(["ada", wrong])
        assert len(caught.value.lines) == 1
        with pytest.raises(ValueError, match="an id is"):
            cache.put(A, SMALL, subject=wrong, output=out)
    assert cache.get(A)
    cache.forget(["ada"])
    assert not os.path.lexists(faces(out, "ada"))
    assert (album / "photo").read_bytes() == b"kept"


def test_crops_that_cannot_be_removed(
    cache: SubjectCache, warnings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line, the other outputs are cleaned, and the next try finds them again."""
    frozen, out = output(tmp_path, "frozen", "ada"), output(tmp_path, "out", "ada")
    cache.put(A, SMALL, subject="ada", output=frozen)
    cache.refer(A, subject="ada", output=out)
    real = shutil.rmtree

    def refuse(path: Path) -> None:
        if path == faces(frozen, "ada"):
            raise OSError(30, "Read-only file system")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        assert cache.forget(["ada"]) == {"ada": [frozen, out]}
    assert warnings == [f"{faces(frozen, 'ada')}: cannot be removed: Read-only file system"]
    assert not entry(cache).exists()
    assert not faces(out, "ada").exists()
    assert cache.forget(["ada"]) == {"ada": [frozen]}
    assert not faces(frozen, "ada").exists()


def test_relative_and_odd_output_folders(cache: SubjectCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = output(tmp_path, os.fsdecode(b"out\xff\n\xe8\xb5\xb0"), "ada")
    cache.put(A, SMALL, subject="ada", output=Path(odd.name))
    cache.refer(A, subject="ada", output=odd)
    assert len(list(cache.root.glob("*.json"))) == 1
    assert cache.forget(["ada"]) == {"ada": [odd]}


def test_neither_torch_nor_ray(tmp_path: Path) -> None:
    """Nor numpy, until arrays are asked for."""
    code = (
        "import sys, pathlib; from lynx_parallel.subject import forget\n"
        "from lynx_parallel.subject.cache import SubjectCache\n"
        "forget.forget(forget.find({'ada': [pathlib.Path('/nowhere')]}), print); print('numpy' in sys.modules)\n"
        "import numpy; cache = SubjectCache()\n"
        "cache.put('a' * 64, {'x': numpy.zeros(3)}, subject='ada', output=pathlib.Path('/nowhere'))\n"
        "print(cache.get('a' * 64)['x'].sum(), {'torch', 'ray'} & set(sys.modules))"
    )
    environment = {**os.environ, "LYNX_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == "False\n0.0 set()\n"


def test_never_a_pickle(cache: SubjectCache) -> None:
    with pytest.raises(Exception, match="dtype"):
        cache.put(A, {"x": np.array([object()])}, subject="ada", output=OUT)
    assert not cache.root.exists()
