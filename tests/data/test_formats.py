"""open_dataset: foreign files get the names and the grid that the documentation promises."""

import zipfile

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.data import Batches, DataError, FieldDataset, channel_statistics, open_dataset, write_dataset

RANDOM = np.random.default_rng(0)
PHASE = RANDOM.random((7, 8, 8)) > 0.5
FIELD = RANDOM.normal(size=(7, 8, 8)).astype("f4")


def write_npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def write_pt(path, zipped=True, **arrays):
    tensors = {name: torch.from_numpy(np.asarray(values)) for name, values in arrays.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    return path


WRITERS = {
    "npz": lambda folder, **arrays: write_npz(folder / "f.npz", **arrays),
    "pt": lambda folder, **arrays: write_pt(folder / "f.pt", **arrays),
    "old pt": lambda folder, **arrays: write_pt(folder / "f.pt", zipped=False, **arrays),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_writer
def test_darcy_of_neuraloperator(tmp_path, write):
    source = open_dataset(write(tmp_path, x=PHASE, y=FIELD))
    assert (source.inputs, source.targets, source.grid) == (("permeability",), ("pressure",), Grid((8, 8)))
    batch = FieldDataset(source).read([6, 2])
    assert torch.equal(batch.input, torch.from_numpy(PHASE[[6, 2]]).float()[:, None])
    assert torch.equal(batch.target, torch.from_numpy(FIELD[[6, 2]])[:, None])
    assert (
        open_dataset(tmp_path / f"f.{'npz' if (tmp_path / 'f.npz').exists() else 'pt'}", layout="cells").grid.layout
        == ("cells",) * 2
    )


@every_writer
def test_burgers_of_neuraloperator(tmp_path, write):
    u = RANDOM.normal(size=(5, 17, 16))
    source = open_dataset(write(tmp_path, x=u[:, 0], y=u, visc=np.array([[0.01]])))
    assert (source.inputs, source.targets) == (("initial",), ("velocity",))
    assert source.grid == Grid((17, 16), layout=("nodes", "periodic"), axes=("t", "x"))
    np.testing.assert_array_equal(source.read("velocity", [3]), u[[3]])
    np.testing.assert_array_equal(source.read("initial", [3])[:, 9], u[[3], 0])


@every_writer
def test_names_and_grid_can_be_given(tmp_path, write):
    path = write(tmp_path, k=FIELD, p=FIELD * 2, f=FIELD * 3, note=np.zeros(3))
    with pytest.raises(DataError, match="say which are what"):
        open_dataset(path)
    grid = Grid((8, 8), extent=(0.0, 2.0), layout="periodic")
    source = open_dataset(path, inputs=("k", "f"), targets=("p",), grid=grid)
    assert (source.inputs, source.targets, source.grid) == (("k", "f"), ("p",), grid)
    np.testing.assert_array_equal(source.read("f", [0]), FIELD[:1] * 3)
    with pytest.raises(DataError, match="no array 'q'"):
        open_dataset(path, inputs=("q",))
    with pytest.raises(ValueError, match="give one of them"):
        open_dataset(path, inputs=("k",), grid=grid, layout="nodes")
    with pytest.raises(DataError, match=r"the grid is \(4, 4\)"):
        open_dataset(path, inputs=("k",), grid=Grid((4, 4)))


def test_other_names_and_dtypes(tmp_path):
    source = open_dataset(write_npz(tmp_path / "a.npz", permeability=FIELD.astype(">f8"), pressure=FIELD.astype("f2")))
    assert (source.inputs, source.targets) == (("permeability",), ("pressure",))
    assert source.read("permeability", [0]).dtype == np.float64 and source.read("pressure", [0]).dtype == np.float32
    source = open_dataset(write_npz(tmp_path / "b.npz", x=FIELD[:, 0], y=FIELD[:, 1]))
    assert (source.inputs, source.targets, source.grid) == (("input",), ("target",), Grid(8))


@every_writer
def test_data_that_cannot_be_used_are_refused(tmp_path, write):
    bad = FIELD.copy()
    bad[4, 1, 1] = np.nan
    for arrays, message in (
        ({"x": PHASE, "y": bad}, "field 'pressure' is not finite .* in 1 of 7 samples, first in sample 4"),
        ({"x": PHASE, "y": FIELD[:5]}, "5 samples"),
        ({"x": PHASE, "y": FIELD[:, :4]}, "grid"),
        ({"x": FIELD * 1j, "y": FIELD}, "complex"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, "one axis"),
        ({"x": np.zeros((0, 4)), "y": np.zeros((0, 4))}, "no samples"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(write(tmp_path, **arrays))


def test_a_flipped_bit_in_an_archive_is_refused(tmp_path):
    for path in (write_pt(tmp_path / "f.pt", x=PHASE, y=FIELD), tmp_path / "g.npz"):
        if path.suffix == ".npz":
            np.savez(path, x=PHASE, y=FIELD)
        content = bytearray(path.read_bytes())
        content[content.index(FIELD[3].tobytes()) + 9] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"checksum|CRC"):
            open_dataset(path)


def test_a_compressed_pt_is_refused(tmp_path):
    write_pt(tmp_path / "f.pt", x=PHASE, y=FIELD)
    with (
        zipfile.ZipFile(tmp_path / "f.pt") as old,
        zipfile.ZipFile(tmp_path / "g.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DataError, match="compressed"):
        open_dataset(tmp_path / "g.pt")


def test_a_pt_of_something_else_is_refused(tmp_path):
    torch.save([torch.ones(2, 3)], tmp_path / "f.pt")
    with pytest.raises(DataError, match="holds a list"):
        open_dataset(tmp_path / "f.pt")


def test_paths_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_dataset(tmp_path / "none.h5")
    (tmp_path / "f.csv").write_text("1,2")
    with pytest.raises(DataError, match="unknown format"):
        open_dataset(tmp_path / "f.csv")
    write_dataset(tmp_path / "f.h5", {"a": FIELD}, Grid((8, 8)), inputs=("a",), targets=())
    with pytest.raises(ValueError, match="states its own grid"):
        open_dataset(tmp_path / "f.h5", layout="cells")


def test_the_published_darcy_set_trains(reference_data):
    data = FieldDataset(open_dataset(reference_data("neuralop/darcy_train_16.npz")))
    assert (data.input_names, data.target_names, data.grid, len(data)) == (
        ("permeability",),
        ("pressure",),
        Grid((16, 16)),
        1000,
    )
    statistics = channel_statistics(data)
    assert statistics.input.min.item() == 0.0 and statistics.input.max.item() == 1.0
    weight = torch.zeros(1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.2)
    losses = []
    train, _ = data.split(0.9, 0.1)
    for batch in Batches(train, 100, shuffle=True):
        loss = (batch.input * weight + bias - batch.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_published_burgers_set_opens(reference_data):
    source = open_dataset(reference_data("neuralop/burgers_train_16.npz"))
    assert source.grid.axes == ("t", "x") and len(source) == 800
    np.testing.assert_array_equal(source.read("initial", [5])[:, 0], source.read("velocity", [5])[:, 0])
