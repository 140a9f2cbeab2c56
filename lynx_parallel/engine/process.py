"""Standard streams, working folder, home folder and exit of the driver process. Imports neither torch nor Ray."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from lynx_parallel.errors import ClusterError
from lynx_parallel.inputs.cache_root import cache_root

_stuck: list[str] = []


def open_streams() -> None:
    """Connects closed standard streams to ``/dev/null``, and gives our own lines descriptors of their own.

    Otherwise the next file that is opened would get the descriptor of a closed stream, and what a library writes to
    standard error would land in it. ``diverted`` needs the second part.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = _own(1, sys.stdout)
    sys.stderr = _own(2, sys.stderr)


def _own(descriptor: int, stream: TextIO | None) -> TextIO:
    """Returns a text stream like ``stream`` on a copy of the descriptor."""
    if stream is not None:
        stream.flush()
    encoding = getattr(stream, "encoding", None)
    # No name may stop a run in a narrow locale.
    own = os.fdopen(os.dup(descriptor), "w", encoding=encoding, errors="backslashreplace")
    own.reconfigure(line_buffering=descriptor == 2 or own.isatty())
    return own


@contextlib.contextmanager
def diverted(log: Path) -> Iterator[None]:
    """Sends the output of libraries and child processes to a file. The streams of ``open_streams`` are not affected.

    The descriptors 1 and 2 stay diverted after the block: threads of C++ libraries print until the process ends.

    Raises:
        OSError: the file cannot be created.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    raw = os.fdopen(2, "wb", buffering=0, closefd=False)
    stream = io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield
    with contextlib.suppress(OSError):  # not after an error, which may name it
        if not log.stat().st_size:
            log.unlink()


def check_working_folder() -> None:
    """Raises ClusterError if the working folder was deleted, or cannot be opened."""
    try:
        os.getcwd()
    except OSError as error:
        reason = "was deleted" if isinstance(error, FileNotFoundError) else f"cannot be used ({error.strerror})"
        raise ClusterError(f"the working folder {reason}. Change to an existing folder (cd) and run again.") from None


def ensure_home() -> None:
    """Makes the cache folder the home folder of this process and its children, if the user has none.

    Libraries ask for a home folder, even if they store nothing there.

    Raises:
        ClusterError: the cache folder is missing, too.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(cache_root())


def discard_unwritten(stream: TextIO) -> bool:
    """Returns whether text of a stream cannot be written, as on a full disk.

    The text is then discarded. Otherwise Python would try again at its end, report an error and exit with 120.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return True
    return False


def give_up(thread: str) -> None:
    """Records that a thread will not end in time, so that ``leave`` does not wait for it."""
    _stuck.append(thread)


def gave_up() -> bool:
    """Returns whether a thread was given up."""
    return bool(_stuck)


def leave(code: str | int | None) -> NoReturn:
    """Ends the process as ``sys.exit`` does, at once if a thread was given up.

    Such a thread may be inside a library. The interpreter's own end would then wait for it, or crash.
    """
    for stream in (sys.stdout, sys.stderr):
        discard_unwritten(stream)
    if _stuck:
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)
