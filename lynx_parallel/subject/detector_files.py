"""Finds and checks the files of face detectors, because insightface would download them or fail an assertion."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.text import first_line

PACK = "buffalo_l"


def find_pack(path: Path) -> Path:
    """Returns the insightface pack at ``path``, or ``buffalo_l`` under it.

    Raises:
        CheckpointError: none there, or none with a detector.
    """
    path = path.expanduser()
    # The second is also what unzipping buffalo_l.zip into a folder of its name can leave: buffalo_l/buffalo_l.
    for folder in (path, path / PACK, path / "models" / PACK):
        if files := sorted(folder.glob("*.onnx")):
            return _with_detector(folder, files)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder: {_get_pack()}")
    raise CheckpointError(f"{path}: no .onnx file, neither here nor in {PACK}/: {_get_pack()}")


def _with_detector(folder: Path, files: Sequence[Path]) -> Path:
    # Detectors are small and named det_… or scrfd_…; recognisers need not be read to find them.
    likely_first = sorted(files, key=lambda file: (not file.name.startswith(("det", "scrfd")), file.stat().st_size))
    for file in likely_first:
        if len(onnx_outputs(file)) >= 5:  # insightface's own rule
            return folder
    names = ", ".join(file.name for file in files)
    raise CheckpointError(f"{folder}: no detector (a network of 5 or more outputs) among {names}: {_get_pack()}")


def _get_pack() -> str:
    return f"get insightface's {PACK} (non-commercial research only) and name its folder"


def onnx_outputs(path: Path) -> list[str]:
    """Returns the names of an ONNX model's outputs.

    Raises:
        CheckpointError: missing, or not an ONNX model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with packages():
        import onnx
    try:
        outputs = [output.name for output in onnx.load_model(str(path), load_external_data=False).graph.output]
    except Exception as error:  # protobuf's DecodeError, OSError
        raise CheckpointError(f"{path}: not a readable ONNX model: {first_line(error)}") from error
    if not outputs:  # other bytes can pass for an empty protobuf message
        raise CheckpointError(f"{path}: not a readable ONNX model: it has no outputs")
    return outputs


@contextlib.contextmanager
def packages() -> Iterator[None]:
    """Wraps imports. A package that is missing or broken becomes a ClusterError."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise ClusterError(f"face detection: a package is missing or broken: {first_line(error)}") from error
