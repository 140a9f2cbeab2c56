"""Reads ``subjects:`` and ``prompts:``."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from lynx_parallel.spec.entries import ID, ID_ALLOWED, VAR, PromptEntry, SubjectEntry, TableEntry
from lynx_parallel.spec.expand import template_mistake
from lynx_parallel.spec.manifest import Consent, Prompt, Subject
from lynx_parallel.spec.pipeline import PipelineSpec, resolve_file
from lynx_parallel.spec.problems import KeyPath, Problems, shown_value
from lynx_parallel.spec.validate import read_model
from lynx_parallel.spec.yaml_lines import Document, Unreadable, read_text

MAX_PROMPT_BYTES = 2**20


def read_subjects(document: Document, problems: Problems) -> dict[str, Subject | None]:
    """Subjects by id, None for those that are wrong (recorded)."""
    data = document.data.get("subjects")
    if isinstance(data, dict) and "from" in data and not isinstance(data["from"], dict):
        return _from_folder(document, problems)
    out: dict[str, Subject | None] = {}
    for name in _ids(document, "subjects", problems):
        entry = read_model(SubjectEntry, document, ("subjects", name), problems)
        out[name] = _subject(name, entry, document, problems) if entry else None
    return out


def read_prompts(document: Document, problems: Problems) -> dict[str, Prompt | None]:
    """Prompts by id, None for those that are wrong (recorded)."""
    out: dict[str, Prompt | None] = {}
    for name in _ids(document, "prompts", problems):
        entry = read_model(PromptEntry, document, ("prompts", name), problems)
        out[name] = _prompt(name, entry, document, problems) if entry else None
    return out


def face_gaps(subject: Subject, pipeline: PipelineSpec) -> str | None:
    """What a subject lacks for this pipeline, or None."""
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


def _ids(document: Document, section: str, problems: Problems) -> list[str]:
    """The section's keys that are ids; records the others, and ids that differ in case only."""
    data = document.data.get(section)
    if not isinstance(data, dict) or not data:
        if section in document.data:
            shown = "is empty" if data == {} else document.shown((section,), data)
            message = f"{shown}: must be a mapping of ids, with at least one"
            document.blame(problems, (section,), message)
        return []
    seen: dict[str, str] = {}
    good: list[str] = []
    for name in data:
        path = (section, name)
        first = seen.setdefault(name.casefold(), name)
        if not ID.fullmatch(name):
            document.blame(problems, path, f"{shown_value(name)}: {ID_ALLOWED}")
        elif first != name:
            line = document.line((section, first))
            document.blame(problems, path, f"given twice, first as {first!r} on line {line} (case is ignored)")
        else:
            good.append(name)
    return good


def _from_folder(document: Document, problems: Problems) -> dict[str, Subject | None]:
    entry = read_model(TableEntry, document, ("subjects",), problems)
    if entry is None:
        return {}
    path = ("subjects", "from")
    folder = document.file.parent
    pattern = os.path.join(os.path.abspath(folder), os.path.expanduser(entry.from_))
    try:
        files = [resolve_file(folder, found) for found in sorted(glob.glob(pattern)) if os.path.isfile(found)]
    except (OSError, ValueError) as error:
        document.blame(problems, path, f"{shown_value(entry.from_)}: {error}")
        return {}
    if not files:
        document.blame(problems, path, f"{shown_value(entry.from_)}: matches no file")
    out: dict[str, Subject | None] = {}
    seen: dict[str, Path] = {}
    for file in files:
        first = seen.setdefault(file.stem.casefold(), file)
        if not ID.fullmatch(file.stem):
            document.blame(problems, path, f"{shown_value(file.name)}: its stem is no id: {ID_ALLOWED}")
        elif first != file:
            message = f"{shown_value(first.name)} and {shown_value(file.name)} give the same id"
            document.blame(problems, path, message)
        else:
            out[file.stem] = Subject(file.stem, image=file)
    return out


def _file(document: Document, path: KeyPath, text: str | None, problems: Problems) -> Path | None:
    """Absolute path of an existing regular file."""
    if text is None:
        return None
    file = resolve_file(document.file.parent, text)
    if not os.path.isfile(file):
        wrong = "not a regular file" if os.path.exists(file) else "missing file"
        document.blame(problems, path, f"{shown_value(text)}: {wrong}")
    return file


def _subject(name: str, entry: SubjectEntry, document: Document, problems: Problems) -> Subject:
    at = ("subjects", name)
    for var in entry.vars:
        if not VAR.fullmatch(var):
            message = f"{shown_value(var)}: a var's name is a letter or '_', then letters, digits or '_' (ASCII)"
            document.blame(problems, (*at, "vars", var), message)
    embedding = entry.embedding
    if embedding and not embedding.endswith((".safetensors", ".npy")):
        message = f"{shown_value(embedding)}: must be a .safetensors or .npy file"
        document.blame(problems, (*at, "embedding"), message)
    consent = entry.consent
    return Subject(
        name,
        image=_file(document, (*at, "image"), entry.image, problems),
        embedding=_file(document, (*at, "embedding"), embedding, problems),
        landmarks=entry.landmarks,
        face=entry.face,
        vars=dict(entry.vars),
        sampling=entry.sampling,
        consent=Consent(consent.ref, consent.scope, consent.expires) if consent else None,
        labels=dict(entry.labels),
    )


def _prompt(name: str, entry: PromptEntry, document: Document, problems: Problems) -> Prompt | None:
    path: KeyPath = document.standing(("prompts", name, "text" if entry.file is None else "file"))
    text: Any = entry.text
    if entry.file is not None:
        try:
            text = read_text(resolve_file(document.file.parent, entry.file), MAX_PROMPT_BYTES)
        except Unreadable as error:
            document.blame(problems, path, f"{shown_value(entry.file)}: {error.reason}")
            return None
    text = text.strip()
    wrong = template_mistake(text) if text else "the prompt is empty"
    if wrong:
        document.blame(problems, path, wrong)
        return None
    return Prompt(name, text, entry.sampling)
