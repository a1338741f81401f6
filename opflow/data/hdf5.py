"""Fields in an HDF5 file of schema ``opflow/1``: written whole or not at all, read lazily and with suspicion.

==================  ==========================================================================================
object              content
==================  ==========================================================================================
root attributes     ``schema``; as JSON text: ``split``, ``inputs``, ``targets`` and whatever the writer adds
``grid/``           JSON attributes ``shape``, ``extent``, ``layout``, ``axes``, ``kind``; one array of
                    coordinates (float64) an axis
``fields/<name>``   (n, *grid), one chunk a sample, fletcher32; JSON attributes ``role`` (input, target or
                    auxiliary) and ``dims``
``samples/``        ``index`` (int64, global numbers), ``ok`` (uint8), and perhaps ``residual`` (float64)
==================  ==========================================================================================
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from opflow.data.inspection import check_superblock, checked_array, link_names, read_attributes, read_json, read_text
from opflow.data.schema import (
    RESERVED_ATTRIBUTES,
    SCHEMA,
    DataError,
    check_finite,
    check_name,
    check_names,
    check_schema,
    check_stored_dtype,
    damage_reported,
    encode_attribute,
)
from opflow.data.source import as_array, check_field, check_fields, check_index, check_positions
from opflow.files import atomic_file, sha256
from opflow.grid import Grid


def write_dataset(
    path: str | Path,
    fields: Mapping[str, Any],
    grid: Grid,
    *,
    inputs: Sequence[str],
    targets: Sequence[str],
    index: Sequence[int] | NDArray[np.int64] | None = None,
    split: str = "train",
    attributes: Mapping[str, Any] | None = None,
    residual: Any = None,
) -> None:
    """Write scalar fields to one HDF5 file, atomically; equal values give equal bytes.

    The file is put together in memory, so the peak is about three times the size of the fields: split what is larger
    into several files (`generate` does).

    Args:
        path: the file, ``.h5``; one that exists is replaced, in one step and only by a whole one.
        fields: name -> (n, *grid), tensors or arrays in physical units; booleans are stored as uint8.
        grid: where the values live.
        inputs: names of the input fields, in channel order.
        targets: names of the target fields, in channel order.
        index: the samples' global numbers (n,), by default 0..n-1.
        split: the seed namespace, for example ``train``.
        attributes: more to record (equation, parameters, seed ...), values that JSON can hold.
        residual: the solver's relative residual of each sample (n,), if there is one.

    Raises:
        DataError: a name, shape or dtype that the schema does not allow, or a value that is not finite.
        OSError: the file could not be written; what was there before is unchanged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "u.h5"
    >>> write_dataset(path, {"u": torch.zeros(3, 4)}, Grid(4), inputs=("u",), targets=())
    >>> len(HDF5Source(path))
    3
    """
    path = Path(path)
    inputs, targets = check_names(inputs, "input"), check_names(targets, "target")
    arrays = {}
    for name in check_names(fields, "field name"):
        values = as_array(fields[name])
        arrays[name] = values.astype(np.uint8) if values.dtype == bool else values
    n = check_fields(arrays, grid, str(path))
    numbers = check_index(index, n, str(path))
    for name in inputs + targets:
        check_field(tuple(arrays), name, str(path))
    if set(inputs) & set(targets):
        raise DataError(
            f"{sorted(set(inputs) & set(targets))} is input and target at once; a field is stored as one of them."
        )
    for name, values in arrays.items():
        check_stored_dtype(values.dtype, name, str(path))
        check_finite(values, name, numbers, str(path))
    texts = {"split": encode_attribute("split", check_name(split, "split"))}
    texts |= {"inputs": encode_attribute("inputs", inputs), "targets": encode_attribute("targets", targets)}
    for name in check_names(attributes or (), "attribute"):
        if name in RESERVED_ATTRIBUTES:
            raise DataError(f"attribute {name!r} is the schema's own; choose another name.")
        texts[name] = encode_attribute(name, (attributes or {})[name])
    samples: dict[str, NDArray[Any]] = {"index": numbers, "ok": np.ones(n, dtype=np.uint8)}
    if residual is not None:
        samples["residual"] = as_array(residual).astype(np.float64)
        if samples["residual"].shape != (n,):
            raise DataError(
                f"residual has shape {samples['residual'].shape}; one number a sample, ({n},), is expected."
            )
        check_finite(samples["residual"], "residual", numbers, str(path))
    roles = {name: "input" if name in inputs else "target" if name in targets else "auxiliary" for name in arrays}

    content = _file_image({"schema": SCHEMA.encode(), **texts}, grid, arrays, roles, samples)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
        with closing(HDF5Source(temporary)) as written:
            for name, values in arrays.items():
                for i in range(0, n, 64):
                    block = range(i, min(i + 64, n))
                    if not np.array_equal(written.read(name, block), values[i : i + 64]):
                        raise OSError(None, f"field {name!r} did not read back as it was written")


def _file_image(
    texts: Mapping[str, bytes],
    grid: Grid,
    fields: Mapping[str, NDArray[Any]],
    roles: Mapping[str, str],
    samples: Mapping[str, NDArray[Any]],
) -> bytes:
    """The bytes of the file. HDF5 writes to memory only: on a full disk it would leave handles that crash at exit."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(sum(v.nbytes for v in fields.values()) // 8 + (1 << 20), False)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    timeless = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    timeless.set_obj_track_times(False)

    def annotate(obj: Any, values: Mapping[str, bytes]) -> None:
        for name, value in values.items():
            obj.attrs[name] = np.bytes_(value)

    def store(group: Any, name: str, values: NDArray[Any], chunk: tuple[int, ...]) -> Any:
        return group.create_dataset(name, data=values, chunks=chunk, fletcher32=True, track_times=False)

    memory_name = f"opflow-{secrets.token_hex(8)}".encode()  # HDF5 takes two open files of one name for the same
    with h5py.File(h5py.h5f.create(memory_name, h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access)) as file:
        annotate(file, texts)
        groups = {
            name: h5py.Group(h5py.h5g.create(file.id, name.encode(), gcpl=timeless))
            for name in ("grid", "fields", "samples")
        }
        description = {"kind": "cartesian", **grid.to_json()}
        annotate(groups["grid"], {name: encode_attribute(name, value) for name, value in description.items()})
        for axis, name in enumerate(grid.axes):
            store(groups["grid"], check_name(name, "axis"), grid.coordinates(axis).numpy(), (grid.shape[axis],))
        dims = encode_attribute("dims", ["sample", *grid.axes])
        for name, values in fields.items():
            dataset = store(groups["fields"], name, values, (1, *grid.shape))
            annotate(dataset, {"role": encode_attribute("role", roles[name]), "dims": dims})
        for name, values in samples.items():
            store(groups["samples"], name, values, values.shape)
        file.flush()
        return file.id.get_file_image()


