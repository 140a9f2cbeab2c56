"""lynx-render show: what a video file says of itself, and whether it is what was made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lynx_parallel.cli.options import Debug, Json
from lynx_parallel.errors import collect
from lynx_parallel.text import escaped, shown_path

if TYPE_CHECKING:
    from lynx_parallel.inputs.made_by import MadeBy

Folder = Annotated[
    Path | None,
    typer.Option("--output", metavar="FOLDER", help="Output folder to look in, for a copy that was moved."),
]


def show(
    files: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos, files of latents or sidecars.")],
    output: Folder = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what videos say of themselves, and verify them.

    A video carries the digest of its settings and the mark of a trained model (IPTC). Its sidecar says the rest. Exits
    with 1 if a file differs from its sidecar.

    Examples:
        lynx-render show renders/spring/ada/beach-t01.mp4
        lynx-render show delivery/*.mp4 --output renders/spring
    """
    from functools import partial

    from lynx_parallel.inputs.made_by import find_made_by

    found = collect(partial(find_made_by, path, output) for path in files)
    rows, good = [], True
    for one in found:
        fine, verdict = one.verdict()
        good = good and fine
        row = _facts(one) | {"verdict": verdict, "good": fine}
        rows.append(row)
        if not as_json:
            for line in _lines(row):
                typer.echo(line)
    if as_json:
        typer.echo(json.dumps({"files": rows, "exit_code": int(not good)}))
    raise typer.Exit(int(not good))


def _facts(made: MadeBy) -> dict[str, Any]:
    """Returns what is known about a file."""
    from lynx_parallel.output.scores import read_scores

    mark, sidecar = made.mark, made.sidecar
    row: dict[str, Any] = {"file": shown_path(made.path), "says": None}
    if mark is not None:
        says = {"source": mark.source_type, "digest": mark.digest, "prompt": mark.prompt, "seed": mark.seed}
        row["says"] = {key: value for key, value in says.items() if value not in (None, "")}
    if sidecar is None or made.output is None:
        return row
    settings = {**sidecar["settings"], **sidecar["encoding"]}
    row |= {
        "sidecar": shown_path(made.output.path(made.name, "sidecar")), "shot": sidecar.get("shot"),
        "prompt": settings.get("prompt"), "digests": sidecar["digests"], "consent": sidecar.get("consent"),
        "settings": {key: value for key, value in settings.items() if key.startswith(("sampling.", "video."))},
        "made": {key: sidecar.get(key) for key in ("finished", "attempt", "run", "layout", "exactness", "quality",
                                                   "lynx_parallel") if sidecar.get(key)},
    }  # fmt: skip
    facts = sidecar["outputs"].get("video")
    scores = read_scores(made.output.scores(made.name), facts.get("sha256")) if isinstance(facts, dict) else None
    if scores is not None:
        row["scores"] = {name: one.mean if one.mean is not None else one.state for name, one in scores.identity.items()}
    return row


def _lines(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['file']}: {row['verdict']}"
    says = row["says"]
    yield f"  says of itself:{' nothing' if says is None else ''}"
    yield from (f"    {name}: {escaped(str(value))}" for name, value in (says or {}).items())
    if "sidecar" not in row:
        return
    yield f"  sidecar: {row['sidecar']}"
    for name in ("shot", "prompt", "consent", "scores", "made"):
        value = row.get(name)
        if isinstance(value, dict):
            yield f"    {name}: " + ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
        elif value:
            yield f"    {name}: {escaped(str(value))}"
    changed = ", ".join(f"{key.partition('.')[2]} {_shown(value)}" for key, value in row["settings"].items()
                        if key != "sampling.negative_prompt")  # fmt: skip
    yield f"    settings: {changed}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
