"""lynx-render init [FOLDER]."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lynx_parallel.cli.complete import pipeline_names
from lynx_parallel.cli.options import Debug, show_notices
from lynx_parallel.errors import InputErrors
from lynx_parallel.text import counted, shown_path


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of pictures, one for each subject.")] = ".",
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Text file with one prompt per line, or table with a column prompt; default: two examples.",
        ),
    ] = None,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            metavar="PIPELINE",
            help="Name of a shipped pipeline, or pipeline file.",
            autocompletion=pipeline_names,
        ),
    ] = "lynx-full",
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FOLDER", help="Folder for the videos; default: renders/NAME beside FILE."),
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="Manifest to write.")] = "campaign.yaml",
    debug: Debug = False,
) -> None:
    """Write a commented manifest for a folder of pictures.

    File names become the ids of the subjects. What cannot be used is listed and left out. A file is never overwritten.

    Examples:
        lynx-render init faces
        lynx-render init faces --prompts prompts.txt -o spring.yaml
        lynx-render init faces --prompts prompts.csv --pipeline lynx-lite
    """
    from lynx_parallel.inputs import new_manifest as new
    from lynx_parallel.inputs.pipeline_files import find_pipeline, is_bare, load_pipeline
    from lynx_parallel.output.atomic import atomic_write

    file = Path(out)
    _check_file(file, out)
    found = find_pipeline(pipeline)
    load_pipeline(found, resolve=False)
    shipped = is_bare(pipeline) and not os.path.isfile(pipeline)
    subjects = new.find_subjects(Path(folder), [file, *([Path(prompts)] if prompts else [])])
    texts = new.read_prompt_list(Path(prompts)) if prompts is not None else new.Found(dict(new.EXAMPLES))
    show_notices([*subjects.notices, *texts.notices], strict=False)
    if output is not None and os.path.isabs(output):
        place = output
    else:
        place = new.relative(output if output is not None else file.parent / "renders" / file.stem, file.parent)
    named = pipeline if shipped else new.relative(found, file.parent)
    content = new.manifest_text(
        file.parent,
        pipeline=named if shipped or not is_bare(named) else f"./{named}",
        output=place,
        subjects=subjects.by_id,
        prompts=texts.by_id,
    )
    with atomic_write(file) as part:
        part.write_text(content, encoding="utf-8")
    many = counted(len(subjects.by_id), "subject"), counted(len(texts.by_id), "prompt")
    typer.echo(f"{shown_path(file)}: {many[0]}, {many[1]}")
    typer.echo(f"next: lynx-render plan {shlex.quote(out)}")


def _check_file(file: Path, out: str) -> None:
    """Raises InputErrors if a manifest cannot be written there."""
    if file.suffix not in (".yaml", ".yml"):
        raise InputErrors([f"--out {shown_path(out)}: must end in .yaml"])
    if os.path.lexists(file):
        raise InputErrors([f"--out {shown_path(out)}: exists already; choose another name with -o FILE"])
    if not file.parent.is_dir():
        raise InputErrors([f"--out {shown_path(out)}: no such folder: {shown_path(file.parent)}"])
