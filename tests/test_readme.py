"""The README's numbers are those of the result files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_measured_table_is_current() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = (ROOT / "README.md").read_text()
    assert readme.with_table(text) == text, "run: python -m benchmarks.readme"
