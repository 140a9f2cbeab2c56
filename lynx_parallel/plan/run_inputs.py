"""Reads the inputs of a finished run again: the user's recorded files, with the installed package.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lynx_parallel
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.pipeline import PipelineSpec
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.records import Record
from lynx_parallel.plan.digests import CampaignDigests
from lynx_parallel.text import shown_path

MISSING: Any = object()
"""Stands for a setting that a shot does not have."""


@dataclass(frozen=True)
class Cause:
    """The origin of a change.

    Attributes:
        text: in words; empty for the user's own edit.
        remedy: what to do to keep the finished shots.
    """

    text: str = ""
    remedy: str = ""


OWN = Cause()
"""The user's own edit."""


class RunInputs:
    """The inputs of a recorded run: the user's files as recorded, with the package that is installed now.

    Attributes:
        key: equal for runs of the same inputs.
        set: the run's ``--set``, by key.
    """

    def __init__(self, record: Record, manifest: Path, weights: Mapping[str, str]):
        self._record = record
        self._manifest = manifest
        self._weights = weights
        self.set = by_key(record.request.set)
        self.key = (record.manifest, *sorted(record.digests.items()), *sorted(self.set.items()), record.version)
        self._loaded: dict[str, _Loaded | None] = {}

    @property
    def campaign(self) -> Campaign | None:
        """The recorded campaign, or None if it cannot be read, for example because a picture is missing."""
        loaded = self._load("")
        return loaded.campaign if loaded else None

    def pipeline_of(self, name: str) -> PipelineSpec | None:
        """Returns the recorded pipeline of a shot, or that of the campaign if the run did not have the shot."""
        loaded = self._load("")
        return loaded.part_of(name).pipeline if loaded else None

    def has(self, name: str) -> bool:
        """Returns whether the run had this shot."""
        loaded = self._load("")
        return loaded is not None and name in loaded.shots

    def value(self, name: str, setting: str, without: str = "") -> Any:
        """Returns a setting of a shot as these inputs give it today.

        Args:
            without: key of a ``--set`` to leave out.
        """
        loaded = self._load(without)
        return MISSING if loaded is None else loaded.value(name, setting)

    def shipped_pipeline_renamed(self, setting: str, now: PipelineSpec) -> bool:
        """Returns whether the pipeline that comes with lynx-parallel named another file for this digest then."""
        before = self._shipped_pipeline
        return before is not None and weight_name(setting, before) != weight_name(setting, now)

    @cached_property
    def _shipped_pipeline(self) -> PipelineSpec | None:
        """The recorded shipped pipeline, if the run had one and it has changed since. Comments do not count."""
        record, campaign = self._record, self.campaign
        if record.pipeline not in record.shipped or campaign is None:
            return None
        now = campaign.sources.get(Path(os.path.abspath(campaign.pipeline_path)), b"")
        if hashlib.sha256(now).hexdigest() == record.digests[record.pipeline]:
            return None
        try:
            before = load_pipeline(record.copies[record.pipeline], resolve=False)
            return before if before != load_pipeline(campaign.pipeline_path, resolve=False) else None
        except InputErrors:
            return None

    @cached_property
    def installed_cause(self) -> Cause:
        """Cause of a change that the user's own files did not make."""
        record = self._record
        if self._shipped_pipeline is None:
            return other_version(record.version)
        return Cause(
            f"the pipeline {record.pipeline.stem}, which comes with lynx-parallel, has changed",
            f"set pipeline: {shown_path(record.copies[record.pipeline])}",
        )

    def _load(self, without: str) -> _Loaded | None:
        if without not in self._loaded:
            sets = [f"{key}={value}" for key, value in self.set.items() if key not in (without, "output")]
            try:
                campaign = load_campaign(self._record.as_of_today(self._manifest), sets)
                self._loaded[without] = _Loaded(campaign, self._weights)
            except (InputErrors, KeyError):
                self._loaded[without] = None
        return self._loaded[without]


class _Loaded:
    """A campaign and the settings of its shots."""

    def __init__(self, campaign: Campaign, weights: Mapping[str, str]):
        self.campaign = campaign
        self.shots = {shot.name: shot for shot in campaign.shots}
        self._parts = {shot.variant: part for part in campaign.parts for shot in part.shots}
        self._digests = {id(part): CampaignDigests(part, weights) for part in campaign.each}
        self._last: tuple[str, dict[str, Any]] = ("", {})

    def part_of(self, name: str) -> Campaign:
        """Returns the part of the campaign that a shot belongs to."""
        shot = self.shots.get(name)
        return self._parts.get(shot.variant, self.campaign.each[0]) if shot else self.campaign

    def value(self, name: str, setting: str) -> Any:
        """Returns a setting of a shot."""
        if setting == "save_latents":
            return self.campaign.save_latents
        if name != self._last[0]:
            settings: dict[str, Any] = {}
            if name in self.shots:
                with contextlib.suppress(InputErrors):
                    settings = self._digests[id(self.part_of(name))].settings(self.shots[name])
            self._last = (name, settings)
        return self._last[1].get(setting, MISSING)


def by_key(options: Sequence[str]) -> dict[str, str]:
    """Returns the last value of each ``key=value``."""
    return {key: value for key, _, value in (option.partition("=") for option in options)}


def other_version(before: str) -> Cause:
    now = lynx_parallel.__version__
    if before == now or not before:
        return Cause(f"this build of lynx-parallel {now} makes them differently", "install the build that made them")
    return Cause(f"lynx-parallel {before} made them, this is {now}", f"install lynx-parallel {before}")


def weight_name(setting: str, pipeline: Any) -> str | None:
    """Returns the name that a pipeline gives to the file of a digest, or None if it has none.

    Args:
        setting: ``weights.base/…``, ``weights.id``, ``face.detector``, for example.
        pipeline: a ``PipelineSpec``, or the ``model`` of a sidecar.
    """
    section, _, part = setting.partition(".")
    if section == "face":
        face = getattr(pipeline, "face", None)
        return getattr(face, part, None)
    model = pipeline.model.model_dump() if isinstance(pipeline, PipelineSpec) else pipeline
    if not isinstance(model, dict):
        return None
    if part.startswith("base/"):
        return model.get("base")
    adapter = (model.get("adapters") or {}).get(part)
    if part == "transformer":
        adapter = model.get("transformer")
    if part.startswith("lora."):
        adapter = dict(enumerate(model.get("loras") or ())).get(int(part.removeprefix("lora.")))
    return adapter.get("file") if isinstance(adapter, dict) else None
