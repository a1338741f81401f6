"""A direction may be anything at all: the answer stays right and CG's iterations are not exceeded. Shared tests: contracts/test_solvers.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.solvers import ConjugateDirection, ConjugateGradient, FaceStencil, LinearOperator, Reason, Solution
from opflow.solvers.conjugate_direction import MOST_USELESS, PATIENCE

SEEDS, N, RTOL = 200, 30, 1e-8
Direction = Callable[[Tensor], Tensor]


class Matrices(LinearOperator):
    """A batch of dense symmetric matrices (batch, n, n)."""

    symmetric = True

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices
        self.batch, self.shape = len(matrices), (matrices.shape[-1],)
        self.dtype, self.device = matrices.dtype, matrices.device

    def apply(self, x: Tensor) -> Tensor:
        return (self.matrices @ x[..., None])[..., 0]


def random_systems(seeds: int = SEEDS, n: int = N) -> tuple[Matrices, Tensor]:
    """One system a seed: condition numbers from 10 to 10^5, b random, in the range of A or of five eigenvectors."""
    matrices, right_hand_sides = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        exponent = 1 + 4 * torch.rand(1, generator=generator, dtype=torch.float64)
        A = q @ torch.diag(10 ** (exponent * torch.rand(n, generator=generator, dtype=torch.float64))) @ q.T
        A = (A + A.T) / 2
        b = torch.randn(n, generator=generator, dtype=torch.float64)
        matrices.append(A)
        right_hand_sides.append((b, A @ b, q[:, :5].sum(1))[seed % 3])
    return Matrices(torch.stack(matrices)), torch.stack(right_hand_sides)


def vector(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(n: int = N, condition: float = 1e4, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(vector(n, n, seed=seed))[0]
    return q @ torch.diag(torch.logspace(0, float(np.log10(condition)), n, dtype=torch.float64)) @ q.T


class Stub:
    """A direction by its name; `answer` gets r and finds the operator, its inverse and reproducible noise here."""

    def __init__(self, answer: Callable[[Stub, Tensor], Tensor]) -> None:
        self.answer, self.calls = answer, 0

    def setup(self, A: Matrices) -> None:
        self.A, self.inverse = A, torch.linalg.inv(A.matrices)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, r: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(self, r)

    def good(self, r: Tensor) -> Tensor:
        return (self.inverse @ r[..., None])[..., 0]

    def noise(self, r: Tensor) -> Tensor:
        """Of unit expected length, as r."""
        return torch.randn(r.shape, generator=self.generator, dtype=r.dtype) / r.shape[1] ** 0.5

    def noisy(self, r: Tensor, share: float) -> Tensor:
        z = self.good(r)
        return z + share * z.norm(dim=1, keepdim=True) * self.noise(r)

    def orthogonal(self, r: Tensor) -> Tensor:
        v = self.noise(r)
        return v - (v * r).sum(1, keepdim=True) * r


STUBS: dict[str, Callable[[Stub, Tensor], Tensor]] = {
    "NaN": lambda s, r: r * torch.nan,
    "infinity": lambda s, r: r + torch.inf,
    "one NaN": lambda s, r: torch.where(torch.arange(r.shape[1]) == 3, torch.nan, s.good(r)),
    "zeros": lambda s, r: torch.zeros_like(r),
    "constants": lambda s, r: torch.ones_like(r),
    "noise": lambda s, r: s.noise(r),
    "huge noise": lambda s, r: 1e300 * s.noise(r),
    "tiny noise": lambda s, r: 1e-300 * s.noise(r),
    "-r": lambda s, r: -r,
    "r and noise": lambda s, r: r + s.noise(r),
    "orthogonal to r": lambda s, r: s.orthogonal(r),
    "A r": lambda s, r: s.A.apply(r),
    "A A r": lambda s, r: s.A.apply(s.A.apply(r)),
    "smooth noise": lambda s, r: s.good(s.noise(r)),
    "Jacobi": lambda s, r: r / s.A.matrices.diagonal(dim1=1, dim2=2),
    "good in bfloat16": lambda s, r: s.good(r).bfloat16(),
    "good, of the other sign": lambda s, r: -s.good(r).bfloat16(),
    "good, tiny": lambda s, r: 1e-300 * s.good(r),
    "good and 1 % noise": lambda s, r: s.noisy(r, 0.01),
    "good and 30 % noise": lambda s, r: s.noisy(r, 0.3),
    "absolute values": lambda s, r: s.good(r).abs(),
    "bad after 1 call": lambda s, r: s.noisy(r, 0.3) if s.calls <= 1 else s.noise(r),
    "bad after 3 calls": lambda s, r: s.noisy(r, 0.1) if s.calls <= 3 else r * torch.nan,
    "bad after 8 calls": lambda s, r: s.noisy(r, 0.3) if s.calls <= 8 else s.orthogonal(r),
    "every second": lambda s, r: s.noisy(r, 0.01) if s.calls % 2 else s.noise(r),
}
GOOD = ["good in bfloat16", "good, of the other sign", "good, tiny", "good and 1 % noise"]
stubs = pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS.keys())


def true_residuals(A: Matrices, b: Tensor, x: Tensor) -> Tensor:
    return (b - A.apply(x)).norm(dim=1) / b.norm(dim=1)


@pytest.fixture(scope="module")
def systems() -> tuple[Matrices, Tensor, Solution]:
    A, b = random_systems()
    plain = ConjugateGradient(rtol=RTOL, max_steps=1000).solve(A, b)
    assert plain.all_converged
    return A, b, plain


# Whatever the network says: 200 systems


@stubs
@pytest.mark.parametrize("memory", [0, 1, 2, 5])
def test_never_more_iterations_than_conjugate_gradients_and_no_false_success(systems, stub, memory: int) -> None:
    A, b, plain = systems
    solution = ConjugateDirection(Stub(stub), memory=memory, rtol=RTOL, max_steps=1000).solve(A, b)
    assert solution.all_converged
    assert (true_residuals(A, b, solution.x) <= RTOL * (1 + 1e-9)).all()
    assert (solution.iterations <= plain.iterations).all()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_network_pays(systems, name: str) -> None:
    A, b, plain = systems
    solution = ConjugateDirection(Stub(STUBS[name]), rtol=RTOL).solve(A, b)
    assert solution.iterations.sum() < 0.5 * plain.iterations.sum()


@stubs
@pytest.mark.parametrize("safeguard", ["span", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_false_success_where_steps_or_digits_do_not_suffice(systems, stub, safeguard, dtype: torch.dtype) -> None:
    A, b, _ = systems
    rough = Matrices(A.matrices.to(dtype))
    rtol = 1e-8 if dtype == torch.float64 else 1e-5
    solution = ConjugateDirection(Stub(stub), safeguard=safeguard, rtol=rtol, max_steps=25).solve(rough, b.to(dtype))
    exact = Matrices(rough.matrices.double())
    true = true_residuals(exact, b.to(dtype).double(), solution.x.double())
    # What float32 says of a residual differs from float64's by the rounding of A x.
    slack = 1e-9 if dtype == torch.float64 else 1.0
    assert (true[solution.converged] <= rtol * (1 + slack)).all()
    assert solution.x.isfinite().all() or not solution.all_converged


class Preconditioner(Stub):
    linear = symmetric = deterministic = False
    apply = Stub.__call__


@stubs
@pytest.mark.parametrize("flexible", [True, False])
def test_no_preconditioner_brings_conjugate_gradients_to_a_false_success(systems, stub, flexible: bool) -> None:
    A, b, _ = systems
    M = Preconditioner(stub)
    M.linear = M.symmetric = M.deterministic = not flexible
    solution = ConjugateGradient(M, rtol=RTOL, max_steps=60, flexible=flexible).solve(A, b)
    assert (true_residuals(A, b, solution.x)[solution.converged] <= RTOL * (1 + 1e-9)).all()
    for i, reason in enumerate(solution.reason):
        assert solution.converged[i] == reason.converged


@pytest.mark.parametrize("name", [name for name in GOOD if name != "good, tiny"])  # of which p.Ap would underflow
def test_flexible_gradients_with_a_good_preconditioner(systems, name: str) -> None:
    A, b, plain = systems
    solution = ConjugateGradient(Preconditioner(STUBS[name]), rtol=RTOL, flexible=True).solve(A, b)
    assert solution.all_converged and solution.iterations.sum() < 0.5 * plain.iterations.sum()


@pytest.mark.parametrize("name", ["NaN", "infinity", "zeros", "one NaN"])
def test_flexible_gradients_go_on_without_a_preconditioner_that_gives_nothing(systems, name: str) -> None:
    A, b, plain = systems
    solution = ConjugateGradient(Preconditioner(STUBS[name]), rtol=RTOL, max_steps=1000, flexible=True).solve(A, b)
    assert solution.all_converged and solution.fallbacks == SEEDS
    assert (solution.iterations <= 1.1 * plain.iterations + 1).all(), (
        "-z.Ap / p.Ap rounds otherwise than r.z / r_old.z_old"
    )


def test_flexible_gradients_are_conjugate_gradients_for_a_linear_preconditioner() -> None:
    A, b = spd(), vector(2, N)

    class Jacobi(Stub):
        linear = symmetric = deterministic = True

        def setup(self, A) -> None:
            self.diagonal = A.matrix.diagonal()

        def apply(self, r: Tensor) -> Tensor:
            return r / self.diagonal

    plain = ConjugateGradient(Jacobi(lambda s, r: r), max_steps=8).solve(A, b)
    flexible = ConjugateGradient(Jacobi(lambda s, r: r), max_steps=8, flexible=True).solve(A, b)
    torch.testing.assert_close(flexible.x, plain.x, rtol=1e-9, atol=0)
    assert flexible.matvecs == plain.matvecs


# One step and its parts


def test_the_exact_direction_takes_one_step() -> None:
    A, b = spd(), vector(N)
    for sign, safeguard in itertools.product((1.0, -1e-200, 1e200), ("span", None)):

        def direction(r: Tensor, sign: float = sign) -> Tensor:
            return sign * torch.linalg.solve(A, r.T).T

        solution = ConjugateDirection(direction, safeguard=safeguard).solve(A, b)
        assert solution.iterations == 1 and solution.reason is Reason.RTOL and solution.fallbacks == 0


def test_a_step_minimises_the_energy_error_over_the_whole_span() -> None:
    """Against a dense minimisation over span{d, r, previous steps, x_cg - x}, step by step."""
    A, b, rng = spd(condition=100), vector(N), np.random.default_rng(0)
    kept: list[Tensor] = []

    def direction(r: Tensor) -> Tensor:
        kept.append(torch.linalg.solve(A, r.T).T + 0.001 * torch.from_numpy(rng.standard_normal((1, N))))
        return kept[-1]

    x, steps = torch.zeros(N, dtype=torch.float64), []
    for k in range(1, 6):
        rng, before = np.random.default_rng(0), len(kept)
        found = ConjugateDirection(direction, memory=2, rtol=1e-14, max_steps=k).solve(A, b)
        if found.fallbacks:
            break
        classical = ConjugateGradient(rtol=1e-14, max_steps=k).solve(A, b)
        span = torch.stack([kept[before + k - 1][0], b - A @ x, classical.x - x, *steps[-2:]], dim=1)
        best = x + span @ torch.linalg.lstsq(span.T @ A @ span, (span.T @ (b - A @ x))[:, None]).solution[:, 0]
        torch.testing.assert_close(found.x, best, rtol=1e-7, atol=1e-9)
        steps.append(found.x - x)
        x = found.x
    assert k >= 3


def published(
    A: np.ndarray, b: np.ndarray, direction: Callable[[np.ndarray], np.ndarray], memory: int, steps: int
) -> list[float]:
    """Kaneda et al. (2023), Algorithm 1, with the last `memory` directions; residual norms."""
    x, r, previous, norms = np.zeros_like(b), b.copy(), [], [float(np.linalg.norm(b))]
    for _ in range(steps):
        f = direction(r / np.linalg.norm(r))
        d = f.copy()
        for p in previous:
            d -= (f @ A @ p) / (p @ A @ p) * p
        x = x + (r @ d) / (d @ A @ d) * d
        r = b - A @ x
        previous = [d, *previous][:memory]
        norms.append(float(np.linalg.norm(r)))
    return norms


@pytest.mark.parametrize("memory", [0, 1, 2, 4])
def test_without_safeguard_it_is_the_published_method(memory: int) -> None:
    A, b = spd(condition=300), vector(N)
    W1, W2 = vector(60, N, seed=2) / 5, vector(N, 60, seed=3) / 60
    inverse = torch.linalg.inv(A)

    def network(r: Tensor) -> Tensor:
        return -(r @ inverse) + 0.02 * torch.relu(r @ W1.T) @ W2.T

    expected = published(A.numpy(), b.numpy(), lambda r: network(torch.from_numpy(r)[None])[0].numpy(), memory, 12)
    found = ConjugateDirection(network, memory=memory, safeguard=None, rtol=1e-13, max_steps=12).solve(A, b)
    steps = min(12, found.iterations)
    np.testing.assert_allclose(found.history[: steps + 1].numpy(), expected[: steps + 1], rtol=1e-6, atol=1e-12)
    assert found.history[-1] < 0.05 * found.history[0] and steps >= 4


def test_the_published_method_names_its_breakdowns() -> None:
    A, b = spd(), vector(N)
    solve = lambda d, A=A: ConjugateDirection(d, safeguard=None, max_steps=50).solve(A, b)  # noqa: E731
    assert solve(lambda r: r * torch.nan).reason is Reason.NAN_OR_INF
    assert solve(torch.zeros_like).reason is Reason.STAGNATED
    assert solve(lambda r: r, -A).reason is Reason.INDEFINITE
    stalled = solve(lambda r: torch.eye(N, dtype=torch.float64)[:1])
    assert stalled.reason in (Reason.MAX_STEPS, Reason.STAGNATED, Reason.INDEFINITE) and not stalled.converged
    assert solve(lambda r: r.float()).reason in (Reason.RTOL, Reason.MAX_STEPS)


def laplacian(n: int) -> FaceStencil:
    return FaceStencil.from_coefficient(torch.ones(1, n, n).double(), Grid((n, n), layout="cells"))


class TwoGrids(Stub):
    """Three Jacobi sweeps, one coarse grid with three more, and a kink: as shallow as the published network."""

    def setup(self, A: FaceStencil) -> None:
        self.A, self.coarse = A, laplacian(A.shape[0] // 2)

    def sweeps(self, A: FaceStencil, f: Tensor, u: Tensor) -> Tensor:
        for _ in range(3):
            u = u + 0.8 * (f - A.apply(u)) / A.diagonal()
        return u

    def __call__(self, r: Tensor) -> Tensor:
        u = self.sweeps(self.A, r, torch.zeros_like(r))
        rest = torch.nn.functional.avg_pool2d(r - self.A.apply(u), 2)
        correction = self.sweeps(self.coarse, rest, torch.zeros_like(rest))
        u = u + torch.nn.functional.interpolate(correction[None], scale_factor=2, mode="bilinear")[0]
        return -u - 0.3 * torch.relu(u)


@pytest.mark.parametrize("memory", [1, 2])
@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_the_span_takes_no_more_steps_than_the_published_method(memory: int, rtol: float) -> None:
    A = laplacian(48)
    b, network = vector(1, 48, 48), TwoGrids(lambda s, r: r)
    span = ConjugateDirection(network, memory=memory, rtol=rtol).solve(A, b)
    alone = ConjugateDirection(network, memory=memory, safeguard=None, rtol=rtol).solve(A, b)
    plain = ConjugateGradient(rtol=rtol).solve(A, b)
    assert span.all_converged and alone.all_converged
    assert span.iterations <= alone.iterations < plain.iterations and span.iterations < 0.5 * plain.iterations
    assert span.matvecs <= 3 * span.iterations + 3


# Retirement


@pytest.mark.parametrize("name", ["NaN", "infinity", "zeros", "-r", "orthogonal to r"])
def test_three_useless_outputs_retire_a_network(name: str) -> None:
    """It is called three times, and what remains is CG to the last bit."""
    A, b = Matrices(spd(200)[None]), vector(1, 200)
    stub, plain = Stub(STUBS[name]), ConjugateGradient().solve(A, b)
    solution = ConjugateDirection(stub).solve(A, b)
    assert stub.calls == solution.fallbacks == MOST_USELESS
    assert torch.equal(solution.x, plain.x) and torch.equal(solution.history, plain.history)
    products_in_vain = MOST_USELESS if name == "orthogonal to r" else 0
    assert solution.matvecs <= plain.matvecs + products_in_vain + 1


def test_a_network_that_turns_bad_leaves_what_it_did() -> None:
    A, b = Matrices(spd(200, condition=1e5)[None]), vector(1, 200)
    stub = Stub(lambda s, r: s.noisy(r, 1e-3) if s.calls <= 3 else r * torch.nan)
    solution = ConjugateDirection(stub, rtol=1e-10, max_steps=2000).solve(A, b)
    plain = ConjugateGradient(rtol=1e-10, max_steps=2000).solve(A, b)
    assert stub.calls == 3 + MOST_USELESS and solution.fallbacks == MOST_USELESS
    assert solution.reason == [Reason.RTOL] and solution.iterations < plain.iterations


def test_each_column_retires_on_its_own() -> None:
    A, b = Matrices(spd(60)[None]), vector(2, 60)

    def first_column_breaks(s: Stub, r: Tensor) -> Tensor:
        z = s.noisy(r, 0.01)
        z[0, 7] = torch.nan
        return z

    stub = Stub(first_column_breaks)
    solution = ConjugateDirection(stub).solve(A, b)
    plain = ConjugateGradient().solve(A, b)
    assert solution.all_converged and solution.fallbacks == MOST_USELESS
    assert torch.equal(solution.x[0], plain.x[0]) or solution.iterations[0] == plain.iterations[0]
    assert solution.iterations[1] < 0.5 * plain.iterations[1] and stub.calls == solution.iterations[1]


def test_a_residual_that_does_not_fall_retires_the_network() -> None:
    """|r| of conjugate gradients grows for long on such a system; a network that helps the energy only is dropped after 40 steps."""
    n = 300
    A = torch.diag(torch.logspace(0, 10, n, dtype=torch.float64))
    b = torch.logspace(5, 0, n, dtype=torch.float64)[None]
    operator, calls = Matrices(A[None]), []

    def lowest_first(r: Tensor) -> Tensor:
        """One eigenvector after the other from the end where r is smallest."""
        calls.append(1)
        e = torch.zeros_like(r)
        e[:, n - len(calls)] = 1.0
        return e

    solution = ConjugateDirection(lowest_first, max_steps=200).solve(operator, b)
    assert len(calls) <= PATIENCE and solution.fallbacks >= 1
    assert not solution.converged.any() or true_residuals(operator, b, solution.x) <= 1e-8


# The rest of the safety table


def test_indefinite_singular_and_unsymmetric_operators() -> None:
    b, d = vector(N), lambda r: r + 0.1 * torch.roll(r, 1, -1)
    A = spd()
    assert ConjugateDirection(d).solve(A - 50 * torch.eye(N), b).reason is Reason.INDEFINITE
    assert ConjugateDirection(d).solve(A + torch.triu(torch.ones(N, N).double(), 1), b).reason is Reason.NONSYMMETRIC
    q = torch.linalg.qr(vector(N, N))[0]
    singular = q @ torch.diag(torch.linspace(0, 3, N).double()) @ q.T
    null = q[:, :1].T
    for direction in (d, lambda r: null.expand_as(r), lambda r: r + 1e6 * null):
        consistent = ConjugateDirection(direction).solve(singular, singular @ b)
        assert consistent.reason is Reason.RTOL
        assert not ConjugateDirection(direction, max_steps=200).solve(singular, b).converged


def test_a_closed_box_and_a_direction_along_its_null_space() -> None:
    A = FaceStencil.from_coefficient(torch.ones(1, 8, 9).double(), Grid((8, 9), layout="cells"), boundary="neumann")
    b = vector(1, 8, 9)
    b = b - b.mean()
    for direction in (torch.ones_like, lambda r: r + 1e8, lambda r: r):
        for safeguard in ("span", None):
            solution = ConjugateDirection(direction, safeguard=safeguard, max_steps=300).solve(A, b)
            assert solution.converged.all() or (safeguard is None and solution.reason[0] is Reason.STAGNATED)
            assert abs(float(solution.x.mean())) <= 1e-10 * float(solution.x.abs().max().clamp(min=1))


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda r: r[:, :-1], r"returned torch.float64 \(1, 29\)"),
        (lambda r: r.to(torch.complex128), "torch.complex128"),
        (lambda r: torch.ones(r.shape, dtype=torch.int64), "torch.int64"),
        (lambda r: r.to("meta"), "on meta"),
        (lambda r: r.numpy(), "a ndarray"),
        (lambda r: None, "a NoneType"),
    ],
)
@pytest.mark.parametrize("safeguard", ["span", None])
def test_an_answer_of_another_kind_is_an_error_in_a_sentence(answer, came: str, safeguard) -> None:
    with pytest.raises(ValueError, match=rf"was given r, torch.float64 \(1, 30\) on cpu, and .*{came}.* expected real"):
        ConjugateDirection(answer, safeguard=safeguard).solve(spd(), vector(N))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((None,), TypeError, "direction is a NoneType; expected a function or network"),
        ((torch.zeros_like, -1), ValueError, "memory is -1; give the number of previous directions"),
        ((torch.zeros_like, 1.5), ValueError, "memory is 1.5"),
        ((torch.zeros_like, 2, "none"), ValueError, "safeguard is 'none'; choose \"span\", or None"),
        ((torch.zeros_like, 2, "span", -1.0), ValueError, "rtol is -1.0"),
        ((torch.zeros_like, 2, "span", 1e-8, 0), ValueError, "max_steps is 0"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(arguments, error, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ConjugateDirection(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_sees_unit_residuals_in_the_dtype_of_b_and_may_answer_in_another(dtype: torch.dtype) -> None:
    A = FaceStencil.from_coefficient(torch.ones(1, 9, 9, dtype=dtype), Grid((9, 9)))
    seen: list[Tensor] = []

    class Network:
        setups = 0

        def setup(self, operator: LinearOperator) -> None:
            assert operator is A
            self.setups += 1

        def __call__(self, r: Tensor) -> Tensor:
            seen.append(r.clone())
            r *= 0.5  # what it does to its argument is its own affair
            return r.to(torch.float32 if dtype == torch.float64 else torch.float64)

    network = Network()
    solution = ConjugateDirection(network, rtol=1e-5).solve(A, vector(2, 7, 7).to(dtype))
    assert solution.all_converged and solution.x.dtype == dtype and network.setups == 1
    assert all(r.dtype == dtype and r.shape == (2, 7, 7) for r in seen)
    torch.testing.assert_close(seen[0].flatten(1).norm(dim=1), torch.ones(2, dtype=dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 3, 29])
def test_scipys_columns_are_named(k: int) -> None:
    b = np.ones((N, k))
    for method in (ConjugateGradient(), ConjugateDirection(torch.zeros_like)):
        with pytest.raises(
            ValueError, match=rf"b has shape \(30, {k}\) and A acts on \(30,\): .* give b.T, \({k}, 30\)"
        ):
            method.solve(spd().numpy(), b)
        x = method.solve(spd().numpy(), b.T).x
        assert x.shape == (k, N)
