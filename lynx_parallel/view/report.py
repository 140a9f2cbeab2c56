"""The report: an HTML page that shows every shot of a campaign. ``report.html`` beside this file is its template."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.auditions import read_audition
from lynx_parallel.output.crops import faces_folder
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import now
from lynx_parallel.output.posters import POSTER_FRAMES, REPORT
from lynx_parallel.output.scores import read_scores
from lynx_parallel.output.shot_states import ShotState, shot_states
from lynx_parallel.view.table import make_table, scored_videos

REPORT_VERSION = 1
_DATA = '<script type="application/json" id="data">{}</script>'
_SHOWN = {"left": "to render"}
"""States of the page whose names differ from those of ``shot_states``."""
_OF_THE_RUN = ("layout", "attention", "sharded", "exactness", "packaging", "model", "labels", "consent",
               "lynx_parallel", "run", "attempt")  # fmt: skip
"""Keys of a sidecar that the page shows beside the settings."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report contains.

    Attributes:
        client: leave out reference crops, settings, scores, logs and reasons.
        inline: put posters and crops into the page. Videos stay files beside it.
        file: where to write the page; None for ``report.html`` in the output folder.
    """

    client: bool = False
    inline: bool = False
    file: Path | None = None


def write_report(output: Output, campaign: Campaign | None, options: ReportOptions = ReportOptions()) -> Path:
    """Writes the report of an output folder. Returns its path.

    Args:
        campaign: with all shots; None shows what the folder's sidecars tell.

    Raises:
        OSError: the page cannot be written.
    """
    text = json.dumps(report_data(output, campaign, options), ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    assert template.count(_DATA) == 1
    page = template.replace(_DATA, _DATA.replace("{}", text))
    path = options.file or output.folder / REPORT
    with atomic_write(path) as part:
        part.write_bytes(page.encode(errors="backslashreplace"))
    return path


def report_data(output: Output, campaign: Campaign | None, options: ReportOptions) -> dict[str, Any]:
    """Returns what the page shows. Its keys are described in ``docs/report.md``."""
    by_name = {shot.name: shot for shot in campaign.shots} if campaign else {}
    states = shot_states(output, by_name or None)
    found = (_Row(output, state, by_name.get(state.name), options).data() for state in states)
    rows = [row for row in found if row is not None]
    private = campaign is not None and campaign.faces == "private"
    subjects = dict.fromkeys(row["subject"] for row in rows)
    texts = {prompt.id: prompt.text for prompt in campaign.prompts} if campaign else {}
    labels = {subject.id: subject.labels for subject in campaign.subjects} if campaign else {}
    count: dict[str, int] = {}
    for row in rows:
        count[row["state"]] = count.get(row["state"], 0) + 1
    return {
        "version": REPORT_VERSION,
        "title": campaign.path.name if campaign else output.folder.name,
        "made": now(),
        "client": options.client,
        "subjects": [
            {
                "id": subject,
                "crop": None if options.client or (private and options.inline) else _crop(output, subject, options),
                "labels": {} if options.client else labels.get(subject, {}),
            }
            for subject in subjects
        ],
        "prompts": [
            {"id": prompt, "text": texts.get(prompt, "")} for prompt in dict.fromkeys(row["prompt"] for row in rows)
        ],
        "variants": list(dict.fromkeys(row["variant"] for row in rows)),
        "counts": count,
        "shots": rows,
        "table": None if options.client else _table(output),
        "timings": [] if options.client else list(_timings(states)),
    }


@dataclass(frozen=True)
class _Row:
    """One shot of the page."""

    output: Output
    state: ShotState
    shot: Shot | None
    options: ReportOptions

    def data(self) -> dict[str, Any] | None:
        """Returns what the page shows of the shot; None if nothing says whose it is."""
        sidecar, shot = self.state.sidecar or {}, self.shot
        made = sidecar.get("shot") if isinstance(sidecar.get("shot"), dict) else None
        if made is None and shot is None:
            return None
        ids = made or {}
        settings = {**_mapping(sidecar.get("settings")), **_mapping(sidecar.get("encoding"))}
        sampling = shot.sampling if shot else None
        shown = _SHOWN.get(self.state.state, self.state.state)
        reason = self.state.reason
        if shot is not None and made is not None and made.get("seed") != shot.seed:
            shown, reason = "to render", f"made with seed {made.get('seed')}; the next render takes {shot.seed}"
        video = quote(f"{self.state.name}.mp4") if self.state.sidecar else self._preview()
        row = {
            "name": self.state.name,
            "subject": shot.subject.id if shot else str(ids.get("subject", "")),
            "prompt": shot.prompt.id if shot else str(ids.get("prompt", "")),
            "variant": shot.variant if shot else str(ids.get("variant", "")),
            "take": shot.take if shot else ids.get("take", 1),
            "seed": str(ids.get("seed", shot.seed if shot else "")),  # beyond 2^53, JavaScript's numbers lose digits
            "state": shown,
            "video": video,
            "poster": _file(self.output, self.output.poster(self.state.name), self.options) if video else None,
            "poster_frames": POSTER_FRAMES,
            **{key: settings.get(f"sampling.{key}", getattr(sampling, key, None)) for key in _SIZES},
            "text": shot.text if shot else settings.get("prompt", ""),
            "take_state": shot.state if shot else "",
            "history": _history(shot),
            "finished": sidecar.get("finished"),
        }
        if self.options.client:
            return row
        also = {key: sidecar[key] for key in _OF_THE_RUN if sidecar.get(key) not in (None, {}, [])}
        return row | {
            "reason": reason,
            "logs": self.state.logs or None,
            "settings": {**settings, **also} if sidecar else None,
            "seconds": sidecar.get("seconds"),
            **self._scores(sidecar),
            **({"quality": sidecar["quality"]} if isinstance(sidecar.get("quality"), dict) else {}),
            "warnings": sidecar.get("warnings", []),
            "made_by": _made_by(sidecar),
        }

    def _preview(self) -> str | None:
        """Returns the address of the preview of a take that is not finished, or None."""
        path = self.output.preview(self.state.name)
        return quote(str(path.relative_to(self.output.folder))) if path.is_file() else None

    def _scores(self, sidecar: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the scores of the video, or of the preview, by name, and in words what has no number."""
        record = read_audition(self.output.audition(self.state.name))
        audition = [] if record is None else [(f"{record.score.recognizer} at step {record.step}", record.score)]
        video = _mapping(_mapping(sidecar.get("outputs")).get("video")).get("sha256")
        scores = read_scores(self.output.scores(self.state.name), video) if video else None
        found = [*scores.identity.items()] if scores else []
        numbers: dict[str, float] = {name: one.mean for name, one in (*found, *audition) if one.mean is not None}
        for name, one in found:
            numbers |= {
                f"{name} {what}": value
                for what, value in (("worst", one.worst), ("drift", one.drift), ("share with face", one.with_face))
                if value is not None and one.mean is not None
            }
        notes = [f"{name}: {one.state}" for name, one in (*found, *audition) if one.mean is None]
        return {"scores": numbers | dict(scores.others if scores else {}), "score_notes": notes}


