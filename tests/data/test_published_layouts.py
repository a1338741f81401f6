"""Files in the layouts that inverse problems were published in: neural inverse operators' HDF5 and OpenFWI's .npy."""

import h5py
import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.data import DataError, FieldDataset, read_nio, read_openfwi

RANDOM = np.random.default_rng(0)


def write_nio(path, numbers=(4, 10, 9), inputs=None, points=None, **sizes):
    with h5py.File(path, "w") as file:
        for number in numbers:
            file[f"testing/sample_{number}/input"] = (
                np.full((8, 3), number) + np.arange(3.0) if inputs is None else inputs
            )
            file[f"testing/sample_{number}/output"] = np.full((5, 4), number, "f4")
        if points is not None:
            file["grid"] = points
    return path


def test_the_published_file_of_boundary_data(reference_data):
    path = reference_data("formats/nio_like.h5")
    whole = {split: read_nio(path, split) for split in ("train", "validation", "test")}
    assert {split: source.index.tolist() for split, source in whole.items()} == {
        "train": [0, 1],
        "validation": [2],
        "test": [3],
    }
    with h5py.File(path, "r", locking=False) as file:
        matrix, output = file["testing/sample_3/input"][()], file["testing/sample_3/output"][()]
        mean = file["mean_inp_fun"][()]
    source = whole["test"]
    assert (source.inputs, source.targets, source.split) == (("measurements",), ("coefficient",), "test")
    assert source.grid.shape == (70, 70) and source.grid.extent == ((0.0, 1.0), (0.0, 1.0))
    np.testing.assert_array_equal(source.read("measurements", [0])[0, :, 0], matrix.T)
    np.testing.assert_array_equal(source.read("coefficient", [0])[0], output)
    batch = FieldDataset(whole["train"], dtype=torch.float64).read([1])
    assert batch.input.shape == (1, 20, 1, 272) and batch.target.shape == (1, 1, 70, 70)
    assert batch.index.tolist() == [1] and not np.allclose(mean, matrix), "physical units, no statistics applied"


def test_samples_come_in_the_order_of_their_numbers(tmp_path):
    source = read_nio(write_nio(tmp_path / "f.h5"), "test", output="wave_speed")
    assert source.index.tolist() == [4, 9, 10] and source.targets == ("wave_speed",)
    assert source.read("measurements", [0, 2])[:, 1, 0, 0].tolist() == [5.0, 11.0]
    assert source.read("wave_speed", [1]).shape == (1, 5, 4) and source.grid == Grid((5, 4))
    turned = read_nio(write_nio(tmp_path / "g.h5"), "test", transposed=True)
    assert turned.read("measurements", [0]).shape == (1, 8, 1, 3)


def test_the_grid_is_that_of_the_coordinates(tmp_path):
    rising = Grid((5, 4), [(-1.0, 1.0), (0.0, 3.0)])
    source = read_nio(write_nio(tmp_path / "f.h5", points=rising.points().numpy()), "test")
    assert source.grid == rising
    turned = rising.points().numpy()[..., ::-1]  # x along the last axis
    assert read_nio(write_nio(tmp_path / "g.h5", points=turned), "test").grid == Grid(
        (5, 4), rising.extent, axes=("y", "x")
    )
    for points, message in (
        (rising.points().numpy() ** 2, "evenly spaced nodes"),
        (np.zeros((5, 4, 2)), "evenly spaced nodes"),
        (np.zeros((4, 5, 2)), "say where the outputs live"),
    ):
        path = write_nio(tmp_path / "h.h5", points=points)
        with pytest.raises(DataError, match=message):
            read_nio(path, "test")
        assert read_nio(path, "test", grid=rising).grid == rising


def _edited(change):
    def make(path):
        write_nio(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "u", shape=(8, 3))
    del file["testing/sample_9/input"]
    file["testing/sample_9"].create_virtual_dataset("input", layout)


