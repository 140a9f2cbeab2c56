"""The demo's face models: a detector and a recogniser, tiny, built offline, run by the same code as real ones.

- ``det_demo.onnx``: **no detector.** It compares the picture, shrunk to 8 × 8 grey cells, with the demo's two
  pictures, and answers with the landmarks written down for the one it resembles. In every other picture it
  sees no face. Its inputs and outputs are those of insightface's SCRFD.
- ``arcface_ir_se50_demo.safetensors``: IR-SE50 with each of its 397 keys, narrower (4 MB, not 175) and
  random. Its vectors tell pictures apart; they say nothing of who is in them.

Bytes are the same on every machine, as in ``demo.checkpoint``.

    python -m lynx_parallel.demo.facepack [FOLDER]
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_parallel.demo import checkpoint, faces
from lynx_parallel.demo.places import RECOGNISER, facepack_root
from lynx_parallel.errors import LynxError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DETECTOR = "det_demo.onnx"

SIDE, CELLS = 64, 8  # of the network's input, in pixels; of the grey picture that is compared
TOLERANCE = 0.06  # mean difference of a cell, in [-1, 1]: re-encoding and scaling stay far below, other pictures above
SCORE = 0.9
STRIDES, ANCHORS = (8, 16, 32), 2  # SCRFD's

# Alternating, because a change of width marks the next stage of the network (see subject.arcface).
WIDTHS = (16,) * 3 + (32,) * 4 + (16,) * 14 + (32,) * 3
# As in demo.tiny: (pattern of the key, mean, spread). Gains that keep 24 blocks of random weights from fading.
RULES = (
    (r"running_mean", 0.0, "0.02"),
    (r"running_var", 1.0, "0.1"),
    (r"bias", 0.0, "0.02"),
    (r"(input_layer\.[12]|output_layer\.[04]|res_layer\.[024]|shortcut_layer\.1)\.weight", 0.9, "0.05"),
    (r"", 0.0, "1.4/fan_in"),
)


def ensure_facepack(root: Path | None = None) -> Path:
    """Builds the face models if they are missing, and returns their folder, an insightface pack.

    As ``ensure_demo``: at no moment does an unfinished folder have the name, and several processes may call
    this at once.

    Raises:
        ClusterError: the folder cannot be written.
        CheckpointError: ``root`` is something else; nothing is touched.
    """
    return checkpoint.ensure_built(root or facepack_root(), build, "face models")


def build(root: Path) -> None:
    """Writes all files into the folder ``root``."""
    (root / DETECTOR).write_bytes(detector_bytes())
    _write_recogniser(root / RECOGNISER)
    files = sorted(path for path in root.iterdir() if path.is_file())
    checkpoint.write_json(root / checkpoint.INVENTORY, {path.name: path.stat().st_size for path in files})


def _write_recogniser(path: Path) -> None:
    import torch

    from lynx_parallel.subject.arcface import ArcFace

    with torch.device("meta"):
        state = ArcFace(WIDTHS).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if value.is_floating_point()}
    tensors = checkpoint.fill("arcface", shapes, RULES)
    counters = {key: torch.zeros((), dtype=torch.int64) for key in state.keys() - shapes.keys()}
    checkpoint.write_tensors(path, tensors | counters)


# Grey levels of the 8 × 8 cells, as the network sees them; a test computes them again from the pictures. Written
# down, since JPEG decoders differ in the last bit, and the file's bytes shall not.
CELLS_OF = {
    "astronaut": (
        "53afad92a3c87999",
        "3faf8b9f6ec378ae",
        "5ba47098c5d27eb5",
        "8a774c136acf939e",
        "5d8b6b5155802827",
        "a2798d7f814c5619",
        "726c786c551c1541",
        "4a7a7874320f1c1c",
    ),
    "drawn": (
        "c9c9c9c9c9c9c9c9",
        "c9c9c58c8cc5c9c9",
        "c9c970588c7cc9c9",
        "c9c9889b9b97c9c9",
        "c9c9b5adadb5c9c9",
        "c9c9c6b1b1c6c9c9",
        "c9c9c3a1a0c3c9c9",
        "c9955e68685e95c9",
    ),
}


def detector_bytes() -> bytes:
    """Returns the detector's ONNX file: SCRFD's nine outputs, for one size of input.

    Each cell's mean (over the colours too, so that RGB and BGR give the same) is compared with each known
    picture's; ``known`` [2, 1] is 1 where they agree. The outputs are zero but for one anchor per picture,
    in the first cell of stride 32, whose centre is (0, 0): there stand the known points, in strides.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = {
        (kind, stride): np.zeros((SIDE // stride) ** 2 * ANCHORS * width, np.float32).reshape(-1, width)
        for kind, width in (("score", len(CELLS_OF)), ("bbox", 4), ("kps", 10))
        for stride in STRIDES
    }
    coarsest = STRIDES[-1]
    for anchor, name in enumerate(CELLS_OF):
        points = np.array(faces.LANDMARKS[name]) * (SIDE / faces.SIZE / coarsest)
        left, top, right, bottom = _box_around(points)
        values["score", coarsest][anchor, anchor] = SCORE
        values["bbox", coarsest][anchor] = -left, -top, right, bottom  # distances from the centre to each side
        values["kps", coarsest][anchor] = points.reshape(10)
    grey = np.array([[list(bytes.fromhex(row)) for row in rows] for rows in CELLS_OF.values()], np.float32)

    constants = {
        "cells": ((grey - 127.5) / 128)[:, None],  # as insightface scales pixels
        "tolerance": np.array([TOLERANCE], np.float32),
        **{f"{kind}_{stride}_values": value for (kind, stride), value in values.items()},
    }
    cell = SIDE // CELLS
    nodes = [
        helper.make_node("AveragePool", ["input"], ["colours"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("ReduceMean", ["colours"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["grey", "cells"], ["differences"]),
        helper.make_node("Abs", ["differences"], ["distances"]),
        helper.make_node("ReduceMean", ["distances"], ["distance"], axes=[2, 3], keepdims=0),
        helper.make_node("Less", ["distance", "tolerance"], ["is_known"]),
        helper.make_node("Cast", ["is_known"], ["known"], to=TensorProto.FLOAT),
    ]
    outputs = []
    for (kind, stride), value in values.items():  # in insightface's order: scores, boxes, points
        operation, inputs = ("MatMul", ["known"]) if kind == "score" else ("Identity", [])
        nodes.append(helper.make_node(operation, [f"{kind}_{stride}_values", *inputs], [f"{kind}_{stride}"]))
        shape = [len(value), 1 if kind == "score" else value.shape[1]]
        outputs.append(helper.make_tensor_value_info(f"{kind}_{stride}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "lynx-parallel demo: recognises two pictures, detects nothing",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        outputs,
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), key) for key, value in constants.items()],
    )
    # Versions are fixed, so that the bytes do not follow the installed onnx.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return model.SerializeToString(deterministic=True)


def _box_around(points: NDArray) -> tuple[float, float, float, float]:
    """Returns a face's box (left, top, right, bottom) from its points: eyes to mouth is about 0.4 of its height."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    width, height = right - left, bottom - top
    return left - 0.5 * width, top - 0.9 * height, right + 0.5 * width, bottom + 0.6 * height


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        raise SystemExit("usage: python -m lynx_parallel.demo.facepack [FOLDER]")
    try:
        print(ensure_facepack(Path(arguments[0]).absolute() if arguments else None))
    except LynxError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    gc.disable()  # the imports make a million objects that stay, and no garbage
    main(sys.argv[1:])
