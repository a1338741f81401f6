"""Pictures: fields with their error, and curves of convergence. matplotlib is imported on use."""

from __future__ import annotations

import math
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
    """One row a sample: input, reference, prediction, and the signed error on a scale of its own.

    Fields of two axes are images, the prediction on the reference's colour scale, and discs if the grid is polar; functions of
    one axis are curves, the prediction over the reference.

    Args:
        rows: for each sample its named fields, (nx, ny) or (nx,); a row may have a resolution of its own, and its input one too.
        grid: extent and axis names.
        input, reference, prediction: which of the names goes where; they become the panel titles.
    """
    if grid.dim not in (1, 2):
        raise ValueError(f"plot_fields draws fields of one or two axes, but the grid has {grid.dim}.")
    if not rows:
        raise ValueError("there is no sample to draw; give at least one row.")
    figure, axes = _figure(3 if grid.dim == 1 else 4, len(rows), height=2.9)
    for i, row in enumerate(rows):
        fields = {name: np.asarray(row[name]) for name in (input, reference, prediction)}
        shapes = {name: field.shape for name, field in fields.items()}
        if shapes[reference] != shapes[prediction] or any(len(shape) != grid.dim for shape in shapes.values()):
            raise ValueError(
                f"row {i} has fields of shapes {shapes}; give each name one field ({', '.join('n' + a for a in grid.axes)}), "
                "reference and prediction of one shape."
            )
        error = fields[prediction] - fields[reference]
        weight = 1.0 if grid.kind == "cartesian" else grid.with_shape(error.shape).quadrature_weights().numpy() ** 0.5
        size = np.linalg.norm(weight * fields[reference])
        relative = np.linalg.norm(weight * error) / size if size > 0 else np.nan
        said = f"error (relative L2 {relative:{'.1e' if relative < 1e-3 else '.2%'}})"
        if grid.dim == 1:
            _lines(axes[i], grid, fields, error, (input, reference, prediction, said))
            continue
        low, high = fields[reference].min(), fields[reference].max()
        panels = [
            (input, fields[input], {"cmap": "cividis"}),
            (reference, fields[reference], {"cmap": "viridis", "vmin": low, "vmax": high}),
            (prediction, fields[prediction], {"cmap": "viridis", "vmin": low, "vmax": high}),
            (said, error, _signed(error)),
        ]
        for axis, (name, field, style) in zip(axes[i], panels, strict=True):
            image = _image(axis, field, grid, style)
            axis.set_title(name, fontsize=10)
            figure.colorbar(image, ax=axis, shrink=0.8, format=_tick_format(image))
    if title:
        figure.suptitle(title)
    return figure


def plot_frames(
    rows: Mapping[str, ArrayLike],
    grid: Grid,
    times: Sequence[float],
    *,
    reference: str,
    prediction: str,
    title: str = "",
) -> Figure:
    """A strip of frames: one column a time, one row a name, and a last row with the signed error of each frame.

    All rows share one colour scale, symmetric about zero; the errors share another.

    Args:
        rows: name -> (time, nx, ny).
        grid: of space: extent and axis names.
        times: of the frames.
        reference, prediction: the names whose difference is the error.
    """
    if grid.dim != 2:
        raise ValueError(f"plot_frames draws frames of two axes, but the grid has {grid.dim}.")
    frames = {name: np.asarray(values) for name, values in rows.items()}
    shapes = {name: values.shape for name, values in frames.items()}
    if len(set(shapes.values())) != 1 or frames[reference].ndim != 3 or len(frames[reference]) != len(times):
        raise ValueError(f"the rows have shapes {shapes}; give each ({len(times)}, nx, ny), one frame a time.")
    error = frames[prediction] - frames[reference]
    size = np.sqrt((frames[reference] ** 2).sum(axis=(1, 2)))
    relative = np.sqrt((error**2).sum(axis=(1, 2))) / np.where(size > 0, size, np.nan)
    scale = _signed(np.concatenate(list(frames.values())))
    figure, axes = _figure(len(times), len(frames) + 1, width=2.2, height=2.3)
    for name, line in zip(frames, axes[:-1], strict=True):
        for axis, frame, time in zip(line, frames[name], times, strict=True):
            image = _image(axis, frame, grid, scale)
            axis.set_title(f"{name}, t = {time:g}", fontsize=9)
        figure.colorbar(image, ax=line, shrink=0.8, format=_tick_format(image))
    for axis, frame, number in zip(axes[-1], error, relative, strict=True):
        image = _image(axis, frame, grid, _signed(error))
        axis.set_title(f"error {number:.2%}", fontsize=9)
    figure.colorbar(image, ax=axes[-1], shrink=0.8, format=_tick_format(image))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    if title:
        figure.suptitle(title)
    return figure


