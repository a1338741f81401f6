"""The catalogue of data sets: every recipe can be made, in shards too, by the command that users run."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from opflow import Grid, problems
from opflow.data import open_dataset

SCRIPT = Path(__file__).parents[1] / "datasets" / "generate.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = script().catalogue()


def small(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same recipe with few samples on a coarse grid, and with few times."""
    recipe = copy.deepcopy(recipe)
    recipe["grid"]["shape"] = [17 if recipe["grid"]["layout"] == "nodes" else 32 for _ in recipe["grid"]["shape"]]
    recipe["splits"] = dict.fromkeys(recipe["splits"], 3)
    recipe["block"], recipe["rtol"] = 2, 1e-3
    if "times" in recipe:
        recipe["times"] = recipe["times"][:2]
    return recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_made(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    assert recipe["about"] and set(recipe["splits"]) == {"train", "validation", "test"}
    problem, tiny = getattr(problems, recipe["problem"])(**recipe.get("parameters", {})), small(recipe)
    assert script().make(tiny, tmp_path, "train")
    source = open_dataset(tmp_path / "train")
    assert len(source) == 3 and source.targets == problem.unknowns and source.split == "train"
    times = tiny.get("times")
    expected = Grid(**tiny["grid"]).shape if times is None else (2, *Grid(**tiny["grid"]).shape)
    for field in source.inputs + source.targets:
        values = source.read(field, range(3))
        assert values.shape == (3, *expected) and np.isfinite(values).all() and values.std() > 0
    if times is not None:
        assert source.inputs == () and source.grid.axes[0] == "t"
        initial = problem.sample(3, Grid(**tiny["grid"]))[problem.inputs[0]]
        np.testing.assert_allclose(source.read(problem.unknowns[0], range(3))[:, 0], initial, rtol=1e-6, atol=1e-6)


def test_shards_make_the_same_set(tmp_path: Path) -> None:
    recipe = small(RECIPES["burgers"]) | {"splits": {"train": 70}, "block": 32}
    assert script().make(recipe, tmp_path / "whole", "train")
    done = [script().make(recipe, tmp_path / "parts", "train", shard=(i, 2)) for i in (1, 0)]
    assert done == [False, True], "the shard that comes last finds all parts"
    whole, parts = (open_dataset(tmp_path / name / "train") for name in ("whole", "parts"))
    assert whole.fingerprint == parts.fingerprint


def test_the_command(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=tmp_path)

    assert "navier-stokes" in command("--help").stdout and "shard" in command("--help").stdout
    done = command("antiderivative", "--out", "made", "--splits", "test")
    assert done.returncode == 0 and "antiderivative test: 1000 samples" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "made" / "antiderivative").iterdir()] == ["test"]
    refused = command("antiderivative", "--shard", "4/4")
    assert refused.returncode == 2 and "i/n with 0 <= i < n is expected" in refused.stderr
    assert command("nothing").returncode == 2
