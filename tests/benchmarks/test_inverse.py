"""The table of inverse problems: rows name what there is, each method answers, a run is recorded once and summed up honestly."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import inverse
from benchmarks.inverse_methods import METHODS, Guarded, _on_disc, run
from benchmarks.inverse_models import BUILDERS, built
from benchmarks.inverse_questions import Case, Question, folder_of, seen
from benchmarks.inverse_training import Budget, corrupted
from opflow import Batch, Grid, problems
from opflow.data import FieldDataset, generate
from opflow.problems import ImpedanceTomography

DOCS = Path(__file__).parents[2] / "docs"
TABLE = inverse.table()
SIDES, L = 16, 4
PROBLEM = ImpedanceTomography(n_measurements=L, sensors_per_side=SIDES)
NODES = Grid((13, 13))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, n, refine in (("train", 24, 1), ("validation", 8, 2), ("test", 10, 2)):
        generate(
            PROBLEM, NODES, folder / "tiny", n, split=split, refine=refine, block=4, samples_per_file=12, progress=False
        )
    return folder


def settings_of(method: str, **changes: Any) -> dict[str, Any]:
    """The table's settings of a method, cut down to the tiny data."""
    chosen = inverse.merged(TABLE["methods"][method], {})
    if "base" in chosen:
        chosen = inverse.merged(TABLE["methods"][chosen["base"]], chosen)
    model = {"components": 6, "targets": 3}
    tiny = {
        "data": "tiny", "stride": 2, "counts": [4, 2], "noise": [0.0, 0.05], "multiplicative": [0.05], "few": 2,
        "train": 24, "validation": 8, "test": 10, "seconds": 0.1,
        "training": {"batch_size": 8, "learning_rate": 1e-3, "noise": 0.05},
        "recipe": {"problem": "ImpedanceTomography", "parameters": {"n_measurements": L, "sensors_per_side": SIDES}},
    }  # fmt: skip
    if "newton" in chosen:
        chosen["newton"] = {"prior": "cosine", "modes": 3, "scale": 0.7, "decay": 2.0, "link": "exp", "steps": 3}
    if chosen["kind"] == "ridge":
        chosen["model"] = chosen["model"] | model
    if chosen["kind"] == "network":
        chosen["model"] = inverse._model(chosen["model"], "circular", True)
        small = {
            "NIO": {"features": 8, "fields": 2, "basis": 8, "mixer": [8], "trunk": [8], "n_modes": 4, "encoder_channels": [4, 4], "hidden_channels": 4},
            "NIO.published": {"width": 0.03, "basis": 8, "trunk": [8], "n_modes": 4, "hidden_channels": 4, "n_layers": 1},
            "StackedDeepONet": {"basis": 8, "branch": [8], "trunk": [8]},
            "EncoderDecoder": {"channels": [4, 4], "features": 8, "decoder_channels": [4, 4]},
        }[chosen["model"]["build"]]  # fmt: skip
        given = {
            key: value for key, value in chosen["model"].items() if key not in small or (key == "fields" and value == 1)
        }
        chosen["model"] = small | given
    if "reconstruction" in chosen:
        chosen["reconstruction"] = chosen["reconstruction"] | model
    return inverse.merged(chosen, tiny, {"training": TABLE["methods"][method].get("training", {})}, changes)


@pytest.mark.parametrize("preset", inverse.PRESETS)
def test_rows_name_what_there_is(preset: str) -> None:
    runs = list(inverse.every_run(preset))
    assert runs and len(set(runs)) == len(runs) and runs[0][0] == "calderon"
    for problem, method in dict.fromkeys((p, m) for p, m, _ in runs):
        chosen = inverse.settings(problem, method, preset)
        assert chosen["kind"] in METHODS and chosen["counts"] == sorted(chosen["counts"], reverse=True)
        recipe = chosen["recipe"]
        assert chosen["counts"][0] >= 2 and recipe["refine"]["test"] > recipe["refine"].get("train", 1)
        assert hasattr(problems, recipe["problem"])
        assert all(recipe["splits"][split] >= chosen[split] for split in inverse.SPLITS) or preset == "paper"
        assert (folder_of(chosen) == chosen["data"]) == (recipe["splits"]["train"] >= chosen["train"])
        if chosen["kind"] == "network":
            assert chosen["model"]["build"] in BUILDERS and chosen["training"]["noise"] > 0
        assert json.loads(json.dumps(chosen)) == chosen


