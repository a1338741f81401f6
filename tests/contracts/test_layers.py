"""One row a layer or a model; the row buys every test below."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opflow.fourier import resample
from opflow.grid import Grid
from opflow.layers import (
    MLP,
    AOLLinear,
    BoxCoordinates,
    BranchTrunk,
    CayleyLinear,
    ChannelLinear,
    ChannelMLP,
    DerivativeConv,
    DomainPadding,
    DownSampler,
    FlatEncoder,
    FourierAttention,
    FourierFeatures,
    FourierLayer,
    FunctionNorm,
    GalerkinAttention,
    GridEmbedding,
    ImageEncoder,
    LatentLeastSquares,
    LipschitzFourierLayer,
    LipschitzMLP,
    LocalConv,
    MeasurementMixing,
    MultigridConv,
    Normalized,
    Normalizer,
    SandwichLayer,
    SensorEncoder,
    SLLBlock,
    SoftGate,
    SpectralConv,
    SpectralDecoder,
    TransformerLayer,
)
from opflow.models import (
    FNO,
    NIO,
    DeepONet,
    EncoderDecoder,
    GalerkinTransformer,
    LocalFNO,
    MgNO,
    Rollout,
    StackedDeepONet,
    UNet,
)


@dataclass
class Case:
    name: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    output_channels: int
    channel_axis: int = 1
    same_at_every_resolution: bool = False  # the theorem of resolution is claimed
    compiles_fast: bool = False  # compile and export belong to the fast suite
    points: int | None = None  # the output lives on so many points of its own, and the input's axes are fixed
    parametrised: bool = True  # it has parameters or buffers that fix channels, dtype and device


class Given(nn.Module):
    """A module of several arguments as one of the first; the others are buffers, which follow its dtype and state dict."""

    def __init__(self, module: nn.Module, *arguments: torch.Tensor) -> None:
        super().__init__()
        self.module, self.n_arguments = module, len(arguments)
        for i, argument in enumerate(arguments):
            self.register_buffer(f"argument{i}", argument)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x, *(self.get_buffer(f"argument{i}") for i in range(self.n_arguments)))


class AsChannels(nn.Module):
    """A map of trajectories (batch, 1, time, *grid) as one of fields, the times as channels."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.unsqueeze(1)).squeeze(1)


