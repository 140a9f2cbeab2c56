"""Stores a copy of a transformer in another dtype, so that ranks can map its files and share their pages.

    python -m lynx_parallel.model.convert SOURCE TARGET DTYPE

Runs as a child process, because the command line does not import torch. Prints what ``convert`` yields, one number per
line.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lynx_parallel.errors import CheckpointError, ClusterError, LynxError
from lynx_parallel.inputs.tensor_headers import INDEX, weight_files
from lynx_parallel.model.checkpoints import loaded_dtype
from lynx_parallel.model.tensor_files import base_sources, open_file, read_tensor, stored_as
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.text import one_line


def convert(source: Path, target: Path, dtype: torch.dtype) -> Iterator[int]:
    """Writes the files of ``source`` to ``target``, each tensor in the dtype that ``load_transformer`` gives it.

    Holds one file in memory at a time. Keeps the files that ``target`` already has: a file appears there only when it
    is complete.

    Yields:
        First the bytes to write, or 0 if the files already have this dtype. Then the bytes written so far.

    Raises:
        CheckpointError: a file or a tensor cannot be read.
    """
    files = weight_files(source)
    shapes = {key: one.shape for key, one in base_sources(source).items()}  # raises the loader's errors
    if outside := [path for path in files if path.parent != source]:
        raise CheckpointError(f"{source / INDEX}: {outside[0]}: expected a file beside the index")
    if all(stored_as(path, dtype) for path in files):
        yield 0
        return
    yield sum(math.prod(shape) * loaded_dtype(key, dtype).itemsize for key, shape in shapes.items())
    target.mkdir(parents=True, exist_ok=True)
    written = 0
    for path in files:
        file, tensors = open_file(path, mapped=False), {}
        exists = (target / path.name).exists()
        for key in file.keys():
            if not exists:
                tensors[key] = read_tensor(file, key, loaded_dtype(key, dtype))
            written += math.prod(shapes[key]) * loaded_dtype(key, dtype).itemsize
            yield written
        if not exists:
            with atomic_write(target / path.name) as part:
                save_file(tensors, part, metadata={"format": "pt"})
    if (source / INDEX).exists():
        with atomic_write(target / INDEX) as part:
            shutil.copyfile(source / INDEX, part)


def main(arguments: list[str]) -> None:
    source, target, dtype = arguments
    try:
        for number in convert(Path(source), Path(target), getattr(torch, dtype)):
            print(number, flush=True)
    except LynxError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        print(f"{target}: cannot be written: {one_line(error)}", file=sys.stderr)
        raise SystemExit(ClusterError.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1:])