def test_networks_of_a_problem_train_alike() -> None:
    for problem in TABLE["problems"]:
        networks = [inverse.settings(problem, m, "cpu") for m in inverse.methods_of(problem)]
        networks = [chosen for chosen in networks if chosen["kind"] == "network"]
        assert (
            len({(c["seconds"], c["train"], c["training"]["noise"], c["training"]["batch_size"]) for c in networks})
            == 1
        )


def test_ablations_change_one_thing() -> None:
    full = inverse.settings("calderon", "nio", "cpu")
    ablations = [m for m, entry in TABLE["methods"].items() if entry.get("base") == "nio" and "problems" in entry]
    assert len(ablations) == 12
    for method in ablations:
        chosen = inverse.settings("calderon", method, "cpu")
        changed = [key for key in full if chosen[key] != full[key]]
        (part,) = changed
        different = [key for key in {*chosen[part], *full[part]} if chosen[part].get(key) != full[part].get(key)]
        assert len(different) == 1, (method, different)


def test_the_published_form_without_sides_has_the_problems_encoder() -> None:
    published = TABLE["methods"]["nio-published"]["model"]
    model = inverse._model(published, "image", False)
    assert model["build"] == "NIO" and model["encoder"] == "image" and model["lifting"] == "frozen"
    assert (model["fields"], model["mixer"], model["pooling"]) == (1, "none", ["mean"])
    assert inverse._model(published, "circular", True) == published


@pytest.mark.parametrize("method", TABLE["methods"])
def test_every_method_answers(method: str, data: Path) -> None:
    chosen = settings_of(method)
    result = run(chosen, 0, data=data)
    cases = [(c["measurements"], c["noise"], c["kind"]) for c in result["cases"]]
    assert cases == [(4, 0.0, "additive"), (4, 0.05, "additive"), (2, 0.0, "additive"), (2, 0.05, "additive"), (4, 0.05, "multiplicative")]  # fmt: skip
    slow = chosen["kind"] == "newton"
    for case in result["cases"]:
        assert case["samples"] == (2 if slow else 10) and case["first"]["samples"] == 2
        for norm in ("l1", "l2"):
            s = case[norm]
            assert 0 <= s["lower_quartile"] <= s["median"] <= s["upper_quartile"] <= s["p90"] < 1
    assert result["grid"] == [7, 7] and result["measured"] == [L, 1, 4 * SIDES] and result["inversion_seconds"] > 0
    assert (result["parameters"] > 0) == (chosen["kind"] in ("ridge", "network"))
    if chosen["kind"] == "network":
        assert result["steps"] >= 1 and result["curve"] and 0.1 <= result["fit_seconds"] < 3
    json.dumps(result, allow_nan=False)


def test_all_methods_are_asked_the_same(data: Path) -> None:
    question = Question(settings_of("nio"), data)
    case = Case(2, 0.05)
    first, again = (question.measured(question.test, case) for _ in range(2))
    few = question.measured(question.test, case, 3)
    assert torch.equal(first.input, again.input) and torch.equal(first.mask, again.mask)
    assert torch.equal(few.input, first.input[:3]) and torch.equal(few.mask, first.mask[:3])
    assert (first.mask.sum(1) == 2).all() and question.measured(question.test, Case(4, 0.0)).mask is None
    clean = question.test.read(range(10)).input
    noise = (first.input - clean).square().mean((1, 2, 3)).sqrt() / clean.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(noise, torch.tensor(0.05), rtol=0.2)
    assert question.grid == Grid((7, 7)) and question.full_grid == NODES


def test_errors_are_relative_norms_over_the_domain(data: Path) -> None:
    question = Question(settings_of("constant"), data)
    target = torch.ones(2, 1, 7, 7)
    wrong = target.clone()
    wrong[1, 0, 0, 0] += 1.0  # a corner has the weight of a quarter of a cell
    errors = question.errors(wrong, target)
    assert torch.allclose(errors["l1"], torch.tensor([0.0, 1 / 144], dtype=torch.float64))
    assert torch.allclose(errors["l2"], torch.tensor([0.0, 1 / 12], dtype=torch.float64))
    with pytest.raises(ValueError, match="holds 10 samples, but 11 are asked for"):
        Question(settings_of("constant", test=11), data)


