"""Frames to a video file and back, through the ffmpeg that imageio-ffmpeg brings. numpy only.

The same frames and settings give the same bytes, run after run: no dates or library versions are written,
the number of encoder threads is fixed, and x264 does not choose by CPU type.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lynx_parallel.errors import ClusterError, RenderError

Frames = NDArray[np.uint8]  # [F, H, W, 3], RGB

# More threads than a small machine has cost nothing; another number changes the bytes.
CODECS: dict[str, dict[str, str]] = {
    "h264": {"vcodec": "libx264", "x264-params": "threads=4:cpu-independent=1"},
    # Without info=0 the stream records the CPU's features. Apple's players want the tag hvc1, not hev1.
    "h265": {
        "vcodec": "libx265",
        "x265-params": "pools=4:frame-threads=1:info=0:log-level=error",
        "tag:v": "hvc1",
    },
}
LOSSLESS: dict[str, dict[str, Any]] = {"h264": {"qp": 0}, "h265": {"x265-params": "lossless=1"}}
"""Options that keep every value of the yuv420p picture. x265 at crf 0 does not."""
CODECS |= {"libx264": CODECS["h264"], "hevc": CODECS["h265"], "libx265": CODECS["h265"]}

# Without these, players guess the matrix from the height and show 480p in another tint than 720p.
BT709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
ACCURATE = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file. ``frames`` is the number of decoded frames, not that of a header."""

    width: int
    height: int
    frames: int
    fps: float
    codec: str
    """``h264`` or ``h265``, or ffmpeg's own name for any other."""
    duration: float
    """Seconds."""


def encode_video(frames: Frames, path: Path, *, fps: float, codec: str, crf: int, lossless: bool = False) -> None:
    """Writes ``frames`` to exactly ``path`` as an MP4 that starts playing while it loads (bt709, yuv420p).

    Args:
        frames: [F, H, W, 3] uint8 RGB, F ≥ 1, even H and W.
        fps: frames a second, from 1/2000 to 240; may be fractional.
        codec: a key of CODECS: ``h264`` or ``h265``.
        crf: quality; lower is better and larger.
        lossless: keeps every value of the yuv420p picture; ``crf`` does not count then.

    Raises:
        RenderError: one line with ffmpeg's last words.
        ClusterError: ffmpeg is missing.

    Whatever ends it early, an interrupt included, leaves neither a process nor a file.
    """
    import ffmpeg

    if codec not in CODECS:
        raise RenderError(f"codec {codec!r}: one of {', '.join(CODECS)} is needed")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise RenderError(f"frames are {frames.dtype} {list(frames.shape)}: uint8 [F, H, W, 3] is needed")
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise RenderError(f"frames of {width}x{height}: yuv420p needs even sizes")
    rate = frame_rate(fps)
    source = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=f"{rate}")
    tagged = source.filter("scale", out_color_matrix="bt709", out_range="tv", flags=ACCURATE)
    tagged = tagged.filter("format", "yuv420p").filter(
        "setparams", colorspace="bt709", color_primaries="bt709", color_trc="bt709", range="tv"
    )
    options: dict[str, Any] = {
        **CODECS[codec],
        **BT709,
        **_quality(codec, crf, lossless),
        "preset": "medium",
        "pix_fmt": "yuv420p",
        "movflags": "+faststart",
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
        "map_metadata": -1,
        "format": "mp4",
    }
    if rate > 100:  # ffmpeg guesses such a rate of its input, and would take 120 for 119.88
        options["r"] = f"{rate}"
    output = ffmpeg.output(tagged, f"file:{path}", **options)
    command = output.global_args("-hide_banner", "-nostats", "-v", "error").compile(
        cmd=_ffmpeg(), overwrite_output=True
    )
    try:
        _feed(command, frames)
        if not path.is_file() or path.stat().st_size == 0:
            raise RenderError(f"ffmpeg wrote nothing to {path}")
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def frame_rate(fps: float) -> Fraction:
    """Returns a frame rate as ffmpeg takes it: 24000/1001, or 1/1999 for slow ones, to one part in a million."""
    if fps >= 1:
        return Fraction(fps).limit_denominator(1001)
    return 1 / Fraction(1 / fps).limit_denominator(1001)