def plot_images(
    rows: Mapping[str, Mapping[str, ArrayLike]], grid: Grid, *, signed: Sequence[str] = (), title: str = ""
) -> Figure:
    """Fields of two axes as rows of images, each row on one colour scale.

    Args:
        rows: name of the row -> title of the image -> (nx, ny); NaN, in solids, is grey.
        grid: extent and axis names.
        signed: names of the rows whose colours are symmetric about zero.
    """
    if grid.dim != 2 or not rows or len({len(images) for images in rows.values()}) != 1:
        raise ValueError(
            f"the rows have {[len(images) for images in rows.values()]} images and the grid {grid.dim} axes; give rows of equally many images of two axes."
        )
    columns, aspect = len(next(iter(rows.values()))), grid.lengths[1] / grid.lengths[0]
    figure, axes = _figure(columns, len(rows), width=1.9, height=1.9 * aspect + 0.3)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        fields = [np.asarray(field) for field in images.values()]
        finite = np.concatenate([field[np.isfinite(field)] for field in fields])
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        style = _signed(finite) if name in signed else {"cmap": "magma", "vmin": low, "vmax": high}
        for axis, said, field in zip(line, images, fields, strict=True):
            image = _image(axis, field, grid, style)
            axis.set_facecolor("0.6")
            axis.set_title(said, fontsize=9)
            axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
        figure.colorbar(image, ax=line, shrink=0.8, format=_tick_format(image))
    if title:
        figure.suptitle(title)
    return figure