def test_compressed_measurements_keep_their_order_and_their_noise() -> None:
    y = torch.linspace(-200, 200, 41).view(1, 1, 1, 41)
    assert torch.equal(seen({}, y), y)
    z = seen({"compressed": True}, y)
    assert bool((z.diff() > 0).all()) and torch.equal(z.sign(), y.sign()) and float(z.abs().max()) < 6
    batch = Batch(y, torch.ones(1, 1, 3), index=torch.tensor([0]))
    how = {"training": {"noise": 0.1, "subsets": False}}
    plain, small = (
        corrupted(settings, False)(batch, torch.Generator().manual_seed(0)).input
        for settings in (how, how | {"compressed": True})
    )
    torch.testing.assert_close(small, seen({"compressed": True}, plain))


def test_batches_are_corrupted_sample_by_sample() -> None:
    batch = Batch(torch.ones(400, L, 1, 50), torch.ones(400, 1, 3), index=torch.arange(400))
    made = corrupted({"training": {"noise": 0.1}}, True)(batch, torch.Generator().manual_seed(0))
    levels = (made.input - 1).square().mean((1, 2, 3)).sqrt()
    assert levels.min() < 0.002 and 0.08 < levels.max() < 0.12 and abs(float(levels.mean()) - 0.1 / 3) < 0.005
    assert set(made.mask.sum(1).tolist()) == {1, 2, 3, 4} and torch.equal(made.parameters["held_out"], batch.index)
    whole = corrupted({"training": {"noise": 0.1, "subsets": False}}, False)(batch, torch.Generator().manual_seed(0))
    assert whole.mask is None and whole.parameters is None


def test_the_schedule_follows_seconds_and_pauses() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    budget = Budget(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] < 0.2, "the rate rises from nearly nothing"
    seen = []
    while not budget.spent():
        budget.step()
        seen.append((budget.share, optimizer.param_groups[0]["lr"]))
        if len(seen) == 1:
            before = budget.share
            with budget.paused():
                until = time.process_time() + 0.3
                while time.process_time() < until:
                    pass
            assert budget.share - before < 0.5, "what is done in a pause is not counted"
    peak = max(rate for _, rate in seen)
    assert 1.9 < peak <= 2.0 and seen[-1][1] < 0.05
    late = [rate for share, rate in seen if share > 0.1]
    assert late == sorted(late, reverse=True)


def test_a_reconstruction_is_held_out_in_training(data: Path) -> None:
    """What a network is trained on must not know the sample it is trained on."""
    from benchmarks.inverse_methods import fitted_ridge

    chosen = settings_of("nio-ridge")
    question = Question(chosen, data)
    ridge = fitted_ridge(question, chosen["reconstruction"])
    model = built(question, chosen, ridge)
    batch = question.train.read(range(8))
    known, blind = (model.reconstruction(batch.input, held_out=h) for h in (None, batch.index))
    errors = [question.errors(p, batch.target)["l1"].mean() for p in (known, blind)]
    assert errors[1] > errors[0]


def test_the_generic_prior_of_a_disc_is_smooth_across_its_cut_and_centre() -> None:
    grid = Grid.polar(64, 32)
    prior = _on_disc(grid, 4, 0.5, 1.0, mean=0.1, link="identity")
    assert prior.n_modes == 16 and prior.field(torch.zeros(16, dtype=torch.float64)).allclose(
        torch.tensor(0.1).double()
    )
    weight = grid.quadrature_weights() / grid.quadrature_weights().sum()
    assert float((prior.modes.square() * weight).sum()) == pytest.approx(0.25)
    jumps = (prior.modes - prior.modes.roll(1, dims=1)).abs().amax((0, 2))
    assert jumps[0] < 2 * jumps[1:].max(), "the cut is a place like any other"
    assert (prior.modes[:, :, 0].std(1) < 0.2 * prior.modes.flatten(1).std(1) + 1e-9).all(), "one value in the middle"


def test_a_coefficient_that_the_equation_refuses_is_a_step_too_far(data: Path) -> None:
    forward = Guarded(Question(settings_of("gauss-newton"), data))
    a = torch.ones(2, *NODES.shape, dtype=torch.float64)
    assert bool(forward(a).isfinite().all())
    refused = forward(-a)
    assert refused.shape == forward(a).shape and bool(refused.isnan().all())


