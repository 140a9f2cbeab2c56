"""Finds the saved latents of finished shots, and the VAE that decodes them to the frames of the render.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.errors import LynxError, RenderError
from lynx_parallel.inputs.pipeline import ModelSpec
from lynx_parallel.output.checksums import has_size
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.hashing import DigestCache
from lynx_parallel.plan.present_weights import snapshot
from lynx_parallel.plan.weights import find_base, hub_base

_VAE = "weights.base/vae/"
"""Beginning of the settings with the digests of the VAE's files."""


@dataclass(frozen=True)
class SavedLatents:
    """Latents, and how the render decoded them.

    Attributes:
        sha256: of the file, by its sidecar.
        vae: folder of the VAE.
        vae_dtype: as in ``ModelSpec``.
        tiled: whether the render decoded tile by tile.
        fps: of the video.
    """

    path: Path
    sha256: str
    vae: Path
    vae_dtype: str
    tiled: bool
    fps: float


class LatentsFinder:
    """Finds saved latents in an output folder. A VAE is looked for once.

    Args:
        say: told before a VAE is downloaded.
    """

    def __init__(self, output: Output, say: Callable[[str], None] = lambda line: None):
        self._output = output
        self._say = say
        self._digests = DigestCache()
        self._folders: dict[str, Path | str] = {}

    def find(self, name: str, sidecar: Mapping[str, Any]) -> SavedLatents:
        """Returns the latents of a finished shot.

        Raises:
            RenderError: there are none, or the VAE that made the video is not here; in words.
        """
        record, path = sidecar["outputs"].get("latents"), self._output.path(name, "latents")
        if not isinstance(record, dict):
            raise RenderError("no saved latents: its campaign has no save_latents: true")
        if not has_size(path, record.get("size")):
            raise RenderError("its latents are missing or damaged; render again to make them")
        model = sidecar.get("model")
        base = model.get("base") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(base, str):
            raise RenderError("its sidecar does not name the base")
        vae = self._vae(base)
        self._check(vae, sidecar["settings"])
        how = sidecar.get("exactness")
        return SavedLatents(
            path.absolute(), str(record.get("sha256")), vae,
            str(model.get("vae_dtype", ModelSpec.model_fields["vae_dtype"].default)),
            isinstance(how, dict) and how.get("decode") == "tiled", float(sidecar["encoding"].get("sampling.fps", 16)),
        )  # fmt: skip

    def save(self) -> None:
        """Remembers the digests of the VAEs for other runs."""
        self._digests.save()

    def _vae(self, base: str) -> Path:
        if base not in self._folders:
            try:
                self._folders[base] = self._find(base)
            except LynxError as error:
                self._folders[base] = str(error)
        found = self._folders[base]
        if isinstance(found, str):
            raise RenderError(found)
        return found

    def _find(self, base: str) -> Path:
        if hub_base(base) and not ((folder := snapshot(base)) and (folder / "vae" / "config.json").exists()):
            self._say(f"{base}: downloading its VAE from the hub")
        vae = find_base(base, ("vae/*",)) / "vae"
        if not vae.is_dir():
            raise RenderError(f"{vae}: missing: the VAE that made the video")
        return vae

    def _check(self, vae: Path, settings: Mapping[str, Any]) -> None:
        """Refuses another VAE than the render's: its frames would differ."""
        for name, sha256 in settings.items():
            if name.startswith(_VAE):
                file = vae / name.removeprefix(_VAE)
                try:
                    same = self._digests.sha256(file) == sha256
                except OSError as error:
                    raise RenderError(f"{file}: {error.strerror}") from None
                if not same:
                    raise RenderError(f"{file}: not the file that made the video")
