"""The public surface: names that other code relies on, each documented, each doctest true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import opflow

# Names promised by the faces; add freely, rename only with a line in the CHANGELOG.
SURFACE = {
    "opflow": ["Batch", "Grid", "Mesh", "__version__"],
    "opflow.functional": ["explain_backend", "resample", "spectral_conv"],
    "opflow.layers": [
        "BranchTrunk", "ChannelMLP", "FourierAttention", "FourierFeatures", "FourierLayer", "GalerkinAttention", "GridEmbedding", "LatentLeastSquares", "MLP", "MeasurementMixing",
        "AOLLinear", "CayleyLinear", "LipschitzFourierLayer", "LipschitzMLP", "SLLBlock", "SandwichLayer",
        "HardConstraint", "HardInitial", "Normalized", "Normalizer", "PODTrunk", "PeriodicFeatures", "ResidualGateMLP", "SpectralConv",
    ],
    "opflow.models": ["FNO", "DeepONet", "DirectionNetwork", "GalerkinTransformer", "GraphNetwork", "KernelRidge", "LagrangianPINN", "MultigridNetwork", "NIO", "PINN", "Rollout", "TunedCycle"],
    "opflow.problems": [
        "AcousticWaveform", "Advection", "AllenCahn", "Antiderivative", "Burgers", "CavityScattering", "Darcy", "DiffusionReaction", "DiscTomography", "ElectrodeTomography", "FitzHughNagumo", "Helmholtz", "ImpedanceTomography", "KortewegDeVries",
        "KuramotoSivashinsky", "NavierStokes", "NonlinearODE", "OpenScattering", "Pendulum", "PipeFlow", "Poisson", "RadiativeTransport", "Schroedinger",
    ],
    "opflow.pde": [
        "AcousticStepper", "AutogradDerivatives", "Collocation", "CosineField", "Dirichlet", "GridDerivatives", "Initial", "Neumann", "Periodic", "Robin", "WeakForm",
        "observations", "scatter_observations", "IntegrationFailed", "PeriodicField", "SpectralStepper",
        "SquaredExponentialField", "TrigonometricSpace", "add_noise",
    ],
    "opflow.pde.geometry": ["Ball", "Box", "Difference", "Disc", "Intersection", "Interval", "LShape", "MeshDomain", "Polygon", "SpaceTime", "Union"],
    "opflow.losses": [
        "ConditionResidual", "DataMisfit", "DirectionLoss", "DiscreteTimeResidual", "GalerkinResidual", "LagrangianResidual", "PDEResidual", "challenge_score", "dice",
        "Unknown", "relative_h1", "relative_l1", "relative_l2", "warn_if_ill_posed",
    ],
    "opflow.solvers": [
        "GMRES", "AlgebraicMultigrid", "ConjugateDirection", "ConjugateGradient", "FaceStencil", "FastPoisson", "LinearOperator", "Multigrid",
        "Reason", "SetUpOnce", "Solution", "SolverError", "implicit_solve",
    ],
    "opflow.data": ["FieldDataset", "generate", "open_dataset", "read_fresnel", "read_ktc", "random_subsets", "write_dataset"],
    "opflow.training": [
        "CausalWeights", "GradientNormBalance", "LevenbergMarquardt", "LimitedMemoryBFGS", "SelfScaledBroyden", "StateSelection",
        "TangentKernelBalance", "evaluate", "fit", "gauss_newton_covariance", "load_checkpoint", "save_checkpoint",
    ],
    "opflow.inversion": [
        "Certificate", "Coverage", "Estimate", "GaussianPrior", "LinearisedReconstruction", "Outcome", "Samples", "coverage", "coverage_curve",
        "gauss_newton", "gaussian_log_likelihood", "gaussian_transform", "interval_coverage", "lipschitz_bound", "map_estimate",
        "preconditioned_crank_nicolson", "probability_transform", "sampled_lower_bound", "segment_conductivity",
    ],
    "opflow.interop": ["Predictor", "as_linear_operator", "as_petsc_pc", "as_preconditioner", "from_neuraloperator"],
}  # fmt: skip

MODULES = ["opflow", *(module.name for module in pkgutil.walk_packages(opflow.__path__, "opflow."))]
FACES = [name for name in MODULES if hasattr(importlib.import_module(name), "__all__")]


@pytest.mark.parametrize("face", SURFACE)
def test_promised_names_are_there(face: str) -> None:
    module = importlib.import_module(face)
    assert set(SURFACE[face]) <= set(module.__all__)


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_exists_and_says_what_it_is(face: str) -> None:
    module = importlib.import_module(face)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if name.startswith("__") or not callable(value):
            continue
        own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        assert own and own.strip() and not own.startswith(f"{name}("), f"{face}.{name} needs a docstring of its own"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_docstring(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_doctests_are_found() -> None:
    examples = sum(
        len(test.examples) for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name))
    )
    assert examples > 50


def test_calls_keep_their_shape() -> None:
    """Positional arguments and options of the calls that scripts write most."""

    def parameters(function) -> dict[str, str]:
        return {p.name: p.kind.name for p in inspect.signature(function).parameters.values()}

    from opflow.functional import spectral_conv
    from opflow.problems import Darcy
    from opflow.solvers import ConjugateGradient

    assert list(parameters(spectral_conv)) == ["x", "weight", "n_modes", "output_shape", "backend"]
    assert parameters(spectral_conv)["output_shape"] == "KEYWORD_ONLY"
    assert list(parameters(ConjugateGradient))[:4] == ["preconditioner", "rtol", "max_steps", "callback"]
    assert list(parameters(ConjugateGradient.solve))[1:] == ["A", "b", "x0"]
    assert list(parameters(Darcy.sample))[1:] == ["indices", "grid", "seed", "split"]
    assert parameters(Darcy.sample)["seed"] == parameters(Darcy.solve)["rtol"] == "KEYWORD_ONLY"
    assert Darcy.coordinates == ("x", "y") and Darcy.inputs == ("permeability",) and Darcy.unknowns == ("pressure",)
    fields = list(inspect.signature(opflow.Batch).parameters)
    assert fields == ["input", "target", "coords", "parameters", "mask", "weight", "index"]
