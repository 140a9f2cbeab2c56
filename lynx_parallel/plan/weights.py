"""Finds the files of a pipeline's weights. Imports neither torch nor Ray."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lynx_parallel.demo.places import demo_root, is_built
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.inputs.cache_root import cache_root
from lynx_parallel.inputs.pipeline import ARCFACE, BUFFALO_L, DEMO_FACES, FaceSpec, ModelSpec
from lynx_parallel.inputs.weight_files import ARCFACE_SHA256, BASE_PATTERNS, EXPERTS, FaceFiles, LoraFile, WeightFiles

_log = logging.getLogger(__name__)


def find_face_models(face: FaceSpec | None) -> FaceFiles | None:
    """Returns the local face models of a pipeline, or None if it names none. Builds ``demo:faces`` if needed.

    Raises:
        CheckpointError: a file is missing, or no pack.
    """
    if face is None:
        return None
    files = face_files(face)
    for path, what in (
        (files.detector, "insightface's pack buffalo_l"),
        (files.recognizer, f"facexlib's {files.recognizer.name}"),
    ):
        if not path.exists():
            raise CheckpointError(
                f"{path}: missing: {what} goes there (lynx-render fetch PIPELINE downloads it), or name another place "
                "in the pipeline's face:"
            )
    return files


def face_files(face: FaceSpec) -> FaceFiles:
    """Returns where a pipeline's face models are expected; builds ``demo:faces`` if needed."""
    detector, recognizer = Path(face.detector), Path(face.recognizer)
    sha256: str | None = face.recognizer_sha256 or ARCFACE_SHA256
    if DEMO_FACES in (face.detector, face.recognizer):
        from lynx_parallel.demo.places import RECOGNISER, facepack_root

        _build("lynx_parallel.demo.facepack", root := facepack_root())
        detector = root if face.detector == DEMO_FACES else detector
        recognizer, sha256 = (root / RECOGNISER, None) if face.recognizer == DEMO_FACES else (recognizer, sha256)
    if face.detector == BUFFALO_L:
        detector = pack_folder()
    if face.recognizer == ARCFACE:
        recognizer = arcface_file()
    return FaceFiles(detector, recognizer, sha256, face.det_size, face.rgb_quirk)


def pack_folder() -> Path:
    """Returns the folder in which insightface keeps its pack buffalo_l."""
    return Path("~/.insightface/models/buffalo_l").expanduser()


def arcface_file() -> Path:
    """Returns the path at which facexlib's recogniser is expected."""
    return cache_root() / "recognition_arcface_ir_se50.pth"


def find_weights(model: ModelSpec) -> WeightFiles:
    """Returns the local weights of a pipeline. Builds ``demo:tiny`` and asks the hub if needed.

    Raises:
        CheckpointError: a failed download, or an unknown ``demo:`` name.
        ClusterError: no place for the demo weights.
    """
    return weight_files(model, find_base(model.base, base_patterns(model)), find_adapter)


def weight_files(model: ModelSpec, base: Path, find: Callable[[str, str], Path]) -> WeightFiles:
    """Returns the files of a pipeline's weights.

    Args:
        base: folder of the base.
        find: as ``find_adapter``.
    """
    adapters = model.adapters
    return WeightFiles(
        base=base,
        resampler=find(adapters.resampler.file, "resampler") if adapters.resampler else None,
        id=find(adapters.id.file, "ip_layers") if adapters.id else None,
        ref=find(adapters.ref.file, "ref_layers") if adapters.ref else None,
        transformer=find(model.transformer.file, "transformer") if model.transformer else None,
        transformer_2=find(model.transformer_2.file, "transformer") if model.transformer_2 else None,
        adapters_on=model.adapters_expert,
        loras=tuple(LoraFile(find(lora.file, "lora"), lora.weight, lora.expert) for lora in model.loras),
        loras_on_reference=model.loras_on_reference or not model.loras,
    )


def base_patterns(model: ModelSpec) -> Sequence[str]:
    """Returns the files of the base that a pipeline needs: not the weights of a transformer that a file replaces."""
    replaced = [f"{part}/*" for part in replaced_parts(model)]
    return [p.replace("*", "config.json") if p in replaced else p for p in BASE_PATTERNS]


def replaced_parts(model: ModelSpec) -> list[str]:
    """Returns the transformers of the base that single files replace."""
    return [part for part in EXPERTS.values() if getattr(model, part) is not None]


def find_base(base: str, patterns: Sequence[str] = BASE_PATTERNS) -> Path:
    """Returns the folder of a base; builds ``demo:tiny`` and downloads from the hub if needed.

    Raises the errors of ``find_weights``.

    Args:
        patterns: files that are downloaded; ``CONFIG_PATTERNS`` for a first look.
    """
    if base.startswith("demo:"):
        return _demo(base, ("demo:tiny",)) / "wan"
    if (found := hub_base(base)) is None:
        return Path(base).expanduser().absolute()
    repo, revision = found
    _log.debug("%s: looking in the hub cache, then on the hub", base)
    from huggingface_hub import snapshot_download

    return Path(_from_hub(base, lambda: snapshot_download(repo, revision=revision, allow_patterns=list(patterns))))


def find_adapter(file: str, stem: str) -> Path:
    """Returns the file of an adapter, as ``find_base``.

    Args:
        stem: of the demo's file: ``resampler``, ``ip_layers`` or ``ref_layers``; the demo has no others.
    """
    if file.startswith("demo:"):
        allowed = {"ref_layers": ("demo:full",), "lora": (), "transformer": ()}.get(stem, ("demo:full", "demo:lite"))
        return _demo(file, allowed) / file.removeprefix("demo:") / f"{stem}.safetensors"
    if (found := hub_file(file)) is None:
        return Path(file).expanduser().absolute()
    repo, revision, path = found
    _log.debug("%s: looking in the hub cache, then on the hub", file)
    from huggingface_hub import hf_hub_download

    return Path(_from_hub(file, lambda: hf_hub_download(repo, path, revision=revision)))


def hub_base(base: str) -> tuple[str, str | None] | None:
    """Returns repository and revision of a base on the hub; None for a folder or a demo."""
    if base.startswith(("demo:", ".", "/", "~")) or Path(base).is_dir():
        return None
    repo, _, revision = base.partition("@")
    return repo, revision or None


def hub_file(file: str) -> tuple[str, str | None, str] | None:
    """Returns repository, revision and path of an adapter on the hub; None for a file or a demo."""
    if not file.startswith("hub:"):
        return None
    owner, repo, path = file.removeprefix("hub:").split("/", 2)
    repo, _, revision = repo.partition("@")
    return f"{owner}/{repo}", revision or None, path


def _from_hub(name: str, download: Any) -> str:
    # Only hub weights pay for this import, and its errors are a family of their own.
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return download()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{name}: not in the local hub cache, and the download failed: {reason}") from None


def _demo(name: str, allowed: tuple[str, ...]) -> Path:
    if name not in allowed:
        raise CheckpointError(f"{name}: no such demo weights here; {' or '.join(allowed) or 'there are none'}")
    _build("lynx_parallel.demo.checkpoint", demo_root())
    return demo_root()


def _build(module: str, root: Path) -> None:
    """Builds a part of the demo if it is missing."""
    if is_built(root):
        return
    # In a process of its own: building needs torch, which this one does without.
    built = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False)
    if built.returncode:
        lines = built.stderr.strip().splitlines() or ["no message"]
        kind = ClusterError if built.returncode == ClusterError.exit_code else CheckpointError
        raise kind(f"{root}: building the demo's files failed: {lines[-1]}")
