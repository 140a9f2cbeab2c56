"""ONNX files of a few kilobytes whose answers are known, for the real post-processing of insightface and OpenCV.

Each sees its faces in every picture with a pixel above half brightness in one channel, and none in a black one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
STRIDES = (8, 16, 32)

# (score, box, five points), in pixels of the 64 × 64 input.
Answer = tuple[float, tuple[float, float, float, float], Sequence[tuple[float, float]]]


def answer(left: float, top: float, size: float, score: float = 0.75) -> Answer:
    """An upright face in the square at (left, top); numbers are exact in float32 for multiples of 1/8."""
    points = [(0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.375, 0.75), (0.625, 0.75)]
    return score, (left, top, left + size, top + size), [(left + x * size, top + y * size) for x, y in points]


def write_scrfd(path: Path, answers: Sequence[Answer], *, channel: int = 0, dynamic: bool = False) -> Path:
    """SCRFD's nine outputs: distances from an anchor's centre, in strides; two anchors a cell."""
    values = {}
    for kind, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        for stride in STRIDES:
            values[f"{kind}{stride}"] = np.zeros(((SIDE // stride) ** 2 * 2, width), np.float32)
    for row, (score, (left, top, right, bottom), points) in enumerate(answers):
        row, x = 2 * row + 1, 8 * row  # each in a cell of its own, in the top row of stride 8
        values["score8"][row] = score
        values["bbox8"][row] = np.array([x - left, -top, right - x, bottom]) / 8
        values["kps8"][row] = ((np.array(points) - [x, 0]) / 8).reshape(10)
    # insightface scales pixels as (x - 127.5) / 128.
    return _write(path, values, "score", 0.0, channel, ["h", "w"] if dynamic else [SIDE, SIDE])


def write_yunet(path: Path, answers: Sequence[Answer]) -> Path:
    """YuNet's twelve outputs: one prior a cell; the score is the root of class times objectness."""
    values = {}
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in STRIDES:
            values[f"{kind}_{stride}"] = np.zeros((1, (SIDE // stride) ** 2, width), np.float32)
    for x, (score, (left, top, right, bottom), points) in enumerate(answers):
        middle = (left + right) / 16 - x, (top + bottom) / 16
        values["cls_8"][0, x] = values["obj_8"][0, x] = score
        values["bbox_8"][0, x] = *middle, np.log((right - left) / 8), np.log((bottom - top) / 8)
        values["kps_8"][0, x] = ((np.array(points) - [8 * x, 0]) / 8).reshape(10)
    return _write(path, values, "cls", 127.0, 0, [SIDE, SIDE])


def write_other(path: Path, shape: Sequence[int] = (1, 3, 112, 112)) -> Path:
    """A network with one output, which insightface takes for a recogniser."""
    nodes = [helper.make_node("ReduceMax", ["input"], ["output"], axes=[2, 3], keepdims=0)]
    return _save(path, nodes, list(shape), {"output": [1, 3]}, {})


def _write(path: Path, values: dict[str, np.ndarray], gated: str, above: float, channel: int, size: list) -> Path:
    nodes = [
        helper.make_node("Gather", ["input", "channel"], ["plane"], axis=1),
        helper.make_node("ReduceMax", ["plane"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "above"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["gate"], to=TensorProto.FLOAT),
    ]
    constants = {"channel": np.array(channel, np.int64), "above": np.array(above, np.float32)}
    for key, value in values.items():
        constants[f"{key}_values"] = value
        nodes.append(
            helper.make_node("Mul", [f"{key}_values", "gate"], [key])
            if key.startswith(gated)
            else helper.make_node("Identity", [f"{key}_values"], [key])
        )
    outputs = {key: list(value.shape) for key, value in values.items()}
    if "h" in size:
        outputs = {key: [f"n_{key}", shape[-1]] for key, shape in outputs.items()}
    return _save(path, nodes, [1, 3, *size], outputs, constants)


def _save(path: Path, nodes: list, shape: list, outputs: dict[str, list], constants: dict[str, np.ndarray]) -> Path:
    def info(key: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(key, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "tiny",
        [info("input", shape)],
        [info(key, shape) for key, shape in outputs.items()],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), str(path))
    return path
