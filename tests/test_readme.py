"""The README's numbers are those of the result files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_measured_tables_are_current() -> None:
    check = "import sys; from benchmarks.readme import *; t = open('README.md').read(); sys.exit(with_tables(t) != t)"
    child = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, f"run: python -m benchmarks.readme\n{child.stderr}"
