"""Files of schema opflow/1: what is written is what is read, byte for byte repeatable, or refused with a sentence."""

import pickle
import time

import numpy as np
import pytest
import torch
from children import in_child, limit_file_size
from hypothesis import given, settings
from hypothesis import strategies as st

from opflow import Grid
from opflow.data import DataError, FieldDataset, open_dataset, write_dataset
from opflow.data.hdf5_source import HDF5Source
from opflow.data.schema import check_name

GRID = Grid((8, 9), extent=((0.0, 1.0), (-1.0, 2.0)), layout=("nodes", "periodic"))


def fields(n=5, grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, *grid.shape, generator=generator) for name in ("a", "u")}


def write(path, values=None, grid=GRID, **options):
    values = fields() if values is None else values
    write_dataset(path, values, grid, inputs=("a",), targets=("u",), **options)
    return path


@pytest.mark.parametrize(
    "grid", [Grid(7), GRID, Grid((4, 5, 6), layout="cells"), Grid((3, 4), axes=("t", "x"), layout=("nodes", "cells"))]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int32", "int64", "bool"])
def test_what_is_written_is_read(tmp_path, grid, dtype):
    values = {name: (v.numpy() * 3).round().clip(0, 9).astype(dtype) for name, v in fields(grid=grid).items()}
    write(
        tmp_path / "f.h5",
        values,
        grid,
        index=[7, 3, 4, 5, 100],
        split="validation",
        attributes={"seed": 3, "parameters": {"nu": [0.1, None, "µ"]}},
        residual=np.full(5, 1e-11),
    )
    source = open_dataset(tmp_path / "f.h5")
    assert (source.grid, source.inputs, source.targets, source.split) == (grid, ("a",), ("u",), "validation")
    assert source.index.tolist() == [7, 3, 4, 5, 100] and len(source) == 5
    assert source.attributes == {"seed": 3, "parameters": {"nu": [0.1, None, "µ"]}}
    for order in ([0, 1, 2, 3, 4], [4, 0, 1, 1, 3], [2], []):
        for name in ("a", "u"):
            read = source.read(name, order)
            np.testing.assert_array_equal(read, values[name][order])
            assert read.dtype == (np.uint8 if dtype == "bool" else np.dtype(dtype))


def test_written_twice_gives_the_same_bytes(tmp_path):
    first = write(tmp_path / "first.h5", attributes={"b": 1, "a": 2}).read_bytes()
    time.sleep(1.1)  # a time stamp of one second would show
    (tmp_path / "elsewhere").mkdir()
    assert write(tmp_path / "elsewhere" / "other_name.h5", attributes={"a": 2, "b": 1}).read_bytes() == first


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_written(tmp_path, bad):
    values = fields()
    values["u"][2, 3, 4] = values["u"][4, 0, 0] = bad
    with pytest.raises(DataError, match=r"field 'u' is not finite .* in 2 of 5 samples, first in sample 12"):
        write(tmp_path / "f.h5", values, index=range(10, 15))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"a": torch.ones(5, 8, 9)}}, "no field 'u'"),
        ({"values": {"a": torch.ones(5, 8, 9), "u": torch.ones(4, 8, 9)}}, "4 samples but the fields before it have 5"),
        (
            {"values": {"a": torch.ones(5, 8, 9), "u": torch.ones(5, 9, 8)}},
            r"shape \(5, 9, 8\) but the grid is \(8, 9\)",
        ),
        ({"values": {"a": torch.ones(0, 8, 9), "u": torch.ones(0, 8, 9)}}, "no samples"),
        ({"values": {"a": torch.ones(1, 8, 9), "u": torch.ones(1, 8, 9) * 1j}}, "two real ones"),
        ({"values": {"a": torch.ones(1, 8, 9), "u": torch.ones(1, 8, 9).half()}}, "float16"),
        ({"values": {"a": torch.ones(1, 8, 9), "u": np.array([["x"]])}}, "real numbers"),
        ({"values": {"../a": torch.ones(1, 8, 9)}}, "not allowed"),
        ({"index": [0, 1, 2, 3, 3]}, "repeated"),
        ({"index": [0, 1]}, "5 whole numbers"),
        ({"split": "../train"}, "not allowed"),
        ({"attributes": {"schema": "x"}}, "schema's own"),
        ({"attributes": {"a b": "x"}}, "not allowed"),
        ({"attributes": {"a": float("nan")}}, "JSON"),
        ({"attributes": {"a": object()}}, "JSON"),
        ({"attributes": {"a": "x" * 70_000}}, "60000 is the limit"),
        ({"residual": np.ones(3)}, "one number a sample"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "f.h5", **change)
    assert list(tmp_path.iterdir()) == []


