"""Layers that are 1-Lipschitz by construction: their Jacobians never exceed one, and reach it where they are linear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opflow.layers import AOLLinear, CayleyLinear, LipschitzFourierLayer, LipschitzMLP, SandwichLayer, SLLBlock
from opflow.layers.bounds import gram_bound, slopes

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sandwich, wider": (lambda: SandwichLayer(3, 7), (3,)),
    "sandwich, narrower": (lambda: SandwichLayer(7, 3, activation=nn.Tanh()), (7,)),
    "Cayley": (lambda: CayleyLinear(5, 4), (5,)),
    "AOL, wider": (lambda: AOLLinear(4, 6), (4,)),
    "AOL, narrower": (lambda: AOLLinear(6, 4), (6,)),
    "SLL": (lambda: SLLBlock(5), (5,)),
    "SLL, more columns than rows": (lambda: SLLBlock(4, 9, activation=nn.Softplus()), (4,)),
    "Fourier 1d": (lambda: LipschitzFourierLayer(3, 3, 6), (3, 11)),
    "Fourier 2d": (lambda: LipschitzFourierLayer(2, 3, (4, 5), activation=nn.GELU()), (2, 6, 7)),
    "Fourier 2d, modes at the Nyquist limit": (lambda: LipschitzFourierLayer(2, 2, (6, 6)), (2, 6, 6)),
    "Fourier 2d, modes beyond it": (lambda: LipschitzFourierLayer(2, 2, (8, 9)), (2, 6, 5)),
    "perceptron": (lambda: LipschitzMLP((4, 9, 9, 3)), (4,)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def made(name: str, seed: int, spread: float) -> nn.Module:
    torch.manual_seed(seed)
    layer = LAYERS[name][0]().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += spread * torch.randn_like(parameter)
    return layer


def jacobians(layer: nn.Module, x: Tensor) -> Tensor:
    """(samples, out, in)"""

    def one(x: Tensor) -> Tensor:
        return layer(x[None]).flatten()

    return torch.vmap(torch.func.jacrev(one))(x).flatten(2).detach()


@layers
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_no_jacobian_exceeds_one(name: str, spread: float) -> None:
    for seed in range(2):
        layer = made(name, seed, spread)
        x = 3 * torch.randn(4, *LAYERS[name][1], dtype=torch.float64)
        norms = torch.linalg.matrix_norm(jacobians(layer, x), 2)
        assert float(norms.max()) <= 1 + 1e-12


@layers
def test_no_pair_of_inputs_is_driven_apart(name: str) -> None:
    layer = made(name, 1, 0.5)
    x, y = torch.randn(2, 200, *LAYERS[name][1], dtype=torch.float64)
    apart = (layer(x) - layer(y)).detach().flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert float(apart.max()) <= 1 + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_linear_cases_reach_the_bound(seed: int) -> None:
    """Where every unit is active the start is an isometry of the smaller side: all its singular values are one."""
    torch.manual_seed(seed)
    x = torch.randn(1, 5, dtype=torch.float64)
    for layer in (
        SandwichLayer(5, 5, activation=nn.Identity()),
        SandwichLayer(5, 3, activation=nn.Identity()),
        CayleyLinear(5, 3),
        CayleyLinear(5, 7),
        AOLLinear(5, 3),
        AOLLinear(5, 7),
        SLLBlock(5, 3),
    ):
        layer.double()
        if isinstance(layer, SLLBlock):
            nn.init.constant_(layer.bias, 50.0)  # active everywhere: the reflection I - 2 W W^T
        orthogonalise(layer)
        values = torch.linalg.svdvals(jacobians(layer, x)[0])
        torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-10, atol=1e-10)


def orthogonalise(layer: nn.Module) -> None:
    """The start again in double precision: single precision's orthogonal matrices are so to 1e-7 only."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name in ("Y", "P", "W"):
                U, S, Vt = torch.linalg.svd(p, full_matrices=False)
                p.copy_(S.mean().item() ** (name == "Y") * U @ Vt)
    if isinstance(layer, SandwichLayer):
        layer.Y.data *= (2**0.5 - 1) / layer.Y.data.norm(2, dim=0).max()
    if isinstance(layer, CayleyLinear):
        layer.Y.data /= torch.linalg.matrix_norm(layer.Y.data, 2)


