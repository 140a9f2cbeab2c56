"""The status of a run in words. Live views, plain lines and ``lynx-render status`` share them."""

from __future__ import annotations

from datetime import UTC, datetime

from lynx_parallel.output.run_status import GangStatus, RunStatus
from lynx_parallel.text import counted, rough_duration


def sum_up(status: RunStatus) -> str:
    """Returns one line: ``[3/8] 37 %, about 12 min left, 2 gangs at work, 0.4 GPU-hours``."""
    parts = [f"[{status.finished}/{status.to_make}] {100 * status.fraction:.0f} %"]
    if (left := time_left(status)) and status.exit_code is None:
        parts.append(left)
    if status.gangs:
        parts.append(f"{counted(len(status.gangs), 'gang')} at work")
    if status.failed:
        parts.append(f"{status.failed} failed")
    if spent := gpu_hours(status):
        parts.append(spent)
    return ", ".join(parts)


def time_left(status: RunStatus) -> str:
    """Returns the time to the end of the run, or nothing if it is not known yet."""
    return "" if status.left_seconds is None else f"about {rough_duration(status.left_seconds)} left"


def gpu_hours(status: RunStatus) -> str:
    """Returns the time that GPUs have been in use; nothing on the CPU, and before a rank has started."""
    return f"{status.gpu_seconds / 3600:.2f} GPU-hours" if status.device not in ("", "cpu") else ""


def ago(time: str) -> str:
    """Returns how long ago a time was, rounded.

    Args:
        time: ISO 8601, by the clock of the machine that wrote it.
    """
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except ValueError:
        return "an unknown time"
    return rough_duration(max(seconds, 0))


def gang_text(gang: GangStatus) -> tuple[str, str, str, str, str]:
    """Returns what a gang does, in columns: stage, shot, step, seconds per step, memory."""
    gigabyte = 1e9
    stage = gang.stage
    if gang.to_read and gang.read < gang.to_read:
        stage += f" {gang.read / gigabyte:.1f} of {gang.to_read / gigabyte:.1f} GB"
    if gang.finishing:
        stage = f"{stage}, encoding {gang.finishing}" if gang.shot else f"encoding {gang.finishing}"
    step = f"{gang.step}/{gang.total}" if gang.total and gang.stage in ("denoising", "decoding") else ""
    pace = "" if gang.step_seconds is None or not step else f"{gang.step_seconds:.2f} s"
    memory = f"{gang.memory / gigabyte:.0f}/{gang.memory_total / gigabyte:.0f} GB" if gang.memory_total else ""
    return stage, gang.shot, step, pace, memory
