"""The examples do what they promise, end to end, at sizes that take seconds."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TINY = {"epochs": 1, "hidden_channels": 8, "modes": 6}

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up by its name
    spec.loader.exec_module(module)
    return module


def is_drawn(path: Path) -> bool:
    """A PNG with more than a blank page on it."""
    from matplotlib.image import imread

    picture = imread(path)
    return min(picture.shape[:2]) > 100 and float(np.std(picture[..., :3])) > 0.05


def test_darcy_resolution_observes_the_stated_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("darcy_resolution")
    order = module.main(sizes=(17, 33, 65), finest=129, out=tmp_path)
    assert 1.9 < order < 2.1
    assert is_drawn(tmp_path / "fields.png") and is_drawn(tmp_path / "convergence.png")
    printed = capsys.readouterr().out
    assert printed.count("the same medium: True") == 3
    observed = {
        line.split(", ")[1].split(":")[0]: float(line.split()[-1])
        for line in printed.splitlines()
        if "observed" in line
    }
    assert 1.9 < observed["jump midway between nodes"] < 2.1
    assert 0.9 < observed["jump on a node"] < 1.1
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(sizes=(17, 33), finest=65, out=tmp_path)
    module.main(sizes=(17, 33), finest=65, out=tmp_path, overwrite=True)


def test_darcy_fno_end_to_end(tmp_path: Path) -> None:
    main = example("darcy_fno").main
    arguments = {"size": 17, "unseen": 33, "samples": 40, "test_samples": 4, "data_folder": tmp_path / "data", **TINY}
    out = tmp_path / "run"
    error = main(**arguments, out=out)
    results = json.loads((out / "results.json").read_text())
    assert 0 < error < 2 and results["relative_l2"] == error and results["samples"] == 4
    assert 0 < results["relative_l2_unseen_resolution"] < 2
    assert all(solve["true_residual"] < 1e-5 for solve in results["scipy"].values())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1]
    assert is_drawn(out / "fields.png")
    assert {"latest", "best"} <= {path.name for path in (out / "checkpoints").iterdir()}

    with pytest.raises(FileExistsError, match="--resume"):
        main(**arguments, out=out)
    # A finished run is only evaluated again, and the stored data are used again.
    assert main(**arguments, out=out, resume=True) == error
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert main(**arguments, out=out, overwrite=True) == error


def test_darcy_fno_trains_on_the_published_set(tmp_path: Path, reference_data: Callable[[str], Path]) -> None:
    path = reference_data("neuralop/darcy_train_16.npz")
    error = example("darcy_fno").main(data=path, batch_size=50, out=tmp_path / "run", **TINY)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < error < 1 and results["relative_l2"] == error and results["samples"] == 100
    assert is_drawn(tmp_path / "run" / "fields.png")


MEASURE = """
import runpy, sys, time
import torch
sys.argv = [sys.argv[1], "--help"]
start = time.process_time()
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("\\nCPU", time.process_time() - start)
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_quick(script: Path, tmp_path: Path) -> None:
    """--help costs less than 0.5 CPU s beyond the import of torch."""
    costs = []
    for _ in range(3):
        command = [sys.executable, "-c", MEASURE, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert "--out" in done.stdout and "--overwrite" in done.stdout
        costs.append(float(done.stdout.split()[-1]))
        if costs[-1] < 0.5:
            break
    assert min(costs) < 0.5, costs
    assert not list(tmp_path.iterdir())


def test_spectral_backends_agree_with_the_reference(tmp_path: Path) -> None:
    main = example("spectral_backends").main
    error = main(sizes=(24, 25), modes=(4, 24), grid=24, channels=2, rounds=1, out=tmp_path)
    assert 0 < error < 5e-7
    assert is_drawn(tmp_path / "backends.png")


def test_pyamg_gallery_solves_what_is_positive_definite_and_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyamg")
    main = example("pyamg_gallery").main
    assert 0 < main(size=40, out=tmp_path) <= 1e-8 * (1 + 1e-6)
    results = json.loads((tmp_path / "results.json").read_text())
    assert is_drawn(tmp_path / "iterations.png") and results["recirc_flow"] == "NONSYMMETRIC"
    assert len(results["iterations"]) == 11
    for name, found in results["iterations"].items():
        plain, others = found.pop("none"), found.values()
        assert min(others) * 3 < plain and max(others) <= 60, name
    stencils = [name for name, found in results["iterations"].items() if "geometric multigrid" in found]
    assert stencils == ["Poisson, five points", "Poisson, seven points", "anisotropy 0.01, aligned"]
    printed = capsys.readouterr().out
    assert "no stencil: " in printed and "helmholtz_2D: A is complex128" in printed
    with pytest.raises(FileExistsError, match="overwrite"):
        main(size=40, out=tmp_path)


@pytest.mark.parametrize("options", [{"size": 24}, {"size": 12, "dim": 3}], ids=["plane", "space"])
def test_smoke_plume_leaves_no_divergence(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyamg")
    module, tiny = example("smoke_plume"), {**options, "steps": 12, "compared": 2, "rounds": 1}
    left = module.main(**tiny, out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < left <= 1.01e-6 and results["largest_divergence"] == left
    assert results["iterations"]["most"] <= 8
    assert set(results["seconds_a_step"]) == {"multigrid", "no preconditioner", "smoothed aggregation", "Ruge-Stueben"}
    assert all(is_drawn(tmp_path / "run" / picture) for picture in ("plume.png", "iterations.png"))
    with pytest.raises(FileExistsError, match="overwrite"):
        module.main(**tiny, out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pyamg", None)
    assert module.main(**tiny, out=tmp_path / "run", overwrite=True) == left
    assert "not compared with algebraic multigrid: AlgebraicMultigrid needs PyAMG" in capsys.readouterr().out
    monkeypatch.setattr(module, "gradient", lambda p, A, axis, h: 0.99 * gradient(p, A, axis, h))
    gradient = example("smoke_plume").gradient
    with pytest.raises(RuntimeError, match=r"step 1 left 1\.0e-02 of its divergence, more than rtol=1e-06"):
        module.main(**tiny, out=tmp_path / "wrong")


@pytest.mark.slow
def test_smoke_plume_keeps_its_promise(tmp_path: Path) -> None:
    assert example("smoke_plume").main(out=tmp_path) <= 1.01e-6


def test_scikit_fem_poisson_agrees_with_direct_solves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyamg")
    pytest.importorskip("skfem")
    module = example("scikit_fem_poisson")
    difference = module.main(rectangles=(17, 33), discs=(3, 4), out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < difference < 1e-8 and results.pop("largest difference to the direct solve") == difference
    expected = {
        "rectangle, linear": ("Multigrid", 2),
        "disc, linear": ("AlgebraicMultigrid", 2),
        "disc, quadratic": ("AlgebraicMultigrid", 3),
    }
    assert results.keys() == expected.keys()
    for name, (preconditioner, order) in expected.items():
        assert results[name]["preconditioner"] == preconditioner
        assert abs(results[name]["order"] - order) < 0.2
        assert abs(results[name]["iterations"] - results[name]["iterations of SciPy"]) <= 1
    assert "no stencil: 145 nodes have 59 x 59 different coordinates" in capsys.readouterr().out
    assert all(is_drawn(tmp_path / "run" / picture) for picture in ("solutions.png", "convergence.png"))
    with pytest.raises(FileExistsError, match="overwrite"):
        module.main(rectangles=(17, 33), discs=(3, 4), out=tmp_path / "run")
    module.waves_forcing = lambda x: 1.01 * module.waves(x) * np.pi**2
    with pytest.raises(RuntimeError, match=r"rectangle, linear: the error falls with order .*, but 2 is stated"):
        module.main(rectangles=(17, 33), discs=(3, 4), out=tmp_path / "wrong")


@pytest.mark.slow
def test_scikit_fem_poisson_keeps_its_promise(tmp_path: Path) -> None:
    assert example("scikit_fem_poisson").main(out=tmp_path) < 1e-8


def test_scikit_fem_poisson_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skfem", None)
    with pytest.raises(ImportError, match=r"pip install 'opflow\[fem\]'"):
        example("scikit_fem_poisson").main(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_petsc_shell_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petsc4py", None)
    with pytest.raises(SystemExit, match=r"apt install python3-petsc4py.*make petsc"):
        example("petsc_shell").main(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_petsc_shell_takes_the_same_iterations_in_petsc_and_torch(tmp_path: Path) -> None:
    pytest.importorskip("petsc4py", reason="petsc4py is not installed; `make petsc` runs this test")
    iterations = example("petsc_shell").main(size=65, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("FastPoisson", "Multigrid"):
        assert results[f"opflow {name}"]["iterations"] == results[f"torch {name}"]["iterations"]
    assert iterations == results["opflow Multigrid, second medium"]["iterations"] <= 12
    assert all(result["true_residual"] <= 1.01e-8 for result in results.values())
    assert is_drawn(tmp_path / "residuals.png")


OPERATORS = [  # example, tiny arguments, what its default run promises, its pictures
    (
        "burgers_galerkin",
        {"size": 32, "samples": 20, "test_samples": 4, "epochs": 1, "hidden_channels": 8},
        0.01,
        ("velocities.png", "convergence.png"),
    ),
    (
        "navier_stokes_fno",
        {"size": 16, "samples": 4, "test_samples": 4, "known": 3, "ahead": 2, "batch_size": 2, "epochs": 1, "modes": 6},
        0.03,
        ("vorticity.png", "spectrum.png", "convergence.png"),
    ),
    (
        "antiderivative_deeponet",
        {"sensors": 40, "samples": 40, "test_samples": 8, "epochs": 2, "batch_size": 20},
        5e-6,
        ("functions.png", "convergence.png"),
    ),
    (
        "darcy_inverse_galerkin",
        {"size": 17, "stride": 2, "samples": 20, "test_samples": 4, "epochs": 1, "hidden_channels": 8, "layers": 1},
        0.15,
        ("permeabilities.png", "convergence.png"),
    ),
    (
        "darcy_mgno",
        {"size": 17, "samples": 20, "test_samples": 4, "epochs": 1, "hidden_channels": 4, "levels": 3},
        0.015,
        ("fields.png", "convergence.png"),
    ),
    (
        "helmholtz_mgno",
        {"size": 17, "omega": 100.0, "samples": 20, "test_samples": 4, "epochs": 1, "hidden_channels": 4, "levels": 3},
        0.05,
        ("fields.png", "convergence.png"),
    ),
    (
        "local_fno",
        {
            "size": 64,
            "samples": 10,
            "test_samples": 4,
            "batch_size": 5,
            "epochs": 1,
            "modes": 6,
            "hidden_channels": 4,
            "layers": 1,
            "viscosity": 0.01,
            "time": 0.5,
        },
        1.2,
        ("vorticity.png", "spectrum.png"),
    ),
]
IDS = [name for name, *_ in OPERATORS]


@pytest.mark.parametrize(("name", "tiny", "promised", "pictures"), OPERATORS, ids=IDS)
def test_operator_examples_end_to_end(name: str, tiny: dict, promised: float, pictures: tuple, tmp_path: Path) -> None:
    main, out = example(name).main, tmp_path / "run"
    error = main(**tiny, data_folder=tmp_path / "data", out=out)
    assert np.isfinite(error) and error > 0
    assert error in json.loads((out / "results.json").read_text()).values()
    assert all(is_drawn(out / picture) for picture in pictures)
    with pytest.raises(FileExistsError, match="overwrite"):
        main(**tiny, data_folder=tmp_path / "data", out=out)
    assert main(**tiny, data_folder=tmp_path / "data", out=out, overwrite=True) == error


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tiny", "promised", "pictures"), OPERATORS, ids=IDS)
def test_operator_examples_keep_their_promise(
    name: str, tiny: dict, promised: float, pictures: tuple, tmp_path: Path
) -> None:
    assert example(name).main(data_folder=tmp_path / "data", out=tmp_path / "run") < promised


@pytest.mark.parametrize("options", [{"dim": 3}, {"variant": "64"}], ids=["multilevel", "published"])
def test_conjugate_directions_end_to_end(options: dict, tmp_path: Path) -> None:
    main, out = example("poisson_conjugate_direction").main, tmp_path / "run"
    tiny = {
        "size": 8,
        "doublings": 1,
        "geometries": 8,
        "residuals": 4,
        "lanczos": 20,
        "test_samples": 1,
        "epochs": 1,
        "batch_size": 8,
    }
    ratio = main(**tiny, **options, out=out)
    results = json.loads((out / "results.json").read_text())
    assert results["ratio"] == ratio > 0
    for method in ("conjugate gradients", "multigrid", "untrained", "network"):
        row = results[f"{method}, 16 cells, 1e-06"]
        assert row["said"] == "all converged" and row["seconds"] > 0 and len(row["steps"]) == 1
    assert all(is_drawn(out / picture) for picture in ("fields.png", "convergence.png", "sizes.png"))
    with pytest.raises(FileExistsError, match="--resume"):
        main(**tiny, **options, out=out)
    if "variant" in options:
        assert main(**tiny, **options, out=out, resume=True) == ratio  # trained already, solved again


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 3])
def test_steps_of_conjugate_directions_hardly_grow_with_the_size(dim: int, tmp_path: Path) -> None:
    assert example("poisson_conjugate_direction").main(dim=dim, out=tmp_path / "run") <= 1.3


@pytest.mark.parametrize("dim", [2, 3])
def test_learned_multigrid_end_to_end(dim: int, tmp_path: Path) -> None:
    import torch

    from opflow.files import read_tensors
    from opflow.models import MultigridNetwork

    main, out = example("learned_multigrid").main, tmp_path / "run"
    tiny = {
        "size": 16 if dim == 2 else 8,
        "operators": 4,
        "batch_size": 2,
        "epochs": 2,
        "validation_size": 24 if dim == 2 else 10,
        "validation_operators": 2,
        "test_sizes": (20,),
        "test_operators": 1,
    }
    ratio = main(dim=dim, **tiny, save="tiny", out=out)
    results, record = (json.loads((out / name).read_text()) for name in ("results.json", "tiny.json"))
    assert 0.3 < ratio < 1.5 and results["network over five tuned numbers"] == ratio
    needed = {kind: torch.tensor(list(found.values())) for kind, found in results["validation"].items()}
    assert (needed["network"] <= 1.01 * needed["five numbers"]).all()  # of every family, since each operator is a bound
    assert (
        needed["five numbers"].log().mean() <= needed["classical"].log().mean() + 0.01 and needed["network"].min() > 1
    )
    network = MultigridNetwork.build(**{k: v for k, v in record["recipe"].items() if k != "model"})
    network.load_state_dict(read_tensors(out / "tiny.safetensors", expected_sha256=record["sha256"]))
    assert len(record["tuned"]) == 5
    assert is_drawn(out / "convergence.png") and is_drawn(out / "training.png")


@pytest.mark.slow
def test_a_learned_cycle_needs_fewer_iterations_than_five_numbers(tmp_path: Path) -> None:
    assert example("learned_multigrid").main(test_sizes=(128,), test_operators=2, out=tmp_path / "run") <= 0.95
