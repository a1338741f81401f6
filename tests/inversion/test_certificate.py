"""Certificates: exact where the map is linear, above every sampled value otherwise, refused where nothing is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from opflow.inversion import lipschitz_bound, sampled_lower_bound
from opflow.inversion.operator_norms import convolution_bound, fourier_bound, perceptron_bound
from opflow.layers import (
    MLP,
    ChannelLinear,
    ChannelMLP,
    FourierLayer,
    LipschitzMLP,
    LocalConv,
    Normalized,
    Normalizer,
    SLLBlock,
    SoftGate,
    SpectralConv,
)
from opflow.models import FNO


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def norm_of(linear, shape: tuple[int, ...]) -> float:
    """The exact norm of a linear map of fields, from its dense matrix."""
    size = torch.Size(shape).numel()
    columns = linear(torch.eye(size).view(size, *shape)).detach() - linear(torch.zeros(1, *shape)).detach()
    return float(torch.linalg.matrix_norm(columns.flatten(1), 2))


# One and two dimensions, odd and even numbers of modes, grids that resolve them, that meet the Nyquist limit and that are too coarse.
@pytest.mark.parametrize("skip", [None, "linear", "gate", "identity"])
@pytest.mark.parametrize(
    ("n_modes", "grid", "resolved"),
    [
        ((5,), (9,), True), ((6,), (8,), True), ((6,), (6,), False), ((9,), (4,), False), ((4, 5), (7, 8), True),
        ((4, 4), (6, 5), True), ((5, 6), (5, 6), False), ((6, 4), (4, 4), False), ((8, 8), (3, 5), False),
    ],
)  # fmt: skip
def test_the_linear_part_of_a_fourier_layer_is_exact(n_modes, grid, resolved: bool, skip: str | None) -> None:
    skips = {None: None, "linear": ChannelLinear(3, 3), "gate": SoftGate(3), "identity": nn.Identity()}
    layer = FourierLayer(SpectralConv(3, 3, n_modes), skips[skip], activation=nn.Identity())
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    exact = norm_of(layer, (3, *grid))
    bound = lipschitz_bound(layer).bound
    assert bound >= exact * (1 - 1e-12)
    if resolved:
        assert bound <= exact * 1.001


def test_the_block_at_the_unpaired_row_is_the_one_that_acts() -> None:
    """Only the row k = -m/2 of the plane k_last = 0 has weight: half of it acts on k, half on -k."""
    conv = SpectralConv(2, 2, (4, 4), bias=False)
    R = torch.randn(2, 2, 2)
    conv.weight.data.zero_()
    conv.weight.data[0, 0] = R
    half = torch.linalg.matrix_norm(torch.complex(R[0], R[1]), 2) / 2
    assert norm_of(conv, (2, 7, 6)) == pytest.approx(float(half), rel=1e-10)
    assert fourier_bound(conv.weight, (4, 4)) == pytest.approx(float(half), rel=1e-3)


@pytest.mark.parametrize(("dim", "taps"), [(1, 3), (1, 4), (1, 1), (2, 3), (2, 5)])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_convolutions(dim: int, taps: int, mode: str) -> None:
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[dim]
    conv = kind(2, 3, taps, padding="same" if taps % 2 else 0, padding_mode=mode)
    everywhere = convolution_bound(conv.weight)
    for n in (4, 7):
        exact = norm_of(conv, (2, *[n] * dim))
        here = convolution_bound(conv.weight, [n] * dim)
        assert exact <= everywhere * (1 + 1e-12)
        if mode == "circular" and taps % 2:
            assert here * (1 - 1e-3) <= exact <= here * (1 + 1e-12)
    strided = kind(2, 3, taps, padding=(taps - 1) // 2, padding_mode=mode, stride=2)
    assert norm_of(strided, (2, *[8] * dim)) <= convolution_bound(strided.weight) * (1 + 1e-12)
    # Between the grids' frequencies the bound leaves 8 % an axis at most.
    dense = convolution_bound(conv.weight, [400 if dim == 1 else 60] * dim)
    assert everywhere <= 1.09**dim * dense


def test_perceptrons_lie_between_what_is_sampled_and_the_product() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = MLP((6, 20, 20, 20, 3), activation=nn.ReLU())
        weights = [linear.weight for linear in model.linears]
        product = 1.0
        for W in weights:
            product *= float(torch.linalg.matrix_norm(W.detach(), 2))
        bound = perceptron_bound(weights)
        lower = sampled_lower_bound(model, torch.randn(30, 6), ascent_steps=2)
        assert lower <= bound <= 0.8 * product


def test_perceptrons_of_one_direction_are_exact() -> None:
    """x -> 2 relu(3 x) has the constant 6; two layers that do not meet have 0, of which the product 1 knows nothing."""
    assert perceptron_bound([torch.tensor([[3.0]]), torch.tensor([[2.0]])]) == pytest.approx(6.0)
    assert perceptron_bound([torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 1.0]])]) < 0.71
    assert perceptron_bound([torch.randn(4, 3) * 0.0, torch.randn(2, 4)]) < 1e-100


MODELS: dict = {
    "GELU perceptron": (lambda: MLP((4, 9, 9, 2)), (4,)),
    "sigmoid perceptron": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Sigmoid(), nn.Linear(9, 5)), (4,)),
    "ends in an activation": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5), nn.SiLU()), (4,)),
    "channels": (lambda: ChannelMLP(2, 3, 8, 3, activation=nn.Softplus()), (2, 5, 4)),
    "residual blocks": (lambda: nn.Sequential(nn.Linear(4, 4), SLLBlock(4), nn.Sequential(SLLBlock(4))), (4,)),
    "bounded": (lambda: nn.Sequential(LipschitzMLP((4, 8, 3), lipschitz=3.0), nn.Linear(3, 2)), (4,)),
    "Fourier layer": (
        lambda: FourierLayer(
            SpectralConv(3, 3, (4, 4)), ChannelLinear(3, 3), channel_mlp=ChannelMLP(3, 3, 2), channel_mlp_skip=SoftGate(3)
        ),
        (3, 6, 7),
    ),
    "FNO": (lambda: FNO.build((4, 4), 1, 1, 4, n_layers=2, padding=0.25), (1, 9, 9)),
    "FNO, other options": (
        lambda: FNO.build(4, 2, 1, 3, n_layers=2, channel_mlp=None, skip="identity", activation="relu", coordinates=False),
        (2, 9),
    ),
    "physical units": (
        lambda: Normalized(
            FNO.build((4, 4), 1, 2, 3, n_layers=1), Normalizer([3.0], [0.1]), Normalizer([0.0, 5.0], [7.0, 2.0])
        ),
        (1, 8, 8),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 5, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(5), nn.GELU(), nn.Dropout(0.5), nn.Conv1d(5, 2, 3, stride=2),
            nn.Flatten(), nn.Linear(10, 3),
        ).eval(),
        (2, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_no_sampled_value_exceeds_the_certificate(name: str) -> None:
    make, shape = MODELS[name]
    model = make().to(torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.uniform_(0.2, 2.0)
    certificate = lipschitz_bound(model)
    x = 2 * torch.randn(6, *shape)
    lower = sampled_lower_bound(model, x, power_steps=5, ascent_steps=2)
    assert 0 < lower <= certificate.bound
    product = 1.0
    for _, value in certificate.parts:
        product *= value
    assert product == pytest.approx(certificate.bound)
    y = x + torch.randn_like(x)
    moved = (model(x) - model(y)).detach().flatten(1).norm(dim=1)
    assert bool((moved <= certificate.bound * (x - y).flatten(1).norm(dim=1)).all())
    assert certificate.error(2.0) == 2 * certificate.bound and "Lipschitz constant at most" in str(certificate)


def test_weights_turn_euclidean_norms_into_those_of_functions() -> None:
    h_in, h_out = 0.01, 0.25
    matrix = torch.randn(5, 8)
    model = nn.Linear(8, 5)
    model.weight.data = matrix
    exact = float(torch.linalg.matrix_norm(matrix, 2)) * (h_out / h_in) ** 0.5
    assert lipschitz_bound(model, input_weight=h_in, output_weight=h_out).bound == pytest.approx(exact, rel=1e-3)
    found = sampled_lower_bound(model, torch.randn(4, 8), power_steps=200, input_weight=h_in, output_weight=h_out)
    assert found == pytest.approx(exact, rel=1e-6)
    w_in, w_out = torch.rand(8) + 0.1, torch.rand(5) + 0.1
    scaled = w_out.sqrt()[:, None] * matrix / w_in.sqrt()
    found = sampled_lower_bound(model, torch.randn(4, 8), power_steps=200, input_weight=w_in, output_weight=w_out)
    assert found == pytest.approx(float(torch.linalg.matrix_norm(scaled, 2)), rel=1e-6)
    assert found <= lipschitz_bound(model, input_weight=w_in, output_weight=w_out).bound


def test_ascent_finds_what_the_samples_miss() -> None:
    """tanh(5 x) is steepest at zero; from one sample on its flank the ascent climbs there."""

    def steep(x: Tensor) -> Tensor:
        return torch.tanh(5 * x)

    start = torch.tensor([[0.3]])
    alone = sampled_lower_bound(steep, start, ascent_steps=0)
    climbed = sampled_lower_bound(steep, start, ascent_steps=40)
    assert alone == pytest.approx(5 / torch.cosh(torch.tensor(1.5)).item() ** 2, rel=1e-9)
    assert 4.99 < climbed <= 5 + 1e-12


def test_what_has_no_bound_is_refused_in_a_sentence() -> None:
    for module, sentence in (
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "1 is a LayerNorm, whose Lipschitz constant is not known"),
        (LocalConv(2, 3, 0.5, dim=1), "LocalConv is a LocalConv, whose"),
        (FNO.build((4, 4), 1, 1, 4, n_layers=1, norm="group"), "2 holds a GroupNorm"),
        (nn.Sequential(nn.BatchNorm1d(3)), "statistics of the batch"),
        (nn.Sequential(nn.Dropout()), "dropout in training mode"),
        (nn.Conv1d(2, 2, 3, padding_mode="reflect"), "has padding 'reflect'"),
        (nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), "repeats some of its outputs"),
        (nn.Sequential(nn.Linear(2, 2), nn.Mish()), "1 is a Mish"),
    ):
        with pytest.raises(ValueError, match=sentence):
            lipschitz_bound(module)
    with pytest.raises(ValueError, match="input_weight is not positive"):
        lipschitz_bound(nn.Identity(), input_weight=0.0)
    with pytest.raises(ValueError, match="one linear layer or more"):
        perceptron_bound([])
    with pytest.raises(ValueError, match="one size per axis of taps"):
        convolution_bound(torch.ones(2, 2, 3), (4, 4))


def test_a_module_may_state_its_own_bound() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs() / 2

        def lipschitz_bound(self) -> float:
            return 0.5

    assert lipschitz_bound(nn.Sequential(Halved(), Halved())).bound == 0.25


def test_every_claimed_activation_pair_is_certified_in_a_perceptron() -> None:
    """Monotone activations join the semidefinite bound, the others multiply; both stay above what is sampled."""
    for activation, wide in itertools.product((nn.Tanh(), nn.ELU(2.0), nn.LeakyReLU(1.7), nn.SiLU()), (3, 30)):
        model = nn.Sequential(nn.Linear(2, wide), activation, nn.Linear(wide, 2))
        assert sampled_lower_bound(model, 2 * torch.randn(50, 2), ascent_steps=3) <= lipschitz_bound(model).bound
