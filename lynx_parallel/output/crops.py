"""Writes a subject's crops to the output folder, so that people can check what the model sees of a face.

Imports neither torch nor Ray, and Pillow and numpy only on use.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.output.atomic import publish
from lynx_parallel.output.folder import Output
from lynx_parallel.output.modes import REFUSED, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OURS = re.compile(r"(id|ref|ref-[0-9]+)\.png")  # ref.png: of version 0.1.0
_SOURCE = "lynx-parallel source"  # key of a PNG text chunk


@dataclass(frozen=True)
class Crops:
    """The crops of one subject: ``<output>/.lynx/faces/<subject>/id.png`` and one ``ref-<size>.png`` per size.

    Attributes:
        source: digest of the picture and of all settings that decide how it is cropped, except the size. It stands
            in each file. A file of another source shows another face, or the same face from other settings.
        sizes: sides of the reference crops that the campaign's shots of this subject use, in pixels.
        private: whether the folder is for its owner alone. Otherwise new folders and files get the mode of the
            output folder; a folder that exists is never opened further.
    """

    output: Path
    subject: str
    source: str
    sizes: frozenset[int] = frozenset()
    private: bool = False

    @property
    def folder(self) -> Path:
        return faces_folder(self.output) / self.subject

    def show(self, id_crop: NDArray[Any] | None, ref_crop: NDArray[Any] | None) -> str | None:
        """Writes the crops of this render and removes stale ones. Several gangs may do so at once.

        Args:
            id_crop: uint8 [112, 112, 3] RGB; None where no embedding was made from the picture.
            ref_crop: uint8 [size, size, 3] RGB; None for lite.

        Returns:
            A warning, or None. A crop that cannot be written costs a warning, not the shot.
        """
        crops = {} if id_crop is None else {"id.png": id_crop}
        of_other_shots: set[str] = set()
        if ref_crop is not None:
            crops[f"ref-{len(ref_crop)}.png"] = ref_crop
            of_other_shots = {f"ref-{size}.png" for size in self.sizes}
        try:
            for path in _ours(self.folder):
                if path.name not in crops and (path.name not in of_other_shots or _source(path) != self.source):
                    path.unlink(missing_ok=True)
            if not crops:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()  # unless somebody keeps other files there
                return None
            make_faces_folder(self.output, private=self.private)
            _make_folder(self.folder, 0o700 if self.private else _inherited(self.output))
            for name, crop in crops.items():
                if not self._is_shown(self.folder / name, crop):
                    self._write(self.folder / name, crop)
        except OSError as error:
            return f"{self.folder}: the crops cannot be shown: {reason(error)}"
        return None

    def remove(self) -> None:
        """Removes the crops, as those of a picture that could not be used."""
        self.show(None, None)

    def _is_shown(self, path: Path, crop: NDArray[Any]) -> bool:
        import numpy as np

        if _source(path) != self.source:
            return False
        shown = _read(path)
        return shown is not None and np.array_equal(shown, crop)

    def _write(self, path: Path, crop: NDArray[Any]) -> None:
        from PIL import Image, PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_text(_SOURCE, self.source)
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        part = Path(name)
        try:
            with open(descriptor, "wb") as file:
                Image.fromarray(crop).save(file, format="PNG", pnginfo=info)
                with contextlib.suppress(OSError):
                    os.fchmod(descriptor, 0o600 if self.private else _inherited(self.output) & 0o666)
            publish(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def faces_folder(output: Path) -> Path:
    """Returns the folder of all subjects' crops in an output folder."""
    return Output(output).private / "faces"


def make_faces_folder(output: Path, *, private: bool) -> str | None:
    """Makes the folder of all subjects' crops. A private one is closed to everyone but its owner, if it exists too.

    Returns:
        A warning if the file system refuses to close it, or None.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = faces_folder(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _make_folder(folder, 0o700 if private else _inherited(output))
    try:
        if private and folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return f"{folder}: cannot be closed to others: {reason(error)}. The file system decides who can read the crops."
    return None


def _make_folder(folder: Path, mode: int) -> None:
    """Makes a folder of this mode, whatever the umask. One that exists keeps its own."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
        with contextlib.suppress(OSError):
            folder.chmod(mode | (folder.stat().st_mode & stat.S_ISGID))


def _inherited(output: Path) -> int:
    """Returns the permissions of the output folder, without its special bits."""
    return output.stat().st_mode & 0o777


def _ours(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from (path for path in list(folder.iterdir()) if _OURS.fullmatch(path.name))


def _source(path: Path) -> str | None:
    """Returns the source that a crop's file names; None for a file of another version, or none that can be read."""
    from PIL import Image

    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with Image.open(path) as image:
            return str(image.info.get(_SOURCE))
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, …
        return None


def _read(path: Path) -> NDArray[Any] | None:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except Exception:
        return None
