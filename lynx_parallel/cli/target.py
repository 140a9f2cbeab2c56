"""Finds the output folder, and the campaign, of commands that look at what was rendered."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_parallel.errors import InputErrors
from lynx_parallel.text import shown_path

if TYPE_CHECKING:
    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.output.folder import Output

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MANIFEST_OR_OUTPUT_FOLDER",
        help="Default: the output folder that was written last, in this folder or up to two levels below it.",
    ),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="CAMPAIGN", help="Manifest or output folder; default as for status."),
]


@dataclass(frozen=True)
class Target:
    """An output folder.

    Attributes:
        manifest: what the user named instead of the folder; None if it was the folder.
    """

    output: Output
    manifest: str | None = None

    @property
    def shown(self) -> str:
        return shown_path(self.output.folder)

    @property
    def names(self) -> list[str] | None:
        """Names of all shots of the manifest that the user named; None for an output folder."""
        return [shot.name for shot in self.campaign.shots] if self.manifest and self.campaign else None

    @cached_property
    def campaign(self) -> Campaign | None:
        """The campaign: of the manifest, else of the folder's last run; None if that cannot be read any more.

        Raises:
            InputErrors: the manifest that the user named has mistakes.
        """
        from lynx_parallel.inputs.load import load_campaign
        from lynx_parallel.inputs.records import read_record

        if self.manifest is not None:
            return load_campaign(self.manifest)
        for folder in sorted((self.output.private / "manifests").glob("*"), reverse=True):
            try:
                record = read_record(folder)
                if record is None:
                    return None
                sets = [value for value in record.request.set if not value.startswith("output=")]
                return load_campaign(record.as_of_today(record.manifest), sets)
            except (InputErrors, KeyError):  # pictures or the pipeline are gone
                return None
        return None


def find_target(text: str | None) -> Target:
    """Returns what a command's argument names.

    Raises:
        InputErrors: no such folder or manifest, or none given and none found.
    """
    from lynx_parallel.output.folder import Output

    if text is None:
        return Target(_latest(Path.cwd()))
    folder = Path(os.path.realpath(text))
    if (folder / ".lynx").is_dir():  # without the imports that a manifest needs
        return Target(Output(folder))
    from lynx_parallel.inputs.load import find_output
    from lynx_parallel.inputs.near_files import near_file
    from lynx_parallel.inputs.records import find_record

    if folder.is_dir() and not find_record(text):
        if not Output(folder).is_one():
            raise InputErrors([f"{text}: not an output folder: it holds neither .lynx nor a sidecar"])
        return Target(Output(folder))
    if "/" in text and not os.path.lexists(text):
        raise InputErrors([f"{text}: no such manifest or output folder{near_file(text)}"])
    if record := find_record(text):
        return Target(Output(record.output))
    return Target(Output(find_output(text)), text)


def _latest(folder: Path) -> Output:
    """Returns the output folder that was written last, in a folder or up to two levels below it."""
    from lynx_parallel.output.folder import Output

    outputs = [Output(path.parent) for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}.lynx")]
    written = {
        path.stat().st_mtime: output for output in outputs for path in output.journals if path.is_file()
    }  # fmt: skip
    if not written:
        raise InputErrors(["no output folder here: name a manifest or an output folder"])
    return written[max(written)]