def a_run(problem: str, method: str, seed: int, error: float, **changes: Any) -> dict[str, Any]:
    counts = TABLE["problems"][problem]["counts"]
    statistics = {"median": error, "lower_quartile": error / 2, "upper_quartile": 2 * error, "p90": 3 * error}
    cases = [
        {"measurements": count, "noise": noise, "kind": "additive", "samples": 4, "l1": statistics, "l2": statistics,
         "first": {"samples": 2, "l1": error, "l2": error}}
        for count in counts
        for noise in TABLE["noise"]
    ]  # fmt: skip
    return {
        "problem": problem, "method": method, "seed": seed, "configuration": inverse.digest(inverse.settings(problem, method, "cpu")),
        "threads": 1, "machine": {"device": "cpu"}, "cases": cases, "parameters": 5, "steps": 7, "fit_seconds": 10.0 + seed,
        "inversion_seconds": 0.01, "grid": [24, 24], "measured": [counts[0], 1, 8], "settings": {},
    } | changes  # fmt: skip


def test_a_run_is_recorded_once(tmp_path: Path) -> None:
    first = inverse.missing("cpu", ["calderon/nio"], folder=tmp_path)
    assert first == [("calderon", "nio", seed) for seed in range(3)]
    for seed, error in ((1, 0.03), (0, 0.01)):
        inverse.record(a_run("calderon", "nio", seed, error), "cpu", tmp_path)
    assert inverse.missing("cpu", ["calderon/nio"], folder=tmp_path) == [("calderon", "nio", 2)]
    assert inverse.missing("cpu", ["calderon/nio"], [0], tmp_path) == []
    assert [r["seed"] for r in inverse.recorded("cpu", tmp_path)] == [0, 1]
    inverse.record(a_run("calderon", "constant", 0, 0.3), "cpu", tmp_path)
    inverse.record(a_run("calderon", "nio", 2, 0.02, configuration="other"), "cpu", tmp_path)
    kept = [(r["method"], r["seed"]) for r in inverse.recorded("cpu", tmp_path)]
    assert kept == [("constant", 0), ("nio", 2)], "a median is one configuration's"
    assert len(inverse.missing("cpu", ["calderon/nio"], folder=tmp_path)) == 3


def test_what_is_asked_is_judged(tmp_path: Path) -> None:
    for seed, error in enumerate((0.01, 0.02, 0.05)):
        inverse.record(a_run("calderon", "nio", seed, error), "cpu", tmp_path)
    for method, error in (("deeponet", 0.04), ("encoder-decoder", 0.03), ("nio-lifting", 0.05)):
        inverse.record(a_run("calderon", method, 0, error), "cpu", tmp_path)
    report = json.loads(inverse.result_path("cpu", tmp_path).read_text())
    lines = {line["what"]: line for line in report["rows"]}
    assert lines["Calderon, 5 random measurements: relative L1"]["measured"] == 0.02
    assert lines["Calderon, 5 random measurements: relative L1"]["reached"]
    assert not lines["Calderon, 10 random measurements: relative L1"]["reached"]
    ratios = [line["measured"] for what, line in lines.items() if "ratio" in what]
    assert ratios == [0.6667] * 3 and [lines[w]["reached"] for w in lines if "ratio" in w] == [True] * 3
    assert report["command"] == "python -m benchmarks.inverse" and report["machine"]["threads"] == 1


def test_the_list_and_unknown_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inverse.record(a_run("calderon", "nio", 1, 0.02), "cpu", tmp_path)
    inverse.main(["--list", "--rows", "calderon/nio", "calderon/constant", "--out", str(tmp_path)])
    constant, nio = capsys.readouterr().out.splitlines()
    assert constant.endswith("seeds on record: none") and nio.endswith("seeds on record: [1]")
    with pytest.raises(SystemExit):
        inverse.main(["--rows", "calderon/nothing"])
    assert "'calderon/nothing' is unknown" in capsys.readouterr().err


