"""Geometries: distances that are distances, points that lie where they should, normals that point outwards."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, qmc

from opflow.mesh import Mesh
from opflow.pde.geometry import (
    Ball,
    Box,
    Difference,
    Disc,
    Geometry,
    Intersection,
    Interval,
    LShape,
    MeshDomain,
    Polygon,
    SpaceTime,
    Union,
)

UNIT = Box([(0, 1), (0, 1)])
STAR = Polygon([(0, 0), (2, 0.5), (3, -1), (2.5, 2), (1, 1), (0.2, 1.5)])


def ring_mesh() -> Mesh:
    """A square of side 3 without its middle, eight squares of two triangles each, every second one clockwise."""
    number = {(i, j): 4 * i + j for i in range(4) for j in range(4)}
    cells = []
    for i, j in number:
        if i < 3 and j < 3 and (i, j) != (1, 1):
            a, b, c, d = number[i, j], number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]
            cells += [[a, b, c], [a, d, c]]
    return Mesh(torch.tensor(list(number), dtype=torch.float64), torch.tensor(cells))


# name: (geometry, measure, measure of the boundary)
PRIMITIVES: dict[str, tuple[Geometry, float, float]] = {
    "interval": (Interval(-1, 2), 3.0, 2.0),
    "rectangle": (Box([(0, 1), (-2, 2)]), 4.0, 10.0),
    "box": (Box([(0, 1), (0, 2), (0, 3)]), 6.0, 22.0),
    "four dimensions": (Box([(0, 1)] * 4), 1.0, 8.0),
    "disc": (Disc((0.5, -1.0), 2.0), 4 * math.pi, 4 * math.pi),
    "ball": (Ball((0, 0, 1), 0.5), math.pi / 6, math.pi),
    "five-ball": (Ball((0,) * 5, 1.0), 8 * math.pi**2 / 15, 8 * math.pi**2 / 3),
    "L-shape": (LShape(), 3.0, 8.0),
    "polygon": (STAR, 3.4, sum(math.dist(a, b) for a, b in pairwise([*STAR.corners, STAR.corners[0]]))),
    "mesh with a hole": (MeshDomain(ring_mesh()), 8.0, 16.0),
}  # fmt: skip
COMBINATIONS: dict[str, tuple[Geometry, float, float]] = {
    "plate with a hole": (UNIT - Disc((0.5, 0.5), 0.25), 1 - math.pi / 16, 4 + math.pi / 2),
    "L as a difference": (Box([(-1, 1), (-1, 1)]) - Box([(0, 1), (-1, 0)]), 3.0, 8.0),
    "L as a union": (Union(Box([(-1, 0), (-1, 1)]), Box([(0, 1), (0, 1)])), 3.0, 8.0),
    "overlapping boxes": (Box([(0, 2), (0, 1)]) | Box([(1, 3), (0, 1)]), 3.0, 8.0),
    "quarter disc": (Disc() & UNIT, math.pi / 4, 2 + math.pi / 2),
    "lens": (Disc((-0.5, 0)) & Disc((0.5, 0)), 2 * math.pi / 3 - math.sqrt(3) / 2, 4 * math.pi / 3),
    "box without a ball": (Box([(0, 1)] * 3) - Ball((0.5,) * 3, 0.25), 1 - math.pi / 48, 6 + math.pi / 4),
    "hole along a seam": ((Box([(0, 1), (0, 2)]) | Box([(1, 2), (0, 2)])) - Box([(1, 1.5), (0.5, 1)]), 3.75, 10.0),
    "two holes": (UNIT - (Disc((0.25, 0.5), 0.125) | Disc((0.75, 0.5), 0.125)), 1 - math.pi / 32, 4 + math.pi / 2),
    "itself": (UNIT | Box([(0, 1), (0, 1)]), 1.0, 4.0),
}
SPACE_TIME: dict[str, tuple[Geometry, float, float]] = {
    "time and interval": (SpaceTime((0, 0.5), Interval(-1, 1)), 1.0, 1.0),
    "time and ring": (SpaceTime(Interval(1, 3), Disc() - Disc(radius=0.5)), 1.5 * math.pi, 6 * math.pi),
}
ALL = PRIMITIVES | COMBINATIONS | SPACE_TIME


@pytest.mark.parametrize("name", ALL)
def test_interior_points_lie_inside(name: str) -> None:
    geometry = ALL[name][0]
    points = geometry.sample(1000)
    assert points.shape == (1000, geometry.dim) and points.dtype == torch.float64
    assert bool((geometry.signed_distance(points) < 0).all()) and bool(geometry.contains(points).all())
    single = geometry.sample(1000, dtype=torch.float32)
    assert single.dtype == torch.float32 and bool((geometry.signed_distance(single.double()) < 0).all())


@pytest.mark.parametrize("name", ALL)
def test_boundary_points_separate_inside_from_outside_along_unit_normals(name: str) -> None:
    geometry = ALL[name][0]
    points, normals = geometry.boundary(1000)
    assert points.shape == normals.shape == (1000, geometry.dim)
    assert float(geometry.signed_distance(points).abs().max()) < 1e-12
    assert torch.allclose(normals.norm(dim=1), torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-12)
    step = 1e-6 * geometry.scale
    assert bool((geometry.signed_distance(points + step * normals) > 0).all())
    assert bool((geometry.signed_distance(points - step * normals) < 0).all())


@pytest.mark.parametrize("name", ALL)
def test_measures(name: str) -> None:
    geometry, measure, boundary = ALL[name]
    exact = name in PRIMITIVES or name == "time and interval"
    assert geometry.measure == pytest.approx(measure, rel=1e-12 if exact else 1e-3)
    assert geometry.boundary_measure == pytest.approx(boundary, rel=1e-12 if exact else 1e-3)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_measure_of_the_set_where_the_distance_is_negative(name: str) -> None:
    geometry = PRIMITIVES[name][0]
    low, high = geometry.bounds
    margin = 0.1 * (high - low)
    u = torch.from_numpy(qmc.Sobol(geometry.dim, seed=1).random(2**14))
    points = low - margin + (high - low + 2 * margin) * u
    share = float((geometry.signed_distance(points) < 0).double().mean())
    assert share * float((high - low + 2 * margin).prod()) == pytest.approx(geometry.measure, rel=0.01)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_distance_has_a_unit_gradient(name: str) -> None:
    geometry = PRIMITIVES[name][0]
    low, high = geometry.bounds
    generator = torch.Generator().manual_seed(0)
    points = low + (high - low) * (2 * torch.rand(500, geometry.dim, generator=generator, dtype=torch.float64) - 0.5)
    points.requires_grad_(True)
    distance = geometry.signed_distance(points)
    (gradient,) = torch.autograd.grad(distance.sum(), points)
    assert torch.allclose(gradient.norm(dim=1), torch.ones(500, dtype=torch.float64), atol=1e-9)


# Some thousand points cover no sphere of dimension four.
@pytest.mark.parametrize("name", [name for name, row in PRIMITIVES.items() if row[0].dim <= 3])
def test_distance_is_that_to_the_nearest_boundary_point(name: str) -> None:
    geometry = PRIMITIVES[name][0]
    boundary, _ = geometry.boundary(20000)
    low, high = geometry.bounds
    points = low + (high - low) * (1.5 * torch.from_numpy(qmc.Sobol(geometry.dim, seed=2).random(64)) - 0.25)
    nearest = torch.cdist(points, boundary).amin(1)
    gap = nearest - geometry.signed_distance(points).abs()
    assert bool((gap > -1e-12).all()) and float(gap.max()) < 0.03 * geometry.scale


@pytest.mark.parametrize("name", COMBINATIONS)
def test_distance_of_a_combination_is_a_bound_of_the_right_sign(name: str) -> None:
    geometry = COMBINATIONS[name][0]
    boundary, _ = geometry.boundary(5000)
    low, high = geometry.bounds
    points = low + (high - low) * (1.5 * torch.from_numpy(qmc.Sobol(geometry.dim, seed=2).random(64)) - 0.25)
    nearest = torch.cdist(points, boundary).amin(1)
    distance = geometry.signed_distance(points)
    assert bool((distance.abs() <= nearest + 1e-12).all())
    if name != "hole along a seam":  # its first part is no more than a bound on the side that counts
        exact = distance > 0 if isinstance(geometry, Union) else distance < 0
        assert float((nearest - distance.abs())[exact].max()) < 0.03 * geometry.scale


def test_boundary_points_are_uniform_in_length() -> None:
    points, _ = LShape().boundary(8000)
    edges = LShape().segments
    start, along = edges[:, 0], edges[:, 1] - edges[:, 0]
    lengths = along.norm(dim=1)
    on = points[:, None] - start
    across = (on[..., 0] * along[:, 1] - on[..., 1] * along[:, 0]).abs() / lengths
    share = (on * along).sum(-1) / lengths**2
    counts = ((across < 1e-12) & (share >= 0) & (share < 1)).sum(0).double()
    assert counts.tolist() == pytest.approx((8000 * lengths / 8).tolist(), abs=8)
    points, normals = (UNIT - Disc((0.5, 0.5), 0.25)).boundary(4000)
    on_circle = normals.abs().amax(1) < 1
    assert float(on_circle.double().mean()) == pytest.approx(math.pi / 2 / (4 + math.pi / 2), abs=0.01)
    angle = torch.atan2(*(points[on_circle] - 0.5).unbind(1)).numpy()
    assert chisquare(np.histogram(angle, 16, (-math.pi, math.pi))[0]).pvalue > 0.01


def test_interior_points_are_uniform() -> None:
    mesh = ring_mesh()
    points = MeshDomain(mesh).sample(4096)
    squares = points.floor().long() @ torch.tensor([3, 1])
    counts = squares.bincount(minlength=9)
    assert counts[4] == 0 and counts[[0, 1, 2, 3, 5, 6, 7, 8]].tolist() == pytest.approx([512] * 8, abs=2)
    radius = Ball((0, 0, 0), 1.0).sample(4096).norm(dim=1)
    assert float((radius < 0.5).double().mean()) == pytest.approx(1 / 8, abs=1e-3)


def test_sobol_points_fill_better_than_random_ones_and_are_nested() -> None:
    points = UNIT.sample(512)
    random = np.random.default_rng(0).random((512, 2))
    assert qmc.discrepancy(points.numpy()) < qmc.discrepancy(random) / 20
    assert torch.equal(points[:100], UNIT.sample(100))
    plate = UNIT - Disc((0.5, 0.5), 0.25)
    assert torch.equal(plate.sample(3000)[:5], plate.sample(5))
    assert torch.equal(UNIT.sample(5, seed=3), UNIT.sample(5, seed=3))
    assert not torch.equal(UNIT.sample(5, seed=3), UNIT.sample(5, seed=4))


def test_where_picks_a_part_of_the_boundary() -> None:
    points, normals = UNIT.boundary(50, where=lambda points, normals: normals[:, 1] > 0)
    assert points[:, 1].tolist() == [1.0] * 50
    assert normals.unique(dim=0).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="one bool a point"):
        UNIT.boundary(5, where=lambda points, normals: points)
    with pytest.raises(ValueError, match="where= keeps"):
        UNIT.boundary(5, where=lambda points, normals: points[:, 0] > 2)


def test_space_time_puts_time_first() -> None:
    domain = SpaceTime((0.25, 1), LShape())
    points, normals = domain.boundary(200)
    assert bool(((points[:, 0] > 0.25) & (points[:, 0] < 1)).all()) and not normals[:, 0].any()
    assert float(LShape().signed_distance(points[:, 1:]).abs().max()) < 1e-12
    first = domain.initial(50, dtype=torch.float32)
    assert first.dtype == torch.float32 and first[:, 0].tolist() == [0.25] * 50
    assert bool(LShape().contains(first[:, 1:].double()).all())
    box = Box([(0.25, 1), (0, 1)])
    y = 2 * torch.rand(100, 2, dtype=torch.float64) - 0.5
    assert torch.allclose(SpaceTime((0.25, 1), Interval(0, 1)).signed_distance(y), box.signed_distance(y))


def test_polygon_does_not_mind_the_sense_of_rotation() -> None:
    y = 4 * torch.rand(200, 2, dtype=torch.float64) - 1
    turned = Polygon(STAR.corners[::-1])
    assert turned.measure == STAR.measure > 0
    assert torch.equal(turned.signed_distance(y), STAR.signed_distance(y))
    assert torch.equal(LShape().contains(y), COMBINATIONS["L as a difference"][0].contains(y))
    inside = LShape().sample(200)
    difference = COMBINATIONS["L as a difference"][0]
    assert torch.allclose(LShape().signed_distance(inside), difference.signed_distance(inside), rtol=0, atol=1e-14)
    assert LShape((1, 2), 0.5).bounds[0].tolist() == [0.5, 1.5]


def test_mesh_from_scikit_fem() -> None:
    skfem = pytest.importorskip("skfem")
    mesh = Mesh.from_skfem(skfem.MeshTri.init_lshaped().refined(3))
    domain = MeshDomain(mesh)
    assert domain.measure == pytest.approx(3.0) and domain.boundary_measure == pytest.approx(8.0)
    assert bool((domain.signed_distance(domain.interior_nodes) < -1e-12).all())
    midpoints, normals, lengths = domain.boundary_facets()
    assert float(lengths.sum()) == pytest.approx(8.0)
    # Gauss: the flux of y through the boundary is dim times the area.
    assert float((lengths * (midpoints * normals).sum(1)).sum()) == pytest.approx(6.0)
    assert len(domain.interior_nodes) + len(mesh.boundary_nodes) == len(mesh.points)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box([]), "extent is empty"),
        (lambda: Box([(0, 1), (1, 1)]), "extent of axis 1 .* increasing"),
        (lambda: Interval(0, math.inf), "two finite numbers"),
        (lambda: Ball((0, 0), 0), "radius is 0"),
        (lambda: Ball((0,), 1), "Interval"),
        (lambda: Disc((0, 0, 0)), "use Ball"),
        (lambda: Polygon([(0, 0), (1, 1)]), "three finite points"),
        (lambda: Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), "sides 0 and 2 .* cross"),
        (lambda: Polygon([(0, 0), (1, 1), (1, 1), (0, 1)]), "neighbours are equal"),
        (lambda: LShape(size=-1), "positive number"),
        (lambda: UNIT | Interval(0, 1), "dimensions 2, 1"),
        (lambda: UNIT & Box([(2, 3), (0, 1)]), "empty"),
        (lambda: (UNIT - Box([(-1, 2), (-1, 2)])).sample(5), "empty or too slender"),
        (lambda: Difference(SpaceTime((0, 1), UNIT), SpaceTime((0, 1), UNIT)), None),
        (lambda: SpaceTime((0, 1, 2), UNIT), "beginning and its end"),
        (lambda: UNIT.sample(0), "n is 0"),
        (lambda: UNIT.sample(True), "n is True"),
        (lambda: UNIT.sample(5, seed=-1), "seed is -1"),
        (lambda: UNIT.contains(torch.zeros(5, 3)), "dimension 2"),
        (lambda: UNIT.refuse_outside(torch.tensor([[0.5, 0.5], [0.5, 1.5]]), "sensor"), r"sensor 1 at \(0.5, 1.5\)"),
        (lambda: UNIT.refuse_outside(torch.tensor([[math.nan, 0.5]]), "sensor"), "sensor 0"),
    ],
)
def test_refusals(build, message: str | None) -> None:
    if message is None:
        with pytest.raises(TypeError, match="combine the geometries in space first"):
            build()
        return
    with pytest.raises(ValueError, match=message):
        build()


def test_kinds_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="two geometries or more"):
        Intersection(UNIT)
    with pytest.raises(TypeError, match="give a geometry in space"):
        SpaceTime((0, 1), SpaceTime((0, 1), UNIT))
    with pytest.raises(TypeError, match=r"Mesh.from_skfem"):
        MeshDomain(torch.zeros(3, 2))  # type: ignore[arg-type]


def test_points_on_the_boundary_are_not_outside_in_single_precision() -> None:
    box = Box([(0, 0.1), (-0.3, 0.7)])
    points, _ = box.boundary(100, dtype=torch.float32)
    box.refuse_outside(points, "point")
    assert not bool(box.contains(points.double()).all())  # rounding alone would refuse some of them
