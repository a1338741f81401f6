"""Damaged and hostile files: every one is refused with a sentence; none crashes, hangs, changes a value or reads elsewhere."""

import os
import signal
import time
import zipfile

import h5py
import numpy as np
import pytest
import torch
from children import in_child, peak_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opflow import Grid
from opflow.data import DataError, open_dataset, write_dataset

GRID = Grid((6, 7))
VALUES = {name: np.random.default_rng(i).normal(size=(4, 6, 7)).astype("f4") for i, name in enumerate(("a", "u"))}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "f.h5"
    write_dataset(path, VALUES, GRID, inputs=("a",), targets=("u",), attributes={"seed": 0, "parameters": {"nu": 0.1}})
    return path


@pytest.fixture
def copy(original, tmp_path):
    path = tmp_path / "f.h5"
    path.write_bytes(original.read_bytes())
    return path


def outcome(path):
    """How a damaged copy fares: refused, or the same as before; anything else fails."""
    signal.alarm(5)
    try:
        source = open_dataset(path)
        read = {name: source.read(name, range(len(source))) for name in source.inputs + source.targets}
        seen = (source.grid, source.index.tolist(), source.split, source.attributes)
    except DataError as error:
        assert str(path) in str(error) and len(str(error)) > 40
        return "refused"
    finally:
        signal.alarm(0)
    assert seen == (GRID, [0, 1, 2, 3], "train", {"seed": 0, "parameters": {"nu": 0.1}})
    assert set(read) == set(VALUES) and all(np.array_equal(read[name], VALUES[name]) for name in VALUES)
    return "same"


def _flips(path, seed, n):
    content = path.read_bytes()
    random = np.random.default_rng(seed)
    outcomes = []
    for _ in range(n):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        outcomes.append(outcome(path))
    return outcomes


@pytest.mark.parametrize("n", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_harmless(copy, n):
    outcomes = in_child(_flips, copy, 0, n, seconds=250)
    assert outcomes.count("refused") > n // 3  # the rest hit bytes that hold nothing


def test_every_flipped_bit_of_the_values_is_refused(copy):
    content = copy.read_bytes()
    for name in VALUES:
        start = content.index(VALUES[name].tobytes()[:168])
        for offset in (0, 77, 167):
            copy.write_bytes(
                content[: start + offset] + bytes([content[start + offset] ^ 16]) + content[start + offset + 1 :]
            )
            assert outcome(copy) == "refused"


def _truncations(path, lengths):
    content = path.read_bytes()
    for length in lengths:
        path.write_bytes(content[:length])
        assert outcome(path) == "refused", length
    return len(content)


def test_a_truncated_file_is_refused(copy):
    size = copy.stat().st_size
    in_child(_truncations, copy, [*range(0, size, 97), size - 1])


def _edit(path, edit):
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        edit(file)


def _replaced(name, **options):
    def edit(file):
        del file["fields/u"]
        file["fields"].create_dataset("u", **options)

    return edit


def _attribute(name, value):
    def edit(file):
        file.attrs[name] = value

    return edit


def _link(link):
    def edit(file):
        del file["fields/u"]
        file["fields/u"] = link

    return edit


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(4, 6, 7), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "u", shape=(4, 6, 7))
    del file["fields/u"]
    file["fields"].create_virtual_dataset("u", layout)


