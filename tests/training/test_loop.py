"""fit and evaluate: what they record, and what they refuse before or instead of doing harm."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from small_run import ShuffledBatches, network, parts, seed_everything, square
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.losses.objective import Objective
from opflow.training.interruption import Interruption
from opflow.training.loop import evaluate, fit
from opflow.training.record import Record
from opflow.training.step import TrainingDiverged


class Line(nn.Module):
    """y = w x, with w = 0: every number of a step can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.w * x


def data(*targets: float) -> list[Batch]:
    return [
        Batch(input=torch.ones(2, 1), target=torch.full((2, 1), t), index=torch.tensor([10 * i, 10 * i + 1]))
        for i, t in enumerate(targets)
    ]


def line(lr: float = 0.0):
    model = Line()
    return {"model": model, "loss": DataMisfit(square), "optimizer": torch.optim.SGD(model.parameters(), lr=lr)}


def test_records_are_means_since_the_last_record():
    records = list(fit(**line(), batches=data(1, 2, 3, 4), epochs=2, every=3))
    assert [(r.epoch, r.step, r.loss, r.epoch_done) for r in records] == [
        (1, 3, (1 + 4 + 9) / 3, False),
        (1, 4, 16.0, True),
        (2, 6, (1 + 4) / 2, False),
        (2, 8, (9 + 16) / 2, True),
    ]
    assert records[0].terms == {"misfit": records[0].loss} and records[0].position == 3
    assert all(a.seconds <= b.seconds for a, b in pairwise(records))


def test_the_last_step_of_an_epoch_has_one_record():
    assert [r.step for r in fit(**line(), batches=data(1, 2), epochs=2, every=2)] == [2, 4]


def test_validation_marks_the_best_and_nan_never_is():
    values = iter([3.0, math.nan, 2.0, math.inf, 2.0])
    records = list(fit(**line(), batches=data(1), epochs=5, validate=lambda model: next(values)))
    assert [r.best for r in records] == [True, False, True, False, False]
    assert [r.best_validation for r in records] == [3.0, 3.0, 2.0, 2.0, 2.0]
    assert not any(r.best for r in fit(**line(), batches=data(1), epochs=2))


def test_validation_sees_eval_mode_and_training_goes_on():
    model = network()
    model[1].eval()  # frozen on purpose
    seen = []

    def validate(candidate):
        seen.append((candidate is model, candidate.training, torch.is_grad_enabled()))
        return 0.0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in fit(model, DataMisfit(square), ShuffledBatches(), optimizer, epochs=2, validate=validate):
        assert model.training and not model[1].training
        model.eval()  # a body that plots and forgets
    assert seen == [(True, False, False)] * 2
    assert model.training and not model[1].training


def test_a_body_that_leaves_eval_mode_does_not_change_the_training():
    results = []
    for forgetful in (False, True):
        seed_everything()
        made = parts()
        for _ in fit(**made, epochs=2):
            if forgetful:
                made["model"].eval()
        results.append(made["model"][0].weight.detach())
    assert torch.equal(*results)


def test_the_averaged_model_follows_and_is_validated():
    model = Line()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    seen = []
    records = fit(
        model,
        DataMisfit(square),
        data(1),
        optimizer,
        epochs=2,
        ema=ema,
        validate=lambda m: seen.append(m) or float(m.w),
    )
    assert [r.validation for r in records] == [0.5, 0.625]  # 0.5 first, then (0.5 + 0.75) / 2
    assert seen[0] is ema.module


