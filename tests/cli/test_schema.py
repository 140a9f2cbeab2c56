"""lynx-render schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.light_command import light, refused
from tests.helpers.repository import REPOSITORY


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [([], "manifest"), (["manifest"], "manifest"), (["pipeline"], "pipeline"), (["takes"], "takes")],
)
def test_it_prints_the_committed_schema(tmp_path: Path, arguments: list[str], kind: str) -> None:
    run = light("schema", *arguments, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == (REPOSITORY / "schemas" / f"{kind}.json").read_text()


def test_another_kind(tmp_path: Path) -> None:
    assert refused("schema", "manifst", cwd=tmp_path) == [
        "schema manifst: no such kind of file; did you mean 'manifest'? (kinds: manifest, pipeline, takes, site)"
    ]
