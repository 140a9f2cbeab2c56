"""Digests of a shot, which show whether a finished video still has the requested settings.

Imports neither torch nor Ray. See ``latents_digest`` for what counts and what does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lynx_parallel.inputs.cleaning import clean_prompt
from lynx_parallel.inputs.content import content_digest
from lynx_parallel.inputs.manifest import Campaign, Shot, Subject
from lynx_parallel.output.checksums import digest
from lynx_parallel.plan.model_settings import model_settings, vae_settings

NUMERICS = 1
"""Raise it by hand when a change of the code changes latents beyond rounding. Never use the package version."""

_NOT_LATENTS = {"fps"}
"""Sampling fields that change the video file, not the latents."""

_TEXTS = frozenset({"prompt", "sampling.negative_prompt"})
"""Settings that are texts for the model."""

_ALWAYS = frozenset(
    {
        "width", "height", "num_frames", "fps", "num_inference_steps", "flow_shift", "sigma_schedule", "guidance_scale",
        "guidance_scale_i", "ip_scale", "ref_scale", "negative_prompt", "reference_latent", "reference_size",
        "identity_window", "ref_blocks", "seed",
        "container", "codec", "crf",
    }
)  # fmt: skip
"""Fields of ``Sampling`` and ``Video`` in version 0.1.0. They are always part of a digest.

Never add to this set. A field of a later version is part of a digest only where it differs from its default. So a shot
that was finished before the field existed stays done.
"""


@dataclass(frozen=True, slots=True)
class ShotDigests:
    """Digests of a shot's settings. The settings themselves are built on use.

    A plan holds one of these for each of its shots, and few of their settings are ever looked at.

    Attributes:
        latents: digest of ``settings``.
        video: digest of ``settings`` and ``encoding``.
    """

    latents: str
    video: str
    _write_out: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = field(repr=False, compare=False)

    @classmethod
    def of(cls, settings: dict[str, Any], encoding: dict[str, Any]) -> ShotDigests:
        return cls(*_digests(settings, encoding), lambda: (settings, encoding))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the latents depend on, by dotted name. The sidecar keeps them for later comparison."""
        return self._write_out()[0]

    @property
    def encoding(self) -> dict[str, Any]:
        """Further settings that the video file depends on."""
        return self._write_out()[1]

    @property
    def latents_digests(self) -> tuple[str, str]:
        """Digests that finished latents of this shot may have in their header."""
        return self.latents, self.resume

    @property
    def resume(self) -> str:
        """Digest of the settings, with texts as the model sees them. Resume states are bound to it."""
        return digest(as_model_sees(self.settings))


def as_in_sidecar(digests: ShotDigests, sidecar: Mapping[str, Any]) -> ShotDigests:
    """Returns a shot's digests, with the digests of its sidecar where the model sees no difference.

    A digest is of the texts as they are written. Two texts that ``clean_prompt`` makes equal, because they differ in
    white space only, for example, give the same video.

    Args:
        sidecar: of the shot, as read from its file.
    """
    latents, video = (str(sidecar["digests"][kind]) for kind in ("latents", "video"))
    if digests.latents == latents:
        return digests
    settings, encoding = sidecar["settings"], sidecar["encoding"]
    with contextlib.suppress(ValueError):  # NaN, in a file that was not written here
        same = digest(as_model_sees(settings)) == digests.resume
        if same and _digests(settings, encoding) == (latents, video):
            same_file = digest(encoding) == digest(digests.encoding)
            return replace(digests, latents=latents, video=video if same_file else digests.video)
    return digests


