"""Pictures: fields with their error, and curves of convergence. matplotlib is imported on use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from opflow.files import atomic_file
from opflow.grid import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(columns: int, rows: int = 1, *, width: float = 3.4, height: float = 3.2) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib, which is not installed; run: pip install 'opflow[viz]'") from error
    # A figure of its own, outside pyplot: drawing changes no global state and needs no screen.
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_fields(
    rows: Sequence[Mapping[str, ArrayLike]], grid: Grid, *, input: str, reference: str, prediction: str, title: str = ""
) -> Figure:
    """One row a sample: input, reference, prediction on the reference's colour scale, and the signed error on its own.

    Args:
        rows: for each sample its named fields, (nx, ny); a row may have a resolution of its own.
        grid: extent and axis names.
        input, reference, prediction: which of the names goes where; they become the panel titles.
    """
    if grid.dim != 2:
        raise ValueError(f"plot_fields draws two-dimensional fields, but the grid has {grid.dim} axes.")
    if not rows:
        raise ValueError("there is no sample to draw; give at least one row.")
    figure, axes = _figure(4, len(rows), height=2.9)
    (left, right), (bottom, top) = grid.extent
    for i, row in enumerate(rows):
        fields = {name: np.asarray(row[name]) for name in (input, reference, prediction)}
        shapes = {name: field.shape for name, field in fields.items()}
        if len(set(shapes.values())) != 1 or fields[input].ndim != 2:
            raise ValueError(
                f"row {i} has fields of shapes {shapes}; give each name one field (nx, ny), of one shape in a row."
            )
        error = fields[prediction] - fields[reference]
        size = np.linalg.norm(fields[reference])
        relative = np.linalg.norm(error) / size if size > 0 else np.nan
        low, high = fields[reference].min(), fields[reference].max()
        largest = np.abs(error).max() or 1.0
        panels = [
            (input, fields[input], {"cmap": "cividis"}),
            (reference, fields[reference], {"cmap": "viridis", "vmin": low, "vmax": high}),
            (prediction, fields[prediction], {"cmap": "viridis", "vmin": low, "vmax": high}),
            (f"error (relative L2 {relative:.2%})", error, {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}),
        ]
        for axis, (name, field, style) in zip(axes[i], panels, strict=True):
            # Fields are indexed [x, y]; pictures have y upwards.
            image = axis.imshow(
                field.T, origin="lower", extent=(left, right, bottom, top), interpolation="nearest", **style
            )
            axis.set_title(name, fontsize=10)
            axis.set_xlabel(grid.axes[0])
            axis.set_ylabel(grid.axes[1])
            figure.colorbar(image, ax=axis, shrink=0.8, format="%.2g")
    if title:
        figure.suptitle(title)
    return figure


def plot_convergence(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    slopes: Sequence[float] = (),
) -> Figure:
    """Curves name -> (x, y) on a logarithmic y axis: training losses, residual histories, errors under refinement.

    Args:
        curves: each with its own x.
        xlabel, ylabel, title: with units, where there are any.
        log_x: a logarithmic x axis too.
        slopes: dashed reference lines y ~ x^slope, from the middle of the curves at their largest x; needs `log_x`.
    """
    if slopes and not log_x:
        raise ValueError("slopes are straight lines on two logarithmic axes only; pass log_x=True with them.")
    figure, axes = _figure(1, width=5.6, height=4.4)
    axis = axes[0][0]
    for name, (x, y) in curves.items():
        axis.plot(
            np.asarray(x), np.asarray(y), marker="o" if len(np.asarray(x)) < 30 else None, markersize=3, label=name
        )
    for slope in slopes:
        ends = [float(end([end(np.asarray(x)) for x, _ in curves.values()])) for end in (np.min, np.max)]
        middle = np.exp(np.mean([np.log(np.asarray(y)[np.argmax(np.asarray(x))]) for x, y in curves.values()]))
        line = middle * (np.array(ends) / ends[1]) ** slope
        axis.plot(ends, line, linestyle="--", color="black", linewidth=0.8, label=f"slope {slope:g}")
    axis.set_yscale("log")
    if log_x:
        axis.set_xscale("log")
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(True, which="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)  # never over a curve
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a picture; it reaches its name only whole."""
    path = Path(path)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    return path
