"""Files import from files, never from a face; triton and numba stay behind their fences (the floors: `make check`)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "opflow"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]
FENCES = {"triton": "kernels/*/triton_*.py", "numba": "kernels/*/numba_*.py", "h5py": "data/**/*.py"}


def imported(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every (module, names) that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_inside_the_fences(path: Path) -> None:
    for module, names in imported(path):
        parts = module.split(".")
        if parts[0] == "opflow":
            target = PACKAGE.joinpath(*parts[1:])
            is_file = target.with_suffix(".py").is_file()
            files = is_file or (names and all((target / f"{name}.py").is_file() for name in names))
            assert files, f"{module} is a package's face; import from the file that defines the name"
        fence = FENCES.get(parts[0])
        assert fence is None or path in set(PACKAGE.glob(fence)), f"only {fence} may import {parts[0]}"
