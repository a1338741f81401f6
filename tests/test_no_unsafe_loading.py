"""No file of the project opens a pickle or runs text: that would run whatever its author put there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("opflow", "examples", "benchmarks", "datasets")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source: str) -> Iterator[str]:
    """Every call or import that could run code from a file; strings and comments may name them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in PICKLING)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLING:
            yield f"from {node.module} import"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if called in ("eval", "exec", "__import__"):
                yield called
            if called == "torch.load" and options.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if options.get("weights_only", "True") != "True":
                yield "weights_only that is not True"
            if options.get("allow_pickle", "False") != "False":
                yield "allow_pickle"
            if called.split(".")[-1] in ("load_module", "read_pickle"):
                yield called


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unsafe_is_loaded(path: Path) -> None:
    assert not list(unsafe(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(open(path), map_location=f(x))",
        "torch.load(path, weights_only = False)",
        "read(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "from cloudpickle import load",
        "eval(text)",
        "exec(text)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_search_finds_what_is_unsafe(line: str) -> None:
    assert list(unsafe(line))
    assert not list(unsafe(f"# {line}\nx = {line!r}"))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f(path), map_location='cpu', weights_only=True)",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        "json.load(f)",
    ],
)
def test_the_search_lets_safe_loading_pass(line: str) -> None:
    assert not list(unsafe(line))