def _replaced(name, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return _edited(change)


BAD = {
    "no split": (_edited(lambda f: f.move("testing", "tested")), "has no 'testing'"),
    "no samples": (_edited(lambda f: [f.pop(f"testing/sample_{i}") for i in (4, 9, 10)]), "holds 0 objects"),
    "a stranger": (_edited(lambda f: f["testing"].create_group("mean")), "holds 'mean'; sample_0"),
    "no output": (_edited(lambda f: f.pop("testing/sample_9/output")), "has no 'output'"),
    "a group": (_edited(lambda f: (f.pop("grid", None), f["testing/sample_4"].move("input", "i"), f.create_group("testing/sample_4/input"))), "a Dataset is expected"),
    "another shape": (_replaced("testing/sample_9/input", data=np.zeros((8, 4))), "where the samples before it have"),
    "three axes": (_replaced("testing/sample_4/input", data=np.zeros((8, 4, 1))), r"\(sensors, measurements\) is expected"),
    "complex": (_replaced("testing/sample_4/input", data=np.zeros((8, 3), "c8")), "numbers are expected"),
    "text": (_replaced("testing/sample_4/input", data=np.full((8, 3), b"a")), "numbers are expected"),
    "NaN": (_replaced("testing/sample_9/input", data=np.full((8, 3), np.nan)), "first in sample 9"),
    "huge": (_replaced("testing/sample_4/input", shape=(1 << 30, 3), dtype="f8"), "declares"),
    "bomb": (_replaced("testing/sample_4/input", shape=(1 << 30, 3), dtype="f8", chunks=(64, 3), compression="gzip"), "expands to"),
    "virtual": (_edited(_virtual), "reads other files"),
    "external link": (_edited(lambda f: (f.pop("testing/sample_9"), f["testing"].update({"sample_9": h5py.ExternalLink("o.h5", "/")}))), "links are refused"),
    "no HDF5": (lambda path: path.write_bytes(b"anything"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_of_boundary_data_are_refused(tmp_path, case):
    make, message = BAD[case]
    make(tmp_path / "f.h5")
    with pytest.raises(DataError, match=message) as error:
        read_nio(tmp_path / "f.h5", "test")
    assert str(tmp_path / "f.h5") in str(error.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_nio(tmp_path / "f.h5")
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_openfwi(tmp_path / "data1.npy", tmp_path / "model1.npy")
    with pytest.raises(DataError, match="choose one of train, validation, test"):
        read_nio(write_nio(tmp_path / "f.h5"), "testing")


def write_openfwi(folder, sizes=(3, 2), data=None, model=None):
    pairs = []
    for k, n in enumerate(sizes, 1):
        records = RANDOM.normal(size=(n, 2, 7, 4)).astype("f4") if data is None else data
        speeds = RANDOM.uniform(1500, 4500, size=(n, 1, 5, 4)).astype("f4") if model is None else model
        np.save(folder / f"data{k}.npy", records)
        np.save(folder / f"model{k}.npy", speeds)
        pairs.append((records, speeds))
    names = [[folder / f"{kind}{k}.npy" for k in range(1, len(sizes) + 1)] for kind in ("data", "model")]
    return *names, *(np.concatenate(parts) for parts in zip(*pairs, strict=True))


def test_the_published_pair_of_seismograms(reference_data):
    data, model = (reference_data(f"formats/openfwi_like_{kind}1.npy") for kind in ("data", "model"))
    source = read_openfwi(data, model)
    assert (source.inputs, source.measurements, source.targets) == (
        ("measurements",),
        ("measurements",),
        ("wave_speed",),
    )
    assert (
        source.grid.shape == (70, 70) and source.grid.extent == ((0.0, 690.0),) * 2 and source.grid.axes == ("z", "x")
    )
    np.testing.assert_array_equal(source.read("measurements", [1])[0, :, 0], np.load(data)[1])
    np.testing.assert_array_equal(source.read("wave_speed", [1])[0], np.load(model)[1, 0])
    batch = FieldDataset(source, stride=3).read([0])
    assert batch.input.shape == (1, 5, 1, 100, 70) and batch.target.shape == (1, 1, 24, 24)


def test_several_files_are_one_source(tmp_path):
    data, model, records, speeds = write_openfwi(tmp_path)
    source = read_openfwi(data, model, spacing=20.0, split="test", output="velocity")
    assert len(source) == 5 and source.split == "test" and source.grid.extent == ((0.0, 80.0), (0.0, 60.0))
    order = [4, 0, 3, 2, 0]
    np.testing.assert_array_equal(source.read("measurements", order), records[order][:, :, None])
    np.testing.assert_array_equal(source.read("velocity", order), speeds[order, 0])
    assert source.read("velocity", []).shape == (0, 5, 4)
    assert not isinstance(source.read("velocity", [0]), np.memmap)
    other = read_openfwi(data[::-1], model[::-1], spacing=20.0, split="test", output="velocity")
    assert other.fingerprint != source.fingerprint


def test_pairs_that_do_not_fit_are_refused(tmp_path):
    data, model, *_ = write_openfwi(tmp_path)
    with pytest.raises(DataError, match="2 files of seismograms and 1 of velocities"):
        read_openfwi(data, model[:1])
    with pytest.raises(DataError, match=r"\(3, 1, depth, x\) is expected"):
        read_openfwi(data[0], model[1])
    with pytest.raises(DataError, match="but the grid is"):
        read_openfwi(data, model, grid=Grid((4, 5)))
    for options, message in (
        ({"data": np.zeros((3, 2, 7), "f4")}, r"\(samples, source, time, receiver\) are expected"),
        ({"model": np.zeros((3, 5, 4), "f4")}, r"\(samples, 1, depth, x\) are expected"),
        ({"data": np.zeros((3, 2, 7, 4), "c8")}, "complex64"),
        ({"data": np.zeros((3, 2, 7, 4), object)}, "cannot be read"),
    ):
        bad = write_openfwi(tmp_path, sizes=(3,), **options)
        with pytest.raises(DataError, match=message):
            read_openfwi(*bad[:2])


def test_bad_values_and_replaced_files_are_refused(tmp_path):
    data, model, records, speeds = write_openfwi(tmp_path)
    speeds[4, 0, 2, 2] = np.nan
    np.save(model[1], speeds[3:])
    source = read_openfwi(data, model)
    with pytest.raises(DataError, match=r"model2\.npy: field 'wave_speed' is not finite .* first in sample 4"):
        source.read("wave_speed", range(5))
    assert source.read("wave_speed", [3]).shape == (1, 5, 4)
    late = read_openfwi(data, model)
    late._arrays.clear()
    np.save(data[0], records[:3] + 1)
    for use in (lambda: late.read("measurements", [0]), lambda: late.fingerprint):
        with pytest.raises(DataError, match="was replaced after it was opened"):
            use()
