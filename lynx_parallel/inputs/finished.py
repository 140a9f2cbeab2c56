"""Finished shots of an output folder, chosen for delivery, and the names of the files made from them.

Settings are not compared with the manifest: that is what ``plan`` does. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.names import (
    DELIVERED_NAME,
    FIELDS,
    NUMBERS,
    fold,
    folder_clash,
    name_mistake,
    pattern_mistake,
)
from lynx_parallel.inputs.overrides import fitting
from lynx_parallel.inputs.problems import Problems, shown_value
from lynx_parallel.inputs.site import Site, load_site
from lynx_parallel.output.checksums import has_size
from lynx_parallel.output.folder import Output
from lynx_parallel.output.shot_states import shot_states
from lynx_parallel.output.takes import TakeKey, TakeState, read_takes

SIZES = ("width", "height", "num_frames")
ALL_FIELDS = ("name", *FIELDS, *SIZES, "fps")
"""Fields of the patterns that name delivered files."""
_NUMBERS = NUMBERS | {*SIZES}


@dataclass(frozen=True)
class FinishedShot:
    """A shot with a sidecar, and a video of the size that the sidecar says.

    Attributes:
        fields: values of ``ALL_FIELDS``. ``fps`` is text, such as ``16`` or ``23.976``.
    """

    name: str
    sidecar: Mapping[str, Any]
    fields: Mapping[str, str | int]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the latents and of the file, by dotted name."""
        return {**self.sidecar["settings"], **self.sidecar["encoding"]}


@dataclass(frozen=True)
class Selection:
    """The shots that a command was asked for.

    Attributes:
        shots: finished ones, in the order of the manifest, or by name.
        total: number of all shots that were asked for, finished or not.
        left_out: why a shot with files is left out, by name.
        unpicked: number of finished shots whose take is not accepted, with ``picked``.
    """

    shots: Sequence[FinishedShot]
    total: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    unpicked: int = 0

    @property
    def unfinished(self) -> int:
        """Number of shots without files, or with files of another size."""
        return self.total - len(self.shots) - len(self.left_out) - self.unpicked


def select_finished(
    output: Output,
    campaign: Campaign | None,
    *,
    whole: bool,
    only: Collection[str] = (),
    picked: bool = False,
    today: date | None = None,
) -> Selection:
    """Returns the finished shots of an output folder.

    A shot is left out if its take has another seed by now, if the consent to show the face has expired, or if
    the site requires consent and there is none.

    Args:
        campaign: None if it is not known. It says which seeds the takes have now, and which are accepted.
        whole: whether the campaign's shots are asked for. Otherwise all shots that the folder knows are.
        only: patterns, as of ``--only``.
        picked: only takes that were accepted.
        today: the current date, by default.

    Raises:
        InputErrors: a pattern fits no shot, or the file of takes cannot be read.
    """
    by_name = {shot.name: shot for shot in campaign.shots} if campaign else {}
    site = campaign.site if campaign else load_site()
    states = shot_states(output, by_name if whole else None)
    known = [(state.name, _ids(state.sidecar or {}, by_name.get(state.name)), state.sidecar) for state in states]
    problems = Problems()
    pairs = [f"{ids['subject']}/{ids['prompt']}" if ids else name for name, ids, _ in known]
    keep = fitting(pairs, [name for name, _, _ in known], only, problems)
    problems.raise_if_any()
    takes = _takes(output, campaign)
    shots, left_out, unpicked = [], dict[str, str](), 0
    for name, ids, sidecar in (one for one, kept in zip(known, keep, strict=True) if kept):
        if sidecar is None or not _has_its_size(output, name, sidecar):
            continue
        if not ids:
            left_out[name] = "its sidecar does not say whose it is"
            continue
        key = ids["subject"], ids["prompt"], ids["variant"], ids["take"]
        seed, state = takes.get(key, (ids["seed"], ""))
        if seed != ids["seed"]:
            left_out[name] = f"made with seed {ids['seed']}; the next render takes {seed}"
        elif expired := _not_allowed(sidecar, by_name.get(name), today or date.today(), site):
            left_out[name] = expired
        elif picked and state != "accepted":
            unpicked += 1
        else:
            shots.append(FinishedShot(name, sidecar, {"name": name, **ids, **_sizes(sidecar)}))
    return Selection(shots, sum(keep), left_out, unpicked)


