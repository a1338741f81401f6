"""The manifest of a data folder: which recipe made it, and the hash of every part.

``<folder>/<split>/`` holds ``recipe.json`` (first), ``part-00000-of-00004.h5`` each with a sidecar ``.json`` (its hash),
and ``manifest.json`` (last: the data set is complete). No file holds a time, so the same recipe gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opflow.data.schema import DataError, check_name, check_names, check_schema, damage_reported
from opflow.files import read_json, write_json
from opflow.grid import Grid

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
MAX_PARTS = 99_999

_PART = re.compile(r"part-[0-9]{5}-of-[0-9]{5}\.h5")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """One file of a data folder: samples start..stop-1."""

    file: str
    sha256: str
    bytes: int
    start: int
    stop: int


@dataclass(frozen=True)
class Manifest:
    """A complete data folder."""

    recipe: dict[str, Any]
    parts: tuple[Part, ...]
    grid: Grid
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    measurements: tuple[str, ...]
    split: str


def part_name(number: int, count: int) -> str:
    """The file name of a part."""
    return f"part-{number:05d}-of-{count:05d}.h5"


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_part(values: Any, path: Path) -> Part:
    """A part's entry, checked: its file lies in the folder itself and bears a name that `part_name` gives."""
    if not isinstance(values, dict) or not {"file", "sha256", "bytes", "start", "stop"} <= set(values):
        raise DataError(f"{path}: a part is described by file, sha256, bytes, start and stop; the file is damaged.")
    name, sha, size, start, stop = (values[key] for key in ("file", "sha256", "bytes", "start", "stop"))
    if not isinstance(name, str) or not _PART.fullmatch(name):
        raise DataError(
            f"{path}: part file {str(name)[:80]!r} is refused; names are part-00000-of-00001.h5 and the like."
        )
    if not isinstance(sha, str) or not _SHA256.fullmatch(sha):
        raise DataError(f"{path}: the hash of {name} is not a SHA-256; the file is damaged.")
    # A sample takes at least a byte, so the size on disk bounds what the index may ask for.
    if not all(type(v) is int for v in (size, start, stop)) or not 0 <= start < stop <= start + size:
        raise DataError(f"{path}: {name} is said to hold samples {start} to {stop} in {size} bytes, which cannot be.")
    return Part(name, sha, size, start, stop)


def write_manifest(folder: Path, recipe: Mapping[str, Any], parts: list[Part]) -> None:
    """Declare the folder complete."""
    write_json(
        folder / MANIFEST,
        {"schema": recipe["schema"], "recipe": dict(recipe), "parts": [asdict(part) for part in parts]},
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, every value checked, every part there and of the stated size.

    Raises:
        DataError: it is missing, damaged, of another schema, names files elsewhere, or parts are missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(_incomplete(folder))
    with damage_reported(path, "the manifest"):
        values = read_json(path)
        check_schema(values["schema"], path)
        recipe = values["recipe"]
        grid = Grid.from_json(recipe["grid"])
        inputs, targets = check_names(recipe["inputs"], "input"), check_names(recipe["targets"], "target")
        measurements = check_names(recipe.get("measurements", ()), "measurement name")
        split = check_name(recipe["split"], "split")
        parts = tuple(read_part(entry, path) for entry in values["parts"])
        if not 0 < len(parts) <= MAX_PARTS:
            raise DataError(f"{path} lists {len(parts)} parts; 1 to {MAX_PARTS} are expected.")
    start = 0
    for part in parts:
        if part.start != start:
            raise DataError(
                f"{path}: {part.file} starts at sample {part.start} where {start} is expected; the file is damaged."
            )
        start = part.stop
        file = folder / part.file
        if not file.is_file() or file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{file} is missing or leads elsewhere; run opflow.data.generate(..., resume=True) to restore it."
            )
        if file.stat().st_size != part.bytes:
            raise DataError(
                f"{file} has {file.stat().st_size} bytes where {part.bytes} are recorded; "
                "run opflow.data.generate(..., resume=True) to restore it."
            )
    return Manifest(recipe, parts, grid, inputs, targets, measurements, split)


def _incomplete(folder: Path) -> str:
    inside = sorted(child.name for child in folder.iterdir() if (child / MANIFEST).is_file())
    if inside:
        return f"{folder} holds the splits {', '.join(inside)}; open one of them, for example {folder / inside[0]}."
    parts = [child.name for child in folder.iterdir() if _PART.fullmatch(child.name)]
    if parts or (folder / RECIPE).is_file():
        total = parts[0][-8:-3] if parts else "?"
        return (
            f"{folder} is not complete: {len(parts)} of {total.lstrip('0')} parts are there and no {MANIFEST}; "
            "run opflow.data.generate(..., resume=True) to finish it."
        )
    return f"{folder} has no {MANIFEST}; it is not a data folder: give one that opflow.data.generate wrote, or a file."