def test_a_field_is_input_or_target(tmp_path):
    with pytest.raises(DataError, match="input and target at once"):
        write_dataset(tmp_path / "f.h5", fields(), GRID, inputs=("a", "u"), targets=("u",))


def test_an_open_reader_keeps_the_old_content(tmp_path):
    old, new = fields(seed=0), fields(seed=1)
    path = write(tmp_path / "f.h5", old)
    reader, late = open_dataset(path), open_dataset(path)
    late.close()
    write(path, new)
    np.testing.assert_array_equal(reader.read("a", range(5)), old["a"])
    np.testing.assert_array_equal(open_dataset(path).read("a", range(5)), new["a"])
    for use in (
        lambda: late.read("a", [0]),
        lambda: reader.fingerprint,
        lambda: pickle.loads(pickle.dumps(reader)).read("a", [0]),
    ):
        with pytest.raises(DataError, match="was replaced after it was opened"):
            use()


def test_a_polar_grid_is_read_as_one(tmp_path):
    grid = Grid.polar(8, 9, 2.0)
    write_dataset(tmp_path / "f.h5", fields(), grid, inputs=("a",), targets=("u",))
    source = open_dataset(tmp_path / "f.h5")
    assert source.grid == grid and source.grid.kind == "polar"
    np.testing.assert_array_equal(source.read("a", range(5)), fields()["a"])


def test_a_reader_travels_to_other_processes(tmp_path):
    source = open_dataset(write(tmp_path / "f.h5"))
    expected = source.read("u", [3, 1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read("u", [3, 1]), expected)
    np.testing.assert_array_equal(in_child(source.read, "u", [3, 1]), expected)
    np.testing.assert_array_equal(source.read("u", [3, 1]), expected)


def test_positions_and_names_are_checked(tmp_path):
    source = open_dataset(write(tmp_path / "f.h5"))
    with pytest.raises(IndexError, match="position 5 is outside"):
        source.read("a", [0, 5])
    with pytest.raises(DataError, match="no field 'b'; it has a, u"):
        source.read("b", [0])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        HDF5Source(tmp_path / "none.h5")


def _write_on_a_full_disk(path):
    limit_file_size(20_000)
    try:
        write(path, fields(n=100))
    except OSError as error:
        return str(error), error.filename is None
    return "written", False


def test_on_a_full_disk_the_old_file_stays(tmp_path):
    before = write(tmp_path / "f.h5").read_bytes()
    message, _ = in_child(_write_on_a_full_disk, tmp_path / "f.h5")
    assert f"could not write {tmp_path / 'f.h5'}" in message and "unchanged" in message
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]
    assert (tmp_path / "f.h5").read_bytes() == before


def test_a_damaged_sample_is_named_and_the_others_are_read(tmp_path):
    values = fields(n=20)
    path = write(tmp_path / "f.h5", values, index=range(100, 120))
    content = bytearray(path.read_bytes())
    content[content.index(values["u"][13].numpy().tobytes())] ^= 4
    path.write_bytes(content)
    source = open_dataset(path)
    np.testing.assert_array_equal(source.read("u", range(13)), values["u"][:13])
    np.testing.assert_array_equal(source.read("a", range(20)), values["a"])
    with pytest.raises(DataError, match=r"f\.h5: field 'u' of sample 113 cannot be read"):
        source.read("u", range(5, 20))
    with pytest.raises(DataError, match="sample 113"):
        FieldDataset(source).in_memory()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.text(max_size=80) | st.sampled_from(["../x", "/etc", "a\0b", "a" * 65, "", ".", "a/b", "1a", "a\n"]))
def test_only_plain_names_are_allowed(name):
    if name.isascii() and name.isidentifier() and name[0] != "_" and len(name) <= 64:
        assert check_name(name, "field name") == name
    else:
        with pytest.raises(DataError, match="is not allowed"):
            check_name(name, "field name")
