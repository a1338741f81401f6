"""neuraloperator's ``.pt`` data files: a dictionary of tensors ``x`` and ``y`` (and ``visc`` for Burgers' equation)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.data.readers.bare_arrays import MAX_ARRAY_BYTES, as_source
from opflow.data.schema import DataError, check_name, damage_reported
from opflow.data.source import ArraySource
from opflow.grid import Grid


def read_pt(
    path: str | Path,
    *,
    grid: Grid | None = None,
    layout: str | Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> ArraySource:
    """The tensors of a ``.pt`` file, (samples, *grid) each; names and grid as `bare_arrays` says, unless they are given.

    Only tensors and plain containers are unpickled. Files of torch 1.6 and later carry checksums, which are compared;
    older ones have none.

    Raises:
        DataError: damaged, holding anything that could run code, or not a dictionary of tensors.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_ARRAY_BYTES:
        raise DataError(f"{path} has {size} bytes; {MAX_ARRAY_BYTES} is the limit: convert it with write_dataset.")
    with damage_reported(path, "the archive"):
        _check_archive(path, size)
    with damage_reported(
        path, "its dictionary of tensors (loaded with weights_only=True, so that nothing in it can run)"
    ):
        content = torch.load(path, map_location="cpu", weights_only=True)
        arrays = _arrays(content, path, size)
    return as_source(arrays, path, grid=grid, layout=layout, inputs=inputs, targets=targets)


def _check_archive(path: Path, size: int) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise DataError(
                f"{path} is compressed, which torch.save never does; it is refused: a small file could fill the memory."
            )
        damaged = archive.testzip()  # torch.load itself does not compare the checksums
        if damaged is not None:
            raise DataError(
                f"{path}: the checksum of {damaged[:80]!r} does not match; the file is damaged: restore it."
            )


def _arrays(content: Any, path: Path, size: int) -> dict[str, NDArray[Any]]:
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; a dictionary of tensors x and y is expected.")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        check_name(name, "array name")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise DataError(f"{path}: tensor {name!r} is not a plain dense one; save it with .cpu().contiguous().")
        if value.numel() * value.element_size() > size:
            raise DataError(
                f"{path}: tensor {name!r} declares shape {tuple(value.shape)}, more than the {size} bytes of the file."
            )
        if value.dtype == torch.bfloat16:
            tensors[name] = value.float()
    return {name: value.detach().resolve_conj().resolve_neg().numpy() for name, value in tensors.items()}