CHUNK = {"chunks": (1, 6, 7), "fletcher32": True}
HOSTILE = {
    "external link": (_link(h5py.ExternalLink("other.h5", "/u")), "ExternalLink"),
    "soft link": (_link(h5py.SoftLink("/fields/a")), "SoftLink"),
    "external link to a group": (
        lambda f: (f.pop("samples"), f.update({"samples": h5py.ExternalLink("o.h5", "/")})),
        "ExternalLink",
    ),
    "external storage": (
        _replaced("u", shape=(4, 6, 7), dtype="f4", external=[("other.bin", 0, h5py.h5f.UNLIMITED)]),
        "external storage",
    ),
    "virtual dataset": (_virtual, "virtual dataset"),
    "eight terabytes": (_replaced("u", shape=(1 << 35, 6, 7), dtype="f4", **CHUNK), "declares .* bytes"),
    "never written": (_replaced("u", shape=(4, 6, 7), dtype="f4", **CHUNK), "never written"),
    "compressed": (_replaced("u", data=np.zeros((4, 6, 7), "f4"), compression="gzip", **CHUNK), "no compression"),
    "gzip bomb": (
        _replaced("u", shape=(4, 8192, 8192), dtype="f4", chunks=(1, 8192, 8192), compression="gzip", fillvalue=0),
        "no compression",
    ),
    "without checksum": (_replaced("u", data=np.zeros((4, 6, 7), "f4"), chunks=(1, 6, 7)), "fletcher32"),
    "contiguous": (_replaced("u", data=np.zeros((4, 6, 7), "f4")), "fletcher32"),
    "another chunk": (_replaced("u", data=np.zeros((4, 6, 7), "f4"), chunks=(2, 6, 7), fletcher32=True), "chunks"),
    "another shape": (_replaced("u", data=np.zeros((4, 7, 6), "f4"), chunks=(1, 7, 6), fletcher32=True), "shape"),
    "fewer samples": (_replaced("u", data=np.zeros((3, 6, 7), "f4"), **CHUNK), "shape"),
    "text": (_replaced("u", data=np.full((4, 6, 7), b"abcd"), **CHUNK), "numbers"),
    "objects": (_replaced("u", shape=(4, 6, 7), dtype=h5py.string_dtype(), chunks=(1, 6, 7)), "numbers|fletcher32"),
    "references": (_replaced("u", shape=(4, 6, 7), dtype=h5py.ref_dtype, **CHUNK), "numbers"),
    "complex": (_replaced("u", data=np.zeros((4, 6, 7), "c8"), **CHUNK), "numbers|never|dtype"),
    "half precision": (_replaced("u", data=np.zeros((4, 6, 7), "f2"), **CHUNK), "float16"),
    "big endian": (_replaced("u", data=np.zeros((4, 6, 7), ">f4"), **CHUNK), "dtype"),
    "NaN": (
        _replaced("u", data=np.full((4, 6, 7), np.nan, "f4"), **CHUNK),
        "not finite .* in 4 of 4 samples, first in sample 0",
    ),
    "a group for a field": (lambda f: (f.pop("fields/u"), f["fields"].create_group("u")), "array is expected"),
    "missing field": (lambda f: f.pop("fields/u"), "no field 'u'"),
    "missing fields": (lambda f: f.pop("fields"), "group 'fields' is missing"),
    "missing samples": (lambda f: f.pop("samples"), "group 'samples' is missing"),
    "missing index": (lambda f: f.pop("samples/index"), "no 'index'"),
    "missing coordinates": (lambda f: f.pop("grid/x"), "coordinates"),
    "failed samples": (
        lambda f: f["samples/ok"].write_direct(np.array([1, 0, 0, 1], "u1")),
        "2 of 4 samples are marked",
    ),
    "repeated index": (lambda f: f["samples/index"].write_direct(np.zeros(4, "i8")), "repeated"),
    "other coordinates": (lambda f: f["grid/x"].write_direct(np.arange(6.0)), "stored coordinates"),
    "newer schema": (_attribute("schema", np.bytes_(b"opflow/2")), "schema 'opflow/2' but .* reads 'opflow/1'"),
    "foreign schema": (_attribute("schema", np.bytes_(b"well/1")), "'well/1'"),
    "no schema": (lambda f: f.attrs.pop("schema"), "no attribute 'schema'"),
    "variable-length text": (_attribute("split", "train"), "fixed-length text"),
    "an array of text": (_attribute("split", np.array([b"train"])), "fixed-length text"),
    "no JSON": (_attribute("inputs", np.bytes_(b"{")), "not valid JSON"),
    "deep JSON": (_attribute("inputs", np.bytes_(b"[" * 50_000)), "not valid JSON"),
    "a path for a name": (_attribute("inputs", np.bytes_(b'["../a"]')), "not allowed"),
    "polar": (lambda f: f["grid"].attrs.__setitem__("kind", np.bytes_(b'"polar"')), "cartesian"),
    "a huge grid": (lambda f: f["grid"].attrs.__setitem__("shape", np.bytes_(b"[1000000000, 1000000000]")), "shape"),
    "a grid of text": (lambda f: f["grid"].attrs.__setitem__("shape", np.bytes_(b'["a", {}]')), "content"),
}


