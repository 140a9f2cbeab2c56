"""IR-SE50, the ArcFace network with whose embeddings Lynx was trained.

Keys match facexlib's ``recognition_arcface_ir_se50.pth`` exactly. insightface's own recogniser (w600k_r50)
is another network whose vector has the same shape: nothing but the checkpoint's hash tells a swap.

J. Deng et al., "ArcFace", 2019; J. Hu et al., "Squeeze-and-Excitation Networks", 2018.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.inputs.weight_files import ARCFACE_SHA256
from lynx_parallel.text import one_line

KNOWN_SHA256 = ARCFACE_SHA256
"""sha256 of ``recognition_arcface_ir_se50.pth``, as facexlib publishes it."""

CROP_SIZE, EMBEDDING_DIM = 112, 512
HALVINGS = 4
"""Number of halvings: from 112 pixels to the 7 that the last layer reads."""
SE_REDUCTION = 16
# Blocks of each width; the first block of each of the four stages halves the picture.
IR_SE50_WIDTHS = (64,) * 3 + (128,) * 4 + (256,) * 14 + (512,) * 3


class SqueezeExcite(nn.Module):
    """Weighs the channels by a function of their means."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // SE_REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(width // SE_REDUCTION, width, 1, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        weights = self.fc2(F.relu(self.fc1(x_BCHW.mean(dim=(2, 3), keepdim=True))))
        return x_BCHW * weights.sigmoid()


class Block(nn.Module):
    """A residual block: [B, inputs, H, W] → [B, width, H/stride, W/stride]."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == width:
            self.shortcut_layer = nn.MaxPool2d(1, stride)  # every stride-th pixel
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            SqueezeExcite(width),
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x_BCHW) + self.shortcut_layer(x_BCHW)


class ArcFace(nn.Module):
    """IR-SE50, or a network of the same structure with other ``widths``.

    Args:
        widths: of each block's output. A block halves the picture if it is the first, or if its width
            differs from the one before: so it is in IR-SE50.

    Raises:
        ValueError: the widths do not give four halvings.
    """

    def __init__(self, widths: Sequence[int] = IR_SE50_WIDTHS):
        super().__init__()
        inputs = (*widths[:1], *widths[:-1])
        strides = [2 if i == 0 or inputs[i] != width else 1 for i, width in enumerate(widths)]
        if strides.count(2) != HALVINGS:
            raise ValueError(f"body: expected {HALVINGS} stages, found {strides.count(2)}")
        last = widths[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        self.body = nn.Sequential(*map(Block, inputs, widths, strides))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(),  # does nothing at inference, but has an index in the keys
            nn.Flatten(),
            nn.Linear(last * (CROP_SIZE // 2**HALVINGS) ** 2, EMBEDDING_DIM),
            nn.BatchNorm1d(EMBEDDING_DIM),
        )

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> ArcFace:
        """Infers every width from a checkpoint's shapes.

        Raises:
            KeyError: a key that fixes a width is absent.
            ValueError: the widths are not those of four stages. The message names the key.
        """
        depth = len({key.split(".")[1] for key in shapes if key.startswith("body.")})
        keys = ["input_layer.0.weight", *(f"body.{i}.res_layer.1.weight" for i in range(depth))]
        if odd := next((key for key in keys if len(shapes[key]) != 4), None):
            raise ValueError(f"{odd}: expected a convolution's four dimensions, found shape {list(shapes[odd])}")
        return cls([shapes[key][0] for key in keys[1:]])

    def forward(self, bgr_B3HW: torch.Tensor) -> torch.Tensor:
        """Crops [B, 3, 112, 112], BGR in [-1, 1] → embeddings of length 1, [B, 512]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(bgr_B3HW))), eps=0.0)

    @torch.inference_mode()
    def embed(self, crop_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the embedding of an ID crop, of length 1. [112, 112, 3] uint8 RGB → [512] float32

        Raises:
            ValueError: another shape or dtype.
        """
        weight = self.input_layer[0].weight
        return self(to_input(crop_HW3).to(weight.device, weight.dtype))[0].float().cpu().numpy()


def to_input(crop_HW3: NDArray[np.uint8]) -> torch.Tensor:
    """Converts RGB bytes [112, 112, 3] to BGR in [-1, 1], [1, 3, 112, 112] float32."""
    if crop_HW3.shape != (CROP_SIZE, CROP_SIZE, 3) or crop_HW3.dtype != np.uint8:
        raise ValueError(f"crop: {list(crop_HW3.shape)} {crop_HW3.dtype}, not [{CROP_SIZE}, {CROP_SIZE}, 3] uint8")
    bgr_3HW = torch.from_numpy(np.ascontiguousarray(crop_HW3[:, :, ::-1].transpose(2, 0, 1)))
    return ((bgr_3HW.float() / 255 - 0.5) / 0.5).unsqueeze(0)


def load_arcface(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = KNOWN_SHA256) -> ArcFace:
    """Loads the network in fp32. Its widths come from the file.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote of a state dict.
        sha256: what the file must hash to; None accepts any.

    Raises:
        CheckpointError: missing, unreadable, another file, or keys and shapes of another network.
    """
    path = Path(path)
    _check_content(path, sha256)
    tensors = _read(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        with torch.device("meta"):
            network = ArcFace.from_shapes(shapes)
    except KeyError as error:
        raise CheckpointError(f"{path}: {one_line(error.args[0])}: expected in an IR-SE50 ArcFace, not found") from None
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}: not an IR-SE50 ArcFace") from None
    _check_tensors(path, network.state_dict(), tensors)
    # Copied out of the mapped file: at its odd addresses kernels round differently, and one network would give
    # other vectors from .pth than from .safetensors.
    own = {key: tensor.to(device, _kind(tensor), copy=True) for key, tensor in tensors.items()}
    network.load_state_dict(own, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def _check_content(path: Path, sha256: str | None) -> None:
    refuse_special(path)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if found != sha256:
        raise CheckpointError(
            f"{path}: sha256: expected {sha256}, found {found}: another network than Lynx's, or a damaged download"
        )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # weights_only: tensors and plain containers; nothing in the file is executed. Files from before
        # torch 1.6 are no zip archives, and those cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: holds more than tensors, or is damaged: nothing of it was loaded") from None
    except Exception as error:  # SafetensorError, RuntimeError, EOFError, KeyError, …: by the damage
        raise CheckpointError(f"{path}: not a readable weights file: {one_line(error)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise CheckpointError(f"{path}: expected a state dict, found {type(tensors).__name__}")
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {one_line(key)}: expected a tensor, found {type(value).__name__}")
    return dict(tensors)


def _check_tensors(path: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Checks that every key is used, none is missing, and shapes and types fit. Names the first mistake."""
    for key, tensor in found.items():
        if key not in wanted:
            raise CheckpointError(f"{path}: {one_line(key)}: surplus key, IR-SE50 has no such parameter")
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{path}: {key}: expected shape {list(wanted[key].shape)}, found {list(tensor.shape)}"
            )
        if tensor.is_floating_point() != wanted[key].is_floating_point() or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{path}: {key}: expected dense {_kind(wanted[key])}, found {tensor.layout} {tensor.dtype}"
            )
    if missing := [key for key in wanted if key not in found]:
        raise CheckpointError(f"{path}: {missing[0]}: missing ({len(missing)} missing keys in all)")


def _kind(tensor: torch.Tensor) -> Any:
    return torch.float32 if tensor.is_floating_point() else torch.int64