def test_a_child_writes_what_its_parent_records(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    inverse.main(["--child", json.dumps(settings_of("constant")), "0", str(out), "--data", str(data)])
    result = json.loads(out.read_text())
    assert result["cases"] and result["machine"]["device"] == "cpu"


def test_a_failing_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: inverse.Run, options: Any) -> dict[str, Any]:
        if run[2] == 1:
            raise RuntimeError("calderon/nio, seed 1 failed")
        return a_run(*run, error=0.02)

    monkeypatch.setattr(inverse, "made", lambda *arguments: None)
    monkeypatch.setattr(inverse, "perform", fails)
    with pytest.raises(SystemExit):
        inverse.main(["--rows", "calderon/nio", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert "calderon/nio, seed 1 failed" in said.err and "seed 2: median relative L1 0.02" in said.out
    assert [r["seed"] for r in inverse.recorded("cpu", tmp_path)] == [0, 2], "the others are kept"


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse, "made", lambda *arguments: None)
    monkeypatch.setattr(inverse, "settings", lambda problem, method, preset: settings_of(method))
    arguments = ["--rows", "calderon/constant", "--data", str(data), "--out", str(tmp_path)]
    inverse.main(arguments)
    (run,) = inverse.recorded("cpu", tmp_path)
    assert run["commit"] and run["threads"] == 1 and run["wall_seconds"] > 0
    monkeypatch.setattr(inverse, "settings", lambda problem, method, preset: settings_of(method, test=11))
    with pytest.raises(SystemExit):
        inverse.main(arguments)


def test_sets_larger_than_the_catalogues_have_a_folder_of_their_own(tmp_path: Path) -> None:
    recipe = settings_of("constant")["recipe"] | {
        "grid": {"shape": [9, 9]}, "refine": {"test": 2}, "splits": {"train": 4, "validation": 2, "test": 2}, "block": 2,
    }  # fmt: skip
    chosen = settings_of("constant", train=4, validation=2, test=1) | {"recipe": recipe}
    inverse.made(chosen, tmp_path)
    larger = chosen | {"train": 6}
    inverse.made(larger, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-6"]
    assert len(Question(larger, tmp_path).train) == 6 and len(Question(chosen, tmp_path).test) == 1
    source = Question(larger, tmp_path).test.source
    assert source.attributes["refine"] == 2 and len(source) == 1


def _table() -> Any:
    spec = importlib.util.spec_from_file_location("inverse_table", DOCS / "inverse_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    shown = _table()
    path = inverse.result_path("cpu", tmp_path)
    assert shown.problems(path) == "*Not measured yet.*"
    for seed in (0, 1, 2):
        inverse.record(a_run("calderon", "nio", seed, 0.01 * (seed + 1)), "cpu", tmp_path)
    inverse.record(a_run("calderon", "constant", 0, 0.3), "cpu", tmp_path)
    text = shown.problems(path)
    assert text.index("constant answer") < text.index("better NIO")
    assert "x 1.00" in shown.ablations(path) and shown.ablations(path).endswith(" | 7 |")
    assert "| 3 | 5 | 11 | 0.01 |" in shown.cost(path)
    assert "published" in text and "published" not in shown.problems(path, "l2")
    assert "2.00 [1.00, 4.00; 6.00]" in text and "| 30.0 [15.0, 60.0; 90.0]" in text


@dataclass
class Shapes:
    """What a model is built from, without any data."""

    problem: Any
    grid: Grid
    shape: tuple[int, int, tuple[int, ...]]

    @property
    def train(self) -> FieldDataset:
        L, channels, sensors = self.shape
        field = torch.rand(2, *self.grid.shape) + 1
        return FieldDataset.from_arrays(None, field, self.grid, measurements=torch.randn(2, L, channels, *sensors))


@pytest.mark.parametrize("problem", TABLE["problems"])
def test_networks_fit_their_problem_and_are_alike_in_size(problem: str) -> None:
    chosen = inverse.settings(problem, "nio", "cpu")
    recipe = chosen["recipe"]
    equation = getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    values = {key: value for key, value in recipe["grid"].items() if key != "kind"}
    grid = Grid.polar(**values) if "kind" in recipe["grid"] else Grid(**values)
    _, L, channels, *sensors = equation.observe(equation.sample(1, grid), grid=grid)["measurements"].shape
    assert chosen["counts"][0] == L
    question = Shapes(equation, grid.subsampled(chosen.get("stride", 1)), (L, channels, tuple(sensors)))
    sizes = {}
    for method in inverse.methods_of(problem):
        settings = inverse.settings(problem, method, "cpu")
        if settings["kind"] == "network" and "reconstruction" not in settings:
            model = built(question, settings)  # type: ignore[arg-type]
            sizes[method] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(problem, question.shape, question.grid.shape, sizes)
    for method in ("deeponet", "encoder-decoder", "nio-lifting", "nio-published"):
        assert 0.5 <= sizes[method] / sizes["nio"] <= 2.0, (method, sizes)