def names_of(shots: Sequence[FinishedShot], pattern: str, suffix: str) -> list[str]:
    """Returns the files of shots by a pattern such as ``{subject}_{prompt}_t{take:02}``, in the same order.

    Args:
        suffix: of the files, such as ``.mp4``. The pattern may end in it.

    Raises:
        InputErrors: all mistakes of the pattern; all shots without a possible name, or with that of another shot.
    """
    pattern = pattern.removesuffix(suffix)
    if mistake := pattern_mistake(pattern, ALL_FIELDS, _NUMBERS):
        raise InputErrors([f"--name {shown_value(pattern)}: {mistake}"])
    names = [_pattern_of(shot, pattern).format(**shot.fields) for shot in shots]
    lines = list(_name_mistakes(shots, names))
    if lines:
        raise InputErrors(lines)
    return [name + suffix for name in names]


def _pattern_of(shot: FinishedShot, pattern: str) -> str:
    return f"{pattern}_{{variant}}" if pattern == DELIVERED_NAME and shot.fields["variant"] else pattern


def _name_mistakes(shots: Sequence[FinishedShot], names: Sequence[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, (shot, name) in enumerate(zip(shots, names, strict=True)):
        if wrong := name_mistake(name):
            yield f"--name: {shown_value(name)} {wrong} (shot {shot.name})"
        elif (other := seen.setdefault(fold(name), index)) != index:
            yield (
                f"--name: shots {shots[other].name} and {shot.name} get the same name {shown_value(name)}; "
                "use {name}, {variant}, {take} or {seed}"
            )
    for folded, index in seen.items():
        if (first := folder_clash(folded, seen)) is not None:
            yield (
                f"--name: the file of shot {shots[first].name} ({shown_value(names[first])}) would stand where shot "
                f"{shots[index].name} ({shown_value(names[index])}) needs a folder"
            )


def _ids(sidecar: Mapping[str, Any], shot: Shot | None) -> dict[str, Any]:
    """Returns subject, prompt, variant, take and seed of a shot; empty if neither its sidecar nor a campaign says it.

    The seed is that of the files, if there are any.
    """
    made = sidecar.get("shot")
    given = made if isinstance(made, dict) else {}
    seed = given.get("seed", sidecar.get("settings", {}).get("sampling.seed"))
    if shot is not None:
        ids = {"subject": shot.subject.id, "prompt": shot.prompt.id, "variant": shot.variant, "take": shot.take}
        return {**ids, "seed": shot.seed if seed is None else seed}
    texts = {name: given.get(name, "") for name in ("subject", "prompt", "variant")}
    numbers = {"take": given.get("take"), "seed": seed}
    if not all(isinstance(text, str) for text in texts.values()) or not (texts["subject"] and texts["prompt"]):
        return {}
    return {**texts, **numbers} if all(type(number) is int for number in numbers.values()) else {}


def _sizes(sidecar: Mapping[str, Any]) -> dict[str, str | int]:
    settings = {**sidecar["settings"], **sidecar["encoding"]}
    sizes = {name: settings.get(f"sampling.{name}") for name in SIZES}
    fps = settings.get("sampling.fps")
    return {
        **{name: size if type(size) is int else 0 for name, size in sizes.items()},
        "fps": f"{fps:g}" if isinstance(fps, float | int) else "",
    }


def _takes(output: Output, campaign: Campaign | None) -> dict[TakeKey, tuple[int, TakeState]]:
    """Returns the seed and the state that each take has now."""
    if campaign is None:
        return {key: (take.seed, take.state) for key, take in read_takes(output.takes).items()}
    return {(s.subject.id, s.prompt.id, s.variant, s.take): (s.seed, s.state) for s in campaign.shots}


def _has_its_size(output: Output, name: str, sidecar: Mapping[str, Any]) -> bool:
    record = sidecar["outputs"].get("video")
    return isinstance(record, dict) and has_size(output.path(name, "video"), record.get("size"))


def _not_allowed(sidecar: Mapping[str, Any], shot: Shot | None, today: date, site: Site) -> str:
    """Returns why a face may not be shown, or nothing. A campaign knows consent that was renewed."""
    if shot is not None:
        consent = shot.subject.consent
        if lacking := site.lacks_consent(consent):
            return lacking
        ref, expires = (consent.ref, consent.expires) if consent else ("", None)
    else:
        recorded = sidecar.get("consent")
        if lacking := site.lacks_consent(recorded):
            return lacking
        recorded = recorded if isinstance(recorded, dict) else {}
        ref, expires = str(recorded.get("ref", "")), _date(recorded.get("expires"))
    return f"consent {ref} expired on {expires}" if expires and expires < today else ""


def _date(value: Any) -> date | None:
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        return None
