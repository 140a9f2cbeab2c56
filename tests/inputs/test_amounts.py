"""Ages and sizes in options."""

from __future__ import annotations

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.amounts import read_age, read_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("12h", 43200), ("1d12h", 129600), ("45m", 2700), ("0d", 0)]
)
def test_ages(text: str, seconds: float) -> None:
    assert read_age(text, "--older-than") == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "12h1d", "30 d", "30D", "٣d"])
def test_wrong_ages(text: str) -> None:
    with pytest.raises(InputErrors) as raised:
        read_age(text, "--older-than")
    assert raised.value.lines == [f"--older-than {text}: must be an age such as 30d, 12h or 1d12h"]


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("500MB", 500_000_000), ("50GB", 50 * 10**9), ("1.5TB", 15 * 10**11), ("2kB", 2000)]
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text, "--keep") == size


@pytest.mark.parametrize("text", ["", "50", "GB", "-1GB", "50 gigabytes", "1e3GB", "50GiB", "nanGB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(InputErrors) as raised:
        read_size(text, "--keep")
    assert raised.value.lines == [f"--keep {text}: must be a size such as 500MB, 50GB or 1TB"]