def _quality(codec: str, crf: int, lossless: bool) -> dict[str, Any]:
    if not lossless:
        return {"crf": crf}
    name = "h264" if CODECS[codec] is CODECS["h264"] else "h265"
    options = CODECS[codec]
    return {key: f"{options[key]}:{value}" if key in options else value for key, value in LOSSLESS[name].items()}


def _feed(command: list[str], frames: Frames) -> None:
    """Runs ``command`` with the frames on its standard input, one frame at a time."""
    whole = False
    # In memory: the folder for temporary files may be full or read-only.
    with os.fdopen(os.memfd_create("ffmpeg"), "w+b") as words, _process(command, words) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended by itself: its exit status tells why
            for frame in frames:
                process.stdin.write(np.ascontiguousarray(frame).data)
            process.stdin.close()
            whole = True
        status = process.wait()
        words.seek(0)
        said = words.read()
    if status != 0 or not whole:
        raise RenderError(_failure("encode", status, said))


@contextlib.contextmanager
def _process(command: list[str], stderr: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a process that does not outlive the block. stderr goes to a file: a full pipe would block both sides."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C is for us to handle: ffmpeg would finish the file as if whole
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def probe(path: Path) -> VideoInfo:
    """Returns size, rate, codec and number of frames of the first video stream. Decodes all of it.

    Raises:
        RenderError: one line: no such file, no video in it, or frames that do not decode.
    """
    # ffprobe does not come with imageio-ffmpeg; framecrc is ffmpeg's machine-readable listing of packets.
    listing = run_ffmpeg(path, "-c", "copy", "-f", "framecrc", "-").decode()
    header, durations = {}, []
    for line in listing.splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            header[key.split()[0]] = value.strip()
        elif line.strip():
            durations.append(int(line.split(",")[3]))
    if header.get("media_type") != "video" or not sum(durations):
        raise RenderError(f"{path}: holds no video frames")
    width, _, height = header["dimensions"].partition("x")
    tick = Fraction(header["tb"])
    decoded = run_ffmpeg(path, "-fps_mode", "passthrough", "-f", "framecrc", "-").decode()
    frames = sum(1 for line in decoded.splitlines() if line.strip() and not line.startswith("#"))
    seconds = sum(durations) * tick
    return VideoInfo(
        width=int(width),
        height=int(height),
        frames=frames,
        fps=float(len(durations) / seconds),
        codec={"hevc": "h265"}.get(header["codec_id"], header["codec_id"]),
        duration=float(seconds),
    )


def read_frames(path: Path) -> Frames:
    """Returns all frames of a file that :func:`encode_video` wrote, as RGB by bt709. [F, H, W, 3] uint8

    Raises:
        RenderError: as :func:`probe`.
    """
    info = probe(path)
    to_rgb = f"scale=in_color_matrix=bt709:in_range=tv:flags={ACCURATE},format=rgb24"
    raw = run_ffmpeg(path, "-vf", to_rgb, "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3).copy()


def run_ffmpeg(path: Path, *arguments: str) -> bytes:
    """Returns ffmpeg's standard output for the first video stream of ``path``. Any message of ffmpeg is an error."""
    if not path.is_file():
        raise RenderError(f"{path}: no such file")
    command = [_ffmpeg(), "-hide_banner", "-nostats", "-nostdin", "-v", "error", "-i", f"file:{path}"]
    done = subprocess.run(
        [*command, "-map", "0:v:0", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0 or done.stderr.strip():
        raise RenderError(_failure(f"read {path}", done.returncode, done.stderr))
    return done.stdout


def _failure(action: str, status: int, stderr: bytes) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    said = "; ".join(lines[-3:])[-400:]
    return f"cannot {action}: ffmpeg {how}" + (f": {said}" if said else "")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        path = ""
    if not path or shutil.which(path) is None:
        where = f" at {path}" if path else ""
        raise ClusterError(f"ffmpeg not found{where}: reinstall imageio-ffmpeg, or name one in IMAGEIO_FFMPEG_EXE")
    return path
