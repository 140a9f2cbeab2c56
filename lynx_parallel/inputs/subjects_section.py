"""Reads ``subjects:``."""

from __future__ import annotations

from pathlib import Path

from lynx_parallel.inputs.entries import SubjectEntry, SubjectsFrom
from lynx_parallel.inputs.manifest import Subject
from lynx_parallel.inputs.near_files import file_mistake, near_file
from lynx_parallel.inputs.people import id_of_file, read_people
from lynx_parallel.inputs.picture_patterns import PATTERN, find_pictures
from lynx_parallel.inputs.pipeline import PipelineSpec
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.sections import section_ids
from lynx_parallel.inputs.sheet import is_table
from lynx_parallel.inputs.shipped import shipped_dir
from lynx_parallel.inputs.sources import is_file
from lynx_parallel.inputs.subject_entry import Blame, as_consent, check_vars, make_subject
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.weight_names import resolve_file
from lynx_parallel.inputs.yaml_lines import Document
from lynx_parallel.text import shown_path


def read_subjects(document: Document, problems: Problems) -> dict[str, Subject | None]:
    """Subjects by id, None for those that are wrong (recorded)."""
    if is_pattern(document.data.get("subjects")):
        return _subjects_from(document, problems)
    out: dict[str, Subject | None] = {}
    for name in section_ids(document, "subjects", problems):
        entry = read_model(SubjectEntry, document, ("subjects", name), problems)
        blame = _blame_entry(document, name, problems)
        out[name] = make_subject(name, entry, document.file.parent, blame) if entry else None
    return out


def is_pattern(data: object) -> bool:
    """Returns whether ``subjects:`` names pictures or a table: ``{from: …}``. A subject may be called ``from``, too."""
    return isinstance(data, dict) and "from" in data and not isinstance(data["from"], dict)


def face_gaps(subject: Subject, pipeline: PipelineSpec) -> str | None:
    """Returns what a subject lacks for this pipeline, or None."""
    needs_pixels = pipeline.model.adapters.ref is not None
    finds_face = subject.embedding is None or (needs_pixels and subject.landmarks is None)
    if (needs_pixels or finds_face) and subject.image is None:
        return "missing 'image': " + (
            "this pipeline's reference branch sees it" if needs_pixels else "or an 'embedding'"
        )
    if finds_face and pipeline.face is None:
        names = [name for name in ("embedding", "landmarks") if getattr(subject, name) is None]
        lacking = " and ".join(f"'{name}'" for name in (names if needs_pixels else names[:1]))
        return f"no {lacking} given, and the pipeline has no 'face:' models to find them"
    return None


def _subjects_from(document: Document, problems: Problems) -> dict[str, Subject | None]:
    """Subjects of a table or of pictures, with what the manifest gives for all of them."""
    entry = read_model(SubjectsFrom, document, ("subjects",), problems)
    if entry is None:
        return {}
    before = len(problems)
    check_vars(entry.vars, lambda path, message: document.blame(problems, ("subjects", "vars", *path), message))
    if len(problems) != before:
        return {}
    if is_table(entry.from_):
        table = resolve_file(document.file.parent, entry.from_)
        if not is_file(table):
            document.blame(problems, ("subjects", "from"), f"{shown_value(entry.from_)}: {file_mistake(table)}")
            return {}
        given = {key: value for key, value in document.data["subjects"].items() if key != "from"}
        return read_people(document, table, given, problems)
    return _from_pictures(document, entry, problems)


def _from_pictures(document: Document, entry: SubjectsFrom, problems: Problems) -> dict[str, Subject | None]:
    path = ("subjects", "from")
    shown = shown_value(entry.from_)
    try:
        files, others = find_pictures(document.file.parent, entry.from_, problems)
    except OSError as error:
        folder = f" {shown_path(error.filename)}" if error.filename else ""
        document.blame(problems, path, f"{shown}: cannot read{folder}: {error.strerror or error}")
        return {}
    if not files:
        near = "" if PATTERN.search(entry.from_) else near_file(resolve_file(document.file.parent, entry.from_))
        only = f"matches no picture, only {', '.join(others[:3])}" if others else f"matches no file{near}"
        if document.file.parent == shipped_dir("manifests"):  # no pictures are shipped for a benchmark
            only += "; --set subjects=FOLDER names your pictures"
        document.blame(problems, path, f"{shown}: {only}")
    for other in others:
        message = "subjects.from matches files that are no pictures; they were left out"
        problems.warn("not-a-picture", message, other)
    out: dict[str, Subject | None] = {}
    seen: dict[str, Path] = {}
    for file in files:
        name = id_of_file(file.stem, shown_path(file), problems)
        first = seen.setdefault(name.casefold(), file)
        if first != file:
            pair = f"{shown_value(first.name)} and {shown_value(file.name)}"
            if first.name == file.name:
                pair = f"{shown_path(first)} and {shown_path(file)}"
            document.blame(problems, path, f"{pair} give the same id {name!r}; rename one of them")
            continue
        out[name] = Subject(
            name,
            image=file,
            face=entry.face,
            vars=dict(entry.vars),
            sampling=entry.sampling,
            consent=as_consent(entry.consent),
            labels=dict(entry.labels),
        )
    return out


def _blame_entry(document: Document, name: str, problems: Problems) -> Blame:
    return lambda path, message: document.blame(problems, ("subjects", name, *path), message)
