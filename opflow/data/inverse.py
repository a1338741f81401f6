"""What the generator does for an inverse problem: observe coefficients, on a finer grid if asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from opflow.data.schema import MIN_MEASUREMENT_AXES, DataError
from opflow.grid import Grid
from opflow.typing import InverseProblem, Problem


def is_inverse(problem: Problem | InverseProblem) -> TypeGuard[InverseProblem]:
    """Whether the problem is one of recovering its input: it can be observed, and there is nothing to solve for."""
    return hasattr(problem, "observe") and not hasattr(problem, "solve")


def check_options(problem: Problem | InverseProblem, *, refine: int, times: Sequence[float] | None) -> None:
    """Raise unless these options of the generator suit the problem."""
    name = type(problem).__name__
    if not isinstance(refine, int) or refine < 1:
        raise ValueError(f"refine is {refine!r}; give a positive whole number.")
    if is_inverse(problem):
        if times is not None:
            raise ValueError(f"{name} is an inverse problem, observed and not solved in time; leave times out.")
        if len(problem.inputs) != 1:
            raise ValueError(f"{name} has the inputs {problem.inputs}; one coefficient is expected.")
    elif refine != 1:
        raise ValueError(f"{name} is no inverse problem, so refine={refine} says nothing; choose a finer grid instead.")


def refined(grid: Grid, factor: int) -> Grid:
    """The same domain with 1/factor of the spacing; its ``subsampled(factor)`` is `grid`."""
    shape = (
        (n - 1) * factor + 1 if kind == "nodes" else n * factor for n, kind in zip(grid.shape, grid.layout, strict=True)
    )
    return grid.with_shape(tuple(shape))


def observed(
    problem: InverseProblem,
    inputs: Mapping[str, Tensor],
    indices: range,
    grid: Grid,
    recipe: Mapping[str, Any],
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The noise-free measurements of these samples; `inputs` are their coefficients on `grid`.

    Raises:
        DataError: the problem gave something else than (n, measurement, channel, *sensors), or left measurements out.
    """
    fine = grid
    if recipe["refine"] > 1:
        fine = refined(grid, recipe["refine"])
        drawn = problem.sample(indices, fine, seed=recipe["seed"], split=recipe["split"])
        inputs = {name: field.to(device) for name, field in drawn.items()}
    data = problem.observe(inputs, grid=fine)
    for name in problem.unknowns:
        values = data.get(name)
        if values is None or values.ndim < MIN_MEASUREMENT_AXES or len(values) != len(indices):
            came = "missing" if values is None else tuple(values.shape)
            raise DataError(
                f"{recipe['problem']}.observe gave {name!r} as {came}; "
                f"({len(indices)}, measurement, channel, *sensors) is expected."
            )
        if values.is_complex():
            raise DataError(
                f"{recipe['problem']}.observe gave complex {name!r}; give two channels, real and imaginary part."
            )
    mask = data.get("mask")
    if mask is not None and not bool(mask.all()):
        raise DataError(
            f"{recipe['problem']}.observe left out {int((~mask).sum())} of {mask.numel()} measurements; a data set holds "
            "whole ones: leave measurements out in training, with opflow.data.random_subsets."
        )
    return data
