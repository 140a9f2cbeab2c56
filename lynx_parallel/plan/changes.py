"""Finds why finished shots would be made again: the user's own edits, or a cause that the user may not know.

A setting's change comes from outside if the user's files did not change it: a ``--set`` that was dropped, another
version of lynx-parallel, other weights under the same names, a pipeline or manifest that comes with lynx-parallel.
Decides only; nothing here asks or writes. Imports neither torch nor Ray.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.records import read_record
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.digests import changed
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.run_inputs import MISSING, OWN, Cause, RunInputs, by_key, other_version, weight_name
from lynx_parallel.text import counted

_MAX_SHOWN = 40
"""Characters of a value that a line shows."""


@dataclass(frozen=True)
class Change:
    """Finished shots that would be made again for the same causes.

    Attributes:
        action: the action of the plan, ``render`` or ``encode``.
        causes: from outside; empty where all is the user's own edit.
        settings: the changed settings, by name, in words.
        transitions: identifies what each shot was and would become; for approvals.
    """

    action: Literal["encode", "render"]
    causes: tuple[Cause, ...]
    settings: tuple[str, ...]
    names: tuple[str, ...]
    transitions: tuple[str, ...]

    def __str__(self) -> str:
        made = f"{counted(len(self.names), 'finished shot')} to {self.action} again: {', '.join(self.settings)}"
        return f"{made} ({'; '.join(cause.text for cause in self.causes)})" if self.causes else made

    def as_json(self) -> dict[str, Any]:
        """Returns what a program may want to know."""
        causes = [cause.text for cause in self.causes]
        return {"action": self.action, "shots": list(self.names), "settings": list(self.settings), "causes": causes}


def find_changes(
    items: Sequence[Item], campaign: Campaign, weights: Mapping[str, str], set_: Sequence[str]
) -> list[Change]:
    """Returns why finished shots would be made again, in the order of the plan.

    Args:
        items: of a plan.
        weights: digests by ``weights.weight_digests``.
        set_: the values of ``--set``.
    """
    groups: dict[tuple[Any, ...], list[tuple[Item, str, dict[str, tuple[Any, Any]]]]] = {}
    history = _History(campaign, weights, set_)
    for item in items:
        if not item.stale or not (item.denoises or item.action == "encode"):
            continue
        old = history.output.sidecar(item.shot.name)
        if old is None:
            continue
        new = {**item.digests.settings, **item.digests.encoding, "save_latents": campaign.save_latents}
        before = {**old["settings"], **old["encoding"], "save_latents": "latents" in old["outputs"]}
        if not campaign.save_latents:
            before["save_latents"] = False  # latents that are there already do no harm
        names = changed(before, new, fold=False)
        if not names:
            continue  # a damaged file
        causes = history.causes(
            item, old, {name: (before.get(name, MISSING), new.get(name, MISSING)) for name in names}
        )
        # Without the action: the approved run may have made the latents, or found them damaged, before it was cut off.
        transition = f"{old['digests']['video'][:16]}-{item.digests.video[:16]}"
        values = {name: (before.get(name), new.get(name)) for name in names}
        groups.setdefault((item.action, causes), []).append((item, transition, values))
    return [
        Change(
            action, causes, tuple(_in_words([values for _, _, values in group])),
            tuple(item.shot.name for item, _, _ in group), tuple(transition for _, transition, _ in group),
        )
        for (action, causes), group in groups.items()
    ]  # fmt: skip


class _History:
    """The runs that made the finished shots."""

    def __init__(self, campaign: Campaign, weights: Mapping[str, str], set_: Sequence[str]):
        self.output = Output(campaign.output)
        self._campaign = campaign
        self._weights = weights
        self._set = by_key(set_)
        self._runs: dict[str, RunInputs | None] = {}
        self._same: dict[tuple[Any, ...], RunInputs] = {}

    def causes(
        self, item: Item, sidecar: Mapping[str, Any], values: Mapping[str, tuple[Any, Any]]
    ) -> tuple[Cause, ...]:
        """Returns the causes from outside of a shot's changes, each once.

        Args:
            values: (old, new) of each changed setting.
        """
        inputs = self._inputs(str(sidecar.get("run", "")))
        causes: dict[Cause, None] = {}
        for name, (_, new) in values.items():
            if name == "sampling.seed" and item.shot.bound:
                continue  # rerolled by the user
            if name.startswith("subject."):
                continue  # pictures, embeddings and landmarks are the user's
            if name == "numerics":
                cause = other_version(str(sidecar.get("lynx_parallel", "")))
            elif name.startswith(("weights.", "face.recognizer", "face.detector")):
                cause = self._of_weights(item.shot.name, name, inputs, sidecar)
            else:
                cause = self._of_setting(item, name, new, inputs)
            if cause != OWN:
                causes[cause] = None
        return tuple(causes)

    def _inputs(self, run: str) -> RunInputs | None:
        """Returns what a run was made of. Runs of the same inputs share it, as there may be many of them."""
        if run not in self._runs:
            record = read_record(self.output.record(run)) if _is_name(run) else None
            if record is None:
                self._runs[run] = None
            else:
                inputs = RunInputs(record, self._campaign.path, self._weights)
                self._runs[run] = self._same.setdefault(inputs.key, inputs)
        return self._runs[run]

    def _of_weights(self, shot: str, name: str, inputs: RunInputs | None, sidecar: Mapping[str, Any]) -> Cause:
        """Returns the cause if a file that the user's pipeline names as before has another content.

        Args:
            shot: its name.
            name: of the setting.
        """
        now = weight_name(name, self._campaign.pipeline)
        before: Any = MISSING
        if inputs is not None and inputs.campaign is not None:
            before = weight_name(name, inputs.pipeline_of(shot))
        elif name.startswith("weights."):
            before = weight_name(name, sidecar.get("model"))
        if before is MISSING or before != now:
            return OWN
        if inputs is not None and inputs.shipped_pipeline_renamed(name, self._campaign.pipeline):
            return inputs.installed_cause
        return Cause(f"the files of {now} have another content", f"restore {now}")

    def _of_setting(self, item: Item, name: str, new: Any, inputs: RunInputs | None) -> Cause:
        if inputs is None:
            return OWN  # an output folder of a version that wrote no records
        dropped = name in inputs.set and name not in self._set
        remedy = f"--set {shlex.quote(f'{name}={inputs.set[name]}')}" if dropped else ""
        text = f"{remedy} was given when they were made" if dropped else ""
        if inputs.campaign is None:  # some of its files are gone
            return Cause(text, f"give {remedy}") if dropped else OWN
        if not inputs.has(item.shot.name):
            return OWN
        if inputs.value(item.shot.name, name) == new:  # what the user gave then makes this today
            return inputs.installed_cause
        if dropped and inputs.value(item.shot.name, name, without=name) == new:
            return Cause(text, f"give {remedy}")
        return OWN


def _in_words(values: Sequence[Mapping[str, tuple[Any, Any]]]) -> Iterator[str]:
    """Yields the changed settings of some shots, with old and new value if they are short and the same for all."""
    every: dict[str, set[str]] = {}
    for one in values:
        for name, both in one.items():
            shown = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in both]
            short = all(len(text) <= _MAX_SHOWN for text in shown)
            folded = "weights" if name.startswith("weights.") else name
            digest = folded == "weights" or name.startswith(("subject.", "face."))
            every.setdefault(folded, set()).add(f"{shown[0]} → {shown[1]}" if short and not digest else "")
    for name, pairs in sorted(every.items()):
        yield f"{name} {pairs.pop() if len(pairs) == 1 else ''}".rstrip()


def _is_name(run: str) -> bool:
    return bool(run) and "/" not in run and run not in (".", "..")
