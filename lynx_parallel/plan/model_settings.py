"""Settings of the model that are part of a digest, beside the content of its files. Imports neither torch nor Ray.

A setting at its default is left out, so that finished shots stay done.
"""

from __future__ import annotations

from typing import Any

from lynx_parallel.inputs.pipeline import ModelSpec


def model_settings(model: ModelSpec) -> dict[str, Any]:
    """Returns the precision of the VAE, the weights of the LoRAs, and the experts on which LoRAs and adapters act."""
    settings: dict[str, Any] = {**vae_settings(model)}
    if model.adapters_expert:
        settings["model.adapters_expert"] = model.adapters_expert
    if not model.loras:
        return settings
    settings["model.loras.weights"] = [lora.weight for lora in model.loras]
    if any(lora.expert for lora in model.loras):
        settings["model.loras.experts"] = [lora.expert for lora in model.loras]
    if not model.loras_on_reference:
        settings["model.loras_on_reference"] = False
    return settings


def vae_settings(model: ModelSpec) -> dict[str, Any]:
    """Returns the precision of the VAE."""
    return {} if model.vae_dtype == type(model).model_fields["vae_dtype"].default else {"vae_dtype": model.vae_dtype}
