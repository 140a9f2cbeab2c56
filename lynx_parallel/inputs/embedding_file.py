"""Reads a subject's face embedding from its file. Imports numpy on use, and neither torch nor Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.special import refuse_special
from lynx_parallel.text import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBEDDING_KEY, EMBEDDING_SIZE = "face_embedding", 512
MAX_BYTES = 2**20
"""Largest embedding file that is read. One of 512 float64 has 4 KB."""
_WANTED = f"[{EMBEDDING_SIZE}] floats are needed"


def embedding_mistake(path: Path) -> str | None:
    """Returns what is wrong with an embedding file, or None. Reads the whole file, which has at most ``MAX_BYTES``."""
    try:
        read_embedding(path)
    except SubjectError as error:
        return str(error)
    return None


def read_embedding(path: Path | str) -> NDArray[np.float32]:
    """Returns a face embedding of length 1, [512]: key ``face_embedding`` of a .safetensors file, or a .npy file.

    A vector whose length differs from 1 by more than 1e-5 is divided by its length. Any other is returned bit for bit.

    Raises:
        SubjectError: unreadable, wrong shape or type, not finite, or all zero.
    """
    path = Path(path)
    refuse_special(path, SubjectError)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SubjectError(f"{path}: {size} bytes: an embedding has 2 to 4 KB: {_WANTED}")
        value = _load_vector(path)
    except SubjectError:
        raise
    except Exception as error:
        raise SubjectError(f"{path}: cannot be read: {one_line(error)}") from error
    return check_embedding(value, str(path))


def as_embedding(embedding: Any, argument: str) -> NDArray[np.float32]:
    """Returns a face embedding that a caller gave, a path or an array, as ``read_embedding`` does.

    Args:
        argument: name of the caller's argument, for messages.

    Raises:
        SubjectError: one line that starts with ``argument``.
    """
    import numpy as np

    if isinstance(embedding, str | Path):
        try:
            return read_embedding(embedding)
        except SubjectError as error:
            raise SubjectError(f"{argument}: {error}") from error
    try:
        value = np.asarray(embedding)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths; a tensor on a GPU
        raise SubjectError(f"{argument}: of type {type(embedding).__name__}: {_WANTED}") from None
    return check_embedding(value, argument)


def check_embedding(value: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Returns a vector as a face embedding of length 1, see ``read_embedding``.

    Args:
        where: a path or a name, for messages.

    Raises:
        SubjectError: wrong shape or type, not finite, or all zero.
    """
    import numpy as np

    if value.dtype.kind != "f":
        raise SubjectError(f"{where}: dtype {one_line(value.dtype)}: {_WANTED}")
    if value.shape != (EMBEDDING_SIZE,):
        raise SubjectError(f"{where}: shape {list(value.shape)}: {_WANTED}")
    if not np.isfinite(value).all():
        raise SubjectError(f"{where}: holds NaN or infinity")
    largest = float(np.abs(value).max())
    if largest == 0.0:
        raise SubjectError(f"{where}: all zero: no face has this embedding")
    if not np.finfo(np.float32).tiny <= largest <= np.finfo(np.float32).max:  # its length would be 0, or infinite
        raise SubjectError(f"{where}: numbers of size {largest:g}: not a face embedding")
    length = float(np.linalg.norm(value.astype(np.float64)))
    if abs(length - 1.0) <= 1e-5:
        return value.astype(np.float32)
    return (value.astype(np.float64) / length).astype(np.float32)


def _load_vector(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        import numpy as np

        value = np.load(path, allow_pickle=False)  # an object array fails: nothing of the file is executed
        if not isinstance(value, np.ndarray):
            raise SubjectError(f"{path}: an archive of arrays (.npz), not a .npy file")
        return value
    if path.suffix != ".safetensors":
        raise SubjectError(f"{path}: an embedding is a .safetensors or a .npy file")
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        keys = sorted(file.keys())
        if EMBEDDING_KEY not in keys:
            found = one_line(", ".join(keys[:5]) or "none at all")
            raise SubjectError(f"{path}: no key {EMBEDDING_KEY}, but {found}")
        return file.get_tensor(EMBEDDING_KEY)
