"""The learned cycle: classical at the start, lawful for conjugate gradients whatever its parameters are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opflow import Grid
from opflow.batch import Batch
from opflow.files import write_tensors
from opflow.kernels.stencil.couplings import Couplings
from opflow.losses.conjugate_gradient import EnergyReduction
from opflow.models import multigrid_network
from opflow.models.multigrid_network import WEIGHTS, MultigridNetwork, TunedCycle
from opflow.models.recipe import build_model
from opflow.problems.elliptic_operators import FAMILIES
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.multigrid import Multigrid

SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.json"))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def medium(shape: tuple[int, ...], contrast: float, seed: int = 0, batch: int = 1) -> Tensor:
    return contrast ** (rand(batch, *shape, seed=seed) > 0.5).double()


def obstacles(shape: tuple[int, ...]) -> Tensor:
    mask = torch.ones(1, *shape, dtype=torch.bool)
    mask[0, 3:9, 5:14] = False
    mask[0, 15, :12] = False
    return mask


def cells(shape: tuple[int, ...], **options: Any) -> Grid:
    return Grid(shape, layout=options.get("layout", "cells"))


# Every kind of operator that a stencil of nearest neighbours can be.
OPERATORS: dict[str, Callable[[], FaceStencil]] = {
    "contrast 1e7": lambda: FaceStencil.from_coefficient(medium((32, 32), 1e7), cells((32, 32))),
    "obstacles, odd sizes": lambda: FaceStencil.from_coefficient(
        medium((31, 37), 10.0), cells((31, 37)), mask=obstacles((31, 37)), boundary=["neumann", ("neumann", "dirichlet")]
    ),
    "u = 0 on obstacles": lambda: FaceStencil.from_coefficient(
        medium((32, 26), 1e3), cells((32, 26)), mask=obstacles((32, 26)), obstacles="dirichlet"
    ),
    "semi-coarsening": lambda: FaceStencil.from_coefficient([medium((24, 40), 10.0), 0.01 * medium((24, 40), 10.0)], cells((24, 40))),
    "periodic, odd ring": lambda: FaceStencil.from_coefficient(
        medium((33, 30), 100.0), Grid((33, 30), layout=("periodic", "cells")), boundary=["periodic", "dirichlet"]
    ),
    "reaction, closed": lambda: FaceStencil.from_coefficient(
        medium((30, 30), 100.0), cells((30, 30)), boundary="neumann", reaction=rand(1, 30, 30)
    ),
    "batch": lambda: FaceStencil.from_coefficient(medium((28, 28), 1e4, batch=3), cells((28, 28))),
    "nodes": lambda: FaceStencil.from_coefficient(medium((36, 36), 1e2), Grid((36, 36))),
    "3d contrast 1e4": lambda: FaceStencil.from_coefficient(medium((12, 11, 10), 1e4), cells((12, 11, 10))),
    "3d semi-coarsening": lambda: FaceStencil.from_coefficient([medium((10, 12, 12), 2.0, s) * (0.01 if s else 1) for s in range(3)], cells((10, 12, 12))),
}  # fmt: skip
operators = pytest.mark.parametrize("kind", OPERATORS)


def wild(cycle: nn.Module, size: float = 1.0) -> nn.Module:
    """Parameters far from the trained ones: the raw numbers saturate their bounds."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in cycle.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator))
    return cycle


def tuned(dim: int) -> TunedCycle:
    cycle = TunedCycle(dim)
    with torch.no_grad():
        cycle.numbers.copy_(torch.tensor([0.3, -0.2, 0.4, 0.2, -0.3]))
    return cycle