def plot_triangles(
    fields: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    edges: bool = True,
    signed: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Fields on meshes of triangles, side by side, each with a colour scale of its own.

    Args:
        fields: title -> vertices (n, 2), triangles (m, 3) as indices of them, values (n,).
        edges: draw the edges too.
        signed: titles of the fields whose colours are symmetric about zero, an error for example.
    """
    if not fields:
        raise ValueError("there is no field to draw; give at least one mesh with values.")
    figure, axes = _figure(len(fields), width=3.9)
    for axis, (said, parts) in zip(axes[0], fields.items(), strict=True):
        points, triangles, values = (np.asarray(part) for part in parts)
        if (
            points.ndim != 2
            or triangles.ndim != 2
            or (points.shape[1], triangles.shape[1]) != (2, 3)
            or values.shape != points.shape[:1]
        ):
            raise ValueError(
                f"{said!r} has vertices {points.shape}, triangles {triangles.shape} and values {values.shape}; expected (n, 2), (m, 3) and (n,)."
            )
        style = _signed(values) if said in signed else {"cmap": "viridis"}
        image = axis.tripcolor(points[:, 0], points[:, 1], triangles, values, shading="gouraud", **style)
        if edges:
            axis.triplot(points[:, 0], points[:, 1], triangles, color="white", linewidth=0.2)
        axis.set_aspect("equal")
        axis.set_title(said, fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.8, format=_tick_format(image))
    if title:
        figure.suptitle(title)
    return figure


def _lines(axes: Any, grid: Grid, fields: Mapping[str, Any], error: Any, names: tuple[str, str, str, str]) -> None:
    """One row of functions of one axis."""
    input, reference, prediction, said = names

    def at(field: Any) -> Any:
        return grid.with_shape(len(field)).coordinates(0).numpy()

    axes[0].plot(at(fields[input]), fields[input], color="black", linewidth=1)
    axes[0].set_title(input, fontsize=10)
    axes[1].plot(at(fields[reference]), fields[reference], label=reference)
    axes[1].plot(at(fields[prediction]), fields[prediction], linestyle="--", label=prediction)
    axes[1].legend(fontsize=8, frameon=False)
    axes[2].plot(at(error), error, color="tab:red", linewidth=1)
    axes[2].set_title(said, fontsize=10)
    for axis in axes:
        axis.set_xlabel(grid.axes[0])
        axis.grid(True, alpha=0.3)


def _image(axis: Any, field: Any, grid: Grid, style: Mapping[str, Any]) -> Any:
    """A field (nx, ny): indexed [x, y], where pictures have y upwards; on a polar grid a disc, every cell in its place."""
    if grid.kind == "polar":
        own = grid.with_shape(field.shape)
        angles, radii = (
            low + (np.arange(n + 1) - (0.0 if layout == "cells" else 0.5)) * h
            for n, h, layout, (low, _) in zip(own.shape, own.spacing, own.layout, own.extent, strict=True)
        )
        radii = np.maximum(radii, 0.0)
        x, y = np.cos(angles)[:, None] * radii, np.sin(angles)[:, None] * radii
        axis.set(aspect="equal", xticks=[], yticks=[])
        axis.set_frame_on(False)
        return axis.pcolormesh(x, y, field, shading="flat", rasterized=True, **style)
    (left, right), (bottom, top) = grid.extent
    axis.set_xlabel(grid.axes[0])
    axis.set_ylabel(grid.axes[1])
    aspect = "auto" if "t" in grid.axes else "equal"  # time and length have no unit in common
    return axis.imshow(
        field.T, origin="lower", extent=(left, right, bottom, top), interpolation="nearest", aspect=aspect, **style
    )


def _signed(values: Any) -> dict[str, Any]:
    """Colours symmetric about zero."""
    largest = float(np.abs(values).max()) or 1.0
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _tick_format(image: Any) -> str:
    """As many digits as tell the ticks of a colour bar apart: two, and more where the values vary little around a large one."""
    low, high = image.get_clim()
    ratio = max(abs(low), abs(high)) / (high - low) if high > low else 1.0
    return f"%.{2 + max(0, math.ceil(math.log10(ratio)) if 0 < ratio < math.inf else 0)}g"


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


def plot_curves(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], *, xlabel: str, ylabel: str, title: str = ""
) -> Figure:
    """Families of curves (x, y) on plain axes, one colour a family: characteristics, trajectories, sections of a field.

    Args:
        curves: name of the family -> its curves.
        xlabel, ylabel, title: with units, where there are any.
    """
    if not any(curves.values()):
        raise ValueError("there is nothing to draw; give at least one curve.")
    figure, axes = _figure(1, width=5.6, height=4.4)
    axis = axes[0][0]
    for i, (name, family) in enumerate(curves.items()):
        for j, (x, y) in enumerate(family):
            axis.plot(np.asarray(x), np.asarray(y), color=f"C{i}", linewidth=1, label=None if j else name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(True, alpha=0.3)
    if len(curves) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)  # never over a curve
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def plot_bars(groups: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "") -> Figure:
    """Horizontal bars on a logarithmic axis, a group of them for each name: iterations or seconds of several methods.

    Args:
        groups: name -> {method: positive number}; a method that a group lacks leaves a gap in it.
        xlabel, title: with units, where there are any.
    """
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    if not methods:
        raise ValueError("there is nothing to draw; give at least one group with one number.")
    figure, axes = _figure(1, width=6.4, height=1.2 + 0.22 * len(groups) * (len(methods) + 1) ** 0.7)
    axis, width = axes[0][0], 0.8 / len(methods)
    for j, method in enumerate(methods):
        held = [(i, group[method]) for i, group in enumerate(groups.values()) if method in group]
        places = [i + (j - (len(methods) - 1) / 2) * width for i, _ in held]
        bars = axis.barh(places, [value for _, value in held], height=width, label=method)
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()  # the first group on top
    axis.set_xscale("log")
    axis.margins(x=0.15, y=0.02)
    axis.set_xlabel(xlabel)
    axis.grid(True, axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)  # never over a bar
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def plot_intervals(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    truth: float,
    factor: float = 2.0,
    ylabel: str,
    title: str = "",
) -> Figure:
    """Estimates with `factor` standard errors to each side, one panel a group, beside the true value: is the error told truly?

    Args:
        groups: name -> (estimate, standard error) of each repetition; an interval that misses the truth is red.
        truth: a line across every panel.
    """
    if not groups or not all(groups.values()):
        raise ValueError("there is nothing to draw; give at least one group, each with one estimate or more.")
    figure, axes = _figure(len(groups), width=3.9)
    for axis, (name, pairs) in zip(axes[0], groups.items(), strict=True):
        values, errors = np.asarray(pairs, dtype=float).T
        missed = np.abs(values - truth) > factor * errors
        for held, color in ((~missed, "tab:blue"), (missed, "tab:red")):
            axis.errorbar(
                np.flatnonzero(held), values[held], factor * errors[held], fmt="o", markersize=3, capsize=3, color=color
            )
        axis.axhline(truth, color="black", linewidth=0.8, linestyle="--")
        axis.set_title(f"{name}: {int((~missed).sum())} of {len(values)}", fontsize=10)
        axis.set_xlabel("repetition")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(True, axis="y", alpha=0.3)
    axes[0][0].set_ylabel(ylabel)
    if title:
        figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a picture; it reaches its name only whole."""
    path = Path(path)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    return path
