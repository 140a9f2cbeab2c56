"""A tiny image classifier in the format of transformers, whose answer follows the brightness of a picture."""

from __future__ import annotations

import json
from pathlib import Path

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32},
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def write_classifier(folder: Path, *, unsafe: float, labels: tuple[str, ...] = ("normal", "nsfw")) -> Path:
    """Writes a ViT whose last label always has this score, by its bias alone. Returns its folder."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        others = (1 - unsafe) / (len(labels) - 1)
        model.classifier.bias.copy_(torch.log(torch.tensor([others] * (len(labels) - 1) + [unsafe])))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder
