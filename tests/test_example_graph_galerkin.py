"""The graph Galerkin example does what it promises."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")
pytest.importorskip("skfem")
TINY = {"nodes": 150, "observations": 20, "iterations": 100, "hidden_channels": 8, "order": 3}


def test_graph_galerkin_end_to_end(tmp_path: Path) -> None:
    main, out = example("graph_galerkin_inverse").main, tmp_path / "run"
    ratio = main(**TINY, out=out)
    results = json.loads((out / "results.json").read_text())
    reference = results["reference"]
    assert results["ratio"] == ratio == results["error_f"] / reference["error_f"]
    assert results["nodes"] >= 150 and results["observations"] == 20
    assert 0 < reference["error_f"] < 0.5 and 0 < reference["error_u"] < 0.1
    # 100 iterations are no convergence, but already a field.
    assert results["eliminated"]["error_f"] < 2 * reference["error_f"]
    assert 0 < results["error_f"] < 1 and 0 < results["residual"] < 0.1
    assert all(is_drawn(out / picture) for picture in ("forcings.png", "convergence.png"))
    with pytest.raises(FileExistsError, match="overwrite"):
        main(**TINY, out=out)
    assert main(**TINY, out=out, overwrite=True) == ratio


def test_gauss_newton_finds_the_minimum() -> None:
    """The gradient of the objective vanishes at what it returns, and any move away from there is worse."""
    module = example("graph_galerkin_inverse")
    task = module.draw(150, 20, 0.01, seed=1)
    _, f = module.adjoint_gauss_newton(task)
    observe = module.SparseMatrix(task.space.interpolation(task.points))

    def objective(f: torch.Tensor) -> torch.Tensor:
        misfit = (observe(task.form.solve({"forcing": f})) - task.values) / task.sigma
        return misfit.square().sum() + task.prior.whitened(f).square().sum()

    f = f.requires_grad_()
    gradient = torch.autograd.grad(objective(f), f)[0]
    white = task.prior.coloured(torch.ones_like(f.detach())) - task.prior.mean
    best = float(objective(f.detach()))
    for sign in (-1, 1):
        assert float(objective(f.detach() + sign * 1e-2 * white)) > best
    # In the prior's own norm the gradient is small against its parts.
    size = float((gradient @ task.prior.covariance(gradient)).sqrt())
    assert size < 1e-6 * best**0.5
    assert len(task.points) == 20 and bool(task.space.mesh.contains(task.points).all())


def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("graph_galerkin_inverse")
    monkeypatch.setitem(sys.modules, "skfem", None)
    with pytest.raises(ImportError, match=r"pip install 'opflow\[fem\]'"):
        module.main(**TINY, out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_graph_galerkin_keeps_its_promise(seed: int, tmp_path: Path) -> None:
    ratio = example("graph_galerkin_inverse").main(seed=seed, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["nodes"] >= 2000 and results["observations"] == 50
    assert max(ratio, results["eliminated"]["ratio"]) <= 1.2