def right_sides(A: FaceStencil, n: int) -> Tensor:
    r = torch.randn(n * A.batch, *A.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return r if A.mask is None else r * A.mask


@operators
@pytest.mark.parametrize("cycle", ["V", "W"])
def test_begins_as_the_classical_cycle(kind: str, cycle: str) -> None:
    A = OPERATORS[kind]()
    r = right_sides(A, 1)
    learned = Multigrid(cycle, coefficients=MultigridNetwork(len(A.shape)), dtype=torch.float64, coarsest=30).setup(A)
    classical = Multigrid(cycle, dtype=torch.float64, coarsest=30).setup(A)
    assert len(learned.levels) == len(classical.levels) > 0
    torch.testing.assert_close(learned.apply(r).detach(), classical.apply(r), rtol=1e-10, atol=1e-12)


@operators
@pytest.mark.parametrize("kind_of_cycle", ["wild network", "trained numbers"])
def test_symmetric_and_positive_whatever_the_parameters(kind: str, kind_of_cycle: str) -> None:
    A = OPERATORS[kind]()
    coefficients = wild(MultigridNetwork(len(A.shape), 4)) if kind_of_cycle == "wild network" else tuned(len(A.shape))
    M = Multigrid(coefficients=coefficients, dtype=torch.float64, coarsest=30)
    with torch.no_grad():
        M.setup(A)
    u = right_sides(A, 1)
    for seed in range(5):
        v = u.roll(seed + 1, -1) * (1 if A.mask is None else A.mask)
        Mu, Mv = M.apply(u), M.apply(v)
        scale = (u * Mu).flatten(1).sum(1).sqrt() * (v * Mv).flatten(1).sum(1).sqrt()
        assert bool(((u * Mv - v * Mu).flatten(1).sum(1).abs() <= 1e-11 * scale).all())
        null = A.null_part(v)
        assert bool(((v * Mv).flatten(1).sum(1) > 0).all()) or null is not None
        torch.testing.assert_close(M.apply(u + 2 * v), Mu + 2 * Mv, rtol=1e-8, atol=1e-10 * float(Mu.abs().max()))


@pytest.mark.parametrize("kind", ["contrast 1e7", "obstacles, odd sizes", "3d semi-coarsening"])
def test_a_wild_network_costs_steps_never_correctness(kind: str) -> None:
    A = OPERATORS[kind]()
    b = A.apply(right_sides(A, 1))
    M = Multigrid(coefficients=wild(MultigridNetwork(len(A.shape), 4)), coarsest=30)
    solution = ConjugateGradient(M, rtol=1e-5, max_steps=200).solve(A, b)
    true = (b - A.apply(solution.x)).norm() / b.norm()
    assert bool(solution.converged) == bool(true <= 1e-5)
    assert solution.converged or kind == "contrast 1e7", solution.message


@pytest.mark.parametrize("network", [MultigridNetwork(2, 4), tuned(2)])
def test_multiplying_the_operator_changes_nothing_but_the_unit(network: nn.Module) -> None:
    A = OPERATORS["obstacles, odd sizes"]()
    network = wild(copy.deepcopy(network), 0.1)
    r = right_sides(A, 1)
    with torch.no_grad():
        expected = Multigrid(coefficients=network).setup(A).apply(r)
        scaled = Multigrid(coefficients=network).setup(A.with_tensors([3e7 * t for t in A.tensors()])).apply(r)
    torch.testing.assert_close(3e7 * scaled, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@operators
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    A = OPERATORS[kind]()
    network = MultigridNetwork(len(A.shape), 3)
    nn.init.normal_(network.head.weight, std=0.05)
    loss = EnergyReduction(A, lambda model: Multigrid(coefficients=model, coarsest=30, dtype=torch.float64), steps=2)
    loss(network, Batch(target=right_sides(A, 1)[:, None]))["energy"].backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), name
        assert bool((p.grad != 0).any()) or kind == "periodic, odd ring", name


def test_gradient_with_respect_to_the_numbers() -> None:
    A = OPERATORS["semi-coarsening"]()
    cycle = tuned(2).double()
    loss = EnergyReduction(A, lambda model: Multigrid(coefficients=model, coarsest=100, dtype=torch.float64), steps=2)
    batch = Batch(target=right_sides(A, 1)[:, None])

    def value(numbers: Tensor) -> Tensor:
        class Given(TunedCycle):
            def spread(self) -> Tensor:
                first, rest = numbers[:2], numbers[2:]
                return torch.cat(
                    [first.repeat_interleave(2), *(n.expand(c) for n, c in zip(rest, self.parts[1:], strict=True))]
                )

        return loss(Given(2).double(), batch)["energy"]

    assert torch.autograd.gradcheck(value, (cycle.numbers.detach().clone().requires_grad_(),))


def test_a_network_of_tuned_numbers_is_the_tuned_cycle() -> None:
    A, cycle = OPERATORS["nodes"](), tuned(2)
    network = MultigridNetwork(2, 4)
    network.tuned.load_state_dict(cycle.state_dict())
    r = right_sides(A, 1)
    with torch.no_grad():
        one, other = (Multigrid(coefficients=c).setup(A).apply(r) for c in (cycle, network))
        classical = Multigrid().setup(A).apply(r)
    torch.testing.assert_close(one, other)
    assert (one - classical).norm() > 0.01 * classical.norm()


def test_bounds_of_the_coefficients() -> None:
    A = OPERATORS["contrast 1e7"]()
    parts = Couplings.of(A)
    with torch.no_grad():
        found = wild(MultigridNetwork(2, 4), 10.0)(parts, (2, 2), 0)
    assert len(found.relaxation) == 4 and len(found.across) == len(found.coarse_faces) == 2
    assert all(bool(((w > 0) & (w < 2)).all()) for w in found.relaxation)
    assert all(bool((f > 0).all()) for f in (*found.coarse_faces, found.coarse_rest))
    assert found.coarse_rest.shape == found.coarse_faces[0].shape == (1, 16, 16)
    reached = torch.stack(found.relaxation)
    assert float(reached.min()) < 0.2 and float(reached.max()) > 1.8  # the bounds were tried


def test_a_mirrored_block_is_seen_as_one() -> None:
    """Blocks as channels and back."""
    v = torch.arange(2 * 3 * 4 * 6 * 8.0).view(2, 3, 4, 6, 8)
    blocks = multigrid_network._blocks(v)
    assert blocks.shape == (2, 24, 2, 3, 4)
    assert torch.equal(multigrid_network._points(blocks, 3), v)
    assert {int(n) for n in blocks[0, ::3, 0, 0, 0]} == {int(n) for n in v[0, 0, :2, :2, :2].flatten()}


def test_solves_run_without_a_graph_and_in_the_dtype_of_the_operator() -> None:
    A = OPERATORS["nodes"]()
    M = Multigrid(coefficients=wild(MultigridNetwork(2, 4), 0.1), dtype=torch.float64)
    solution = ConjugateGradient(M, rtol=1e-8).solve(A, right_sides(A, 1))
    assert solution.x.dtype == torch.float64 and not solution.x.requires_grad
    assert not any(relaxation.weight.requires_grad for level in M.levels for relaxation in level.before)
    assert M.levels[0].before[0].weight.dtype == torch.float64


def test_recipes_rebuild() -> None:
    for model in (MultigridNetwork.build(3, 5, sweeps=1), TunedCycle.build(2, 3)):
        again = build_model(json.loads(json.dumps(model.recipe)))
        again.load_state_dict(model.state_dict())
        assert type(again) is type(model) and again.recipe == model.recipe


def test_refusals() -> None:
    A = OPERATORS["3d contrast 1e4"]()
    for cycle in (MultigridNetwork(2, 4), TunedCycle(2)):
        with pytest.raises(ValueError, match="the operator has 3 axes, but this cycle was made for 2"):
            Multigrid(coefficients=cycle).setup(A)
    with pytest.raises(ValueError, match="dim is 1; these cycles have 2 or 3 axes"):
        MultigridNetwork(1)
    with pytest.raises(ValueError, match="hidden_channels is 0"):
        MultigridNetwork(2, 0)
    rotated = FaceStencil.from_tensor(
        torch.tensor([1.0, 1.0, 0.5]).double().view(1, 3, 1, 1).expand(1, 3, 30, 30), Grid((30, 30))
    )
    with pytest.raises(ValueError, match="couples points across corners"):
        Multigrid(coefficients=MultigridNetwork(2, 4)).setup(rotated)


@pytest.mark.parametrize("cls", [MultigridNetwork, TunedCycle])
def test_unknown_names_list_what_there_is(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"no weights called 'elliptic-4d'; opflow ships .*elliptic-2d"):
        cls.from_pretrained("elliptic-4d")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load, are small, have a card, are what their hash says, and need fewer iterations on unseen operators, none of which more."""
    network, cycle = MultigridNetwork.from_pretrained(name), TunedCycle.from_pretrained(name)
    assert not network.training
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    record = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    assert record["command"] in card and "MIT" in card
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 1_000_000
    totals = torch.zeros(3, dtype=torch.int64)
    for family in (FAMILIES[kind] for kind in record["validation"]["network"]):  # those that it was trained on
        A = family.sample([0], family.grid(128 if network.dim == 2 else 32, network.dim), split="test")
        b = A.apply(right_sides(A, 1))
        steps = [
            ConjugateGradient(Multigrid(coefficients=c), rtol=1e-8).solve(A, b).iterations
            for c in (network, cycle, None)
        ]
        assert steps[0] <= steps[1], family
        totals += torch.tensor([int(n) for n in steps])
    assert totals[0] < totals[1] <= totals[2], totals
    for path in WEIGHTS.glob(f"{name}.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_tensors(tmp_path / f"{name}.safetensors", {**network.state_dict(), "head.bias": network.head.bias + 1})
    monkeypatch.setattr(multigrid_network, "WEIGHTS", tmp_path)
    with pytest.raises(OSError, match="SHA-256"):
        MultigridNetwork.from_pretrained(name)
