"""Obstacles, sides, reactions, nine points, matrices: the operator against one assembled point by point."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from opflow import Grid
from opflow.solvers import ConjugateGradient, FaceStencil, FastPoisson, Reason

SHAPES = [(7,), (4, 5), (3, 5, 4)]
SIDES = {
    "dirichlet": ("cells", "dirichlet"),
    "neumann": ("cells", "neumann"),
    "closed below": ("cells", ("neumann", "dirichlet")),
    "closed above": ("cells", ("dirichlet", "neumann")),
    "periodic": ("periodic", "periodic"),
    "nodes": ("nodes", "dirichlet"),
}
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
sides = pytest.mark.parametrize("kind", SIDES.values(), ids=SIDES.keys())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(A: FaceStencil, number: int = 0) -> np.ndarray:
    n = int(np.prod(A.shape))
    unit = torch.eye(n, dtype=torch.float64).view(n, 1, *A.shape).expand(n, A.batch, *A.shape)
    return torch.stack([A.apply(e)[number].flatten() for e in unit], dim=-1).numpy()


def assembled(
    a: list[np.ndarray], grid: Grid, pairs: list[tuple[str, str]], inside: np.ndarray, walls: bool, c: np.ndarray
) -> np.ndarray:
    """The balance of every point, face by face, with the eyes of someone who has not seen the library."""
    points = list(itertools.product(*[range(n) for n in grid.shape]))
    unknown = {
        p
        for p in points
        if all(k != "nodes" or 0 < i < n - 1 for i, n, k in zip(p, grid.shape, grid.layout, strict=True))
    }
    place = {p: i for i, p in enumerate(sorted(unknown))}
    matrix = np.zeros((len(place), len(place)))
    for p in unknown:
        if not inside[p]:
            continue
        row = place[p]
        matrix[row, row] += c[p]
        for d, side in itertools.product(range(grid.dim), (-1, 1)):
            h, n = grid.spacing[d], grid.shape[d]
            q = tuple(i + side * (axis == d) for axis, i in enumerate(p))
            if grid.layout[d] == "periodic":
                q = tuple(i % n if axis == d else i for axis, i in enumerate(q))
            if not 0 <= q[d] < n:
                held = pairs[d][(side + 1) // 2] == "dirichlet"
                matrix[row, row] += 2 * a[d][p] / h**2 * held
                continue
            weight = 2 / (1 / a[d][p] + 1 / a[d][q]) / h**2
            if not inside[q]:
                matrix[row, row] += 0 if walls else weight
                continue
            matrix[row, row] += weight
            if q in place:
                matrix[row, place[q]] -= weight
    return matrix


def build(
    shape: tuple[int, ...],
    kind: tuple,
    *,
    batch: int = 1,
    obstacles: bool = False,
    walls: bool = True,
    reaction: bool = False,
    axes: bool = False,
    seed: int = 0,
):
    layout, pair = kind
    full = tuple(n + 2 * (layout == "nodes") for n in shape)
    grid = Grid(full, extent=[(-1.0, 1.0 + d) for d in range(len(shape))], layout=layout)
    fields = [torch.exp(normal(batch, *full, seed=seed + d)) for d in range(len(shape) if axes else 1)]
    inside = normal(batch, *full, seed=seed + 7) > -0.7 if obstacles else None
    c = normal(batch, *full, seed=seed + 8).square() if reaction else None
    boundary = pair if isinstance(pair, str) else [pair] * len(shape)
    A = FaceStencil.from_coefficient(
        fields if axes else fields[0], grid, boundary=boundary, mask=inside, obstacles="neumann" if walls else "dirichlet", reaction=c
    )  # fmt: skip
    ends = [(pair, pair) if isinstance(pair, str) else pair] * len(shape)

    def expected(i: int) -> np.ndarray:
        one = [f[i].numpy() for f in (fields if axes else fields * len(shape))]
        mask = np.ones(full, bool) if inside is None else inside[i].numpy()
        return assembled(one, grid, ends, mask, walls, np.zeros(full) if c is None else c[i].numpy())

    return A, expected


@shapes
@sides
@pytest.mark.parametrize(
    "options",
    [{}, {"obstacles": True}, {"obstacles": True, "walls": False}, {"reaction": True}, {"axes": True}, {"obstacles": True, "reaction": True, "axes": True}],
    ids=lambda options: "+".join(options) or "plain",
)  # fmt: skip
def test_equals_the_balance_of_every_point(shape: tuple[int, ...], kind: tuple, options: dict) -> None:
    A, expected = build(shape, kind, batch=2, **options)
    for i in range(2):
        found, wanted = dense(A, i), expected(i)
        np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-12)
        np.testing.assert_array_equal(found, found.T)
        diagonal = A.diagonal().expand(2, *A.shape)[i].flatten().numpy()
        np.testing.assert_allclose(diagonal, np.diag(wanted), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3), (2, 2), (1, 1, 4), (2, 3, 1)], ids=str)
@sides
def test_sizes_one_and_two(shape: tuple[int, ...], kind: tuple) -> None:
    """On a ring of two points both faces join the same pair; on a ring of one the face joins the point to itself."""
    A, expected = build(shape, kind)
    np.testing.assert_allclose(dense(A), expected(0), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(A.to_sparse().toarray(), dense(A), rtol=1e-13, atol=1e-12)


@shapes
@sides
@pytest.mark.parametrize("obstacles", [False, True])
def test_the_sparse_matrix_is_the_operator(shape: tuple[int, ...], kind: tuple, obstacles: bool) -> None:
    A, _ = build(shape, kind, obstacles=obstacles, reaction=True)
    v = normal(3, len(A.dofs), seed=4)
    field = A.scatter(v)
    assert torch.equal(A.gather(field), v)
    np.testing.assert_allclose(
        A.gather(A.apply(field)).numpy(), (A.to_sparse() @ v.numpy().T).T, rtol=1e-12, atol=1e-12
    )
    outside = torch.ones(A.shape, dtype=torch.bool) if A.mask is None else A.mask[0]
    assert not field[:, ~outside].any() and not A.apply(normal(1, *A.shape))[:, ~outside].any()


def test_what_lies_outside_is_ignored() -> None:
    A, _ = build((5, 6), SIDES["closed below"], obstacles=True)
    x = normal(1, 5, 6)
    other = torch.where(A.mask, x, 1e3 * normal(1, 5, 6, seed=1))
    assert torch.equal(A.apply(x), A.apply(other))


@pytest.mark.parametrize("options", [{}, {"obstacles": True, "reaction": True}], ids=["plain", "obstacles"])
def test_differentiable_in_the_field_and_in_every_weight(options: dict) -> None:
    A, _ = build((3, 4), SIDES["periodic"], batch=2, **options)
    x = normal(2, 3, 4).requires_grad_()
    numbers = tuple(t.clone().requires_grad_() for t in A.tensors())
    assert torch.autograd.gradcheck(lambda x, *t: A.with_tensors(t).apply(x), (x, *numbers))


def test_a_solve_before_training_leaves_no_constant_behind() -> None:
    """The stencil that a solve under no_grad assembled must not serve a later call that wants gradients."""
    w = [torch.ones(1, 5, 4).double().requires_grad_(), torch.ones(1, 4, 5).double().requires_grad_()]
    A, x = FaceStencil(w), normal(1, 4, 4)
    with torch.inference_mode():
        A.apply(x)
    A.apply(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in w)


# The null space


def pocket() -> tuple[FaceStencil, Tensor]:
    """A box open at the top with one cell walled in, beside two solid cells of their own."""
    inside = torch.ones(1, 6, 7, dtype=torch.bool)
    for i, j in ((1, 3), (3, 3), (2, 2), (2, 4)):
        inside[0, i, j] = False
    grid = Grid((6, 7), layout="cells")
    A = FaceStencil.from_coefficient(
        torch.ones(1, 6, 7).double(), grid, boundary=["neumann", ("neumann", "dirichlet")], mask=inside
    )
    return A, inside


def test_null_part_is_the_projection_on_the_null_space() -> None:
    for A in (
        pocket()[0],
        build((5, 6), SIDES["neumann"])[0],
        build((5, 6), SIDES["periodic"], batch=3, obstacles=True)[0],
        build((4, 3, 5), SIDES["closed below"], obstacles=True)[0],
    ):
        x = normal(A.batch, *A.shape, seed=5)
        part = A.null_part(x)
        assert part is not None
        for i in range(A.batch):
            values, vectors = np.linalg.eigh(dense(A, i))
            null = vectors[:, values < 1e-9 * values[-1]]
            np.testing.assert_allclose(part[i].flatten().numpy(), null @ (null.T @ x[i].flatten().numpy()), atol=1e-10)


def test_no_null_part_where_the_operator_is_regular() -> None:
    for kind, options in (
        (SIDES["dirichlet"], {}),
        (SIDES["closed below"], {}),
        (SIDES["neumann"], {"reaction": True}),
        (SIDES["nodes"], {}),
    ):
        A, _ = build((4, 5), kind, **options)
        assert A.null_part(normal(1, *A.shape)) is None and A.null_space() is None


def test_zero_weights_between_open_cells_close_a_part_too() -> None:
    """A wall of no thickness: no cell is masked, the faces around one are shut."""
    A, _ = build((5, 5), SIDES["dirichlet"])
    w = [one.clone() for one in A.weights]
    w[0][:, 2:4, 2], w[1][:, 2, 2:4] = 0, 0
    shut = FaceStencil(w, layout="cells")
    part = shut.null_part(torch.ones(1, 5, 5).double())
    assert part is not None and part[0, 2, 2] == 1 and part.sum() == 1


@pytest.mark.parametrize("M", [None, FastPoisson], ids=["plain", "FastPoisson"])
def test_a_closed_pocket_is_solved_where_it_can_be_and_named_where_not(M) -> None:
    A, inside = pocket()
    b = normal(1, 6, 7) * inside
    b[0, 2, 3] = 0
    make = lambda: ConjugateGradient(M and M(), rtol=1e-9)  # noqa: E731
    found = make().solve(A, b)
    assert found.reason == [Reason.RTOL] and not found.x[~inside].any()
    assert (b - A.apply(found.x)).norm() <= 1e-9 * b.norm()
    for place in ((2, 3), (1, 3)):  # in the pocket, in a solid cell
        bad = b.clone()
        bad[(0, *place)] = 1.0
        assert make().solve(A, bad).reason == [Reason.INCONSISTENT]


# Nine points


@pytest.mark.parametrize("theta", [0, 30, 45, -60])
def test_a_constant_tensor_gives_the_classical_nine_points(theta: int) -> None:
    pyamg = pytest.importorskip("pyamg", reason="pyamg is not installed (extra amg)")
    eps, c, s = 0.01, np.cos(np.radians(theta)), np.sin(np.radians(theta))
    k = (
        torch.tensor([c * c + eps * s * s, s * s + eps * c * c, (1 - eps) * c * s])
        .double()
        .view(1, 3, 1, 1)
        .expand(1, 3, 8, 9)
    )
    A = FaceStencil.from_tensor(k, Grid((8, 9), extent=((0, 7.0), (0, 8.0))))
    stencil = pyamg.gallery.diffusion_stencil_2d(epsilon=eps, theta=np.radians(theta), type="FD")
    np.testing.assert_allclose(dense(A), pyamg.gallery.stencil_grid(stencil, (6, 7)).toarray(), atol=1e-13)
    np.testing.assert_allclose(A.to_sparse().toarray(), dense(A), atol=1e-13)


def test_a_tensor_that_varies_is_of_second_order_and_symmetric() -> None:
    errors = []
    for n in (17, 33, 65):
        grid = Grid((n, n))
        points = grid.points().requires_grad_()
        x, y = points.unbind(-1)
        k = torch.stack([1.5 + torch.sin(x + y), 2 + torch.cos(y), 0.8 * torch.cos(x * y)])
        u = torch.sin(torch.pi * x) * torch.sin(torch.pi * y)
        (du,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        flux = torch.stack([k[0] * du[..., 0] + k[2] * du[..., 1], k[2] * du[..., 0] + k[1] * du[..., 1]], -1)
        f = -sum(torch.autograd.grad(flux[..., d].sum(), points, retain_graph=True)[0][..., d] for d in range(2))
        A = FaceStencil.from_tensor(k.detach()[None], grid)
        b = f.detach()[1:-1, 1:-1]
        found = ConjugateGradient(rtol=1e-10, max_steps=2000).solve(A, b)
        assert found.converged
        errors.append(float((found.x - u.detach()[1:-1, 1:-1]).abs().max()))
    assert np.abs(np.diff(np.log2(errors)) + 2).max() < 0.15, errors
    matrix = dense(FaceStencil.from_tensor(k.detach()[None, :, ::8, ::8], Grid((9, 9))))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[0] > 0


# From a matrix


@shapes
@sides
@pytest.mark.parametrize("obstacles", [False, True])
def test_a_matrix_gives_back_its_operator(shape: tuple[int, ...], kind: tuple, obstacles: bool) -> None:
    A, _ = build(shape, kind, obstacles=obstacles)
    grid = Grid(tuple(n + 2 * (kind[0] == "nodes") for n in shape), layout=kind[0])
    shuffled = torch.randperm(len(A.dofs), generator=torch.Generator().manual_seed(0)).numpy()
    matrix = A.to_sparse()[shuffled][:, shuffled].tocoo()
    places = np.ravel_multi_index(
        tuple(i + (kind[0] == "nodes") for i in np.unravel_index(A.dofs.numpy()[shuffled], A.shape)), grid.shape
    )
    B = FaceStencil.from_sparse(matrix, grid, places)
    v = normal(2, len(places), seed=3)
    np.testing.assert_allclose(
        B.gather(B.apply(B.scatter(v))).numpy(), (matrix @ v.numpy().T).T, rtol=1e-12, atol=1e-11
    )
    assert abs(B.to_sparse() - matrix).max() < 1e-11
    if not obstacles and min(shape) > 2:
        C = FaceStencil.from_sparse(A.to_sparse(), grid)
        assert C.boundary == A.boundary and C.mask is None and C.reaction is None
        # How a corner's own weight is shared between its outer faces no matrix tells.
        for mine, theirs in zip((*C.stencil.upper, C.diagonal()), (*A.stencil.upper, A.diagonal()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_mass_term_becomes_a_reaction() -> None:
    A, _ = build((5, 6), SIDES["neumann"], reaction=True)
    B = FaceStencil.from_sparse(A.to_sparse(), Grid((5, 6), layout="cells"))
    assert B.reaction is not None
    torch.testing.assert_close(B.reaction, A.reaction, rtol=1e-9, atol=1e-9)
    single = FaceStencil.from_sparse(A.to_sparse().astype(np.float32), Grid((5, 6), layout="cells"))
    assert single.dtype == torch.float32


def spoiled(change) -> tuple[sp.csr_array, Grid]:
    A, _ = build((4, 5), SIDES["dirichlet"])
    matrix = A.to_sparse().tolil()
    change(matrix)
    return matrix.tocsr(), Grid((4, 5), layout="cells")


def set_pair(matrix, i: int, j: int, value: float) -> None:
    matrix[i, j] = matrix[j, i] = value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: set_pair(m, 0, 6, -1.0), r"2 of \d+ couplings join points that are no neighbours .*\(0, 0\) and \(1, 1\).*AlgebraicMultigrid"),
        (lambda m: set_pair(m, 4, 5, -1.0), r"no neighbours .*\(0, 4\) and \(1, 0\)"),
        (lambda m: m.__setitem__((0, 1), 2 * m[0, 1]), "not symmetric"),
        (lambda m: set_pair(m, 0, 1, 3.0), "2 couplings are positive"),
        (lambda m: m.__setitem__((7, 7), 0.5 * m[7, 7]), "1 rows sum to less than zero"),
        (lambda m: m.__setitem__((7, 7), np.nan), "NaN or infinity"),
    ],
)  # fmt: skip
def test_a_matrix_that_is_no_stencil_is_refused_in_a_sentence(change, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FaceStencil.from_sparse(*spoiled(change))


def test_wrong_matrices_and_places_are_refused_in_a_sentence() -> None:
    matrix, grid = spoiled(lambda m: None)
    for arguments, error, sentence in (
        ((np.eye(20), grid), TypeError, "is a ndarray; expected a SciPy sparse matrix"),
        ((matrix.astype(complex), grid), ValueError, "complex128 of shape"),
        ((matrix[:, :19], grid), ValueError, r"shape \(20, 19\)"),
        ((matrix, Grid((5, 5), layout="cells")), ValueError, r"20 rows but the grid \(5, 5\) has 25 points; give free_dofs"),
        ((matrix, grid, np.arange(19)), ValueError, r"free_dofs has shape \(19,\) but the matrix 20 rows"),
        ((matrix, grid, np.zeros(20, dtype=int)), ValueError, "distinct and between 0 and 19"),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            FaceStencil.from_sparse(*arguments)


# Fast transforms for mixed and periodic sides, bad input


@shapes
@sides
def test_fast_poisson_inverts_every_pair_of_sides(shape: tuple[int, ...], kind: tuple) -> None:
    layout, pair = kind
    full = tuple(n + 2 * (layout == "nodes") for n in shape)
    boundary = pair if isinstance(pair, str) else [pair] * len(shape)
    A = FaceStencil.from_coefficient(torch.full((1, *full), 0.7).double(), Grid(full, layout=layout), boundary=boundary)
    x = normal(2, *shape)
    null = A.null_part(x)
    x = x if null is None else x - null
    torch.testing.assert_close(FastPoisson().setup(A).apply(A.apply(x)), x, rtol=0, atol=1e-12)


def test_fast_poisson_stays_in_the_domain_and_refuses_what_it_cannot_invert() -> None:
    A, _ = build((5, 6), SIDES["closed below"], obstacles=True)
    assert not FastPoisson().setup(A).apply(normal(1, 5, 6))[~A.mask].any()
    for other in (build((5, 6), SIDES["neumann"], reaction=True)[0], FaceStencil.from_tensor(torch.tensor([1.0, 1.0, 0.5]).double().view(1, 3, 1, 1).expand(1, 3, 6, 6), Grid((6, 6)))):  # fmt: skip
        with pytest.raises(ValueError, match="reaction or corner weights; use Multigrid"):
            FastPoisson().setup(other)


ONES = torch.ones(1, 5, 5).double()
CELLS = Grid((5, 5), layout="cells")


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: FaceStencil.from_coefficient([ONES], CELLS), ValueError, "1 coefficients came for 2 axes"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, boundary=["dirichlet"]), ValueError, r"boundary is \['dirichlet'\] on 2 axes"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, boundary=[("periodic", "neumann"), "neumann"]), ValueError, "if one end is periodic"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, boundary="periodic"), ValueError, "layout 'cells' with a periodic boundary"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, obstacles="robin"), ValueError, "obstacles is 'robin'; choose one of neumann, dirichlet"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, mask=ONES), ValueError, r"the mask is torch.float64 .*expected torch.bool"),
        (lambda: FaceStencil.from_coefficient(ONES, CELLS, reaction=-ONES), ValueError, "must be finite and not negative"),
        (lambda: FaceStencil([torch.ones(1, 4)], mask=torch.ones(1, 4, dtype=torch.bool)), ValueError, r"the mask has shape \(1, 4\)"),
        (lambda: FaceStencil([torch.ones(1, 4)], mask=torch.ones(1, 3)), TypeError, "the mask is torch.float32; give torch.bool"),
        (lambda: FaceStencil([torch.ones(1, 4)], corners=(torch.ones(1, 4), torch.ones(1, 4))), ValueError, "corners are for planes"),
        (lambda: FaceStencil.from_tensor(torch.ones(1, 3, 5, 5), Grid((5, 5))), ValueError, "not positive definite everywhere"),
        (lambda: FaceStencil.from_tensor(torch.ones(1, 2, 5, 5), Grid((5, 5))), ValueError, r"expected \(batch, 3, \*\(5, 5\)\)"),
        (lambda: FaceStencil.from_tensor(torch.ones(1, 3, 5, 5), CELLS), ValueError, "on the nodes of a plane"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(call, error, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


def test_an_empty_batch_has_an_empty_null_part() -> None:
    mask = torch.ones(0, 4, 5, dtype=torch.bool)
    A = FaceStencil.from_coefficient(torch.ones(1, 4, 5).double(), Grid((4, 5), layout="cells"), mask=mask)
    part = A.null_part(torch.ones(0, 4, 5).double())
    assert part is None or part.shape == (0, 4, 5)