def test_a_random_fourier_layer_is_nearly_tight() -> None:
    """Large weights are scaled to norm one on every frequency, up to the excess of eight Gram iterations."""
    torch.manual_seed(0)
    layer = LipschitzFourierLayer(4, 4, (5, 5), activation=nn.Identity()).double()
    with torch.no_grad():
        layer.weight += torch.randn_like(layer.weight)
    x = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    norm = torch.linalg.matrix_norm(jacobians(layer, x)[0], 2)
    assert 0.99 < float(norm) <= 1 + 1e-12


def test_a_perceptron_s_bound_is_the_one_asked_for() -> None:
    torch.manual_seed(0)
    model = LipschitzMLP((4, 8, 4), lipschitz=7.0, activation=nn.Identity()).double()
    norms = torch.linalg.matrix_norm(jacobians(model, torch.randn(3, 4, dtype=torch.float64)), 2)
    assert 0.9 * 7 < float(norms.max()) <= 7 * (1 + 1e-12)


def test_training_leaves_the_bound_and_fits_a_rotation() -> None:
    """A 1-Lipschitz map such as a rotation followed by absolute values is learned; a steeper one meets the bound."""
    torch.manual_seed(0)
    rotation = nn.init.orthogonal_(torch.empty(3, 3))
    x = torch.randn(256, 3)
    target = (x @ rotation).abs()
    model = LipschitzMLP((3, 16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.03 * target.var()
    norms = torch.linalg.matrix_norm(jacobians(model.double(), x[:50].double()), 2)
    assert 0.8 < float(norms.max()) <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(5, 4, 7), (3, 9, 2), (1, 1, 6), (2, 16, 16)])
@pytest.mark.parametrize("is_complex", [False, True])
def test_gram_iteration_bounds_from_above_and_converges(shape: tuple[int, ...], is_complex: bool) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(*shape, dtype=torch.complex128 if is_complex else torch.float64)
    exact = torch.linalg.matrix_norm(matrix, 2)
    excess = torch.stack([gram_bound(matrix, k) / exact - 1 for k in (1, 2, 4, 6, 10)])
    assert bool((excess > -1e-13).all()) and bool((excess.diff(dim=0) <= 1e-13).all())
    assert float(excess[-1].max()) < 2e-3
    rank = min(shape[-2:])
    assert float(excess[2].max()) <= rank ** (1 / 2**5) - 1 + 1e-12


def test_gram_iteration_at_its_edges() -> None:
    assert float(gram_bound(torch.zeros(3, 4))) < 1e-15
    isometry = torch.eye(16, dtype=torch.float64)
    assert float(gram_bound(isometry)) == pytest.approx(16 ** (1 / 512), rel=1e-12)  # the excess that is stated
    huge = 1e30 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(gram_bound(huge)) >= float(torch.linalg.matrix_norm(huge, 2)) * (1 - 1e-13)
    with pytest.raises(ValueError, match="give matrices"):
        gram_bound(torch.ones(3))


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.Tanh(), nn.Softplus(), nn.Softplus(3.0), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.LeakyReLU(0.3),
        nn.LeakyReLU(-0.5), nn.ELU(), nn.ELU(2.0), nn.Identity(), nn.LogSigmoid(), nn.Softsign(), nn.Hardtanh(),
    ],
    ids=str,
)  # fmt: skip
def test_slopes_are_sharp(activation: nn.Module) -> None:
    x = torch.linspace(-12, 12, 400001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    least, greatest = slopes(activation)
    assert least - 1e-7 <= float(slope.min()) <= least + 0.02
    assert greatest - 1e-3 <= float(slope.max()) <= greatest


def test_what_would_break_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GELU has slopes in \[-0.1289, 1.1289\]"):
        SandwichLayer(3, 3, activation=nn.GELU())
    with pytest.raises(ValueError, match="SLLBlock holds for slopes"):
        SLLBlock(3, activation=nn.SiLU())
    with pytest.raises(ValueError, match="slopes of Mish are not known"):
        LipschitzFourierLayer(2, 2, 4, activation=nn.Mish())
    with pytest.raises(ValueError, match="positive bound"):
        LipschitzMLP((3, 3), lipschitz=0.0)
    with pytest.raises(ValueError, match="hidden_features is 0"):
        SLLBlock(3, 0)