@dataclass(frozen=True)
class _Header:
    grid: Grid
    names: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    index: NDArray[np.int64]
    split: str
    attributes: dict[str, Any]


def _read_header(file: Any, path: Path, file_bytes: int) -> _Header:
    check_schema(read_text(file, "schema", path), path)
    split = check_name(read_json(file, "split", path), "split")
    inputs = check_names(read_json(file, "inputs", path), "input")
    targets = check_names(read_json(file, "targets", path), "target")
    missing = {"grid", "fields", "samples"} - set(link_names(file, path))
    if missing:
        raise DataError(f"{path}: group {sorted(missing)[0]!r} is missing; it is not a whole file of schema {SCHEMA}.")
    axes = link_names(file["grid"], path)
    description = {name: read_json(file["grid"], name, path) for name in ("kind", "shape", "extent", "layout", "axes")}
    if description["kind"] != "cartesian":
        raise DataError(f"{path}: the grid is of kind {description['kind']!r}; this version reads 'cartesian' only.")
    grid = Grid.from_json(description)
    names = check_names(link_names(file["fields"], path), "field name")
    for name in inputs + targets:
        check_field(names, name, str(path))
    link_names(file["samples"], path)
    index = checked_array(file["samples"], "index", path, file_bytes=file_bytes, shape=None, chunk=None)
    n = len(index)
    ok = checked_array(file["samples"], "ok", path, file_bytes=file_bytes, shape=(n,), chunk=None)[()]
    if not (ok == 1).all():
        raise DataError(
            f"{path}: {int((ok != 1).sum())} of {n} samples are marked as failed; make the file again without them."
        )
    for name in names:
        checked_array(file["fields"], name, path, file_bytes=file_bytes, shape=(n, *grid.shape), chunk=(1, *grid.shape))
    if set(axes) != set(grid.axes):
        raise DataError(
            f"{path}: coordinates {axes} are stored for a grid with axes {list(grid.axes)}; they must agree."
        )
    for axis, name in enumerate(grid.axes):
        shape = (grid.shape[axis],)
        stored = checked_array(file["grid"], name, path, file_bytes=file_bytes, shape=shape, chunk=None)[()]
        if not np.allclose(stored, grid.coordinates(axis).numpy(), rtol=1e-12, atol=1e-12 * grid.lengths[axis]):
            raise DataError(
                f"{path}: the stored coordinates of axis {name!r} are not those of {grid}; they must agree."
            )
    numbers = check_index(index[()], n, str(path))
    attributes = read_attributes(file, path, RESERVED_ATTRIBUTES)
    return _Header(grid, names, inputs, targets, numbers, split, attributes)


