"""Which files a pipeline's weights are, and what they hash to. Imports neither torch nor Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_parallel.artifacts import atomic_write, cache_root, digest, sha256_file
from lynx_parallel.demo.checkpoint import demo_root, is_built
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.spec.pipeline import ARCFACE, BUFFALO_L, DEMO_FACES, FaceSpec, ModelSpec

ARCFACE_SHA256 = "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28"
"""Of facexlib's ``recognition_arcface_ir_se50.pth``, which Lynx was trained with."""

# Key → the largest value of sense: far above Wan's own, far below what would fill the memory.
_TRANSFORMER_SIZES = {
    "num_layers": 1000,
    "num_attention_heads": 1000,
    "attention_head_dim": 10_000,
    "rope_max_seq_len": 2**16,
}

COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
"""Folders of the base that change a video."""
BASE_PATTERNS = ("model_index.json", *(f"{name}/*" for name in COMPONENTS))
"""Files of a hub repository that are downloaded as a base."""
CONFIG_PATTERNS = ("model_index.json", *(f"{name}/*config.json" for name in COMPONENTS))
"""Files of a few kilobytes that say what kind of model a base is."""


@dataclass(frozen=True)
class WeightFiles:
    """Local files of a pipeline's weights.

    Attributes:
        ref: None for lite.
        converted: folder of a copy of the base's transformer in the pipeline's dtype, or None; see
            ``lynx_parallel.converted``.
    """

    base: Path
    resampler: Path
    id: Path
    ref: Path | None = None
    converted: Path | None = None


@dataclass(frozen=True)
class FaceFiles:
    """Local face models, and how they are run.

    Attributes:
        detector: insightface pack folder or YuNet file.
        recognizer: IR-SE50 file.
        recognizer_sha256: what it must hash to; None accepts any (the demo's).
    """

    detector: Path
    recognizer: Path
    recognizer_sha256: str | None
    det_size: int
    rgb_quirk: bool


def find_face_models(face: FaceSpec | None) -> FaceFiles | None:
    """Local paths of the face models a pipeline names, if it names any; builds ``demo:faces`` where needed.

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
    """Returns where a pipeline's face models are expected; builds ``demo:faces`` where needed."""
    detector, recognizer = Path(face.detector), Path(face.recognizer)
    sha256: str | None = face.recognizer_sha256 or ARCFACE_SHA256
    if DEMO_FACES in (face.detector, face.recognizer):
        from lynx_parallel.demo.facepack import RECOGNISER, facepack_root

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
    """Local paths of the weights a pipeline names; builds ``demo:tiny`` and asks the hub where needed.

    Raises:
        CheckpointError: a hub id that cannot be had, an unknown ``demo:`` name.
        ClusterError: no place for the demo weights.
    """
    adapters = model.adapters
    return WeightFiles(
        base=find_base(model.base),
        resampler=find_adapter(adapters.resampler.file, "resampler"),
        id=find_adapter(adapters.id.file, "ip_layers"),
        ref=find_adapter(adapters.ref.file, "ref_layers") if adapters.ref else None,
    )


