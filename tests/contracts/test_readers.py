"""Every kind of data set, one row each: what was written is read, splits are disjoint, corrupted files are refused."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.data import Batches, DataError, FieldDataset, Source, generate, open_dataset, write_dataset

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


READERS: dict[str, Callable[[Path], Path]] = {"hdf5": _hdf5, "folder": _folder, "npz": _npz, "pt": _pt}
# Formats without a checksum cannot notice a flipped bit; their reader's docstring says so. {suffix: reason}
WITHOUT_CHECKSUM: dict[str, str] = {}


@pytest.fixture(params=READERS)
def path(request, tmp_path):
    return READERS[request.param](tmp_path)


def test_what_was_written_is_read(path):
    source = open_dataset(path)
    assert isinstance(source, Source) and source.grid == GRID and len(source) == N
    assert source.index.tolist() == list(range(N)) and source.index.dtype == np.int64
    order = [11, 0, 0, 7, 8]
    np.testing.assert_array_equal(source.read(source.inputs[0], order), VALUES[order])
    np.testing.assert_array_equal(source.read(source.targets[0], order), 2 * VALUES[order])


def test_what_is_read_belongs_to_the_caller(path):
    source = open_dataset(path)
    source.read(source.inputs[0], [1])[:] = 0
    np.testing.assert_array_equal(source.read(source.inputs[0], [1]), VALUES[[1]])


def test_the_fingerprint_is_that_of_the_content(path):
    assert open_dataset(path).fingerprint == open_dataset(path).fingerprint
    assert len(open_dataset(path).fingerprint) == 64


def test_it_survives_pickling(path):
    source = open_dataset(path)
    source.read(source.inputs[0], [0])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(source.targets[0], [3, 9]), 2 * VALUES[[3, 9]])
    assert again.fingerprint == source.fingerprint


def test_splits_are_disjoint_and_repeatable(path):
    data = FieldDataset(path)
    first, second = data.split(0.75, 0.25, seed=1)
    a, b = (set(part.read(range(len(part))).index.tolist()) for part in (first, second))
    assert len(a) == 9 and a | b == set(range(N)) and not a & b
    assert [p.fingerprint for p in data.split(0.75, 0.25, seed=1)] == [first.fingerprint, second.fingerprint]


def test_batches_hold_every_sample(path):
    batches = list(Batches(FieldDataset(path), 5, shuffle=True))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(N))
    assert all(torch.equal(batch.target, 2 * batch.input) for batch in batches)
    assert batches[0].input.shape == (5, 1, 6, 6) and batches[0].weight.shape == (6, 6)


def test_unknown_names_and_positions_are_refused(path):
    source = open_dataset(path)
    with pytest.raises(DataError, match="has no field 'nothing'"):
        source.read("nothing", [0])
    for position in (-1, N):
        with pytest.raises(IndexError, match=f"position {position} is outside"):
            source.read(source.inputs[0], [position])


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "noise"])
def test_a_corrupted_file_is_refused(path, fault):
    file = path / "part-00001-of-00002.h5" if path.is_dir() else path
    if fault == "flipped" and file.suffix in WITHOUT_CHECKSUM:
        pytest.skip(WITHOUT_CHECKSUM[file.suffix])
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
        source = open_dataset(path)
        source.read(source.targets[0], range(N))