def _refused(path):
    start, before = time.monotonic(), peak_memory()
    try:
        source = open_dataset(path)
        source.read("u", range(len(source)))
    except DataError as error:
        return str(error), time.monotonic() - start, peak_memory() - before
    return "read", 0.0, 0


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(copy, case):
    edit, message = HOSTILE[case]
    (copy.parent / "other.bin").write_bytes(b"secret" * 1000)
    write_dataset(copy.parent / "other.h5", VALUES, GRID, inputs=("a",), targets=("u",))
    _edit(copy, edit)
    said, seconds, memory = in_child(_refused, copy)
    assert str(copy) in said
    with pytest.raises(DataError, match=message):
        raise DataError(said)
    assert seconds < 2 and memory < 200 << 20


def test_an_hdf5_file_of_another_library_is_refused(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        file["tensor"] = np.zeros((2, 3))
    with pytest.raises(DataError, match=r"is an HDF5 file but not one of opflow's .*write_dataset"):
        open_dataset(tmp_path / "f.h5")
    (tmp_path / "g.h5").write_bytes(b"anything")
    with pytest.raises(DataError, match="not an HDF5 file"):
        open_dataset(tmp_path / "g.h5")


class _Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused(tmp_path, zipped):
    marker = tmp_path / "owned"
    torch.save(
        {"x": torch.zeros(2, 4), "y": torch.zeros(2, 4), "z": _Malicious(marker)},
        tmp_path / "f.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(DataError, match="weights_only=True"):
        open_dataset(tmp_path / "f.pt")
    array = np.empty(2, dtype=object)
    array[0] = _Malicious(marker)
    np.savez(tmp_path / "f.npz", x=array, y=np.zeros((2, 4)))
    with pytest.raises(DataError, match="pickled objects"):
        open_dataset(tmp_path / "f.npz")
    assert not marker.exists()


def test_archives_that_claim_too_much_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 20), "y": torch.zeros(1)}, tmp_path / "f.pt")
    with pytest.raises(DataError, match="declares shape"):
        open_dataset(tmp_path / "f.pt")
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", header)
    with pytest.raises(DataError, match="declares shape"):
        open_dataset(tmp_path / "f.npz")
    with (
        zipfile.ZipFile(tmp_path / "g.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as x,
    ):
        for _ in range(5):
            x.write(bytes(1 << 20))
    content = bytearray((tmp_path / "g.npz").read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (0xFFFFFFF0).to_bytes(4, "little")  # the expanded size it declares
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"expands to|cannot be read"):
        open_dataset(tmp_path / "g.npz")


@pytest.fixture(scope="module")
def formats(tmp_path_factory, original):
    folder = tmp_path_factory.mktemp("formats")
    np.savez(folder / "f.npz", x=VALUES["a"], y=VALUES["u"])
    torch.save({"x": torch.from_numpy(VALUES["a"]), "y": torch.from_numpy(VALUES["u"])}, folder / "f.pt")
    return {"h5": original.read_bytes()} | {name: (folder / f"f.{name}").read_bytes() for name in ("npz", "pt")}


def _open_mutant(path, content):
    path.write_bytes(content)
    try:
        source = open_dataset(path)
        for name in source.inputs + source.targets:
            values = source.read(name, range(len(source)))
            assert np.isfinite(values).all()
    except DataError:
        return "refused"
    return "read"


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), suffix=st.sampled_from(["h5", "npz", "pt"]))
def test_mutated_files_raise_only_what_the_library_documents(tmp_path_factory, formats, data, suffix):
    content = bytearray(formats[suffix])
    kind = data.draw(st.sampled_from(["overwrite", "insert", "delete", "repeat"]))
    at = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=24))
    match kind:
        case "overwrite":
            content[at : at + len(piece)] = piece
        case "insert":
            content[at:at] = piece
        case "delete":
            del content[at : at + 8 * len(piece)]
        case "repeat":
            content[at:at] = content[at : at + 64]
    path = tmp_path_factory.mktemp("mutant") / f"f.{suffix}"
    in_child(_open_mutant, path, bytes(content), seconds=20)