class AsVectors(nn.Module):
    """A map of (batch, ...) to (batch, features) as one to one point."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x).unsqueeze(1)


def small_nio(**options) -> NIO:
    return NIO.build(
        (16,), 1, Grid((6, 5), layout=("nodes", "cells")), 3, features=4, fields=2, basis=3, mixer=(4,), trunk=(4,), n_modes=4,
        n_layers=1, **options,
    )  # fmt: skip


def pod_deeponet() -> DeepONet:
    model = DeepONet.build(5, 1, 1, 2, basis=3, branch=(4,), trunk="pod", grid=Grid(6, (0.0, 3.0)))
    model.trunk.fit(torch.randn(8, 6, 2))
    return model


CASES = [
    Case("SpectralConv1d", lambda: SpectralConv(2, 3, 6), (2, 2, 11), 3, same_at_every_resolution=True),
    Case(
        "SpectralConv2d",
        lambda: SpectralConv(2, 3, (5, 6)),
        (2, 2, 9, 8),
        3,
        same_at_every_resolution=True,
        compiles_fast=True,
    ),
    Case("SpectralConv3d", lambda: SpectralConv(2, 2, (3, 4, 4)), (1, 2, 5, 6, 5), 2, same_at_every_resolution=True),
    Case(
        "SpectralConvTucker",
        lambda: SpectralConv(2, 3, (5, 6), rank=0.5),
        (2, 2, 9, 8),
        3,
        same_at_every_resolution=True,
    ),
    Case(
        "FourierLayer",
        lambda: FourierLayer(
            SpectralConv(3, 3, (5, 5)),
            ChannelLinear(3, 3),
            channel_mlp=ChannelMLP(3, 3, 2),
            channel_mlp_skip=SoftGate(3),
        ),
        (2, 3, 8, 9),
        3,
    ),
    Case("ChannelLinear", lambda: ChannelLinear(2, 3), (2, 2, 7, 5), 3),
    Case("ChannelMLP", lambda: ChannelMLP(2, 3, 4), (2, 2, 7, 5), 3),
    Case("MLP", lambda: MLP((2, 4, 3)), (2, 7, 2), 3, channel_axis=-1),
    Case("SoftGate", lambda: SoftGate(2), (2, 2, 7), 2),
    Case("GridEmbedding", lambda: GridEmbedding(2, "nodes"), (2, 1, 7, 5), 3, parametrised=False),
    Case("Normalizer", lambda: Normalizer([1.0, -2.0], [3.0, 0.5]), (2, 2, 7), 2),
    Case("NormalizerPoints", lambda: Normalizer([1.0, -2.0], [3.0, 0.5], points=True), (2, 7, 2), 2, channel_axis=-1),
    Case(
        "Normalized",
        lambda: Normalized(ChannelLinear(2, 1), Normalizer([1.0, 0.0], [2.0, 3.0]), Normalizer([4.0], [5.0])),
        (2, 2, 6),
        1,
    ),
    Case(
        "BranchTrunk",
        lambda: Given(BranchTrunk(2), torch.randn(6, 1, 5)),
        (3, 2, 5),
        2,
        channel_axis=-1,
        points=6,
    ),
    Case("FourierFeatures", lambda: FourierFeatures(2, 6), (2, 7, 2), 6, channel_axis=-1),
    Case(
        "BoxCoordinates", lambda: BoxCoordinates(((0, 1), (-2, 3))), (2, 7, 2), 2, channel_axis=-1, parametrised=False
    ),
    Case(
        "DeepONet",
        lambda: Given(
            DeepONet.build(
                (4, 3), 2, 2, 2, basis=3, branch=(5,), trunk=(4,), trunk_features=6, domain=((0, 1), (-1, 2))
            ),
            torch.rand(7, 2),
        ),
        (2, 2, 4, 3),
        2,
        points=7,
    ),
    Case("DeepONetPOD", lambda: Given(pod_deeponet(), 3 * torch.rand(7, 1)), (2, 1, 5), 2, points=7),
    Case("GalerkinAttention", lambda: GalerkinAttention(8, heads=2), (2, 7, 8), 8, channel_axis=-1),
    Case(
        "GalerkinAttentionCoordinates",
        lambda: Given(GalerkinAttention(6, 2, 1), torch.rand(7, 1), torch.full((7,), 1 / 7)),
        (2, 7, 6),
        6,
        channel_axis=-1,
        points=7,
    ),
    Case("FourierAttention", lambda: FourierAttention(8, heads=2), (2, 7, 8), 8, channel_axis=-1),
    Case(
        "TransformerLayer",
        lambda: TransformerLayer(GalerkinAttention(4), MLP((4, 5, 4), activation=nn.ReLU())),
        (2, 7, 4),
        4,
        channel_axis=-1,
    ),
    Case("SpectralDecoder", lambda: SpectralDecoder(2, 3, 4, (4, 5)), (2, 2, 9, 8), 3),
    Case("LocalConv1d", lambda: LocalConv(2, 3, 0.5, dim=1, layout="nodes"), (2, 2, 9), 3),
    Case("LocalConv2d", lambda: LocalConv(2, 3, 0.5, dim=2, n_splines=2), (2, 2, 7, 6), 3),
    Case("LocalConv3d", lambda: LocalConv(2, 2, 1.0, dim=3, layout="cells", extent=(-1, 1)), (1, 2, 6, 7, 6), 2),
    Case("DerivativeConv1d", lambda: DerivativeConv(2, 3, dim=1, layout="nodes", second=True), (2, 2, 6), 3),
    Case("DerivativeConv2d", lambda: DerivativeConv(2, 3, 0.2, dim=2, accuracy=4), (2, 2, 7, 6), 3),
    Case("SandwichLayer", lambda: SandwichLayer(2, 3), (2, 7, 2), 3, channel_axis=-1),
    Case("CayleyLinear", lambda: CayleyLinear(2, 3), (2, 7, 2), 3, channel_axis=-1),
    Case("AOLLinear", lambda: AOLLinear(2, 3), (2, 7, 2), 3, channel_axis=-1),
    Case("SLLBlock", lambda: SLLBlock(2, 3), (2, 7, 2), 2, channel_axis=-1),
    Case("LipschitzMLP", lambda: LipschitzMLP((2, 4, 3), lipschitz=2.0), (2, 7, 2), 3, channel_axis=-1),
    Case("LipschitzFourierLayer", lambda: LipschitzFourierLayer(2, 3, (4, 5)), (2, 2, 9, 8), 3),
    Case("FunctionNorm", lambda: FunctionNorm(4, 2, ("nodes", "periodic"), dim=2), (2, 4, 7, 6), 4),
    Case("DownSampler", lambda: DownSampler(2, 5, 1.0), (2, 2, 7, 6), 5),
    Case(
        "GalerkinTransformer1d",
        lambda: GalerkinTransformer.build(
            2, 1, 4, n_layers=2, decoder_channels=3, n_modes=6, layout="periodic", decoder_layers=1
        ),
        (2, 2, 12),
        1,
    ),
    Case(
        "GalerkinTransformer2d",
        lambda: GalerkinTransformer.build(
            1,
            2,
            6,
            2,
            heads=2,
            n_layers=1,
            attention="fourier",
            decoder_channels=3,
            n_modes=(4, 5),
            decoder_layers=1,
            downsample=0.5,
            upsample=True,
            boundary="dirichlet",
        ),
        (2, 1, 8, 9),
        2,
    ),
    Case(
        "GalerkinTransformer3d",
        lambda: GalerkinTransformer.build(
            1, 1, 4, 3, n_layers=1, decoder="pointwise", decoder_channels=3, layout="cells", ffn_activation="silu"
        ),
        (2, 1, 3, 4, 5),
        1,
    ),
    Case("MultigridConv1d", lambda: MultigridConv(2, 3, 3, dim=1, boundary="periodic"), (2, 2, 9), 3),
    Case("MultigridConv2d", lambda: MultigridConv(2, 3, 3, reference_shape=8), (2, 2, 9, 8), 3),
    Case(
        "MultigridConv2dV",
        lambda: MultigridConv(
            2, 3, 3, cycle="V", boundary=("neumann", "dirichlet"), smoothing=[(1, 1), (1, 2), (2, 0)]
        ),
        (2, 2, 9, 8),
        3,
    ),
    Case("MultigridConv3d", lambda: MultigridConv(2, 2, 2, dim=3, cycle="V", boundary="neumann"), (1, 2, 5, 6, 5), 2),
    Case("MgNO", lambda: MgNO.build(1, 2, 3, 2, n_levels=3), (2, 1, 9, 8), 2),
    Case(
        "MgNOV",
        lambda: MgNO.build(2, 1, 3, 2, n_levels=3, cycle="V", boundary="neumann", norm="group"),
        (2, 2, 8, 9),
        1,
    ),
    Case("FNO1d", lambda: FNO.build(6, 1, 2, 3, n_layers=2), (2, 1, 16), 2),
    Case(
        "FNO2d",
        lambda: FNO.build((4, 5), 1, 1, 3, n_layers=2, padding=0.25, layout="nodes"),
        (2, 1, 9, 10),
        1,
        compiles_fast=True,
    ),
    Case(
        "FNO3d", lambda: FNO.build((4, 4, 4), 1, 1, 2, n_layers=2, norm="group", skip="soft-gating"), (2, 1, 5, 6, 7), 1
    ),
    Case(
        "TFNO", lambda: FNO.build((4, 5), 2, 1, 3, n_layers=2, rank=0.3, channel_mlp=None, skip=None), (2, 2, 9, 8), 1
    ),
    Case("LocalFNO1d", lambda: LocalFNO.build(6, 1, 2, 3, radius=0.25, n_layers=2), (2, 1, 16), 2),
    Case(
        "LocalFNO2d",
        lambda: LocalFNO.build(
            (4, 5), 1, 1, 3, radius=0.25, n_splines=2, n_layers=2, padding=0.25, norm="group", channel_mlp=None
        ),
        (2, 1, 11, 12),
        1,
    ),
    Case("UNet1d", lambda: UNet.build(2, 1, 3, 1, radius=0.25, n_levels=2, layout="cells"), (2, 2, 13), 1),
    Case(
        "UNet2d",
        lambda: UNet.build(
            1,
            2,
            2,
            2,
            radius=0.32,
            n_levels=2,
            layout=("nodes", "periodic"),
            extent=((0, 1), (0, 1.28)),
            coordinates=True,
            norm=None,
        ),
        (2, 1, 13, 12),
        2,
    ),
    Case(
        "MeasurementMixing",
        lambda: AsVectors(MeasurementMixing(3, queries=2)),
        (2, 4, 3),
        12,
        channel_axis=-1,
        points=1,
    ),
    Case(
        "LatentLeastSquares",
        lambda: AsVectors(Given(LatentLeastSquares(3, 2, latent=4, rank=2, hidden=4), torch.rand(4, 2))),
        (2, 4, 3),
        4,
        channel_axis=-1,
        points=1,
    ),
    Case(
        "SensorEncoder",
        lambda: AsVectors(SensorEncoder(2, 16, 3, (4, 4), kernel_size=3)),
        (3, 2, 16),
        3,
        points=1,
    ),
    Case("FlatEncoder", lambda: AsVectors(FlatEncoder(2, (4, 3), 3, (4,))), (3, 2, 4, 3), 3, points=1),
    Case("ImageEncoder", lambda: AsVectors(ImageEncoder(1, (20, 7), 3, (2, 3))), (3, 1, 20, 7), 3, points=1),
    Case(
        "NIO",
        lambda: Given(
            small_nio(encoder_channels=(3, 3), descriptors=[[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), torch.rand(7, 2)
        ),
        (2, 3, 1, 16),
        1,
        channel_axis=2,
        points=7,
    ),
    Case(
        "NIOWithoutDescriptors",
        lambda: Given(small_nio(encoder="perceptron", pooling=("mean",), positive=False), torch.rand(2, 7, 2)[:1]),
        (2, 3, 1, 16),
        1,
        channel_axis=2,
        points=7,
    ),
    Case(
        "StackedDeepONet",
        lambda: Given(StackedDeepONet.build(3, (5,), 2, Grid(6), basis=3, branch=(4,), trunk=(4,)), torch.rand(7, 1)),
        (2, 3, 2, 5),
        1,
        channel_axis=2,
        points=7,
    ),
    Case(
        "EncoderDecoder",
        lambda: Given(
            EncoderDecoder.build(3, (9,), 1, Grid((6, 7)), channels=(3, 3), features=4, decoder_channels=(3, 2)),
            torch.rand(7, 2),
        ),
        (2, 3, 1, 9),
        1,
        channel_axis=2,
        points=7,
    ),
    Case(
        "Rollout",
        lambda: AsChannels(Rollout(FNO.build((4, 5), 2, 1, 3, n_layers=1), 3, window=2, increments=True)),
        (2, 2, 9, 8),
        3,
    ),
]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
trainable = pytest.mark.parametrize(
    "case", [c for c in CASES if list(c.make().parameters())], ids=lambda case: case.name
)


def made(case: Case, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = case.make().to(dtype)
    for parameter in model.parameters():  # biases start at zero, where a wrong use of them would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, torch.randn(case.input, dtype=dtype)


def expected_shape(case: Case, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if case.points is not None:
        return (input_shape[0], case.points, case.output_channels)
    shape = list(input_shape)
    shape[case.channel_axis] = case.output_channels
    return tuple(shape)


@cases
def test_output_shape_also_at_other_sizes(case: Case) -> None:
    model, x = made(case)
    assert model(x).shape == expected_shape(case, case.input)
    for larger in (1, 2) if case.points is None else ():
        shape = tuple(n + larger if i >= 2 and case.channel_axis == 1 else n for i, n in enumerate(case.input))
        assert model(torch.randn(shape, dtype=x.dtype)).shape == expected_shape(case, shape)


@cases
def test_gradients_equal_finite_differences(case: Case) -> None:
    model, x = made(case)
    names = [name for name, _ in model.named_parameters()]
    parameters = tuple(p.detach().requires_grad_() for p in model.parameters())

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


@cases
def test_dtype_round_trip(case: Case) -> None:
    model, x = made(case, torch.float32)
    before = model(x)
    assert before.dtype == torch.float32
    double = copy.deepcopy(model).double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(before, double.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(copy.deepcopy(model).double().float()(x), before)


@cases
def test_state_dict_round_trip_nested_and_averaged(case: Case) -> None:
    model, x = made(case)
    for wrap in (lambda m: m, nn.Sequential, lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9))):
        source, target = wrap(copy.deepcopy(model)), wrap(case.make().double())
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), source(x))
        assert all(not value.is_complex() for value in source.state_dict().values())


@trainable
def test_state_dict_round_trip_in_ddp(case: Case) -> None:
    model, x = made(case)
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        source = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        source(x).sum().backward()
        target = nn.parallel.DistributedDataParallel(case.make().double())
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), model(x))
    finally:
        destroy_process_group()


@trainable
def test_every_parameter_has_a_gradient_and_changes_the_output(case: Case) -> None:
    model, x = made(case)
    y = model(x)
    # A fixed random functional: a plain sum is blind to whatever a transform conserves.
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        with torch.no_grad():
            change = 0.5 * torch.randn_like(parameter)
            parameter += change
            assert not torch.allclose(model(x), y), name
            parameter -= change


@cases
def test_two_evaluations_agree(case: Case) -> None:
    model, x = made(case)
    model.eval()
    assert torch.equal(model(x), model(x))


@cases
def test_vmap_equals_a_loop(case: Case) -> None:
    model, x = made(case)
    stack = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(
        torch.vmap(model)(stack), torch.stack([model(part) for part in stack]), rtol=1e-10, atol=1e-10
    )


@cases
def test_empty_batch(case: Case) -> None:
    model, x = made(case)
    y = model(x[:0].requires_grad_())
    assert y.shape == expected_shape(case, (0, *case.input[1:]))
    if y.requires_grad:
        y.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@cases
def test_strided_input_equals_contiguous(case: Case) -> None:
    model, x = made(case)
    wide = torch.randn(*case.input[:-1], 2 * case.input[-1], dtype=x.dtype)[..., ::2]
    assert not wide.is_contiguous()
    torch.testing.assert_close(model(wide), model(wide.contiguous()), rtol=1e-12, atol=1e-12)
    expanded = x[:1].expand(case.input)
    torch.testing.assert_close(model(expanded), model(expanded.contiguous()), rtol=1e-12, atol=1e-12)


@cases
def test_wrong_input_is_refused_in_a_sentence(case: Case) -> None:
    model, x = made(case, torch.float32)
    if case.channel_axis == 1:
        with pytest.raises(ValueError, match=r"shape .*(expects|axes)"):
            model(x[0, 0])
    with pytest.raises(TypeError, match=r"int64"):
        model(x.long())
    if not case.parametrised:
        return
    with pytest.raises(ValueError, match=r"expects"):
        model(torch.cat([x, x, x], dim=case.channel_axis))
    with pytest.raises(TypeError, match=r"float64"):
        model(x.double())
    with pytest.raises(ValueError, match=r"meta"):
        model(x.to("meta"))


@pytest.mark.parametrize("case", [c for c in CASES if c.same_at_every_resolution], ids=lambda case: case.name)
def test_theorem_of_resolution(case: Case) -> None:
    """For inputs with |k| < min(n, n_modes) / 2 the layer is one function at 32, 33, 48 and 64, to 1e-12."""
    model, _ = made(case)
    dim = len(case.input) - 2
    sizes = (32, 33, 48, 64) if dim < 3 else (12, 13, 16)
    coarse = 3  # an odd grid of 3 points has |k| <= 1, below every n_modes / 2 here
    seed = torch.randn(*case.input[:2], *[coarse] * dim, dtype=torch.float64)
    probe = [sizes[-1]] * dim
    outputs = [resample(model(resample(seed, [n] * dim)), probe) for n in sizes]
    for n, output in zip(sizes, outputs, strict=True):
        assert (output - outputs[-1]).abs().max() < 1e-12, n


def test_fno_differences_fall_under_refinement() -> None:
    """Without coordinates and on a periodic domain, |64 - 128| <= |32 - 64| / 10."""
    torch.manual_seed(1)
    model = FNO.build((12, 12), 1, 1, 16, coordinates=False).double()
    seed = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        u32, u64, u128 = (model(resample(seed, (n, n))) for n in (32, 64, 128))
    first = (u32 - u64[..., ::2, ::2]).norm() / u32.norm()
    second = (u64 - u128[..., ::2, ::2]).norm() / u64.norm()
    assert second <= 0.1 * first


def test_fno_on_nodes_is_one_function_of_the_physical_domain() -> None:
    """Fractional padding keeps the period at 1 + p at 64 and 127 nodes: the difference falls under refinement."""
    torch.manual_seed(1)
    model = FNO.build((8, 8), 1, 1, 8, padding=1 / 9).double()
    line = torch.linspace(0, 1, 253, dtype=torch.float64)
    field = torch.sin(torch.pi * line)[:, None] * torch.cos(2 * line)
    with torch.no_grad():
        u64, u127, u253 = (model(field[None, None, ::s, ::s]) for s in (4, 2, 1))
    first = (u64 - u127[..., ::2, ::2]).norm() / u64.norm()
    second = (u127 - u253[..., ::2, ::2]).norm() / u127.norm()
    assert second < 0.6 * first


def test_padded_fields_have_fourier_coefficients_of_second_order() -> None:
    """The mean value at the jump makes the sums trapezoidal: halving the spacing divides the error by four."""
    line = torch.linspace(0, 1, 253, dtype=torch.float64)
    field = (torch.exp(line)[:, None] * (1 + line))[None, None]
    padding = DomainPadding(1 / 9, "nodes", dim=2)
    kept = [torch.fft.fft2(padding.pad(field[..., ::s, ::s]), norm="forward")[..., :4, :4] for s in (4, 2, 1)]
    first, second = (kept[0] - kept[1]).norm(), (kept[1] - kept[2]).norm()
    assert 3.8 < first / second < 4.2


def compile_and_export(case: Case) -> None:
    model, _ = made(case, torch.float32)
    model.eval()
    free = range(2, len(case.input)) if case.channel_axis == 1 else range(1, 2)  # grid axes, or the points
    free = free if case.points is None else range(0)

    def sample(batch: int, more: int) -> torch.Tensor:
        return torch.randn(batch, *(max(n, 16) + more if i in free else n for i, n in enumerate(case.input) if i))

    x = sample(3, 0)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    dynamic = {0: torch.export.Dim("batch", min=2)}
    dynamic |= {axis: torch.export.Dim(f"n{axis}", min=12, max=256) for axis in free}
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,)).module()
    for batch, more in ((2, 0), (3, 1), (4, 16)):
        other = sample(batch, more)
        torch.testing.assert_close(program(other), model(other), rtol=1e-5, atol=1e-6)


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler here",
)


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # torch.compile warns about complex operators, which it leaves to eager kernels
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c.compiles_fast else pytest.mark.slow, id=c.name) for c in CASES],
)
def test_compile_and_export(case: Case, tmp_path, monkeypatch) -> None:
    # A private cache: a process killed while it compiles leaves broken files in the shared one.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compile_and_export(case)
