"""Starts Ray on this machine or joins a cluster, and leaves no process and no file behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.engine.address import REACH_WITHIN_S, Address, check_head, still_answers
from lynx_parallel.engine.context_thread import ContextThread, NotInTime
from lynx_parallel.engine.process import diverted
from lynx_parallel.engine.ray_folder import keep_logs, make_token, object_store_folder, ray_folder
from lynx_parallel.errors import ClusterError
from lynx_parallel.text import first_line, shown_path

_log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of the object store. It carries small results only: tensors travel as files or collectives."""
START_WITHIN_S = 300.0
"""Seconds for a local Ray to start. On a slow disk, the first import of Ray takes most of them."""
JOIN_WITHIN_S = 120.0
"""Seconds to join a cluster whose head answers."""
WATCH_EVERY_S = 2.0
LOST_AFTER_S = 40.0
"""Seconds without an answer of the head after which a run ends. After 60, Ray would end this process."""
LEAVE_WITHIN_S = 10.0
"""Seconds to leave Ray. After that, this process ends without waiting."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray 2.60 announces GPU visibility changes to come for actors without GPUs on every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray replaces a loopback address by the machine's own, except where it takes clusters of several machines for
    # impossible. A local Ray would then listen on every interface, and a head that listens on the loopback
    # interface alone would not be found. Other addresses are not affected. Read when ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray would start an idle Python process for each CPU. No rank would use one: a rank has variables of its own.
    "RAY_prestart_worker_first_driver": "0",
}

# (pattern in Ray's log, its meaning). The first match counts.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"InvalidAuthToken|Unauthenticated",
        "the cluster refuses this machine's token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token",
    ),
    (r"No space left on device", "the disk of Ray's folder, or /dev/shm, is full. Free some space, or set TMPDIR"),
    (
        r"Address already in use|Failed to bind|is already used",
        "a port that Ray needs is taken. Unset the variables that fix Ray's ports, RAY_GCS_SERVER_PORT for one",
    ),
    (
        r"Too many open files|pthread_create|Resource temporarily unavailable|[Tt]hread creation failed",
        "a limit of open files or processes was reached. Raise it (ulimit -n, ulimit -u, --pids-limit of a container)",
    ),
)


class RayFailed(ClusterError):
    """Ray failed while it was in use. Any further call to it may block for ever."""

    code = "LX208"


@dataclass(frozen=True)
class Cluster:
    """A running Ray.

    Attributes:
        log: file of its output.
    """

    address: Address
    log: Path

    @property
    def local(self) -> bool:
        """Whether Ray was started for this run."""
        return self.address.value == "local"

    async def watch(self) -> None:
        """Polls Ray until it fails, then raises. Ray itself would end this process silently, or block for ever.

        Raises:
            RayFailed: a process of a local Ray ended, or the head of a joined one does not answer any more.
        """
        heard = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self.local:
                if ended := _ended():
                    raise RayFailed(f"Ray on this machine failed: {ended}. Run again to resume (log: {self._log}).")
            elif await asyncio.to_thread(still_answers, self.address):
                heard = time.monotonic()
            elif time.monotonic() - heard > LOST_AFTER_S:
                raise RayFailed(
                    f"Ray at {self.address}: the head has not answered for {LOST_AFTER_S:.0f} s. Look at its machine, "
                    f"then run again to resume (log: {self._log})."
                )

    @property
    def _log(self) -> str:
        return shown_path(self.log)


def _ended() -> str:
    """Returns which process of a local Ray has ended, and how; empty if none has."""
    node = importlib.import_module("ray._private.worker")._global_node
    for kind, process in node.dead_processes() if node else ():
        code = process.poll()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory (dmesg)" if code == -signal.SIGKILL else ""
        return f"its process {kind} {how}{hint}"
    return ""


@contextlib.contextmanager
def ray_cluster(
    address: Address, private: Path, log: Path, pending: list[int], say: Callable[[str], None]
) -> Iterator[Cluster]:
    """Joins Ray at an address, or starts it here, for the time of the block.

    What Ray and other libraries print goes to ``log``, from here to the end of this process.

    Args:
        private: a folder for files of this run, of which Ray may use some.
        pending: numbers of the signals that were received. If there is one at the end, a local Ray is killed.
        say: takes each line of progress.

    Yields:
        The cluster. One that was started here ends with the block, every process of it.

    Raises:
        ClusterError: no Ray at the address, or none could be started.
        Interrupted: a signal came before Ray was ready.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address.value == "local":
        say("starting Ray on this machine")
        with _started(private, log, pending):
            yield Cluster(address, log)
        return
    _log.debug("Ray's output goes to %s", log)
    say(f"joining Ray at {address}")
    _check(address, pending)

    def failed(reason: str) -> ClusterError:
        return address.refused(f"{cause_in(log) or reason} (log: {shown_path(log)})")

    with diverted(log), _held(_joined(address.value), pending, JOIN_WITHIN_S, failed):
        yield Cluster(address, log)


