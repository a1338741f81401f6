"""The GPU mode of the benchmarks on a CPU: its logic, with a timer that tells the time it is told to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import cuda_timing, layer_cuda, model_cuda
from benchmarks import spectral_conv as layers
from benchmarks import train_step as models
from benchmarks.side_by_side import Table


class Told:
    """Runs a call once and claims seconds by whose it is."""

    def __init__(self, seconds: float = 1e-3) -> None:
        self.seconds, self.calls = seconds, []

    def __call__(self, call, repeats: int) -> list[float]:
        call()
        self.calls.append((call, repeats))
        return [self.seconds] * repeats


def test_rounds_alternate_and_repeat_to_a_time() -> None:
    timer, order = Told(2e-3), []
    arms = {name: (lambda name=name: order.append(name)) for name in ("peer", "ours")}
    times = cuda_timing.interleave(arms, 2, timer, seconds=0.02)
    assert times == {"peer": [2e-3] * 2, "ours": [2e-3] * 2}
    assert order == ["peer"] * 2 + ["ours"] * 2 + ["peer", "ours"] * 2
    assert [repeats for _, repeats in timer.calls[-4:]] == [10] * 4


def test_copy_bandwidth_counts_both_directions() -> None:
    assert cuda_timing.copy_bandwidth(Told(1e-3), "cpu", 1 << 20) == pytest.approx(
        2 * (1 << 20) / 1e-3 / 1e12, rel=1e-4
    )


def test_the_switch_for_tf32_is_set_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with cuda_timing.convolutions_in_tf32(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.fixture
def no_graphs(monkeypatch) -> None:
    monkeypatch.setattr(cuda_timing, "graphs", lambda arms: arms)


def case(**changes) -> layers.Case:
    return layers.Case((12, 10), 4, (6, 6), (1, 1), (2, 2), batch=2, **changes)


def test_rows_of_the_layers(no_graphs) -> None:
    table = Table()
    asked = [(((12, 10), 4, 2, (6, 6)), layer_cuda.BOTH, {}), (((8, 8), 4, 1, (4, 4)), layer_cuda.LATENCY, {})]
    layer_cuda.blocks(table, SimpleNamespace(rounds=1), Told(), "cpu", asked)
    layer_cuda.layers(table, SimpleNamespace(rounds=1, cases=["small"]), {"small": case()}, Told(), "cpu")
    rows = {(row.what, row.column): row for row in table.rows}
    assert len(rows) == len(table.rows) == len(table.details)
    first = "Fourier layer 12x10, C=4, B=2: forward"
    assert rows[f"{first}, peer time / ours", "eager"].required == ">= 3x"
    assert not rows[f"{first}, peer time / ours", "CUDA graphs"].reached
    second = "Fourier layer 8x8, C=4, B=1: forward, peer time / ours"
    assert (rows[second, "eager"].required, rows[second, "CUDA graphs"].required) == ("reported", ">= 2x")
    assert rows[f"{first}: x read twice and y written", "eager"].measured == pytest.approx(3 * 960 * 4 / 1e-3 / 1e12)
    errors = [row for row in table.rows if "relative L2 error" in row.what]
    assert len(errors) == 3 and all(row.reached and row.required == "<= 1e-06" for row in errors)


def test_what_cannot_be_captured_leaves_its_reason(monkeypatch) -> None:
    def refused(arms):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_timing, "graphs", refused)
    table = Table()
    arms = {"peer": lambda: None, "ours": lambda: None}
    required = {"eager": 1.0, "CUDA graphs": 2.0}
    measured = layer_cuda.compare(table, "step", arms, SimpleNamespace(rounds=1), Told(), required=required)
    assert set(measured) == {"eager"}
    assert [(row.column, row.measured, row.reached) for row in table.rows] == [
        ("CUDA graphs", 0, False),
        ("eager", 1, True),
    ]
    assert table.details[0]["no_graph"] == "operation not permitted when stream is capturing"


def test_a_case_that_fails_leaves_the_others(no_graphs, monkeypatch, capsys) -> None:
    table, sides = Table(), layer_cuda.LayerSides

    def broken(shape, *arguments, **named):
        if shape == (8, 8):
            raise RuntimeError("out of memory")
        return sides(shape, *arguments, **named)

    monkeypatch.setattr(layer_cuda, "LayerSides", broken)
    cases = {"bad": layers.Case((8, 8), 4, (4, 4), (1, 1), (2, 2), batch=2), "good": case()}
    layer_cuda.layers(table, SimpleNamespace(rounds=1, cases=["bad", "good"]), cases, Told(), "cpu")
    failed, *rest = table.rows
    assert failed.what.endswith(": failed") and not failed.reached and len(rest) == 5
    assert "out of memory" in table.details[0]["error"]


def test_rows_of_the_models(no_graphs) -> None:
    table = Table()
    small = {"n_modes": (6, 6), "channels": 4, "batch": 1}
    large = models.Case((12, 10), **small)
    options = SimpleNamespace(rounds=1, cases=[])
    model_cuda.models(table, options, Told(), "cpu", large=large, small=models.Case((11, 8), **small))
    asked = {(row.what, row.column): row.required for row in table.rows}
    assert asked[f"FNO {large.title}: step, peer time / ours", "eager"] == ">= 3x"
    assert asked["FNO 2D 11x8, C=4, B=1, 6x6 modes: forward only, peer time / ours", "CUDA graphs"] == ">= 2x"
    assert len(table.rows) == 10 and not [row for row in table.rows if "failed" in row.what]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("module", [layers, models])
def test_without_a_device_it_says_so(module, tmp_path) -> None:
    with pytest.raises(SystemExit, match="torch sees no CUDA device"):
        module.main(["--device", "cuda", "--out", str(tmp_path)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_events_and_graphs_on_a_device() -> None:
    sides = layer_cuda.BlockSides((64, 64), 8, 2, (8, 8), device="cuda")
    for arms in (sides.forwards("peer", "ours"), sides.steps("peer", "ours")):
        times = cuda_timing.interleave(cuda_timing.graphs(arms), 2, cuda_timing.EventTimer())
        assert all(0 < t < 1 for arm in times.values() for t in arm)
    assert 0.01 < cuda_timing.copy_bandwidth(cuda_timing.EventTimer()) < 20
