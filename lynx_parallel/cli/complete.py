"""What the shell completes: names of shipped files, of cards and of kernels. Each function imports what it needs."""

from __future__ import annotations

import os
import shlex
from typing import Literal


def manifest_names(incomplete: str) -> list[str]:
    """Returns manifests: those that are shipped, and YAML files."""
    return _files("manifests", incomplete)


def pipeline_names(incomplete: str) -> list[str]:
    """Returns pipelines: those that are shipped, and YAML files."""
    return _files("pipelines", incomplete)


def shipped_manifests(incomplete: str) -> list[str]:
    """Returns the shipped manifests that begin with a text."""
    return _shipped("manifests", incomplete)


def schema_names(incomplete: str) -> list[str]:
    """Returns the kinds of files that have a schema."""
    return _starting(incomplete, ("manifest", "pipeline", "takes"))


def attention_names(incomplete: str) -> list[str]:
    """Returns the attention kernels."""
    from lynx_parallel.inputs.cluster import ATTENTION

    return _starting(incomplete, ATTENTION)


def device_names(incomplete: str) -> list[str]:
    """Returns the kinds of devices."""
    from lynx_parallel.inputs.cluster import DEVICES

    return _starting(incomplete, DEVICES)


def card_names(incomplete: str) -> list[str]:
    """Returns the graphics cards whose names are one word, because a shell would split others."""
    from lynx_parallel.inputs.cards import CARDS

    return _starting(incomplete, [card.name for card in CARDS if " " not in card.name])


def _files(kind: Literal["manifests", "pipelines"], incomplete: str) -> list[str]:
    """Returns shipped names and YAML files; nothing if no name fits: the shell then completes paths by itself.

    Folders beside them are named with ``/``.
    """
    head, tail = os.path.split(incomplete)
    files, folders = [], []
    try:
        with os.scandir(os.path.expanduser(head) or ".") as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") and not tail
                if not entry.name.startswith(tail) or hidden or shlex.quote(entry.name) != entry.name:
                    continue  # the shell quotes names that it completes by itself
                if entry.is_dir():
                    folders.append(os.path.join(head, entry.name, ""))
                elif entry.name.endswith((".yaml", ".yml")):
                    files.append(os.path.join(head, entry.name))
    except OSError:
        return _shipped(kind, incomplete)
    found = [*_shipped(kind, incomplete), *sorted(files)]
    return [*found, *sorted(folders)] if found else []


def _shipped(kind: Literal["manifests", "pipelines"], incomplete: str) -> list[str]:
    from lynx_parallel.inputs.shipped import shipped_names

    return _starting(incomplete, shipped_names(kind))


def _starting(incomplete: str, names: tuple[str, ...] | list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
