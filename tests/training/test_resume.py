"""A run that is stopped and continued ends with the same bits as one that was not."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from small_run import (
    EPOCHS,
    STEPS,
    ShuffledBatches,
    network,
    parts,
    result,
    run,
    run_to_file,
    save_next_until_call,
    seed_everything,
    square,
    start_child,
    unequal,
    validation,
)
from torch.utils.data import DataLoader, Dataset

from opflow.batch import Batch
from opflow.files import read_tensors
from opflow.losses.misfit import DataMisfit
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.checkpoint_files import pointed
from opflow.training.loop import fit


@pytest.fixture(scope="module")
def uninterrupted():
    seed_everything()
    return run(None, parts())


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 9, 12])
def test_stopped_after_any_record(tmp_path: Path, uninterrupted, stop_after: int):
    seed_everything()
    first = parts()
    for count, record in enumerate(fit(**first, epochs=EPOCHS, validate=lambda m: 1.0, clip_norm=1.0, every=2), 1):
        save_checkpoint(tmp_path, **first, record=record)
        if count == stop_after:
            break
    torch.manual_seed(999)
    random.seed(999)
    second = parts()
    start = load_checkpoint(tmp_path, **second)
    torch.rand(7)  # whatever is drawn between loading and training does not matter
    list(second["batches"])
    assert unequal(run(None, second, start), uninterrupted) == []


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_killed_at_every_step_of_a_write(tmp_path: Path, uninterrupted, call: str):
    """SIGKILL at one call after another of a save: what was there loads, and the run ends with the same bits."""
    seed_everything()
    first = parts()
    for record in fit(**first, epochs=EPOCHS, validate=validation, clip_norm=1.0, every=2):
        save_checkpoint(tmp_path / "before", **first, record=record, keep=1)
        if record.step == 4:
            break
    steps = []
    for nth in itertools.count(1):
        folder = tmp_path / str(nth)
        shutil.copytree(tmp_path / "before", folder)
        child = start_child(save_next_until_call, folder, call, nth)
        child.join()
        continued = parts()
        start = load_checkpoint(folder, **continued)
        steps.append(start.record.step)
        if nth % 4 == 1:
            assert unequal(run(folder, continued, start), uninterrupted) == []
            assert not [path.name for path in folder.iterdir() if ".tmp." in path.name]
        if child.exitcode == 0:  # the save has no nth call
            break
        assert child.exitcode == -signal.SIGKILL
    assert nth > (6 if call == "replace" else 10)
    assert steps == sorted(steps) and steps[0] == 4 and steps[-1] == 5  # never neither the old nor the new


def test_killed_at_random_moments(tmp_path: Path, uninterrupted):
    for name in ("first", "timed"):  # the first starts the server that forks the others
        start = time.perf_counter()
        start_child(run_to_file, tmp_path / name, tmp_path / f"{name}.safetensors").join()
    duration, moments = time.perf_counter() - start, random.Random(3)
    folder, target, kills, steps = tmp_path / "killed", tmp_path / "final.safetensors", 0, set()
    folder.mkdir()
    while not target.exists():
        child = start_child(run_to_file, folder, target)
        # At first near the beginning, then later and later, so that the run ends.
        child.join(moments.uniform(0.1, 0.6) * duration * (1 + kills / 4))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        steps.add(pointed(folder, "latest"))
    assert kills >= 3 and len(steps) >= 3
    assert unequal(read_tensors(target), uninterrupted) == []
    save_checkpoint(folder, network())
    assert not [p.name for p in folder.iterdir() if ".tmp." in p.name]  # what the dead left is cleared away


class Numbers(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Batch:
        x = torch.full((3,), float(i)) + torch.rand(3)  # augmentation from the global stream
        return Batch(input=x, target=x.sum(0, keepdim=True), index=torch.tensor(i))


def collate(samples: list[Batch]) -> Batch:
    return Batch(*(torch.stack([getattr(s, name) for s in samples]) for name in ("input", "target")))


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_plain_shuffling_data_loader_continues_mid_epoch(tmp_path: Path, stop_after: int):
    def fresh():
        model = network()
        return {
            "model": model,
            "loss": DataMisfit(square),
            "batches": DataLoader(Numbers(), batch_size=2, shuffle=True, collate_fn=collate),
            "optimizer": torch.optim.Adam(model.parameters(), lr=1e-2),
        }

    seed_everything()
    whole = fresh()
    list(fit(**whole, epochs=3))
    seed_everything()
    stopped = fresh()
    for count, record in enumerate(fit(**stopped, epochs=3, every=1), 1):
        if count == stop_after:
            save_checkpoint(tmp_path, **stopped, record=record)
            break
    second = fresh()
    torch.manual_seed(31)
    list(fit(**second, epochs=3, start=load_checkpoint(tmp_path, **second)))
    assert unequal(result(whole), result(second)) == []


def test_other_data_than_the_checkpoint_is_said(tmp_path: Path):
    model = network()
    batch = Batch(input=torch.randn(4, 3), target=torch.randn(4, 1))
    common = {"loss": DataMisfit(square), "optimizer": torch.optim.SGD(model.parameters(), lr=1e-2)}
    for record in fit(model, batches=[batch] * 5, epochs=1, every=3, **common):
        save_checkpoint(tmp_path, model, record=record, optimizer=common["optimizer"])
        break
    start = load_checkpoint(tmp_path, model, optimizer=common["optimizer"])
    with pytest.raises(ValueError, match="only 2; continue with the same data"):
        list(fit(model, batches=[batch] * 2, epochs=2, start=start, **common))


def lbfgs(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).to(dtype)
    x = torch.linspace(-1, 1, 24, dtype=dtype).view(8, 3)
    return {
        "model": model,
        "loss": DataMisfit(square),
        "batches": [Batch(input=x, target=x.prod(1, keepdim=True))],
        "optimizer": torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=5, line_search_fn="strong_wolfe"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_continues_with_its_curvature(tmp_path: Path, dtype: torch.dtype):
    whole = lbfgs(dtype)
    list(fit(**whole, epochs=8))
    first = lbfgs(dtype)
    for record in fit(**first, epochs=8):
        save_checkpoint(tmp_path, **first, record=record)
        if record.epoch == 3:
            break
    second = lbfgs(dtype)
    list(fit(**second, epochs=8, start=load_checkpoint(tmp_path, **second)))
    assert unequal(result(whole), result(second)) == []


def schedulers(optimizer: torch.optim.Optimizer):
    s = torch.optim.lr_scheduler
    yield "cosine", lambda o: s.CosineAnnealingLR(o, STEPS)
    yield "multistep", lambda o: s.MultiStepLR(o, [3, 9])
    yield "lambda", lambda o: s.LambdaLR(o, lambda step: 1 / (1 + step))
    yield "sequential", lambda o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=4), s.ExponentialLR(o, 0.9)], [4])
    yield "chained", lambda o: s.ChainedScheduler([s.ConstantLR(o, 0.5, 6), s.ExponentialLR(o, 0.9)], o)
    yield "restarts", lambda o: s.CosineAnnealingWarmRestarts(o, 5)
    yield "cyclic", lambda o: s.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rprop": lambda p: torch.optim.Rprop(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "two groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 1e-3 * (i + 1)} for i, q in enumerate(p)]),
}


@pytest.mark.parametrize(
    ("make_optimizer", "make_scheduler"),
    [
        *[pytest.param(make, None, id=name) for name, make in OPTIMIZERS.items()],
        *[pytest.param(OPTIMIZERS["adam"], make, id=name) for name, make in schedulers(None)],
    ],
)
def test_every_optimiser_and_scheduler_of_torch(tmp_path: Path, make_optimizer, make_scheduler):
    def fresh():
        made = {"model": network(), "loss": DataMisfit(square), "batches": ShuffledBatches()}
        made["optimizer"] = make_optimizer(list(made["model"].parameters()))
        if make_scheduler:
            made["scheduler"] = make_scheduler(made["optimizer"])
        return made

    seed_everything()
    whole = fresh()
    list(fit(**whole, epochs=2))
    seed_everything()
    first = fresh()
    for record in fit(**first, epochs=2, every=1):
        if record.step == 6:
            save_checkpoint(tmp_path, **first, record=record)
            break
    second = fresh()
    list(fit(**second, epochs=2, start=load_checkpoint(tmp_path, **second)))
    assert unequal(result(whole), result(second)) == []


def test_a_finished_run_yields_nothing_more(tmp_path: Path):
    done = parts()
    run(tmp_path, done)
    start = load_checkpoint(tmp_path, **done)
    assert list(fit(**done, epochs=EPOCHS, start=start)) == []


def test_seconds_and_best_validation_go_on(tmp_path: Path):
    first = parts()
    values = iter([1.0, 3.0])
    for record in fit(**first, epochs=EPOCHS, validate=lambda m: next(values)):
        save_checkpoint(tmp_path, **first, record=record)
        if record.epoch == 2:
            break
    second = parts()
    third = next(fit(**second, epochs=EPOCHS, validate=lambda m: 2.0, start=load_checkpoint(tmp_path, **second)))
    assert (third.epoch, third.step, third.best, third.best_validation) == (3, 15, False, 1.0)
    assert third.seconds > record.seconds


@pytest.mark.parametrize("stop_after", [2, 3])
def test_batches_of_a_data_set_continue_mid_epoch(tmp_path: Path, stop_after: int):
    from opflow.data.batches import Batches
    from opflow.data.dataset import FieldDataset
    from opflow.grid import Grid

    x = torch.linspace(0, 1, 9 * 8).view(9, 1, 8)
    data = FieldDataset.from_arrays(x, x.sin(), Grid(8))

    def fresh():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.2))
        return {
            "model": model,
            "loss": DataMisfit(square),
            "batches": Batches(data, 2, shuffle=True, seed=4),
            "optimizer": torch.optim.Adam(model.parameters()),
        }

    whole = fresh()
    list(fit(**whole, epochs=3, every=3))
    stopped = fresh()
    for count, record in enumerate(fit(**stopped, epochs=3, every=3), 1):
        if count == stop_after:
            save_checkpoint(tmp_path, **stopped, record=record)
            break
    second = fresh()
    list(fit(**second, epochs=3, every=3, start=load_checkpoint(tmp_path, **second)))
    assert unequal(result(whole), result(second)) == []