def _open(path: Path) -> Any:
    """The file, open for reading; no lock is taken, since nothing ever writes to a file under its final name."""
    import h5py

    return h5py.File(path, "r", locking=False)


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class HDF5Source:
    """One HDF5 file of schema ``opflow/1``, checked when it is opened and read sample by sample afterwards.

    It may be handed to worker processes, forked or spawned: each opens the file for itself. A process that has it open
    keeps reading the old content when the file is replaced; one that opens it later refuses the new content.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is truncated, altered, of another schema or version, or leads to other files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._fields: dict[str, Any] = {}
        self._pid = -1
        self._identity: tuple[int, int, int, int] | None = None
        self._fingerprint: str | None = None
        file = self._file()
        assert self._identity is not None
        try:
            with damage_reported(self.path, "its content"):
                self._header = _read_header(file, self.path, self._identity[2])
        except DataError:
            self.close()
            raise

    @property
    def grid(self) -> Grid:
        """The grid of every field."""
        return self._header.grid

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields, sorted."""
        return self._header.names

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input fields, in channel order."""
        return self._header.inputs

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target fields, in channel order."""
        return self._header.targets

    @property
    def index(self) -> NDArray[np.int64]:
        """The global sample numbers (n,)."""
        return self._header.index

    @property
    def split(self) -> str:
        """The seed namespace."""
        return self._header.split

    @property
    def attributes(self) -> dict[str, Any]:
        """What else the writer recorded."""
        return self._header.attributes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        if self._fingerprint is None:
            self._file()
            self._fingerprint = sha256(self.path)
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.index)

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Field `name` at these positions: (len(indices), *grid), in the stored dtype.

        Raises:
            DataError: a checksum does not match, or a value is not finite; the message names the sample.
        """
        check_field(self.names, name, str(self.path))
        positions = check_positions(indices, len(self), str(self.path))
        file = self._file()
        if name not in self._fields:
            with damage_reported(self.path, f"field {name!r}"):
                self._fields[name] = file["fields"][name]
        dataset = self._fields[name]
        values = np.empty((len(positions), *self.grid.shape), dtype=dataset.dtype)
        # Whole chunks, neighbours in one call; a stride inside HDF5 would be ten times slower than in NumPy.
        edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            if start < stop:
                self._read_run(dataset, name, int(positions[start]), values[start:stop])
        check_finite(values, name, self.index[positions], str(self.path))
        return values

    def _read_run(self, dataset: Any, name: str, first: int, values: NDArray[Any]) -> None:
        n = len(values)
        try:
            dataset.read_direct(values, np.s_[first : first + n], np.s_[0:n])
        except (OSError, RuntimeError) as error:
            if n > 1:  # find the sample that is damaged
                for k in range(n):
                    self._read_run(dataset, name, first + k, values[k : k + 1])
            reason = str(error).split("\n")[0][:200]
            raise DataError(
                f"{self.path}: field {name!r} of sample {int(self.index[first])} cannot be read ({reason}); "
                "the file is damaged: restore it or make it again."
            ) from error

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None:
            self._handle.close()
        self._handle, self._fields = None, {}

    def _file(self) -> Any:
        if self._handle is not None and self._pid == os.getpid():
            return self._handle
        self.close()  # inherited through fork: this closes the child's copy only
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist or is not a file; check the path.")
        check_superblock(self.path)
        with damage_reported(self.path, "its HDF5 structure"):
            handle = _open(self.path)
            identity = _identity(handle.id.get_vfd_handle())
        if self._identity is not None and identity != self._identity:
            handle.close()
            raise DataError(f"{self.path} was replaced after it was opened; open it again to read the new content.")
        self._handle, self._pid, self._identity = handle, os.getpid(), identity
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_fields": {}, "_pid": -1}
