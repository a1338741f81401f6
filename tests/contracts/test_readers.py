"""Every kind of data set, one row each: what was written is read, splits are disjoint, corrupted files are refused."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.data import (
    Batches,
    DataError,
    FieldDataset,
    Source,
    generate,
    open_dataset,
    read_nio,
    read_openfwi,
    write_dataset,
)

N = 12
GRID = Grid((6, 6))


@dataclass(frozen=True)
class Twice:
    """u = 2 a."""

    coordinates = ("x", "y")
    inputs = ("a",)
    unknowns = ("u",)

    def sample(self, indices, grid, *, seed=0, split="train"):
        fields = [np.random.default_rng([seed, i]).normal(size=grid.shape) for i in indices]
        return {"a": torch.from_numpy(np.stack(fields))}

    def solve(self, inputs, grid, *, rtol=1e-10):
        return {"u": 2 * inputs["a"]}


VALUES = Twice().sample(range(N), GRID)["a"].float().numpy()


def _hdf5(folder: Path) -> Path:
    write_dataset(folder / "f.h5", {"a": VALUES, "u": 2 * VALUES}, GRID, inputs=("a",), targets=("u",))
    return folder / "f.h5"


def _folder(folder: Path) -> Path:
    generate(Twice(), GRID, folder, N, block=4, samples_per_file=8, progress=False)
    return folder / "train"


def _npz(folder: Path) -> Path:
    np.savez(folder / "f.npz", x=VALUES, y=2 * VALUES)
    return folder / "f.npz"


def _pt(folder: Path) -> Path:
    torch.save({"x": torch.from_numpy(VALUES), "y": torch.from_numpy(2 * VALUES)}, folder / "f.pt")
    return folder / "f.pt"


def _nio(folder: Path) -> Path:
    with h5py.File(folder / "f.h5", "w") as file:
        for i, values in enumerate(VALUES):
            file[f"training/sample_{i}/input"] = values.T
            file[f"training/sample_{i}/output"] = 2 * values
    return folder / "f.h5"


def _openfwi(folder: Path) -> Path:
    np.save(folder / "data1.npy", VALUES.reshape(N, 2, 3, 6))
    np.save(folder / "model1.npy", 2 * VALUES[:, None])
    return folder / "model1.npy"


@dataclass(frozen=True)
class Case:
    """A kind of data: how it is made, how it is opened, and what its inputs are then."""

    make: Callable[[Path], Path]
    open: Callable[[Path], Source] = open_dataset
    inputs: np.ndarray = field(default_factory=lambda: VALUES)


READERS = {
    "hdf5": Case(_hdf5),
    "folder": Case(_folder),
    "npz": Case(_npz),
    "pt": Case(_pt),
    "nio": Case(_nio, lambda path: read_nio(path, grid=GRID), VALUES[:, :, None]),
    "openfwi": Case(
        _openfwi,
        lambda path: read_openfwi(path.with_name("data1.npy"), path, grid=GRID),
        VALUES.reshape(N, 2, 1, 3, 6),
    ),
}
# Formats without a checksum cannot notice a flipped bit; their reader's docstring says so. {reader: reason}
WITHOUT_CHECKSUM = {name: f"files of the layout {name} carry no checksums" for name in ("nio", "openfwi")}


@pytest.fixture(params=READERS)
def case(request):
    return READERS[request.param]


@pytest.fixture
def path(case, tmp_path):
    return case.make(tmp_path)


def test_what_was_written_is_read(case, path):
    source = case.open(path)
    assert isinstance(source, Source) and source.grid == GRID and len(source) == N
    assert source.index.tolist() == list(range(N)) and source.index.dtype == np.int64
    assert source.measurements == (() if case.inputs.shape[1:] == GRID.shape else source.inputs)
    order = [11, 0, 0, 7, 8]
    np.testing.assert_array_equal(source.read(source.inputs[0], order), case.inputs[order])
    np.testing.assert_array_equal(source.read(source.targets[0], order), 2 * VALUES[order])


def test_what_is_read_belongs_to_the_caller(case, path):
    source = case.open(path)
    source.read(source.inputs[0], [1])[:] = 0
    np.testing.assert_array_equal(source.read(source.inputs[0], [1]), case.inputs[[1]])


def test_the_fingerprint_is_that_of_the_content(case, path):
    assert case.open(path).fingerprint == case.open(path).fingerprint
    assert len(case.open(path).fingerprint) == 64


def test_it_survives_pickling(case, path):
    source = case.open(path)
    source.read(source.inputs[0], [0])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(source.targets[0], [3, 9]), 2 * VALUES[[3, 9]])
    assert again.fingerprint == source.fingerprint


def test_splits_are_disjoint_and_repeatable(case, path):
    data = FieldDataset(case.open(path))
    first, second = data.split(0.75, 0.25, seed=1)
    a, b = (set(part.read(range(len(part))).index.tolist()) for part in (first, second))
    assert len(a) == 9 and a | b == set(range(N)) and not a & b
    assert [p.fingerprint for p in data.split(0.75, 0.25, seed=1)] == [first.fingerprint, second.fingerprint]


def test_batches_hold_every_sample(case, path):
    batches = list(Batches(FieldDataset(case.open(path)), 5, shuffle=True))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(N))
    assert all(torch.equal(batch.target, 2 * batch.input.reshape(-1, 1, 6, 6)) for batch in batches)
    measured = case.inputs.shape[1:] != GRID.shape
    assert batches[0].input.shape == ((5, *case.inputs.shape[1:]) if measured else (5, 1, 6, 6))
    assert batches[0].weight.shape == (6, 6)


def test_unknown_names_and_positions_are_refused(case, path):
    source = case.open(path)
    with pytest.raises(DataError, match="has no field 'nothing'"):
        source.read("nothing", [0])
    for position in (-1, N):
        with pytest.raises(IndexError, match=f"position {position} is outside"):
            source.read(source.inputs[0], [position])


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "noise"])
def test_a_corrupted_file_is_refused(case, path, fault, request):
    name = request.node.callspec.params["case"]
    file = path / "part-00001-of-00002.h5" if path.is_dir() else path
    if fault == "flipped" and name in WITHOUT_CHECKSUM:
        pytest.skip(WITHOUT_CHECKSUM[name])
    content = file.read_bytes()
    start = content.index((2 * VALUES[9]).tobytes())
    damaged = {
        "cut": content[: len(content) // 2],
        "flipped": content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :],
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(len(content)),
    }[fault]
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=str(file.parent if path.is_dir() else file)):
        source = case.open(path)
        source.read(source.targets[0], range(N))
