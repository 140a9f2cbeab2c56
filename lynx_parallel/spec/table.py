"""``shots: {from: shots.csv}``: one shot group a row."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lynx_parallel.spec.entries import Priority, Takes
from lynx_parallel.spec.expand import template_mistake
from lynx_parallel.spec.manifest import Prompt, ShotGroup
from lynx_parallel.spec.pipeline import SamplingOverrides, Seed
from lynx_parallel.spec.problems import Problems, nearest, shown_value
from lynx_parallel.spec.yaml_lines import Unreadable, read_scalar, read_text

MAX_TABLE_BYTES = 64 * 2**20
TEXT_SETTINGS = ("negative_prompt", "sigma_schedule", "reference_latent")
_STRICT = ConfigDict(strict=True)
_NUMBERS: dict[str, TypeAdapter[int]] = {
    "takes": TypeAdapter(Takes, config=_STRICT),
    "seed": TypeAdapter(Seed, config=_STRICT),
    "priority": TypeAdapter(Priority, config=_STRICT),
}
COLUMNS = (
    "subject",
    "prompt",
    "prompt_text",
    *_NUMBERS,
    *(f"sampling.{name}" for name in SamplingOverrides.model_fields),
)


def setting_value(name: str, text: str) -> Any:
    """Value of a sampling field given as text: a text field's is taken as it stands."""
    return text if name in TEXT_SETTINGS else read_scalar(text.strip())


def prompt_id(text: str) -> str:
    """Id of a prompt that has none: ``p-`` and eight hex digits of the text's sha256."""
    return "p-" + hashlib.sha256(text.encode()).hexdigest()[:8]


class Table:
    """Reads a table into groups; ``prompts`` gains the rows' ad-hoc prompts.

    ``subjects`` and ``prompts`` map every id of the manifest, to None where the entry itself is wrong.
    """

    def __init__(self, file: Path, subjects: dict[str, Any], prompts: dict[str, Prompt | None], problems: Problems):
        self.file = file
        self.subjects = subjects
        self.prompts = prompts
        self.named = dict(prompts)  # without the ad-hoc ones: what "*" means
        self.folded = {name.casefold(): name for name in prompts}
        self.problems = problems
        self._read: dict[tuple[tuple[str, str], ...], SamplingOverrides] = {}

    def groups(self) -> list[ShotGroup]:
        """One group a row, in order; wrong rows are recorded and left out."""
        try:
            text = read_text(self.file, MAX_TABLE_BYTES)
        except Unreadable as error:
            self.problems.add(self.file, error.line, error.reason)
            return []
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        groups: list[ShotGroup] = []
        header: list[str] | None = None
        line, before = 0, len(self.problems)
        try:
            for cells in rows:
                start, line = line + 1, rows.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    if not self._header(header, start):
                        return []
                elif len(cells) != len(header):
                    self._blame(start, f"row has {len(cells)} cells, the header has {len(header)}")
                else:
                    row = {k: v for k, v in zip(header, cells, strict=True) if v.strip()}
                    group = self._row(row, start)
                    if group:
                        groups.append(group)
        except csv.Error as error:
            self._blame(max(rows.line_num, 1), f"not a valid table: {error}")
        if header is None:
            self._blame(1, "is empty: the first row names the columns")
        elif not groups and len(self.problems) == before:
            self._blame(line, "has no rows: at least one shot must result")
        return groups

    def _header(self, header: list[str], line: int) -> bool:
        before = len(self.problems)
        for i, name in enumerate(header):
            if name not in COLUMNS:
                self._blame(line, f"column {shown_value(name)}: unknown column; {nearest(name, COLUMNS)}")
            elif name in header[:i]:
                self._blame(line, f"column {name}: given twice")
        if "subject" not in header:
            self._blame(line, "column subject: missing")
        if "prompt" not in header and "prompt_text" not in header:
            self._blame(line, "column prompt or prompt_text: missing")
        return len(self.problems) == before

    def _row(self, row: dict[str, str], line: int) -> ShotGroup | None:
        before = len(self.problems)
        numbers: dict[str, int] = {}
        for name, adapter in _NUMBERS.items():
            if name in row:
                try:
                    numbers[name] = adapter.validate_python(read_scalar(row[name].strip()))
                except ValidationError as invalid:
                    said = invalid.errors(include_url=False)[0]["msg"]
                    self._blame(line, f"column {name}: {shown_value(row[name])}: {said}")
        subjects = self._ids(row, "subject", self.subjects, line)
        prompts = self._prompt_ids(row, line)
        sampling = self._sampling(row, line)
        if len(self.problems) != before:
            return None
        return ShotGroup(
            self.file,
            line,
            "row",
            subjects,
            prompts,
            first_seed=numbers.get("seed"),
            takes=numbers.get("takes", 1),
            priority=numbers.get("priority", 0),
            sampling=sampling,
        )

    def _ids(self, row: dict[str, str], column: str, known: dict[str, Any], line: int) -> tuple[str, ...]:
        name = row.get(column, "").strip()
        if name == "*" and known:
            return tuple(known)
        if name in known:
            return (name,)
        if not name:
            self._blame(line, f"column {column}: empty: must be a {column}'s id, or * for all")
        else:
            self._blame(line, f"column {column}: {shown_value(name)}: no such {column}; {nearest(name, known)}")
        return ()

    def _prompt_ids(self, row: dict[str, str], line: int) -> tuple[str, ...]:
        if ("prompt" in row) == ("prompt_text" in row):
            both = "both are given" if "prompt" in row else "neither is given"
            self._blame(line, f"columns prompt and prompt_text: {both}: a row has exactly one of them")
            return ()
        if "prompt" in row:
            return self._ids(row, "prompt", self.named, line)
        text = row["prompt_text"].strip()
        wrong = template_mistake(text)
        if wrong:
            self._blame(line, f"column prompt_text: {wrong}")
            return ()
        name = prompt_id(text)
        other = self.folded.setdefault(name, name)
        prompt = self.prompts.setdefault(name, Prompt(name, text)) if other == name else None
        if prompt is None or prompt.text != text:
            self._blame(line, f"column prompt_text: its id would be {name}, which is another prompt's")
            return ()
        return (name,)

    def _sampling(self, row: dict[str, str], line: int) -> SamplingOverrides:
        """Settings of a row; rows where they are written alike share one object."""
        cells = tuple([cell for cell in row.items() if cell[0].startswith("sampling.")])
        if cells in self._read:
            return self._read[cells]
        names = [(column.removeprefix("sampling."), text) for column, text in cells]
        try:
            read = SamplingOverrides.model_validate({name: setting_value(name, text) for name, text in names})
            return self._read.setdefault(cells, read)
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False):
                column = f"sampling.{error['loc'][0]}"
                shown = shown_value(row[column])
                self._blame(line, f"column {column}: {shown}: {error['msg']}")
        return SamplingOverrides()

    def _blame(self, line: int, message: str) -> None:
        self.problems.add(self.file, line, message)
