"""Reads the arguments of a call of ``LynxPipeline``. Imports neither torch nor Ray.

All mistakes of a call come at once, as InputErrors. Each line names the argument, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lynx_parallel.inputs.aliases import suggest
from lynx_parallel.inputs.problems import Problems, shown_key, shown_value
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides, overlay, sampling_mistake
from lynx_parallel.inputs.validate import explain
from lynx_parallel.text import counted

Spec = TypeVar("Spec", bound=BaseModel)

_ELSEWHERE = {
    "callback": "on_step",
    "callback_on_step_end": "on_step",
    "face_embeds": "embedding",
    "num_videos_per_prompt": "seed",
    "positive": "prompt",
    "prompts": "prompt",
    "ref_image": "image",
    "subject_image": "image",
    "subjects": "image",
}
"""Arguments of other programs, and the arguments of a call that mean the same."""
_OF_SAVE = ("codec", "crf")


def read_call(
    defaults: Sampling,
    prompt: Any,
    seed: Any,
    given: Mapping[str, Any],
    *,
    face: Any = "largest",
    arguments: Collection[str] = (),
) -> list[tuple[str, Sampling]]:
    """Returns the prompts of a call, each with its settings.

    Args:
        prompt: a text or a list of texts.
        seed: a number or a list of one number for each prompt. None takes the seed of ``defaults``.
        given: fields of ``Sampling`` by name, which win over ``defaults``.
        face: which of several faces, as ``choose_face`` takes it.
        arguments: names of the call's other arguments, for suggestions.

    Raises:
        InputErrors: all mistakes.
    """
    problems = Problems()
    prompts = _prompts(prompt, problems)
    seeds = _seeds(seed, prompt, prompts, problems)
    settings = _overridden(defaults, given, arguments, problems)
    if face not in ("largest", "only") and (type(face) is not int or face < 1):
        problems.option(f"face={shown_value(face)}: must be 'largest', 'only' or a number from 1, from the left")
    made = [
        overlay(settings, one) for one in (_override("seed", value, problems) for value in seeds) if one is not None
    ]
    problems.raise_if_any()
    return list(zip(prompts, made, strict=True))


def read_spec(model: type[Spec], given: Mapping[str, Any], argument: str = "") -> Spec:
    """Returns a spec from arguments of a function.

    Args:
        argument: the argument that holds them all; empty if each field is an argument of its own.

    Raises:
        InputErrors: all mistakes.
    """
    problems = Problems()
    try:
        return model.model_validate(given)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            where = shown_key((*([argument] if argument else []), *error["loc"]))
            problems.option(f"{where}: {explain(error, shown_value(error['input']), model)}")
    problems.raise_if_any()
    raise AssertionError("a spec that is not valid has mistakes")


def read_setting(model: type[BaseModel], name: str, value: Any, problems: Problems) -> Any:
    """Returns the value of one field, or None after a mistake.

    Args:
        model: all of whose fields have defaults.
    """
    try:
        return getattr(model.model_validate({name: _plain(value)}), name)
    except ValidationError as invalid:
        problems.option(f"{name}={shown_value(value)}: {invalid.errors(include_url=False)[0]['msg']}")
        return None


def is_list(value: Any) -> bool:
    """Returns whether a value stands for several: a list, a tuple, a range or an array, but no text."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return getattr(value, "ndim", 0) == 1


def _prompts(prompt: Any, problems: Problems) -> list[str]:
    prompts = list(prompt) if is_list(prompt) else [prompt]
    if not prompts:
        problems.option("prompt: an empty list: must be a string or a list of strings")
    if wrong := [one for one in prompts if not isinstance(one, str)]:
        problems.option(f"prompt: {shown_value(wrong[0])}: must be a string or a list of strings")
    return prompts


def _seeds(seed: Any, prompt: Any, prompts: Sequence[str], problems: Problems) -> list[Any]:
    """Returns a seed for each prompt; None for that of the settings."""
    if not is_list(seed):
        return [seed] * len(prompts)
    seeds = list(seed)
    if not is_list(prompt):
        problems.option(f"seed: {counted(len(seeds), 'value')} for one prompt: give a list of prompts, or one seed")
        return [None] * len(prompts)
    if len(seeds) != len(prompts):
        counts = f"{counted(len(seeds), 'value')} for {counted(len(prompts), 'prompt')}"
        problems.option(f"seed: {counts}: must be one seed, or a list of one for each prompt")
        return [None] * len(prompts)
    return seeds


def _overridden(
    defaults: Sampling, given: Mapping[str, Any], arguments: Collection[str], problems: Problems
) -> Sampling:
    """Returns the defaults with the given fields. Unknown names are mistakes."""
    before = len(problems)
    known = [name for name in Sampling.model_fields if name not in arguments]
    layers = []
    for name, value in given.items():
        if name not in Sampling.model_fields:
            problems.option(f"{name}: unknown argument; {_hint(name, [*arguments, *known])}")
        elif (layer := _override(name, value, problems)) is not None:
            layers.append(layer)
    settings = overlay(defaults, *layers)
    if len(problems) == before and (mistake := sampling_mistake(settings)):
        problems.option(mistake)
    return settings


def _hint(name: str, known: Sequence[str]) -> str:
    if name in _OF_SAVE:
        return f"give it to save: video.save('video.mp4', {name}=…)"
    if name in _ELSEWHERE:
        note = " Give a list of prompts and a list of seeds." if name == "num_videos_per_prompt" else ""
        return f"did you mean {_ELSEWHERE[name]!r}?{note}"
    return suggest(name, known)


def _override(name: str, value: Any, problems: Problems) -> SamplingOverrides | None:
    """Returns one changed setting, or None if the value is wrong. A seed of None changes nothing."""
    if name == "seed" and value is None:
        return SamplingOverrides()
    before = len(problems)
    setting = read_setting(SamplingOverrides, name, value, problems)
    return SamplingOverrides.model_validate({name: setting}) if len(problems) == before else None


def _plain(value: Any) -> Any:
    """Returns a number of numpy or torch as Python's own, and an array or a list of them as a list."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value
