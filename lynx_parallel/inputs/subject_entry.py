"""Makes a Subject of one checked entry of the manifest or of a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lynx_parallel.inputs.entries import VAR, ConsentEntry, SubjectEntry
from lynx_parallel.inputs.manifest import Consent, Subject
from lynx_parallel.inputs.near_files import file_mistake
from lynx_parallel.inputs.problems import KeyPath, shown_value
from lynx_parallel.inputs.weight_names import resolve_file

Blame = Callable[[KeyPath, str], None]
"""Records a mistake at a key path inside the entry."""


def make_subject(name: str, entry: SubjectEntry, folder: Path, blame: Blame) -> Subject:
    """Returns the subject. Records missing files and wrong names.

    Args:
        folder: files are relative to it.
    """
    check_vars(entry.vars, lambda path, message: blame(("vars", *path), message))
    embedding = entry.embedding
    if embedding and not embedding.endswith((".safetensors", ".npy")):
        blame(("embedding",), f"{shown_value(embedding)}: must be a .safetensors or .npy file")
    return Subject(
        name,
        image=named_file(folder, "image", entry.image, blame),
        embedding=named_file(folder, "embedding", embedding, blame),
        landmarks=entry.landmarks,
        face=entry.face,
        vars=dict(entry.vars),
        sampling=entry.sampling,
        consent=as_consent(entry.consent),
        labels=dict(entry.labels),
        start_image=named_file(folder, "start_image", entry.start_image, blame),
    )


def as_consent(entry: ConsentEntry | None) -> Consent | None:
    """Returns what the sidecar records of a consent."""
    return Consent(entry.ref, entry.scope, entry.expires) if entry else None


def check_vars(names: dict[str, str], blame: Blame) -> None:
    """Records each var whose name cannot stand in a prompt."""
    for var in names:
        if not VAR.fullmatch(var):
            message = f"{shown_value(var)}: a var's name is a letter or '_', then letters, digits or '_' (ASCII)"
            blame((var,), message)


def named_file(folder: Path, key: str, text: str | None, blame: Blame) -> Path | None:
    """Returns the absolute path of an existing regular file, or None. Records a missing one.

    Args:
        folder: ``text`` is relative to it.
        key: that names the file.
    """
    if text is None:
        return None
    file = resolve_file(folder, text)
    if not os.path.isfile(file):
        wrong = file_mistake(file)
        if "\\" in text:
            wrong += "; write / between folders, not \\"
        blame((key,), f"{shown_value(text)}: {wrong}")
    return file