def test_scheduler_steps_per_batch_and_the_record_says_the_rate_used():
    made = line(lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(made["optimizer"], [2], gamma=0.1)
    rates = [r.learning_rate for r in fit(**made, batches=data(1, 1), scheduler=scheduler, epochs=2, every=1)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_clipping_is_of_the_joint_norm():
    made = line(lr=1.0)
    list(fit(**made, batches=data(100.0), epochs=1, clip_norm=0.5))
    assert made["model"].w.item() == pytest.approx(0.5)  # the gradient was -200


def test_lbfgs_sees_one_batch_per_step():
    seen = []

    class Seen(DataMisfit):
        def forward(self, model, batch):
            seen.append(int(batch.index[0]))
            return super().forward(model, batch)

    model = Line()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
    records = list(fit(model, Seen(square), data(1.0, 3.0), optimizer, epochs=1, every=1))
    assert seen == sorted(seen) and len(seen) > 2
    assert records[0].loss == 1.0  # of the first evaluation
    assert model.w.item() == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("poison", ["target", "gradient", "inf"])
def test_divergence_stops_before_the_weights_change(poison: str):
    batches = data(1.0, 2.0, 3.0)

    def misfit(prediction, target, weight):
        value = (prediction - target).square().mean()
        if poison == "gradient" and target[0, 0] == 3.0:
            value = value + (prediction * 0).sqrt().sum()  # finite, with an infinite derivative
        return value / 0 if poison == "inf" and target[0, 0] == 3.0 else value

    if poison == "target":
        batches[2].target[1] = math.nan
    model = Line()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    training = fit(model, DataMisfit(misfit), batches, optimizer, epochs=5, every=1)
    weights = [model.w.item() for _ in range(2) if next(training)]
    with pytest.raises(TrainingDiverged) as caught:
        next(training)
    error = caught.value
    assert model.w.item() == weights[-1] and optimizer.state[model.w]["step"] == 2
    assert (error.epoch, error.step, error.index, error.last_record.step) == (1, 3, [20, 21], 2)
    assert "epoch 1, step 3" in str(error) and "samples 20, 21" in str(error) and "the last good record" in str(error)
    assert ("gradient of 'w'" if poison == "gradient" else "'misfit'") in str(error)
    if poison == "target":
        assert "NaN or infinity in the target of sample 21" in str(error)
    assert list(training) == []


def test_divergence_within_a_line_search_restores_the_weights():
    calls = []

    def misfit(prediction, target, weight):
        calls.append(1)
        return (prediction - target).square().mean() * (math.nan if len(calls) > 1 else 1)

    model = Line()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    with pytest.raises(TrainingDiverged, match="no record came before"):
        list(fit(model, DataMisfit(misfit), data(1.0), optimizer, epochs=1))
    assert model.w.item() == 0.0 and len(calls) == 2


def test_a_gradient_whose_norm_overflows_is_not_clipped_to_zero():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    made = {"model": model, "loss": DataMisfit(square), "optimizer": torch.optim.SGD(model.parameters(), lr=1e-38)}
    huge = [Batch(input=torch.full((1, 2), 1e19), target=torch.full((1, 1), 1e18))]
    with pytest.raises(TrainingDiverged, match="norm of the gradient is inf"):
        list(fit(**made, batches=huge, epochs=1, clip_norm=1.0))
    list(fit(**made, batches=huge, epochs=1))  # without clipping every number is finite
    assert (model.weight > 0).all()


def test_a_dict_of_batches_and_its_sample_numbers():
    made = line(lr=0.1)
    made["loss"] = DataMisfit(square, on="boundary")
    steps = [{"interior": data(1)[0], "boundary": data(math.nan)[0]}]
    with pytest.raises(TrainingDiverged) as caught:
        list(fit(**made, batches=steps, epochs=1))
    assert caught.value.index == [0, 1, 0, 1] and "boundary.target of sample 0, 1" in str(caught.value)


def test_autocast_is_for_the_loss():
    seen = []

    def misfit(prediction, target, weight):
        seen.append(prediction.dtype)
        return square(prediction.float(), target, weight)

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    list(fit(model, DataMisfit(misfit), data(1.0), optimizer, epochs=1, autocast=torch.bfloat16))
    assert seen == [torch.bfloat16] and model.weight.grad.dtype == torch.float32


def test_closing_early_is_clean_and_silent(capfd):
    made = line()
    training = fit(**made, batches=data(1, 2), epochs=50)
    for record in training:
        if record.epoch == 2:
            break
    training.close()
    assert list(training) == []
    assert capfd.readouterr() == ("", "")  # no bar where standard error is no terminal


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(fit(**line(), batches=data(1, 2), epochs=3))
    assert "6/6" in capsys.readouterr().err
    list(fit(**line(), batches=data(1, 2), epochs=3, progress=False))
    assert capsys.readouterr().err == ""


def test_stop_gives_a_last_record_within_the_epoch():
    asked = iter([False, False, True])
    records = list(fit(**line(), batches=data(1, 2, 3, 4), epochs=9, stop=lambda: next(asked)))
    assert [(r.step, r.epoch_done) for r in records] == [(3, False)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_leaves_with_its_code(number: int, code: int):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        records = []
        for record in fit(**line(), batches=data(*range(50)), epochs=100, every=7, stop=interruption):
            records.append(record)
            if len(records) == 2:
                signal.raise_signal(number)
        assert interruption() and interruption.exit_code == code
        assert [r.step for r in records] == [7, 14, 15]
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_ddp_trains_like_one_process(tmp_path):
    from torch.distributed import destroy_process_group, init_process_group

    plain, wrapped = line(lr=0.1), line(lr=0.1)
    list(fit(**plain, batches=data(1, 2), epochs=2))
    init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped["model"] = nn.parallel.DistributedDataParallel(wrapped["model"])
        seen = []
        list(fit(**wrapped, batches=data(1, 2), epochs=2, validate=lambda m: seen.append(type(m)) or 0.0))
        assert seen[0] is Line
    finally:
        destroy_process_group()
    assert torch.equal(plain["model"].w, wrapped["model"].module.w)


class Unknown(Objective):
    def __init__(self):
        super().__init__()
        self.viscosity = nn.Parameter(torch.zeros(()))

    def forward(self, model, batch):
        return {"residual": self.viscosity.square()}


def bad_arguments():
    def case(match, **changes):
        return pytest.param(changes, match, id=match[:25])

    yield case("epochs is 0", epochs=0)
    yield case("epochs is 2.0", epochs=2.0)
    yield case("every is -1", every=-1)
    yield case("clip_norm is nan", clip_norm=math.nan)
    yield case("autocast is torch.float16", autocast=torch.float16)
    yield case("has no parameters", model=nn.Identity())
    yield case("holds none of the model's parameters", model=Line())
    yield case("does not hold: losses.1.viscosity", loss=DataMisfit(square) + Unknown())
    yield case("batches is empty", batches=[])
    yield case("used up after one epoch", batches=iter(data(1)))
    yield case("batches is int", batches=3)
    yield case("ema is Line", ema=Line())
    yield case("loss is str", loss="mse")
    yield case("start is str", start="latest")


@pytest.mark.parametrize(("changes", "match"), list(bad_arguments()))
def test_bad_arguments_are_refused_at_once(changes, match):
    with pytest.raises((ValueError, TypeError), match=match):
        fit(**({**line(), "batches": data(1), "epochs": 1} | changes))


def test_schedulers_that_would_fail_late_are_refused_at_once():
    made = line(lr=0.1)
    short = torch.optim.lr_scheduler.OneCycleLR(made["optimizer"], 0.1, total_steps=5, cycle_momentum=False)
    with pytest.raises(ValueError, match=r"5 steps left but 6 are to come.*total_steps=6"):
        fit(**made, batches=data(1, 2), epochs=3, scheduler=short)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(made["optimizer"])
    with pytest.raises(ValueError, match=r"scheduler.step\(record.validation\)"):
        fit(**made, batches=data(1), epochs=1, scheduler=plateau)
    other = torch.optim.lr_scheduler.ConstantLR(line()["optimizer"])
    with pytest.raises(ValueError, match="built for another optimizer"):
        fit(**made, batches=data(1), epochs=1, scheduler=other)


def test_what_is_seen_only_at_the_first_step():
    with pytest.raises(TypeError, match=r"yields tuple.*Batch\(input=x, target=y\)"):
        list(fit(**line(), batches=[(1, 2)], epochs=1))
    with pytest.raises(ValueError, match="does not depend on any parameter"):
        list(fit(**line() | {"loss": lambda model, batch: {"misfit": torch.ones(())}}, batches=data(1), epochs=1))
    with pytest.raises(TypeError, match="returned Tensor"):
        list(fit(**line() | {"loss": lambda model, batch: torch.ones(())}, batches=data(1), epochs=1))


def test_an_iterable_without_length_works_and_an_empty_one_is_said():
    class Stream:
        def __init__(self, *targets):
            self.targets = targets

        def __iter__(self):
            yield from data(*self.targets)

    records = list(fit(**line(), batches=Stream(1, 2), epochs=1, every=2))
    assert [(r.step, r.loss, r.epoch_done) for r in records] == [(2, 2.5, False), (2, 2.5, True)]
    with pytest.raises(ValueError, match="batches is empty in epoch 1"):
        list(fit(**line(), batches=Stream(), epochs=1))


def test_record_prints_and_survives_json():
    record = Record(3, 30, 0.5, {"a": 0.25, "b": 0.25}, 1e-3, True, 1e-4, 9.5, math.inf, 2, False)
    assert str(record) == (
        "epoch 3, step 30: loss 0.5 (a 0.25, b 0.25), validation 0.001 (best), learning rate 0.0001, 9.5 s"
    )
    assert Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_evaluate_is_the_mean_over_samples():
    model = network()
    batches = [Batch(input=torch.randn(n, 3), target=torch.randn(n, 1)) for n in (5, 2, 0, 1)]
    whole = Batch(input=torch.cat([b.input for b in batches]), target=torch.cat([b.target for b in batches]))
    mean = evaluate(model, batches, square)
    assert mean == pytest.approx(evaluate(model, [whole], square))
    each = evaluate(model, batches, lambda p, t, w: (p - t).square().flatten(1).mean(1))
    assert each == pytest.approx(mean)
    assert model.training


def test_evaluate_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="no samples"):
        evaluate(network(), [], square)
    with pytest.raises(ValueError, match="compares with targets"):
        evaluate(network(), [Batch(input=torch.ones(1, 3))], square)
    with pytest.raises(ValueError, match=r"metric returned shape \(4, 1\)"):
        evaluate(network(), [Batch(input=torch.ones(4, 3), target=torch.ones(4, 1))], lambda p, t, w: p - t)


def test_training_needs_neither_data_nor_models():
    code = (
        "import sys, opflow.training; "
        "print([m for m in ('h5py', 'matplotlib', 'scipy', 'opflow.models', 'opflow.layers', 'opflow.data') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
