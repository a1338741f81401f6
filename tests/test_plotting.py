"""Pictures: the right fields in the right panels, on disk whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from opflow import Grid
from opflow.plotting import (
    plot_bars,
    plot_convergence,
    plot_curves,
    plot_fields,
    plot_frames,
    plot_images,
    plot_intervals,
    plot_triangles,
    save_figure,
)

GRID = Grid((5, 7), extent=((0.0, 1.0), (2.0, 5.0)), axes=("r", "z"))


def sample(seed: int = 0) -> dict[str, torch.Tensor]:
    a, u, p = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return {"permeability": a, "pressure": u, "prediction": p}


def draw(rows, grid: Grid = GRID, **options):
    return plot_fields(rows, grid, input="permeability", reference="pressure", prediction="prediction", **options)


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


def test_panels_hold_the_fields_with_the_first_axis_to_the_right() -> None:
    rows = [sample(0), sample(1)]
    figure = draw(rows, title="two samples")
    assert len(panels(figure)) == 8 and len(figure.axes) == 16, "each panel has a colour bar of its own"
    for i, row in enumerate(rows):
        expected = [row["permeability"], row["pressure"], row["prediction"], row["prediction"] - row["pressure"]]
        for axis, field in zip(panels(figure)[4 * i : 4 * i + 4], expected, strict=True):
            (image,) = axis.images
            np.testing.assert_array_equal(np.asarray(image.get_array()), field.numpy().T)
            assert image.origin == "lower" and list(image.get_extent()) == [0.0, 1.0, 2.0, 5.0]
            assert axis.get_xlabel() == "r" and axis.get_ylabel() == "z"
    assert [axis.get_title() for axis in panels(figure)[:3]] == ["permeability", "pressure", "prediction"]


def test_polar_fields_are_discs() -> None:
    """Every cell where it is in the plane; the error is weighed by area."""
    grid = Grid.polar(6, 4, 2.0)
    field = torch.arange(24.0).view(6, 4)
    row = {"permeability": field, "pressure": torch.ones(6, 4), "prediction": torch.ones(6, 4)}
    row["prediction"] = row["prediction"] + 0.5 * torch.tensor([0.0, 0.0, 0.0, 1.0])  # on 7/16 of the area
    figure = draw([row], grid)
    mesh = figure.axes[0].collections[0]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(6, 4), field)
    corners = mesh.get_coordinates()  # (7, 5, 2)
    middle = (corners[1:, 1:] + corners[1:, :-1] + corners[:-1, 1:] + corners[:-1, :-1]) / 4
    assert np.abs(np.linalg.norm(corners, axis=-1).max() - 2) < 1e-12
    expected = grid.cartesian_points().numpy()
    assert (
        np.abs(np.arctan2(middle[..., 1], middle[..., 0]) - np.arctan2(expected[..., 1], expected[..., 0]))[:3].max()
        < 1e-12
    )
    assert f"relative L2 {0.5 * math.sqrt(7 / 16):.2%}" in figure.axes[3].get_title()


def test_small_errors_are_not_said_to_be_zero() -> None:
    row = sample()
    for factor, said in ((1.02, "error (relative L2 2.00%)"), (1 + 2e-6, "error (relative L2 2.0e-06)")):
        row["prediction"] = factor * row["pressure"].double()
        assert panels(draw([row]))[3].get_title() == said


def test_the_error_has_symmetric_limits_of_its_own_and_the_prediction_those_of_the_reference() -> None:
    row = sample()
    _, reference, prediction, error = (axis.images[0] for axis in panels(draw([row])))
    largest = float((row["prediction"] - row["pressure"]).abs().max())
    assert error.get_clim() == pytest.approx((-largest, largest))
    assert (
        reference.get_clim()
        == prediction.get_clim()
        == pytest.approx((float(row["pressure"].min()), float(row["pressure"].max())))
    )
    assert error.get_cmap().name == "RdBu_r" != reference.get_cmap().name
    relative = float((row["prediction"] - row["pressure"]).norm() / row["pressure"].norm())
    assert f"{relative:.2%}" in panels(draw([row]))[3].get_title()


def test_degenerate_fields_are_drawn(tmp_path: Path) -> None:
    """A perfect prediction, a reference of zeros, a diverged model: the picture is when one needs it most."""
    row = sample()
    nan = torch.full((5, 7), math.nan)
    for other in (
        {**row, "prediction": row["pressure"]},
        {**row, "pressure": torch.zeros(5, 7)},
        {**row, "pressure": torch.ones(5, 7), "prediction": torch.ones(5, 7)},
        {**row, "prediction": nan},
    ):
        figure = draw([other])
        low, high = panels(figure)[3].images[0].get_clim()
        assert low == -high or (math.isnan(low) and math.isnan(high))
        assert save_figure(figure, tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("plain", b"\x89PNG")]
)
def test_pictures_reach_the_disk_whole(tmp_path: Path, name: str, magic: bytes) -> None:
    path = save_figure(draw([sample()]), tmp_path / "new" / name)
    assert path == tmp_path / "new" / name and path.read_bytes().startswith(magic)
    assert [child.name for child in path.parent.iterdir()] == [name]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="format"):
        save_figure(draw([sample()]), tmp_path / "new" / "a.nothing")
    assert [child.name for child in path.parent.iterdir()] == [name] and path.read_bytes() == before


def test_functions_of_one_axis_are_curves() -> None:
    grid = Grid(6, axes=("t",))
    row = {"forcing": np.ones(11), "integral": np.arange(6.0), "prediction": np.arange(6.0) + 0.5}
    figure = plot_fields([row, row], grid, input="forcing", reference="integral", prediction="prediction")
    assert len(figure.axes) == 6 and not panels(figure)
    first, both, error = figure.axes[:3]
    np.testing.assert_allclose(first.get_lines()[0].get_xdata(), np.linspace(0, 1, 11))  # sensors of its own
    assert [line.get_label() for line in both.get_lines()] == ["integral", "prediction"]
    np.testing.assert_array_equal(error.get_lines()[0].get_ydata(), np.full(6, 0.5))
    assert f"{np.sqrt(6 * 0.25 / 55):.2%}" in error.get_title() and error.get_xlabel() == "t"


def test_frames_in_time() -> None:
    frames = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    figure = plot_frames(
        {"reference": frames, "prediction": frames + 1},
        GRID,
        [1.0, 2.0, 3.0],
        reference="reference",
        prediction="prediction",
    )
    images = [axis.images[0] for axis in panels(figure)]
    assert len(images) == 9
    np.testing.assert_allclose(np.asarray(images[4].get_array()), (frames[1] + 1).numpy().T)
    np.testing.assert_allclose(np.asarray(images[8].get_array()), np.ones((7, 5)), rtol=1e-6)
    largest = float(torch.cat([frames, frames + 1]).abs().max())
    assert all(image.get_clim() == pytest.approx((-largest, largest)) for image in images[:6])
    assert panels(figure)[1].get_title() == "reference, t = 2"
    assert f"{float(35**0.5 / frames[2].norm()):.2%}" in panels(figure)[8].get_title()
    for times, grid, message in (([1.0], GRID, "one frame a time"), ([1.0, 2.0, 3.0], Grid(5), "frames of two axes")):
        with pytest.raises(ValueError, match=message):
            plot_frames({"a": frames, "b": frames}, grid, times, reference="a", prediction="b")


def test_convergence_curves() -> None:
    steps = np.arange(1, 5)
    figure = plot_convergence(
        {"first": (steps, 10.0**-steps), "second": (torch.arange(40), torch.ones(40))},
        xlabel="step",
        ylabel="residual",
        title="CG",
    )
    (axis,) = figure.axes
    assert axis.get_yscale() == "log" and axis.get_xscale() == "linear"
    assert [line.get_label() for line in axis.get_lines()] == ["first", "second"]
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), 10.0**-steps)
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("step", "residual", "CG")


def test_time_and_length_have_no_unit_in_common() -> None:
    shape = (5, 7)
    for axes, aspect in ((("t", "x"), "auto"), (("x", "y"), 1.0)):
        grid = Grid(shape, extent=((0.0, 1.0), (0.0, 9.0)), axes=axes)
        row = dict.fromkeys(("a", "b", "c"), torch.rand(shape))
        figure = plot_fields([row], grid, input="a", reference="b", prediction="c")
        assert figure.axes[0].get_aspect() == aspect


def test_families_of_curves_have_one_colour_each() -> None:
    t = torch.linspace(0, 1, 5)
    figure = plot_curves({"left": [(-t, t), (-2 * t, t)], "right": [(t, t)]}, xlabel="x", ylabel="t", title="paths")
    axis = figure.axes[0]
    colours = [line.get_color() for line in axis.get_lines()]
    assert colours[0] == colours[1] != colours[2] and axis.get_yscale() == "linear"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["left", "right"]
    assert np.allclose(axis.get_lines()[1].get_xdata(), -2 * t.numpy())
    with pytest.raises(ValueError, match="at least one curve"):
        plot_curves({"none": []}, xlabel="x", ylabel="t")


def test_reference_slopes() -> None:
    h = np.array([0.1, 0.05, 0.025])
    figure = plot_convergence({"error": (h, 3 * h**2)}, xlabel="h", ylabel="error", log_x=True, slopes=(2.0,))
    line = figure.axes[0].get_lines()[1]
    x, y = line.get_xdata(), line.get_ydata()
    assert line.get_label() == "slope 2" and (y[1] / y[0]) == pytest.approx((x[1] / x[0]) ** 2)
    assert float(y[np.argmax(x)]) == pytest.approx(3 * 0.1**2)
    with pytest.raises(ValueError, match=r"pass log_x=True"):
        plot_convergence({"error": (h, h)}, xlabel="h", ylabel="e", slopes=(1.0,))


def test_drawing_changes_no_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setattr(matplotlib, "use", lambda *a, **k: pytest.fail("the backend is the caller's"))
    before = dict(matplotlib.rcParams)
    draw([sample()])
    assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="fields of one or two axes, but the grid has 3"):
        draw([sample()], Grid((5, 7, 2)))
    with pytest.raises(ValueError, match="there is no sample to draw"):
        draw([])
    with pytest.raises(ValueError, match=r"row 0 has fields of shapes .*'pressure': \(7, 5\)"):
        draw([{**sample(), "pressure": torch.zeros(7, 5)}])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'opflow\[viz\]'"):
        draw([sample()])


def test_ticks_of_values_around_a_large_one_are_told_apart() -> None:
    from opflow.plotting import _tick_format

    class Image:
        def __init__(self, low: float, high: float) -> None:
            self.limits = low, high

        def get_clim(self) -> tuple[float, float]:
            return self.limits

    assert [_tick_format(Image(*limits)) for limits in ((-0.2, 0.2), (3, 12), (0, 0), (19.8, 20.2), (1000, 1001))] == [
        "%.2g", "%.3g", "%.2g", "%.4g", "%.6g",
    ]  # fmt: skip


def test_bars_stand_in_groups_with_a_gap_where_a_method_is_missing() -> None:
    groups = {"airfoil": {"none": 50.0, "multigrid": 6.0}, "bar": {"none": 170.0}}
    (axis,) = plot_bars(groups, xlabel="iterations", title="gallery").axes
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "iterations"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["airfoil", "bar"]
    widths = [[round(bar.get_width(), 6) for bar in bars] for bars in axis.containers]
    assert widths == [[50.0, 170.0], [6.0]]
    centres = [[bar.get_y() + bar.get_height() / 2 for bar in bars] for bars in axis.containers]
    assert centres[0] == pytest.approx([-0.2, 0.8]) and centres[1] == pytest.approx([0.2])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_bars({"airfoil": {}}, xlabel="iterations")


def test_rows_of_images_share_a_scale_and_leave_holes_grey() -> None:
    smoke = {"early": np.arange(35.0).reshape(5, 7), "late": np.full((5, 7), 50.0)}
    flow = {"early": np.full((5, 7), -2.0), "late": np.ones((5, 7))}
    smoke["early"][0, 0] = np.nan
    figure = plot_images({"smoke": smoke, "flow": flow}, GRID, signed=["flow"], title="plume")
    images = [axis.images[0] for axis in panels(figure)]
    assert [image.get_clim() for image in images] == [(1.0, 50.0)] * 2 + [(-2.0, 2.0)] * 2
    assert [axis.get_title() for axis in panels(figure)] == ["early", "late"] * 2
    assert [axis.get_ylabel() for axis in panels(figure)] == ["smoke", "", "flow", ""]
    np.testing.assert_array_equal(images[0].get_array().filled(-1)[1:], smoke["early"].T[1:])
    assert np.ma.getmaskarray(images[0].get_array())[0, 0] and panels(figure)[0].get_facecolor()[:3] == (0.6,) * 3
    for rows, grid in (({}, GRID), ({"a": smoke, "b": {"early": np.ones((5, 7))}}, GRID), ({"a": smoke}, Grid(5))):
        with pytest.raises(ValueError, match="rows of equally many images of two axes"):
            plot_images(rows, grid)
    assert plot_images({"nothing": {"here": np.full((5, 7), np.nan)}}, GRID)


def test_fields_on_triangles() -> None:
    points, triangles = [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 2.0]], [[0, 1, 2], [1, 3, 2]]
    figure = plot_triangles({"u": (points, triangles, [0.0, 1.0, 2.0, 3.0]), "v": (points, triangles, np.ones(4))})
    first, second = [axis for axis in figure.axes if axis.get_title()]
    (mesh,) = (c for c in first.collections if c.get_array() is not None)
    np.testing.assert_array_equal(mesh.get_array(), [0.0, 1.0, 2.0, 3.0])
    assert (first.get_title(), second.get_title(), first.get_aspect()) == ("u", "v", 1.0)
    signed = plot_triangles({"error": (points, triangles, [0.0, 1.0, -3.0, 2.0])}, signed=["error"])
    (mesh,) = (c for c in signed.axes[0].collections if c.get_array() is not None)
    assert mesh.get_clim() == (-3.0, 3.0)
    with pytest.raises(ValueError, match=r"'u' has vertices \(4, 2\), triangles \(2, 3\) and values \(3,\)"):
        plot_triangles({"u": (points, triangles, [0.0, 1.0, 2.0])})
    with pytest.raises(ValueError, match="there is no field to draw"):
        plot_triangles({})


def test_intervals_that_miss_the_truth_are_red_and_counted() -> None:
    figure = plot_intervals({"c": [(1.0, 0.1), (1.3, 0.1), (0.9, 0.1)], "nu": [(1.0, 0.2)]}, truth=1.0, ylabel="found")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("c: 2 of 3", "nu: 1 of 1")
    held, missed = first.containers
    np.testing.assert_allclose(held[0].get_xydata(), [[0, 1.0], [2, 0.9]])
    np.testing.assert_allclose(missed[0].get_xydata(), [[1, 1.3]])
    assert missed[0].get_color() == "tab:red" and first.get_ylabel() == "found"
    np.testing.assert_allclose(missed[2][0].get_segments(), [[[1, 1.1], [1, 1.5]]])
    for groups in ({}, {"c": []}):
        with pytest.raises(ValueError, match="nothing to draw"):
            plot_intervals(groups, truth=1.0, ylabel="")
