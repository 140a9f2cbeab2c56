"""Expands subjects, prompts and shot groups to shots: seeds, takes, texts, settings, names."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lynx_parallel.inputs.entries import DEFAULT_NAME
from lynx_parallel.inputs.manifest import Prompt, Shot, ShotGroup, Subject, Variant
from lynx_parallel.inputs.names import fold, folder_clash, name_mistake
from lynx_parallel.inputs.problems import Problems, nearest, shown_value
from lynx_parallel.inputs.quality import audition_mistake
from lynx_parallel.inputs.sampling import MAX_SEED, Sampling, SamplingOverrides, overlay, sampling_mistake
from lynx_parallel.inputs.template import fill, template_fields, unknown_vars
from lynx_parallel.inputs.yaml_lines import Document
from lynx_parallel.output.takes import Take, Takes, derived_seed
from lynx_parallel.text import shown_path

MAX_SHOTS = 1_000_000


@dataclass
class Expansion:
    """Expands groups to shots, and records mistakes.

    Attributes:
        document: the manifest, for lines.
        base: the pipeline's sampling; ``campaign`` the manifest's; ``forced`` the ``--set`` options'.
        pattern: of the output names, already checked.
        variants: at least one.
        vars: the manifest's, for subjects without a var of that name.
        bound: takes with seeds of their own.
    """

    document: Document
    problems: Problems
    base: Sampling
    campaign: SamplingOverrides
    forced: SamplingOverrides
    pattern: str
    subjects: Mapping[str, Subject]
    prompts: Mapping[str, Prompt]
    vars: Mapping[str, str] = field(default_factory=dict)
    variants: Sequence[Variant] = (Variant(),)
    bound: Takes = field(default_factory=Takes)
    _texts: dict[tuple[str, str], str | None] = field(default_factory=dict)
    _takes: dict[tuple[str, str, str], dict[int, int]] = field(default_factory=dict)
    _given: dict[tuple[str, str, str, int], ShotGroup] = field(default_factory=dict)
    _settings: dict[tuple[str, ...], dict[int | None, Sampling]] = field(default_factory=dict)

    def shots(self, groups: Sequence[ShotGroup]) -> tuple[Shot, ...]:
        """Returns all shots in the manifest's order; none if there was a mistake."""
        before = len(self.problems)
        if not self._few_enough(groups):
            return ()
        shots = tuple(shot for group in groups for shot in self._group(group))
        if len(self.problems) == before:
            self._names(shots)
        return shots if len(self.problems) == before else ()

    def _few_enough(self, groups: Sequence[ShotGroup]) -> bool:
        total = 0
        for group in groups:
            total += len(group.subjects) * len(group.prompts) * group.takes * len(self.variants)
            if total > MAX_SHOTS:
                message = f"{group.where}: makes more than {MAX_SHOTS} shots: split the manifest"
                self.problems.add(group.file, group.line, message)
                return False
        return True

    def _group(self, group: ShotGroup) -> Iterator[Shot]:
        for subject in (self.subjects[name] for name in group.subjects):
            for prompt in (self.prompts[name] for name in group.prompts):
                for variant in self.variants:
                    yield from self._takes_of(group, subject, prompt, variant)

    def _takes_of(self, group: ShotGroup, subject: Subject, prompt: Prompt, variant: Variant) -> Iterator[Shot]:
        text = self._text(group, subject, prompt)
        by_seed = self._by_seed(group, variant, subject.sampling, prompt.sampling, variant.sampling, group.sampling)
        settings = by_seed[None]
        first = settings.seed if group.first_seed is None else group.first_seed
        if group.seeds is None and first + group.takes - 1 > MAX_SEED:
            message = f"{group.where}: {group.takes} takes from seed {first} pass 2^63-1"
            self.problems.add(group.file, group.line, message)
            return
        steps = settings.num_inference_steps
        if group.audition and (wrong := audition_mistake(group.audition, group.takes, steps)):
            self.problems.add(group.file, group.line, f"{group.where}: audition: {wrong}")
            return
        numbers = group.numbers or itertools.repeat(None)
        for seed, number in zip(group.seeds or range(first, first + group.takes), numbers, strict=False):
            take = self._take(group, subject, prompt, variant, seed, number)
            if text is None or take is None:
                continue
            by_hand = seed if group.seeds is not None or group.first_seed is not None else None
            seed, own = self._seed(group, (subject.id, prompt.id, variant.id), take, seed, by_hand)
            fields = {"subject": subject.id, "prompt": prompt.id, "variant": variant.id}
            name = self._pattern_of(variant).format(**fields, take=take, seed=seed)
            if (sampling := by_seed.get(seed)) is None:
                sampling = by_seed[seed] = settings.model_copy(update={"seed": seed})
            start = group.start_image or prompt.start_image or subject.start_image
            yield Shot(
                subject, prompt, take, text, sampling, group.priority, name, variant.id, start, by_hand,
                own.state if own else "", own is not None, own.history if own else (), group.audition,
            )  # fmt: skip

    def _pattern_of(self, variant: Variant) -> str:
        """Returns the pattern of a variant's names.

        The default has the variant's id at the end. A variant without changes has the names of a manifest without
        variants, so that finished shots stay done.
        """
        changes = variant.sampling.given() or variant.pipeline is not None
        return self.pattern + ("-{variant}" if self.pattern == DEFAULT_NAME and changes else "")

    def _by_seed(self, group: ShotGroup, variant: Variant, *layers: SamplingOverrides) -> dict[int | None, Sampling]:
        """Settings by seed, at None those that the layers give.

        What a variant's own pipeline sets wins over the campaign's settings, which fill in the rest, such as the seed.

        One object for all shots of the same settings: there may be a hundred thousand of those, and a few of these.
        Layers are compared by their text, because -0.0 equals 0.0 but is another setting.
        """
        own = variant.spec.sampling if variant.spec else None
        key = (variant.id if own else "", *[repr(layer.given()) if layer.model_fields_set else "" for layer in layers])
        if key not in self._settings:
            base = overlay(self.base if own is None else Sampling(), self.campaign)
            if own is not None:
                base = base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
            settings = overlay(base, *layers, self.forced)
            if mistake := sampling_mistake(settings):
                self.problems.add(group.file, group.line, f"{group.where}: sampling: {mistake}")
            self._settings[key] = {None: settings}
        return self._settings[key]

    def _seed(
        self, group: ShotGroup, shot: tuple[str, str, str], take: int, seed: int, by_hand: int | None
    ) -> tuple[int, Take | None]:
        """Returns the seed of a take, and the take if a file of takes decides the seed.

        Args:
            seed: by the manifest.
            by_hand: the same if the manifest gives it to this very take, else None.
        """
        if not self.bound:
            return seed, None
        own = self.bound.get((*shot, take))
        if own is not None and by_hand is not None and by_hand != own.instead_of:
            own = None  # the manifest's seed was changed since
        others = {other.seed for key, other in self.bound.items() if key[:3] == shot and key[3] != take}
        if own is not None:
            return own.seed, own
        if seed in others and by_hand is None:
            return derived_seed((*shot, take), 0, {*others, *self._takes[shot].values()}), None
        if seed in others:
            message = f"{group.where}: take {take} of {'/'.join(shot[:2])}: another take has the seed {seed} by now"
            self.problems.add(group.file, group.line, message)
        return seed, None

    def _take(
        self, group: ShotGroup, subject: Subject, prompt: Prompt, variant: Variant, seed: int, number: int | None
    ) -> int | None:
        """Returns the number of a take of this pair and variant, or None if it has this seed already.

        Args:
            number: that the manifest gives it; None for the next.
        """
        key = (subject.id, prompt.id, variant.id, seed)
        earlier = self._given.get(key)
        if earlier is None:
            self._given[key] = group
            takes = self._takes.setdefault(key[:3], {})
            if number is None:
                number = next(n for n in itertools.count(len(takes) + 1) if n not in takes)
            elif number in takes and variant == self.variants[0]:
                message = f"{group.where}: take {number} of {subject.id}/{prompt.id} is given twice"
                self.problems.add(group.file, group.line, message)
                return None
            takes[number] = seed
            return number
        where = f"line {earlier.line}"
        if earlier.file != group.file:
            where = f"{shown_path(earlier.file)}:{earlier.line}"
        if variant != self.variants[0]:
            return None  # recorded for the first
        message = f"{group.where}: {subject.id}/{prompt.id} with seed {seed} is given twice, first on {where}"
        self.problems.add(group.file, group.line, message)
        return None

    def _text(self, group: ShotGroup, subject: Subject, prompt: Prompt) -> str | None:
        """Returns the prompt with the subject's vars, or None if that fails, which is recorded once per pair."""
        pair = (subject.id, prompt.id)
        if pair not in self._texts:
            self._texts[pair] = None
            values = {**self.vars, **subject.vars}
            lacking = unknown_vars(prompt.text, values)
            text = "" if lacking else fill(prompt.text, values).strip()
            self._warn_of_defaults(subject, prompt, values)
            for name in lacking:
                hint = nearest(name, values, "its vars")
                self._blame(
                    group,
                    prompt,
                    f"{{{name}}}: subject {subject.id!r} has no such var; {hint}; or write {{{name}|a default}}",
                )
            if not lacking and not text:
                self._blame(group, prompt, f"empty once the vars of subject {subject.id!r} are filled in")
            self._texts[pair] = text or None
        return self._texts[pair]

    def _warn_of_defaults(self, subject: Subject, prompt: Prompt, values: Mapping[str, str]) -> None:
        """Warns where a default is taken beside a var whose name looks like a misspelling of the field's."""
        fields = template_fields(prompt.text)
        spare = values.keys() - {field.name for field in fields}
        for name in dict.fromkeys(f.name for f in fields if f.default is not None and f.name not in values):
            for near in difflib.get_close_matches(name, spare, n=1, cutoff=0.75):
                message = "a prompt's default was used where a var has a similar name; correct the var's name"
                self.problems.warn("default-used", message, f"{{{name}}} in {prompt.id}, {near!r} of {subject.id}")

    def _blame(self, group: ShotGroup, prompt: Prompt, message: str) -> None:
        path = ("prompts", prompt.id)
        if path in self.document.lines:
            self.document.blame(self.problems, path, message)
        else:  # a table's prompt_text
            self.problems.add(group.file, group.line, f"{group.where}: {message}")

    def _names(self, shots: Sequence[Shot]) -> None:
        """Checks that every name is possible, and that no two shots need the same file or folder."""
        seen: dict[str, int] = {}
        for index, shot in enumerate(shots):
            wrong = name_mistake(shot.name)
            if wrong:
                self._blame_name(f"{shown_value(shot.name)} {wrong} (shot {shot.id})")
                return
            other = seen.setdefault(fold(shot.name), index)
            if other != index:
                pair = f"shots {shots[other].id} and {shot.id}"
                fields = "{variant}, {take} or {seed}" if len(self.variants) > 1 else "{take} or {seed}"
                self._blame_name(f"{pair} get the same name {shown_value(shot.name)}; use {fields}")
                return
        for folded, index in seen.items():
            other_index = folder_clash(folded, seen)
            if other_index is not None:
                first, second = shots[other_index], shots[index]
                self._blame_name(
                    f"a file of shot {first.id} ({shown_value(first.name)}) would stand where"
                    f" shot {second.id} ({shown_value(second.name)}) needs a folder"
                )
                return

    def _blame_name(self, message: str) -> None:
        self.document.blame(self.problems, ("name",), message)
