"""Reads ``shots:``, which is a list, a table or missing, into groups with known ids."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from lynx_parallel.inputs.entries import ShotEntry, TableEntry
from lynx_parallel.inputs.ids import earlier_prompt_ids
from lynx_parallel.inputs.manifest import Prompt, ShotGroup, Subject
from lynx_parallel.inputs.near_files import file_mistake
from lynx_parallel.inputs.problems import KeyPath, Problems, nearest, shown_key, shown_value
from lynx_parallel.inputs.quality import Audition
from lynx_parallel.inputs.sources import is_file
from lynx_parallel.inputs.subject_entry import named_file
from lynx_parallel.inputs.table import Table
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.inputs.yaml_lines import Document


def read_groups(
    document: Document,
    subjects: dict[str, Subject | None],
    prompts: dict[str, Prompt | None],
    problems: Problems,
    output: Path,
) -> list[ShotGroup]:
    """Groups in the manifest's order; wrong ones are recorded and left out. A table adds to ``prompts``.

    Args:
        output: the campaign's output folder, where a table's texts may have ids by an earlier version.
    """
    data = document.data.get("shots")
    if "shots" not in document.data:
        return [ShotGroup(document.file, 1, "shots", tuple(subjects), tuple(prompts))]
    if isinstance(data, dict):
        entry = read_model(TableEntry, document, ("shots",), problems)
        if entry is None:
            return []
        table = resolve_file(document.file.parent, entry.from_)
        if not is_file(table):
            document.blame(problems, ("shots", "from"), f"{shown_value(entry.from_)}: {file_mistake(table)}")
            return []
        return Table(table, subjects, prompts, problems, cache(partial(earlier_prompt_ids, output))).groups()
    if not isinstance(data, list) or not data:
        shown = "is empty" if data == [] else document.shown(("shots",), data)
        message = f"{shown}: must be a list with at least one entry, or {{from: shots.csv}}"
        document.blame(problems, ("shots",), message)
        return []
    found = [_group(document, i, subjects, prompts, problems) for i in range(len(data))]
    return [group for group in found if group]


def _group(
    document: Document, index: int, subjects: dict[str, Any], prompts: dict[str, Any], problems: Problems
) -> ShotGroup | None:
    path: KeyPath = ("shots", index)
    entry = read_model(ShotEntry, document, path, problems)
    if entry is None:
        return None
    before = len(problems)
    by_number = entry.takes if isinstance(entry.takes, dict) else None
    if entry.seeds and by_number:
        document.blame(problems, (*path, "takes"), "gives seeds by take beside seeds: give one of them")
    elif entry.seeds and entry.takes and len(entry.seeds) != entry.takes:
        message = f"{entry.takes}: there are {len(entry.seeds)} seeds: give seeds or takes, or equally many"
        document.blame(problems, (*path, "takes"), message)
    subject_ids = _ids(document, (*path, "subject"), entry.subject, subjects, problems)
    prompt_ids = _ids(document, (*path, "prompt"), entry.prompt, prompts, problems)
    folder, blame = document.file.parent, partial(_blame, document, path, problems)
    start = named_file(folder, "start_image", entry.start_image, blame)
    if len(problems) != before:
        return None
    seeds = tuple(by_number.values() if by_number else entry.seeds or ()) or None
    takes = entry.takes if isinstance(entry.takes, int) else 1
    return ShotGroup(
        document.file,
        document.line(path),
        shown_key(path),
        subject_ids,
        prompt_ids,
        seeds=seeds,
        numbers=tuple(by_number) if by_number else None,
        takes=len(seeds) if seeds else takes,
        priority=entry.priority,
        sampling=entry.sampling,
        start_image=start,
        audition=Audition(**entry.audition.model_dump()) if entry.audition else None,
    )


def _blame(document: Document, entry: KeyPath, problems: Problems, path: KeyPath, message: str) -> None:
    document.blame(problems, (*entry, *path), message)


def _ids(
    document: Document, path: KeyPath, names: list[str], known: dict[str, Any], problems: Problems
) -> tuple[str, ...]:
    if names == ["*"]:
        return tuple(known)
    kind = path[-1]
    for i, name in enumerate(names):
        if name not in known:
            message = f"{shown_value(name)}: no such {kind}; {nearest(name, known, f'{kind}s')}"
            document.blame(problems, document.standing((*path, i)), message)
    return tuple(names)