_SIZES = ("width", "height", "fps", "num_frames")


def _history(shot: Shot | None) -> list[dict[str, str]]:
    if shot is None:
        return []
    return [{"seed": str(past.seed), "state": past.state, "time": past.time} for past in shot.history]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _made_by(sidecar: Mapping[str, Any]) -> str:
    """Returns the ranks that made a shot, in words: ``Ulysses 2 on NVIDIA H200``."""
    layout, ranks = _mapping(sidecar.get("layout")), sidecar.get("ranks")
    degrees = [f"{'Ulysses' if axis == 'ulysses' else axis} {layout[axis]}" for axis in layout if layout[axis] != 1]
    devices = dict.fromkeys(str(_mapping(rank).get("device", "")) for rank in ranks) if isinstance(ranks, list) else {}
    count = len(ranks) if isinstance(ranks, list) else 0
    words = ", ".join(degrees) or (f"{count} rank{'s' * (count != 1)}" if count else "")
    return f"{words} on {', '.join(devices)}" if devices else words


def _crop(output: Output, subject: str, options: ReportOptions) -> str | None:
    """Returns the picture of a subject: the largest reference crop, else the crop for ArcFace."""
    folder = faces_folder(output.folder) / subject
    try:
        crops = sorted(folder.glob("ref-*.png"), key=lambda path: path.stat().st_size) or list(folder.glob("id.png"))
    except OSError:
        return None
    return _file(output, crops[-1], options) if crops else None


def _file(output: Output, path: Path, options: ReportOptions) -> str | None:
    """Returns the address of a file for the page: relative, or its content; None if it is missing."""
    try:
        if not options.inline:
            return quote(str(path.relative_to(output.folder))) if path.is_file() else None
        kind = "png" if path.suffix == ".png" else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def _timings(states: Sequence[ShotState]) -> Iterator[dict[str, Any]]:
    """Yields seconds by stage over all finished shots."""
    every: dict[str, list[float]] = {}
    for state in states:
        for stage, seconds in _mapping((state.sidecar or {}).get("seconds")).items():
            if isinstance(seconds, int | float):
                every.setdefault(stage, []).append(seconds)
    for stage, found in every.items():
        total = round(sum(found), 3)
        yield {"stage": stage, "shots": len(found), "median": round(statistics.median(found), 3), "total": total}


def _table(output: Output) -> dict[str, Any] | None:
    """Returns the table of scores by variant, or None without scores."""
    table = make_table(scored_videos(output)) if (output.private / "scores").is_dir() else None
    return table.as_json() if table is not None and table.columns else None


def missing_posters(output: Output) -> list[str]:
    """Returns the names of finished shots without a poster, as those of an earlier version."""
    return [name for name, _ in output.sidecars() if not output.poster(name).is_file()]
