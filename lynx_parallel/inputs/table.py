"""Reads ``shots: {from: shots.csv}``, one shot group per row."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lynx_parallel.inputs.entries import ID, ID_ALLOWED, Priority, TakeCount
from lynx_parallel.inputs.ids import earlier_prompt_id, made_id, prompt_id
from lynx_parallel.inputs.manifest import Prompt, ShotGroup
from lynx_parallel.inputs.problems import KeyPath, Problems, nearest, shown_value
from lynx_parallel.inputs.sampling import SamplingOverrides, Seed
from lynx_parallel.inputs.sheet import Columns, read_sheet
from lynx_parallel.inputs.subject_entry import named_file
from lynx_parallel.inputs.template import template_mistake
from lynx_parallel.inputs.yaml_lines import read_scalar

TEXT_SETTINGS = ("negative_prompt", "sigma_schedule", "reference_latent")
SAMPLING_COLUMNS = tuple(f"sampling.{name}" for name in SamplingOverrides.model_fields)
_DECIMALS = (
    "fps", "flow_shift", "guidance_scale", "guidance_scale_2", "boundary_ratio", "guidance_scale_i", "ip_scale",
    "ref_scale",
)  # fmt: skip
_DECIMAL_COMMA = re.compile(r"\s*([-+]?[0-9]+),([0-9]+)\s*", re.ASCII)
_WINDOW = re.compile(r"\s*\[?\s*([^\s,;\[\]]+)[\s,;]+([^\s,;\[\]]+)\s*\]?\s*")
_STRICT = ConfigDict(strict=True)
_NUMBERS: dict[str, TypeAdapter[int]] = {
    "takes": TypeAdapter(TakeCount, config=_STRICT),
    "seed": TypeAdapter(Seed, config=_STRICT),
    "priority": TypeAdapter(Priority, config=_STRICT),
}
COLUMNS = ("subject", "prompt", "prompt_text", *_NUMBERS, "start_image", *SAMPLING_COLUMNS)


def setting_value(name: str, text: str, decimal_comma: bool = False) -> Any:
    """Returns the value of a sampling field given as text: a text itself, a list of numbers, or one value.

    Args:
        decimal_comma: ``4,5`` is a number.
    """
    if name in TEXT_SETTINGS:
        return text
    if decimal_comma and name in _DECIMALS and (found := _DECIMAL_COMMA.fullmatch(text)):
        text = f"{found[1]}.{found[2]}"
    if name in ("sigmas", "timesteps") and "," in text:
        return [read_scalar(part.strip()) for part in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if name == "identity_window" and (window := _WINDOW.fullmatch(text)):
        return [read_scalar(window[1]), read_scalar(window[2])]
    return read_scalar(text.strip())


def _missing(names: Collection[str]) -> list[str]:
    prompt = {"prompt", "prompt_text"} & set(names)
    return [*(() if "subject" in names else ("subject",)), *(() if prompt else ("prompt or prompt_text",))]


class Table:
    """Reads a table into groups; ``prompts`` gains the rows' own prompts.

    ``subjects`` and ``prompts`` map every id of the manifest, to None where the entry itself is wrong. ``earlier_ids``
    returns the ids that version 0.1 gave to texts and that the output folder still uses; those texts keep them.
    """

    def __init__(
        self,
        file: Path,
        subjects: dict[str, Any],
        prompts: dict[str, Prompt | None],
        problems: Problems,
        earlier_ids: Callable[[], Collection[str]] = frozenset,
    ):
        self.file = file
        self.subjects = subjects
        self.prompts = prompts
        self.named = dict(prompts)  # what "*" means
        self.folded = {name.casefold(): name for name in prompts}
        self.first: dict[str, int] = {}  # line that first gives a prompt its text, by id
        self.problems = problems
        self.earlier_ids = earlier_ids
        self.decimal_comma = False
        self._read: dict[tuple[tuple[str, str], ...], SamplingOverrides] = {}

    def groups(self) -> list[ShotGroup]:
        """Returns one group a row, in order; wrong rows are recorded and left out."""
        before = len(self.problems)
        columns = Columns(COLUMNS.__contains__, lambda name: list(COLUMNS), _missing)
        sheet = read_sheet(self.file, columns, self.problems)
        self.decimal_comma = sheet.decimal_comma
        own = {line: self._own_prompt(row, line) for line, row in sheet.rows if "prompt_text" in row}
        found = [self._row(row, line, own.get(line)) for line, row in sheet.rows]
        if sheet.good and not sheet.rows and len(self.problems) == before:
            self._blame(sheet.end, "has no rows: at least one shot must result")
        return [group for group in found if group]

    def _row(self, row: dict[str, str], line: int, own: str | None) -> ShotGroup | None:
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
        prompts: tuple[str, ...] = (own,) if own else ()
        if "prompt_text" not in row:
            prompts = self._prompt_ids(row, line)
        sampling = self._sampling(row, line)
        start = named_file(self.file.parent, "start_image", row.get("start_image"), partial(self._blame_cell, line))
        if len(self.problems) != before or not prompts:
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
            start_image=start,
        )

    def _ids(self, row: dict[str, str], column: str, every: dict[str, Any], line: int) -> tuple[str, ...]:
        name = row.get(column, "").strip()
        known = every if column == "subject" else {**every, **self.first}
        if name == "*" and every:
            return tuple(every)
        if name in known:
            return (name,)
        if not name:
            self._blame(line, f"column {column}: empty: must be a {column}'s id, or * for all")
        else:
            self._blame(line, f"column {column}: {shown_value(name)}: no such {column}; {nearest(name, known)}")
        return ()

    def _prompt_ids(self, row: dict[str, str], line: int) -> tuple[str, ...]:
        if "prompt" not in row:
            self._blame(line, "columns prompt and prompt_text: neither is given: a row needs an id, a text, or both")
            return ()
        return self._ids(row, "prompt", self.named, line)

    def _own_prompt(self, row: dict[str, str], line: int) -> str | None:
        """Adds the prompt of a row with a text, and returns its id; None when it is wrong (recorded)."""
        text, name = row["prompt_text"].strip(), row.get("prompt", "").strip()
        if wrong := template_mistake(text):
            self._blame(line, f"column prompt_text: {wrong}")
            return None
        if not name:
            name = self._text_id(text)
            place = f"column prompt_text: its id would be {name}, which is another prompt's"
        elif not ID.fullmatch(name):
            hint = "" if name == "*" else f"; for example {made_id(name)}"
            self._blame(line, f"column prompt: {shown_value(name)}: {ID_ALLOWED}{hint}")
            return None
        else:
            first = self.first.get(self.folded.get(name.casefold(), name))
            where = f"on line {first}" if first else "in the manifest"
            place = f"column prompt: {name}: another text or spelling is given {where}: a prompt has one text"
        other = self.folded.setdefault(name.casefold(), name)
        prompt = self.prompts.setdefault(name, Prompt(name, text)) if other == name else None
        if prompt is None and other == name:
            return None  # the manifest's prompt is wrong, which is recorded
        if prompt is None or prompt.text != text:
            self._blame(line, place)
            return None
        if "prompt" in row:
            self.first.setdefault(name, line)
        return name

    def _text_id(self, text: str) -> str:
        earlier = earlier_prompt_id(text)
        return earlier if earlier in self.earlier_ids() else prompt_id(text)

    def _sampling(self, row: dict[str, str], line: int) -> SamplingOverrides:
        """Settings of a row; rows with identical text share one object."""
        cells = tuple([cell for cell in row.items() if cell[0].startswith("sampling.")])
        if cells in self._read:
            return self._read[cells]
        settings = {
            name: setting_value(name, text, self.decimal_comma)
            for name, text in ((column.removeprefix("sampling."), text) for column, text in cells)
        }
        try:
            return self._read.setdefault(cells, SamplingOverrides.model_validate(settings))
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False):
                column = f"sampling.{error['loc'][0]}"
                shown = shown_value(row[column])
                self._blame(line, f"column {column}: {shown}: {error['msg']}")
        return SamplingOverrides()

    def _blame_cell(self, line: int, path: KeyPath, message: str) -> None:
        self._blame(line, f"column {path[0]}: {message}")

    def _blame(self, line: int, message: str) -> None:
        self.problems.add(self.file, line, message)
