"""Removes the lines of a subject from an output folder: from journals, logs and the records of runs.

What the records say of other subjects stays. Their copies of YAML files lose comments. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.records import RUN_FILE
from lynx_parallel.inputs.yaml_lines import read_yaml
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.folder import Output

_YAML = (".yaml", ".yml")
_TABLES = (".csv", ".tsv")


def redact(output: Output, subject: str, names: Collection[str]) -> None:
    """Removes the lines of a subject. The journals come last: by them, a repeated call finds what is left.

    Args:
        names: of the subject's shots.

    Raises:
        OSError: a file cannot be read or written.
    """
    private = output.private
    for folder in sorted((private / "manifests").glob("*/")):
        _redact_record(folder, subject, names)
    for path in sorted((private / "logs").rglob("*")):
        if path.is_file() and not path.is_symlink():
            _filter(path, lambda line: not _names(line, names))
    _filter(private / "approvals.jsonl", lambda line: not _is_about(line, subject, names))
    for status in (private / "status.json", *private.glob("shards/*/status.json")):
        status.unlink(missing_ok=True)
    for journal in output.journals:
        _filter(journal, lambda line: not _is_about(line, subject, names))


def mentions(output: Output, subject: str, names: Collection[str]) -> list[Path]:
    """Returns the files that ``redact`` would change."""
    private, found = output.private, []
    for path in (*(private / "manifests").rglob("*"), *output.journals, private / "approvals.jsonl"):
        with contextlib.suppress(OSError):
            if path.is_file() and any(name.encode() in path.read_bytes() for name in (subject, *names)):
                found.append(path)
    for path in (private / "logs").rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and any(name.encode() in path.read_bytes() for name in names):
                found.append(path)
    return sorted(set(found))


def _is_about(line: str, subject: str, names: Collection[str]) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return _names(line, names)
    if not isinstance(record, dict):
        return False
    if record.get("subject") == subject or record.get("name") in names:
        return True
    return _names(line, names)


def _names(text: str, names: Collection[str]) -> bool:
    """Returns whether a text names one of the shots. ``a/b`` does not name the shot ``a``."""
    return any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w/-])", text) for name in names)


def _filter(path: Path, keep: Any) -> None:
    """Writes a text file without some of its lines, if it exists and has such lines."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    kept = "".join(line for line in text.splitlines(keepends=True) if keep(line))
    if kept != text:
        with atomic_write(path) as part:
            part.write_text(kept, encoding="utf-8", errors="surrogateescape")


def _redact_record(folder: Path, subject: str, names: Collection[str]) -> None:
    """Removes a subject from the copies and the file of one run's record."""
    pictures: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.name == RUN_FILE or not path.is_file() or subject.encode() not in path.read_bytes():
            continue
        content: str | None = None
        if path.suffix.lower() in _YAML:
            content, own = _yaml_without(path, subject, names)
            pictures |= own
        elif path.suffix.lower() in _TABLES:
            content = _table_without(path, subject)
        if content is None:  # an Excel file, or a file that cannot be read any more
            path.unlink()
        else:
            with atomic_write(path) as part:
                part.write_text(content, encoding="utf-8")
    _redact_run(folder / RUN_FILE, subject, pictures)


def _yaml_without(path: Path, subject: str, names: Collection[str]) -> tuple[str | None, set[str]]:
    """Returns a manifest or a file of takes without a subject, and the names of the subject's files.

    The text is None if the file cannot be read.
    """
    problems = Problems()
    document = read_yaml(path, problems)
    if document is None or len(problems):
        return None, set()
    data, files = dict(document.data), set[str]()
    subjects = data.get("subjects")
    if isinstance(subjects, Mapping) and subject in subjects:
        entry = subjects[subject]
        files = (
            {str(value) for value in entry.values() if isinstance(value, str)} if isinstance(entry, Mapping) else set()
        )
        data["subjects"] = {name: one for name, one in subjects.items() if name != subject}
    for key in ("shots", "takes"):
        if isinstance(data.get(key), list):
            data[key] = list(_entries_without(data[key], subject))
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return None if _names(text, names) else f"# A subject was removed.\n{text}", files


def _entries_without(entries: list[Any], subject: str) -> Iterator[Any]:
    for entry in entries:
        named = entry.get("subject") if isinstance(entry, Mapping) else None
        if named == subject or named == [subject]:
            continue
        if isinstance(named, list) and subject in named:
            yield {**entry, "subject": [name for name in named if name != subject]}
        else:
            yield entry


def _table_without(path: Path, subject: str) -> str:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    written = io.StringIO()
    writer = csv.writer(written, dialect, lineterminator="\n")
    writer.writerows(row for row in csv.reader(io.StringIO(text), dialect) if subject not in row)
    return written.getvalue()


def _redact_run(path: Path, subject: str, pictures: Collection[str]) -> None:
    """Removes a subject's pictures and patterns from ``run.json``."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    ends = tuple(name.lstrip("./") for name in pictures)
    before = json.dumps(found)
    found["pictures"] = [
        one for one in found.get("pictures", ())
        if Path(one["path"]).stem != subject and not (ends and str(one["path"]).endswith(ends))
    ]  # fmt: skip
    for key in ("only", "command"):
        found[key] = [word for word in found.get(key, ()) if word.partition("/")[0] != subject]
    found["options"] = [option for option in found.get("options", ()) if subject not in option]
    if json.dumps(found) != before:
        with atomic_write(path) as part:
            part.write_bytes((json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
