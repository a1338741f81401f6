"""What only a CUDA device shows: the same numbers as on the CPU."""

import pytest
import torch

from opflow.batch import Batch
from opflow.functional import spectral_conv
from opflow.grid import Grid
from opflow.layers import SpectralConv
from opflow.losses import DataMisfit, relative_l2
from opflow.models import FNO, DeepONet, GalerkinTransformer, LocalFNO, MgNO, Rollout, UNet
from opflow.pde import GridDerivatives
from opflow.problems import Burgers, Darcy, KortewegDeVries, NavierStokes, Schroedinger
from opflow.solvers import ConjugateGradient, FaceStencil, FastPoisson
from opflow.training import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

SHAPES = [((5,), (9,)), ((8,), (8,)), ((5, 6), (9, 13)), ((8, 8), (8, 8)), ((12, 12), (9, 10)), ((3, 4, 5), (6, 5, 7))]


@pytest.mark.parametrize(("n_modes", "shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_conv_equals_the_cpu(n_modes, shape, dtype) -> None:
    """Also where kept modes reach the unpaired column, whose imaginary part cuFFT does not always ignore."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *shape, dtype=dtype)
    weight = torch.randn(*n_modes[:-1], n_modes[-1] // 2 + 1, 2, 3, 4, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.detach().to(device).requires_grad_() for t in (x, weight)]
        y = spectral_conv(*leaves, n_modes)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for cpu, gpu in zip(*results, strict=True):
        assert (cpu - gpu.cpu()).norm() <= tolerance * cpu.norm()


def test_autocast_keeps_the_transforms_in_single_precision() -> None:
    layer = SpectralConv(4, 4, (8, 8)).cuda()
    x = torch.randn(2, 4, 15, 17, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (layer(x) - layer(x.bfloat16().float())).norm() < 0.02 * layer(x).norm()


@pytest.mark.parametrize("medium", ["two-phase", "log-normal"])
def test_darcy_solve_equals_the_cpu(medium) -> None:
    problem, grid = Darcy(medium=medium), Grid((65, 65))
    inputs = problem.sample(3, grid)
    cpu = problem.solve(inputs, grid)["pressure"]
    gpu = problem.solve({name: field.cuda() for name, field in inputs.items()}, grid)["pressure"]
    assert gpu.device.type == "cuda"
    assert (cpu - gpu.cpu()).norm() <= 1e-8 * cpu.norm()


def test_float32_solve_and_residual_on_the_device() -> None:
    problem, grid = Darcy(), Grid((33, 33))
    a = problem.sample(2, grid)["permeability"].float().cuda()
    solution = ConjugateGradient(FastPoisson(), rtol=1e-5).solve(
        FaceStencil.from_coefficient(a, grid), torch.ones(2, 31, 31).cuda()
    )
    assert solution.all_converged
    u = torch.nn.functional.pad(solution.x, (1, 1, 1, 1))
    derivatives = GridDerivatives(grid)
    residual = problem.residual(derivatives(u[:, None], ("pressure",)), {"permeability": derivatives(a)})[
        "mass_balance"
    ]
    assert residual[:, 1:-1, 1:-1].abs().max() < 1e-2


def test_training_on_the_device() -> None:
    torch.manual_seed(0)
    model = FNO.build((8, 8), 1, 1, 8, padding=0.125).cuda()
    batches = [Batch(input=torch.randn(4, 1, 33, 33), target=torch.randn(4, 1, 33, 33))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [record.loss for record in fit(model, DataMisfit(relative_l2), batches, optimizer, epochs=20)]
    assert losses[-1] < 0.9 * losses[0]


EVOLUTIONS = [
    (Burgers(cutoff=16), Grid(128, layout="periodic")),
    (KortewegDeVries(cutoff=8, final_time=0.1), Grid(128, (-10.0, 10.0), "periodic")),
    (Schroedinger(cutoff=8, final_time=0.1), Grid(128, (-5.0, 5.0), "periodic")),
    (NavierStokes(cutoff=8, final_time=1.0), Grid((32, 32), layout="periodic")),
]


@pytest.mark.parametrize(("problem", "grid"), EVOLUTIONS, ids=lambda part: type(part).__name__)
def test_evolutions_equal_the_cpu(problem, grid) -> None:
    inputs = problem.sample(3, grid)
    cpu = problem.solve(inputs, grid, rtol=1e-8)
    gpu = problem.solve({name: field.cuda() for name, field in inputs.items()}, grid, rtol=1e-8)
    for name, field in cpu.items():
        assert gpu[name].device.type == "cuda"
        assert (field - gpu[name].cpu()).norm() <= 1e-6 * field.norm()


MODELS = [
    (lambda: DeepONet.build(20, 1, branch=(16,), trunk=(16,), basis=8), (4, 1, 20), (7, 1)),
    (
        lambda: GalerkinTransformer.build(1, 1, 8, 2, heads=2, n_layers=2, decoder_channels=4, n_modes=6),
        (4, 1, 9, 8),
        None,
    ),
    (
        lambda: GalerkinTransformer.build(
            1, 1, 8, 2, n_layers=1, decoder_channels=4, n_modes=6, downsample=7, upsample=True, boundary="dirichlet"
        ),
        (4, 1, 15, 15),
        None,
    ),
    (lambda: Rollout(FNO.build((6, 6), 2, 1, 6, n_layers=2), 3, window=2), (2, 1, 2, 12, 12), None),
    (lambda: MgNO.build(1, 1, 6, 2, n_levels=3), (2, 1, 17, 12), None),
    (lambda: MgNO.build(1, 1, 6, 2, n_levels=3, cycle="V", boundary="neumann", norm="group"), (2, 1, 17, 12), None),
    (lambda: LocalFNO.build((6, 6), 1, 1, 6, radius=0.25, n_layers=2), (2, 1, 16, 15), None),
    (lambda: UNet.build(1, 1, 4, 2, radius=0.2, n_levels=2), (2, 1, 24, 20), None),
]


@pytest.mark.parametrize(
    ("make", "shape", "coords"),
    MODELS,
    ids=("DeepONet", "Galerkin", "sampled Galerkin", "Rollout", "MgNO", "MgNO V", "LocalFNO", "UNet"),
)
def test_models_equal_the_cpu_and_train(make, shape, coords) -> None:
    torch.manual_seed(0)
    model = make().double()
    given = [torch.randn(shape, dtype=torch.float64)] + ([] if coords is None else [torch.rand(coords).double()])
    expected = model(*given)
    model = model.cuda()
    found = model(*[part.cuda() for part in given])
    assert (found.cpu() - expected).norm() <= 1e-10 * expected.norm()
    model = model.float()
    batch = Batch(given[0].float(), torch.randn_like(expected).float(), *[part.float() for part in given[1:]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [record.loss for record in fit(model, DataMisfit(relative_l2), [batch], optimizer, epochs=30)]
    assert losses[-1] < losses[0]