def as_model_sees(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the texts as the model sees them."""
    texts = {name: settings.get(name) for name in _TEXTS}
    return {**settings, **{name: clean_prompt(text) for name, text in texts.items() if isinstance(text, str)}}


def _digests(settings: Mapping[str, Any], encoding: Mapping[str, Any]) -> tuple[str, str]:
    latents = digest(settings)
    return latents, digest({"latents": latents, **encoding})


def shot_digests(campaign: Campaign, shot: Shot, weights: Mapping[str, str]) -> ShotDigests:
    """Returns the digests of one shot.

    In it: prompt after vars, negative prompt, seed, size, steps, guidance, scales, schedule; picture,
    embedding and landmarks by content; weights by sha256; dtype; the VAE's precision unless it is the default;
    ``NUMERICS``. Not in it: ids, labels, priority, layout, number of GPUs.

    Args:
        weights: of ``weights.weight_digests``.

    Raises:
        InputErrors: a picture or an embedding cannot be read.
    """
    return CampaignDigests(campaign, weights).of(shot)


class CampaignDigests:
    """Digests of many shots of one campaign. What the shots share is computed once.

    Each subject's files are read once. To find out whether they have changed since, call ``shot_digests``.

    Args:
        weights: of ``weights.weight_digests``.
    """

    def __init__(self, campaign: Campaign, weights: Mapping[str, str]):
        self._campaign = campaign
        self._weights = weights
        self._model = {
            "numerics": NUMERICS,
            "dtype": campaign.pipeline.model.dtype,
            **model_settings(campaign.pipeline.model),
        }
        self._files = {f"weights.{name}": value for name, value in weights.items() if not name.startswith("face.")}
        self._video = {f"video.{name}": value for name, value in digested(campaign.pipeline.video).items()}
        self._subjects: dict[str, dict[str, Any]] = {}

    def of(self, shot: Shot) -> ShotDigests:
        """Returns the digests of one shot."""
        return ShotDigests(*_digests(*self._write_out(shot)), partial(self._write_out, shot))

    def settings(self, shot: Shot) -> dict[str, Any]:
        """Returns the settings of a shot's latents and of its file, without their digests. Raises as ``identify``."""
        settings, encoding = self._write_out(shot)
        return {**settings, **encoding}

    def _write_out(self, shot: Shot) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns a shot's settings and encoding. The subject's files are not read again."""
        sampling = digested(shot.sampling)
        subject = self._subjects.get(shot.subject.id)
        if subject is None:
            subject = _subject_settings(self._campaign, shot.subject, self._weights)
            self._subjects[shot.subject.id] = subject
        settings = {
            **self._model,
            "prompt": shot.text,
            **{f"sampling.{name}": value for name, value in sampling.items() if name not in _NOT_LATENTS},
            **self._files,
            **subject,
            **({"shot.start_image": _content(shot.start_image)} if shot.start_image else {}),
        }
        return settings, {**{f"sampling.{name}": sampling[name] for name in sorted(_NOT_LATENTS)}, **self._video}


def digested(settings: BaseModel) -> dict[str, Any]:
    """Returns the settings that are part of a digest, by name, as JSON values (tuples become lists)."""
    values = settings.model_dump(mode="json")
    for name in _later_fields(type(settings)):
        default = type(settings).model_fields[name].get_default(call_default_factory=True)
        if getattr(settings, name) == default:
            del values[name]
    return values


@cache
def _later_fields(kind: type[BaseModel]) -> tuple[str, ...]:
    """Returns the fields that version 0.1.0 did not have."""
    return tuple(name for name in kind.model_fields if name not in _ALWAYS)


def subject_key(campaign: Campaign, shot: Shot, weights: Mapping[str, str], device: str = "cpu") -> str:
    """Returns a digest of all that a subject's cached data (crops, landmarks, embedding, reference latents) depends on.

    The seed counts only if the reference latent is drawn with it. The device counts only if a network computes part of
    the data. ``cpu`` is left out of the digest, so that older caches stay valid.

    Args:
        device: kind of device that makes the data, ``cpu`` or ``cuda``.

    Other arguments and errors as in ``identify``.
    """
    sampling = shot.sampling
    settings = _subject_settings(campaign, shot.subject, weights)
    settings["sampling.reference"] = [sampling.reference_size, sampling.reference_latent]
    if sampling.reference_latent == "sample":
        settings["sampling.seed"] = sampling.seed
    encodes = campaign.pipeline.model.adapters.ref is not None
    if encodes:
        settings |= vae_settings(campaign.pipeline.model)
    if device != "cpu" and (encodes or shot.subject.embedding is None):
        settings["device"] = device
    vae = {name: value for name, value in weights.items() if name.startswith("base/vae/")}
    return digest({"numerics": NUMERICS, **settings, **vae})


def crops_source(campaign: Campaign, subject: Subject, weights: Mapping[str, str]) -> str:
    """Returns a digest of all that a subject's crops depend on, except their size.

    Arguments and errors as in ``identify``.
    """
    return digest({"numerics": NUMERICS, **_subject_settings(campaign, subject, weights)})


def prompt_salt(weights: Mapping[str, str], dtype: str, device: str) -> str:
    """Returns a digest of all that a prompt's embedding depends on, except its text.

    Args:
        weights: of ``weights.weight_digests``.
        dtype: of the text encoder.
        device: ``cuda`` or ``cpu``; they round differently.
    """
    encoder = {k: v for k, v in weights.items() if k.startswith(("base/text_encoder/", "base/tokenizer/"))}
    return digest({"numerics": NUMERICS, "dtype": dtype, "device": device, **encoder})


def _subject_settings(campaign: Campaign, subject: Subject, weights: Mapping[str, str]) -> dict[str, Any]:
    """Returns the subject's part of the latents digest: files by content, other data by their models."""
    needs_pixels = campaign.pipeline.model.adapters.ref is not None
    finds_id, finds_face = subject.embedding is None, subject.landmarks is None
    settings: dict[str, Any] = {"subject.embedding": _content(subject.embedding)}
    if needs_pixels or finds_id:
        settings["subject.image"] = _content(subject.image)
        settings["subject.landmarks"] = [list(map(float, point)) for point in subject.landmarks or ()]
    face = campaign.pipeline.face
    if face is not None and finds_id:
        settings["face.recognizer"] = weights.get("face.recognizer")
    if face is not None and finds_face and (needs_pixels or finds_id):
        settings["face.detector"] = weights.get("face.detector")
        settings["face.choice"] = [subject.face, face.det_size, face.rgb_quirk]
    return settings


def needs_face_models(campaign: Campaign) -> bool:
    """Returns whether any of the campaign's shots needs a face found or an embedding made."""
    needs_pixels = campaign.pipeline.model.adapters.ref is not None
    subjects = {shot.subject.id: shot.subject for shot in campaign.shots}.values()
    return any(s.embedding is None or (needs_pixels and s.landmarks is None) for s in subjects)


def changed(old: Mapping[str, Any], new: Mapping[str, Any], *, fold: bool = True) -> list[str]:
    """Returns the names of the settings that differ, sorted. Texts are compared as the model sees them.

    Args:
        fold: names all weights files ``weights``.
    """
    names = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    if names & _TEXTS:
        before, after = as_model_sees(old), as_model_sees(new)
        names -= {name for name in _TEXTS if before.get(name) == after.get(name)}
    return sorted({"weights" if fold and name.startswith("weights.") else name for name in names})


def _content(path: Path | None) -> str | None:
    return None if path is None else content_digest(path)
