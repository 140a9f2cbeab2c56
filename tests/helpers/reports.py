"""Reads the report's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
