"""FieldDataset: channels, strides, splits and workers."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from opflow import Batch, Grid
from opflow.data import DataError, FieldDataset, collate, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

GRID = Grid((9, 8), layout=("nodes", "periodic"))


def arrays(n=10, grid=GRID):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, *grid.shape, dtype=torch.float64, generator=generator) for name in ("a", "f", "u")}


@pytest.fixture
def path(tmp_path):
    write_dataset(
        tmp_path / "f.h5", arrays(), GRID, inputs=("a", "f"), targets=("u",), index=range(50, 60), split="test"
    )
    return tmp_path / "f.h5"


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("input", "target", "weight", "index"))


def test_a_batch_holds_channels_in_the_order_of_names(path):
    values = arrays()
    batch = FieldDataset(path, ("f", "a"), dtype=torch.float64).read([7, 2])
    assert torch.equal(batch.input, torch.stack([values["f"][[7, 2]], values["a"][[7, 2]]], dim=1))
    assert torch.equal(batch.target, values["u"][[7, 2]][:, None])
    assert batch.index.tolist() == [57, 52] and batch.index.dtype == torch.int64
    assert torch.equal(batch.weight, GRID.quadrature_weights())
    data = FieldDataset(path)
    assert (data.input_names, data.target_names, data.split_name, len(data)) == (("a", "f"), ("u",), "test", 10)
    single = data[-1]
    assert single.input.shape == (1, 2, 9, 8) and single.input.dtype == single.weight.dtype == torch.float32
    assert FieldDataset(path, targets=()).read([0]).target is None
    with pytest.raises(IndexError, match="position 10 is outside"):
        data[10]


@pytest.mark.parametrize(
    ("layout", "n", "stride", "coarse"),
    [
        ("nodes", 9, 4, lambda x: x[..., ::4]),
        ("periodic", 8, 4, lambda x: x[..., ::4]),
        ("cells", 8, 4, lambda x: x.unflatten(-1, (2, 4)).mean(-1)),
    ],
)
def test_a_stride_restricts_by_layout(layout, n, stride, coarse):
    grid = Grid(n, layout=layout)
    values = torch.randn(3, n, dtype=torch.float64)
    data = FieldDataset.from_arrays(values, values, grid, stride=stride, dtype=torch.float64)
    assert data.grid == grid.subsampled(stride)
    assert torch.equal(data.read([0, 1, 2]).input[:, 0], coarse(values))
    assert torch.isclose(data.read([0]).weight.sum(), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="does not divide"):
        FieldDataset.from_arrays(values, values, grid, stride=3)


def test_arrays_come_by_name_or_as_channels():
    values = arrays()
    named = FieldDataset.from_arrays({"a": values["a"], "f": values["f"].numpy()}, {"u": values["u"]}, GRID)
    stacked = FieldDataset.from_arrays(torch.stack([values["a"], values["f"]], 1), values["u"][:, None].numpy(), GRID)
    assert same(named.read(range(10)), stacked.read(range(10)))
    assert stacked.input_names == ("input_0", "input_1") and stacked.target_names == ("target",)
    booleans = FieldDataset.from_arrays(values["a"] > 0, None, GRID).read([0])
    assert booleans.target is None and set(booleans.input.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a: FieldDataset.from_arrays(a["a"][:, :5], a["u"], GRID), DataError, r"but the grid is \(9, 8\)"),
        (
            lambda a: FieldDataset.from_arrays(a["a"][:3], a["u"], GRID),
            DataError,
            "10 samples but the fields before it have 3",
        ),
        (lambda a: FieldDataset.from_arrays(a["a"][0], a["u"], GRID), DataError, r"\(n, channel, \*grid\) is expected"),
        (lambda a: FieldDataset.from_arrays(a["a"] / 0, a["u"], GRID), DataError, "not finite .* in 10 of 10"),
        (lambda a: FieldDataset.from_arrays({"u": a["a"]}, {"u": a["u"]}, GRID), DataError, "distinct names"),
        (lambda a: FieldDataset.from_arrays(a["a"] + 0j, a["u"], GRID), DataError, "complex128"),
        (lambda a: FieldDataset.from_arrays(a["a"], a["u"], GRID, dtype=torch.float16), TypeError, "torch.float32 or"),
        (lambda a: FieldDataset.from_arrays(None, None, GRID), DataError, "no field was given"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(arrays())


def test_unknown_names_are_refused_at_once(path):
    with pytest.raises(DataError, match="no field 'velocity'; it has a, f, u"):
        FieldDataset(path, ("velocity",))
    with pytest.raises(DataError, match="is the text 'a'"):
        FieldDataset(path, "a")


def test_splits_are_disjoint_and_repeatable(path):
    data = FieldDataset(path)
    for sizes in ((0.7, 0.3), (7, 3), (0.5, 0.2)):
        parts, again = data.split(*sizes, seed=3), data.split(*sizes, seed=3)
        found = [set(part.read(range(len(part))).index.tolist()) for part in parts]
        assert not found[0] & found[1]
        assert [len(f) for f in found] == [round(s * 10) if isinstance(s, float) else s for s in sizes]
        assert [p.fingerprint for p in parts] == [p.fingerprint for p in again]
        assert all(same(p.read([0, 1]), q.in_memory().read([0, 1])) for p, q in zip(parts, again, strict=True))
    assert data.split(5, seed=0)[0].fingerprint != data.split(5, seed=1)[0].fingerprint
    inner = data.split(0.5, seed=1)[0].split(0.4, seed=1)[0]
    assert same(inner.read([1]), data.in_memory().split(0.5, seed=1)[0].split(0.4, seed=1)[0].read([1]))
    for bad in ((0.7, 0.4), (8, 3), (0.5, 2), (), (0,), (0.01,)):
        with pytest.raises(ValueError, match="size"):
            data.split(*bad)


def test_the_fingerprint_tells_data_and_their_reading_apart(path, tmp_path):
    values = arrays()
    data = FieldDataset(path)
    values["u"][9, 8, 7] += 1e-15
    write_dataset(tmp_path / "g.h5", values, GRID, inputs=("a", "f"), targets=("u",), index=range(50, 60), split="test")
    write_dataset(
        tmp_path / "h.h5", arrays(), GRID, inputs=("a", "f"), targets=("u",), index=range(50, 60), split="test"
    )
    others = [
        FieldDataset(tmp_path / "g.h5"),
        FieldDataset(path, ("f", "a")),
        FieldDataset(path, dtype=torch.float64),
        FieldDataset(path, indices=[0, 1]),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert FieldDataset(tmp_path / "h.h5").fingerprint == data.fingerprint == data.in_memory().fingerprint
    held = [FieldDataset.from_arrays(values["a"] + eps, None, GRID).fingerprint for eps in (0.0, 0.0, 1e-9)]
    assert held[0] == held[1] != held[2]


def test_in_memory_reads_the_same(path):
    data = FieldDataset(path, stride=4)
    held = data.in_memory()
    data.source.close()
    path.unlink()
    assert same(held.read([3, 1]), pickle.loads(pickle.dumps(held)).read([3, 1]))
    assert held.read([3, 1]).index.tolist() == [53, 51]


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_data_loader_gives_the_same_batches(path, workers, context):
    data = FieldDataset(path)
    expected = [data.read(range(i, min(i + 4, 10))) for i in (0, 4, 8)]
    loader = DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers, multiprocessing_context=context)
    assert all(same(a, b) for a, b in zip(loader, expected, strict=True))


def test_single_samples_are_joined(path):
    data = FieldDataset(path)
    assert same(collate([data[3], data[0]]), data.read([3, 0]))


def test_samples_that_turn_bad_on_disk_are_named(tmp_path):
    values = {"a": np.ones((4, 3), "f4"), "u": np.ones((4, 3), "f4")}
    data = FieldDataset.from_arrays({"a": values["a"]}, {"u": values["u"]}, Grid(3))
    assert data.read([0]).input.is_contiguous()
    values["a"][2, 1] = np.nan
    with pytest.raises(DataError, match=r"field 'a' is not finite .* in 1 of 4 samples, first in sample 2"):
        FieldDataset.from_arrays({"a": values["a"]}, {"u": values["u"]}, Grid(3))
