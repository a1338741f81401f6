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

from opflow import problems
from opflow.data import open_dataset
from opflow.data.inverse import is_inverse

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
    grid = recipe["grid"]
    if grid.get("kind") == "polar":
        grid |= {"n_theta": 36, "n_r": 9}
    else:
        layout = grid.get("layout", "nodes")
        layouts = [layout] * len(grid["shape"]) if isinstance(layout, str) else layout
        grid["shape"] = [17 if kind == "nodes" else 32 for kind in layouts]
        if recipe["problem"] == "AcousticWaveform":  # in metres, at the spacing of its sources
            grid["extent"] = [0.0, 16 * recipe["parameters"].get("spacing", 10.0)]
            recipe["parameters"]["n_times"] = 150
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
    grid, inverse = script().as_grid(tiny["grid"]), is_inverse(problem)
    names = (problem.unknowns, problem.inputs) if inverse else (problem.inputs, problem.unknowns)
    assert len(source) == 3 and source.targets == names[1] and source.split == "train"
    assert source.measurements == (problem.unknowns if inverse else ())
    times = tiny.get("times")
    expected = grid.shape if times is None else (2, *grid.shape)
    for field in source.inputs + source.targets:
        values = source.read(field, range(3))
        assert np.isfinite(values).all() and values.std() > 0
        assert values.ndim >= 4 if field in source.measurements else values.shape == (3, *expected)
    if times is not None:
        assert source.inputs == () and source.grid.axes[0] == "t"
        initial = problem.sample(3, grid)[problem.inputs[0]]
        np.testing.assert_allclose(source.read(problem.unknowns[0], range(3))[:, 0], initial, rtol=1e-6, atol=1e-6)


INVERSE = [name for name, recipe in RECIPES.items() if "refine" in recipe]


@pytest.mark.parametrize("name", INVERSE)
def test_recipes_of_inverse_problems_test_on_a_finer_solve(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    problem = getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    assert is_inverse(problem) and set(recipe["refine"]) <= set(recipe["splits"])
    refine = recipe["refine"]
    assert refine.get("train", 1) < min(refine["validation"], refine["test"])
    assert script().make(small(recipe) | {"splits": {"train": 2, "test": 2}}, tmp_path, "test")
    source = open_dataset(tmp_path / "test")
    assert source.attributes["refine"] == refine["test"] and source.grid == script().as_grid(small(recipe)["grid"])


def test_every_recipe_of_an_inverse_problem_says_how_fine_its_splits_are() -> None:
    inverse = [
        name
        for name, recipe in RECIPES.items()
        if is_inverse(getattr(problems, recipe["problem"])(**recipe.get("parameters", {})))
    ]
    assert inverse == INVERSE


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