def _check(address: Address, pending: list[int]) -> None:
    check = ContextThread(_checked(address), "check of the head", pending)
    try:
        check.enter(REACH_WITHIN_S + 1)
    except NotInTime:
        raise address.refused(f"no answer within {REACH_WITHIN_S:.0f} s") from None
    check.leave(1)


@contextlib.contextmanager
def _checked(address: Address) -> Iterator[None]:
    check_head(address)
    yield


@contextlib.contextmanager
def _started(private: Path, log: Path, pending: list[int]) -> Iterator[None]:
    def failed(reason: str) -> ClusterError:
        keep_logs(folder, log)
        cause = cause_in(log) or reason.rstrip(".")
        return ClusterError(f"Ray did not start on this machine: {cause} (log: {shown_path(log)}).")

    with diverted(log), ray_folder(private) as folder:
        make_token(folder)
        _log.debug("starting Ray in %s", folder)
        ray = _joined(
            "local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1",
            _temp_dir=str(folder), _plasma_directory=str(object_store_folder(folder, private, OBJECT_STORE_BYTES)),
        )  # fmt: skip
        try:
            with _held(ray, pending, START_WITHIN_S, failed, at_once=True):
                yield
        except RayFailed:
            keep_logs(folder, log)
            raise


@contextlib.contextmanager
def _held(
    ray: contextlib.AbstractContextManager[None],
    pending: list[int],
    within: float,
    failed: Callable[[str], ClusterError],
    *,
    at_once: bool = False,
) -> Iterator[None]:
    """Enters Ray in a thread of its own.

    Args:
        failed: makes the error of a reason.
        at_once: after a signal or an error, do not wait for Ray to end.
    """
    held = ContextThread(ray, "Ray", pending)
    try:
        held.enter(within)
    except NotInTime:
        raise failed(f"it was not ready within {within:.0f} s") from None
    except (Exception, SystemExit) as error:
        if type(error).__module__.startswith("lynx_parallel"):
            raise
        raise failed(_reason(error)) from error
    clean = False
    try:
        yield
        clean = not pending
    finally:
        held.leave(LEAVE_WITHIN_S if clean or not at_once else 0)


@contextlib.contextmanager
def _joined(address: str, **options: Any) -> Iterator[None]:
    """Joins Ray, and imports the parts of Ray that the driver uses."""
    import ray

    try:
        ray.init(
            address, log_to_driver=False, logging_level=logging.ERROR, namespace="lynx-parallel",
            job_config=_job_config(), **options,
        )  # fmt: skip
        importlib.import_module("lynx_parallel.engine.supervisor")  # here, since it takes seconds
        yield
    finally:
        ray.shutdown()


def _job_config() -> Any:
    from ray.job_config import JobConfig

    class OwnModules(JobConfig):
        """Gives the ranks no folder of the driver's module path. Ray would add the working folder and the script's."""

        def _get_proto_job_config(self) -> Any:
            self._py_driver_sys_path: list[str] = []
            return super()._get_proto_job_config()

    return OwnModules()


def cause_in(log: Path) -> str:
    """Returns the cause of a failure that Ray's log names, with a remedy; empty if it names none that is known."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return next((cause for pattern, cause in _CAUSES if re.search(pattern, text)), "")


def _reason(error: BaseException) -> str:
    """Returns the message of an error of Ray, in one line."""
    if "Version mismatch" in str(error):
        versions = re.findall(r"(?:Ray|Python): \S+", str(error))
        return f"the cluster and this machine have different versions ({', '.join(dict.fromkeys(versions))})"
    return first_line(error)