def transformer_config(weights: WeightFiles) -> dict[str, Any]:
    """diffusers' configuration of the base's transformer.

    Raises:
        CheckpointError: missing, not JSON, or without the sizes that a Wan transformer has.
    """
    path = weights.base / "transformer" / "config.json"
    try:
        config = read_config(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: is {weights.base} a Wan2.1 model in diffusers layout?") from None
    check_sizes(path, config, _TRANSFORMER_SIZES)
    match config.get("patch_size"):
        case [int(), int(), int()] as sizes if all(0 < size <= 100 for size in sizes):
            pass
        case other:
            raise CheckpointError(f"{path}: patch_size: {one_line(other)}: expected three whole numbers from 1 to 100")
    match config.get("eps", 1e-6):
        case int() | float() as eps if 0 <= eps < 1:
            pass
        case other:
            raise CheckpointError(f"{path}: eps: {one_line(other)}: expected a number from 0 to 1")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, unreadable, or other JSON.
    """
    refuse_special(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def check_sizes(path: Path, config: Mapping[str, Any], largest: Mapping[str, int], *, required: bool = True) -> None:
    """Whether these keys of a configuration are whole numbers from 1 up to the given.

    Raises:
        CheckpointError: one is not; names it.
    """
    for key, top in largest.items():
        size = config.get(key)
        if size is None and not required:  # diffusers writes null for sizes that it derives from others
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= top:
            raise CheckpointError(f"{path}: {key}: {one_line(size)}: expected a whole number from 1 to {top}")


def refuse_special(path: Path) -> None:
    """Stops before a pipe or a device is opened, which could wait for ever or never end.

    Raises:
        CheckpointError: ``path`` is one.
    """
    # False for whatever else is wrong: opening it says so.
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise CheckpointError(f"{path}: a pipe, socket or device, not a file")


def one_line(text: object) -> str:
    """A foreign message or key, fit for an error's one line: no line breaks or control characters, not endless."""
    line = " ".join(str(text).split()) or type(text).__name__
    line = "".join(character if character.isprintable() else "?" for character in line[:300])
    return line if len(line) < 300 else f"{line}…"


def weight_digests(weights: WeightFiles, face: FaceFiles | None = None) -> dict[str, str]:
    """sha256 by file, keys relative to the base (``base/vae/config.json``) or ``resampler``, ``id``, ``ref``.

    Face models count as ``face.detector`` and ``face.recognizer``.

    Files are read once; the result is remembered under the user's cache folder by path, size and mtime.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    remembered = Remembered()
    try:
        digests = {f"base/{path.relative_to(weights.base)}": remembered.sha256(path) for path in _base_files(weights)}
        for name in ("resampler", "id", "ref"):
            if path := getattr(weights, name):
                digests[name] = remembered.sha256(path)
        if face is not None:
            digests["face.recognizer"] = remembered.sha256(face.recognizer)
            digests["face.detector"] = digest([remembered.sha256(path) for path in _detector_files(face.detector)])
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}") from None
    finally:
        remembered.save()  # also of a run broken off: hashing 70 GB takes minutes
    return digests


def _detector_files(detector: Path) -> list[Path]:
    """What finds faces, of all that a pack holds."""
    if not detector.is_dir():
        return [detector]
    files = sorted(detector.rglob("*.onnx"))
    found = [path for path in files if path.name.startswith(("det", "scrfd"))] or files
    if not found:
        raise CheckpointError(f"{detector}: no face detector (.onnx) in it")
    return found


def _base_files(weights: WeightFiles) -> Iterator[Path]:
    for component in COMPONENTS:
        folder = weights.base / component
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
        if not files:
            raise CheckpointError(f"{folder}: missing: is {weights.base} a Wan2.1 model in diffusers layout?")
        yield from files


def _is_hidden(path: Path, folder: Path) -> bool:
    """Such files come and go by themselves (.DS_Store, .nfs…), and no loader reads them."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


class Remembered:
    """sha256 by (path, size, mtime), kept in the cache folder; a damaged cache file is as good as none."""

    def __init__(self) -> None:
        self.path = cache_root() / "digests.json"
        self.changed = False
        try:
            self.entries: dict[str, list[Any]] = dict(json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            self.entries = {}

    def sha256(self, path: Path) -> str:
        refuse_special(path)
        real = os.path.realpath(path)
        status = os.stat(path)  # of a broken link, the error names the link
        seen = [status.st_size, status.st_mtime_ns]
        match self.entries.get(real):
            case [size, mtime_ns, str(known)] if [size, mtime_ns] == seen and len(known) == 64:
                return known
        return self.add(path, sha256_file(Path(real)))

    def add(self, path: Path, sha256: str) -> str:
        """Remembers the digest of a file that has just been read; returns it."""
        status = os.stat(path)
        self.entries[os.path.realpath(path)] = [status.st_size, status.st_mtime_ns, sha256]
        self.changed = True
        return sha256

    def save(self) -> None:
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as part:
                part.write_text(json.dumps(self.entries))
        except OSError:
            pass  # a cache: the next run hashes again


def find_base(base: str, patterns: Sequence[str] = BASE_PATTERNS) -> Path:
    """Returns the folder of a base; builds ``demo:tiny`` and downloads from the hub where needed.

    Errors as of ``find_weights``.

    Args:
        patterns: files that are downloaded; ``CONFIG_PATTERNS`` for a first look.
    """
    if base.startswith("demo:"):
        return _demo(base, ("demo:tiny",)) / "wan"
    if (found := hub_base(base)) is None:
        return Path(base).expanduser().absolute()
    repo, revision = found
    from huggingface_hub import snapshot_download

    return Path(_from_hub(base, lambda: snapshot_download(repo, revision=revision, allow_patterns=list(patterns))))


def find_adapter(file: str, stem: str) -> Path:
    """Returns the file of an adapter, as ``find_base``.

    Args:
        stem: of the demo's file: ``resampler``, ``ip_layers`` or ``ref_layers``.
    """
    if file.startswith("demo:"):
        allowed = ("demo:full",) if stem == "ref_layers" else ("demo:full", "demo:lite")
        return _demo(file, allowed) / file.removeprefix("demo:") / f"{stem}.safetensors"
    if (found := hub_file(file)) is None:
        return Path(file).expanduser().absolute()
    repo, revision, path = found
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
        raise CheckpointError(f"{name}: not in the local hub cache, and the hub did not give it: {reason}") from None


def _demo(name: str, allowed: tuple[str, ...]) -> Path:
    if name not in allowed:
        raise CheckpointError(f"{name}: no such demo weights here; {' or '.join(allowed)}")
    _build("lynx_parallel.demo.checkpoint", demo_root())
    return demo_root()


def _build(module: str, root: Path) -> None:
    """Has a part of the demo made, where it is not there yet."""
    if is_built(root):
        return
    # In a process of its own: building needs torch, which this one does without.
    built = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False)
    if built.returncode:
        lines = built.stderr.strip().splitlines() or ["no message"]
        kind = ClusterError if built.returncode == ClusterError.exit_code else CheckpointError
        raise kind(f"{root}: building the demo's files failed: {lines[-1]}")
