"""Licences of weights and face models, and which of them allow commercial use. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from lynx_parallel.inputs.pipeline import BUFFALO_L, Adapters, PipelineSpec
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.inputs.site import Site

RESEARCH = "non-commercial research only"
# Beginning of a source → licence; see `docs/how-to/few-steps.md`. A pipeline's own ``license:`` wins.
_LICENCES = {
    "Wan-AI/Wan2": "Apache-2.0",
    "hub:ByteDance/lynx/": "Apache-2.0",
    BUFFALO_L: RESEARCH,
    "demo:": "Apache-2.0",
}
# Name of a file or folder → licence.
_NAMES = {
    r"buffalo_(l|m|s|sc)|antelopev2": RESEARCH,
    r"face_detection_yunet.*\.onnx": "MIT",
    r"face_recognition_sface.*\.onnx": "Apache-2.0",
}
_OF_RECOGNIZERS = {"dlib": "CC0-1.0", "sface": "Apache-2.0", "insightface": RESEARCH}
UNKNOWN = "see its source"
COMMERCIAL = frozenset(
    ("0bsd", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc", "mit", "unlicense", "zlib")
)
"""Licences that allow commercial use, by their SPDX identifiers in lower case."""
_FORBIDS = re.compile(r"non-?commercial|research only|(^|-)nc(-|$)")


def licence_of(source: str) -> str:
    """Returns the licence of weights from a source that is known, or ``UNKNOWN``."""
    by_name = (licence for name, licence in _NAMES.items() if re.fullmatch(name, PurePath(source).name))
    by_start = (licence for start, licence in _LICENCES.items() if source.startswith(start))
    return next(by_start, None) or next(by_name, UNKNOWN)


def licences(spec: PipelineSpec, own: Mapping[str, str] = {}) -> dict[str, str]:
    """Returns the licence of each file of a pipeline, by its name in the pipeline file.

    Args:
        own: licences by name, which win.
    """
    model = spec.model
    found = {model.base: licence_of(model.base)}
    adapters = [getattr(model.adapters, name) for name in Adapters.model_fields]
    for one in (model.transformer, model.transformer_2, *adapters, *model.loras):
        if one is not None:
            found[one.file] = one.license or licence_of(one.file)
    if spec.face is not None:
        found |= {source: licence_of(source) for source in (spec.face.detector, spec.face.recognizer)}
    return {name: own.get(name, licence) for name, licence in found.items()}


def recognizer_licence(recognizer: Recognizer) -> str:
    """Returns the licence of a recogniser that scores videos, or ``UNKNOWN``."""
    return _OF_RECOGNIZERS.get(recognizer.name, UNKNOWN)


def licence_mistakes(spec: PipelineSpec, recognizer: Recognizer | None, site: Site) -> list[str]:
    """Returns a line for each file that the site does not allow."""
    if not site.commercial:
        return []
    found = licences(spec, site.licence_of)
    if recognizer is not None:
        name = str(recognizer)
        found[name] = site.licence_of.get(name, recognizer_licence(recognizer))
    return [
        f"{name}: {mistake}; {site.shown} asks for licences: commercial"
        for name, licence in found.items()
        if (mistake := _mistake(licence))
    ]


def _mistake(licence: str) -> str:
    plain = licence.strip().casefold()
    if plain in COMMERCIAL:
        return ""
    if _FORBIDS.search(plain):
        return f"its licence ({licence}) forbids commercial use"
    return f"its licence ({licence}) is not known to allow commercial use: state it in license: or in the site file"
