"""The README's Python runs as it stands, one snippet after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def test_the_snippets_run() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 4
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert names["step"].frame is None and names["best"].ndim == 0  # the plan of the last snippet
    assert names["observations"].shape == (16, 64, 64, 3)
