"""Licences of weights and face models. Imports neither torch nor Ray."""

from __future__ import annotations

from lynx_parallel.inputs.pipeline import BUFFALO_L, Adapters, PipelineSpec

# Beginning of a source → licence; see `docs/how-to/few-steps.md`. A pipeline's own ``license:`` wins.
_LICENCES = {
    "Wan-AI/Wan2": "Apache-2.0",
    "hub:ByteDance/lynx/": "Apache-2.0",
    BUFFALO_L: "non-commercial research only",
    "demo:": "Apache-2.0",
}
UNKNOWN = "see its source"


def licence_of(source: str) -> str:
    """Returns the licence of weights from a source that is known, or ``UNKNOWN``."""
    return next((licence for start, licence in _LICENCES.items() if source.startswith(start)), UNKNOWN)


def licences(spec: PipelineSpec) -> dict[str, str]:
    """Returns the licence of each file of a pipeline, by its name in the pipeline file."""
    model = spec.model
    found = {model.base: licence_of(model.base)}
    adapters = [getattr(model.adapters, name) for name in Adapters.model_fields]
    for one in (model.transformer, model.transformer_2, *adapters, *model.loras):
        if one is not None:
            found[one.file] = one.license or licence_of(one.file)
    if spec.face is not None:
        found |= {source: licence_of(source) for source in (spec.face.detector, spec.face.recognizer)}
    return found
