"""Fixtures for every test."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_data() -> Callable[[str], Path]:
    """``reference_data("folder/file")``: a file of the reference data, which lies outside the project; skips without it."""

    def find(relative_path: str) -> Path:
        root = os.environ.get("OPFLOW_REFERENCE_DATA")
        if not root:
            pytest.skip(f"OPFLOW_REFERENCE_DATA is not set, so {relative_path} is not at hand")
        path = Path(root) / relative_path
        if not path.exists():
            pytest.skip(f"OPFLOW_REFERENCE_DATA has no {relative_path}")
        return path

    return find
