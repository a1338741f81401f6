"""Batches: an order that depends on (seed, epoch) alone, and a state that continues it exactly."""

import json

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.data import Batches, DataError, FieldDataset, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def dataset(n=23, grid=None, value=0.0):
    grid = grid or Grid(4)
    values = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 4) + value
    return FieldDataset.from_arrays(values, -values, grid)


def noise(batch, generator):
    batch.input = batch.input + torch.randn(batch.input.shape, generator=generator)
    return batch


def seen(batches):
    return [(batch.index.tolist(), batch.input.tolist()) for batch in batches]


def test_an_epoch_holds_every_sample_once():
    data = dataset()
    for shuffle in (False, True):
        batches = Batches(data, 5, shuffle=shuffle)
        epochs = [[i for batch in batches for i in batch.index.tolist()] for _ in range(2)]
        assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
        assert (epochs[0] == epochs[1]) is not shuffle
        assert len(batches) == 5 and batches.epoch == 2 and batches.position == 0
    sizes = [batch.batch_size for batch in Batches(data, 5, drop_last=True)]
    assert sizes == [5] * 4 and len(Batches(data, 5, drop_last=True)) == 4


def test_the_order_depends_on_seed_and_epoch_alone():
    data = dataset()
    straight = Batches(data, 4, shuffle=True, seed=5)
    torch.manual_seed(1)
    first, second = seen(straight), seen(straight)
    jumped = Batches(data, 4, shuffle=True, seed=5)
    jumped.epoch = 1
    torch.manual_seed(2)
    np.random.default_rng(3).random()
    assert seen(jumped) == second != first
    assert seen(Batches(data, 4, shuffle=True, seed=6)) != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6, 8])
def test_a_state_continues_exactly(workers, stop):
    data = dataset()
    options = {"shuffle": True, "seed": 2, "transform": noise}
    whole = Batches(data, 4, **options)
    expected = seen(whole) + seen(whole)
    first, got, state = Batches(data, 4, workers=workers, **options), [], None
    while state is None:
        for batch in first:
            got.append((batch.index.tolist(), batch.input.tolist()))
            if len(got) == stop:
                state = json.loads(json.dumps(first.state_dict()))
                break
    assert state["position"] == (stop - 1) % 6 + 1 and state["epoch"] == (stop - 1) // 6
    second = Batches(data, 4, workers=workers, **{**options, "seed": 99})
    second.load_state_dict(state)
    while second.epoch < 2:
        got += seen(second)
    assert got == expected


def test_leaving_a_pass_and_coming_back_continues():
    data = dataset()
    for workers in (0, 1):
        expected = seen(Batches(data, 4, shuffle=True))
        batches = Batches(data, 4, shuffle=True, workers=workers)
        got = []
        for batch in batches:
            got.append((batch.index.tolist(), batch.input.tolist()))
            if len(got) == 2:
                break
        assert got + seen(batches) == expected


def test_a_state_taken_after_the_last_batch_leaves_an_empty_rest():
    batches = Batches(dataset(), 4)
    for _ in batches:
        state = batches.state_dict()
    assert (state["epoch"], state["position"]) == (0, 6)
    batches.load_state_dict(state)
    assert seen(batches) == [] and batches.epoch == 1 and len(seen(batches)) == 6


def test_the_global_generators_are_left_alone():
    data = dataset()
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        seen(Batches(data, 4, shuffle=True, transform=noise, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_read_files_alike(tmp_path):
    grid = Grid((8, 8))
    fields = {name: torch.randn(12, 8, 8) for name in "au"}
    write_dataset(tmp_path / "f.h5", fields, grid, inputs=("a",), targets=("u",))
    data = FieldDataset(tmp_path / "f.h5")
    expected = seen(Batches(data.in_memory(), 5, shuffle=True))
    for workers, context in ((0, None), (2, "fork"), (1, "spawn")):
        assert seen(Batches(data, 5, shuffle=True, workers=workers, multiprocessing_context=context)) == expected


def test_a_state_of_other_data_is_refused():
    batches = Batches(dataset(), 4)
    state = batches.state_dict()
    for other, message in (
        (Batches(dataset(value=1.0), 4), "another data set"),
        (Batches(dataset(), 5), "batch_size=4 but here it is 5"),
        (Batches(dataset(), 4, shuffle=True), "shuffle=False"),
    ):
        with pytest.raises(DataError, match=message):
            other.load_state_dict(state)
    for change, message in (
        ({"position": 7}, "batch 7 of an epoch of 6"),
        ({"position": -1}, "whole number"),
        ({"epoch": "1"}, "whole number"),
    ):
        with pytest.raises(DataError, match=message):
            batches.load_state_dict(state | change)
    with pytest.raises(DataError, match="has no 'seed'"):
        batches.load_state_dict({k: v for k, v in state.items() if k != "seed"})
    assert batches.state_dict() == state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4, "seed": -1}, "seed is -1"),
        ({"batch_size": 4, "workers": -1}, "workers is -1"),
        ({"batch_size": 24, "drop_last": True}, "leaves no batch"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(dataset(), **options)


def test_two_passes_at_once_are_refused():
    batches = Batches(dataset(), 4)
    with pytest.raises(RuntimeError, match="a second Batches"):
        for _ in zip(batches, batches, strict=False):
            pass
