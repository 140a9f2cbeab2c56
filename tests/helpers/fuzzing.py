"""Damage, and what every damaged file must end in: a result, or one LynxError of one line that names the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lynx_parallel.errors import LynxError

MARKER = "LYNX_FUZZ_MARKER"
"""The environment variable that tells a hostile pickle which folder to create."""


class Hung(BaseException):
    """Not an Exception: no ``except Exception`` in the product may swallow it."""


class Bomb:
    """Pickled, it is a program that leaves a mark."""

    def __reduce__(self) -> Any:
        return exec, (f"import os; os.mkdir(os.environ['{MARKER}'])",)


@contextmanager
def watchdog(seconds: int = 20) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hung(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(load: Callable[[], Any], names: str | Path, kinds: tuple[type[LynxError], ...]) -> str | None:
    """The error's line, or None for a clean result; anything else fails the test.

    Args:
        names: what the line must contain.
    """
    with watchdog():
        try:
            load()
        except kinds as error:
            line = str(error)
            assert len(line.splitlines()) == 1, line
            assert line.isprintable(), line
            assert len(line) < 2000, line
            assert str(names) in line, line
            return line
    return None


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder with its size: what a loader must leave as it was."""
    return {str(path): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def cuts(size: int, count: int, seed: int) -> list[int]:
    """Lengths to cut a file to: its first bytes, its last, and ``count`` at random."""
    rng = np.random.default_rng(seed)
    return sorted({0, 1, 7, 8, 9, size - 1, *(int(n) for n in rng.integers(0, size, count))})


def flipped(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def flips(content: bytes, start: int, stop: int, count: int, seed: int) -> Iterator[bytes]:
    """The content with one bit flipped at ``count`` random places of [start, stop)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield flipped(content, int(rng.integers(start, stop)), int(rng.integers(8)))


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and body."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header: Any, body: bytes, size: int | None = None) -> bytes:
    """The file again; ``size`` is what it says of its header, where that is not the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little", signed=(size or 0) < 0) + text + body


def limited(code: str, *arguments: object, megabytes: int, seconds: int = 60) -> str:
    """What a Python program prints that may take so much memory and time, and no more."""
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
