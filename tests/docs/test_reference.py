"""docs/reference is what docs/generate.py writes."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.helpers.repository import REPOSITORY


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(generate: ModuleType) -> None:
    """Else run ``python docs/generate.py``."""
    written = {path.name: path.read_text() for path in (REPOSITORY / "docs" / "reference").iterdir()}
    assert written == generate.pages()


def test_every_command_option_and_key_is_there(generate: ModuleType) -> None:
    from lynx_parallel.cli.entry import command_group
    from lynx_parallel.inputs.entries import ManifestFile
    from lynx_parallel.inputs.sampling import Sampling

    pages = generate.pages()
    for name, command in command_group().commands.items():
        section = pages["cli.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(f"`{option}" in section for option in parameter.opts), (name, parameter.opts)
    for key in ManifestFile.model_fields:
        assert f"| `{key}` |" in pages["manifest.md"]
    for key in Sampling.model_fields:
        assert f"| `{key}` |" in pages["pipeline.md"]
