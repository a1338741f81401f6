"""A folder of checkpoints: names, integrity, which is the latest and which the best.

    runs/darcy/
      step_000100/  model.safetensors  state.safetensors  meta.json
      step_000200/  ...
      latest  best            one line each: the name of a step folder

`meta.json` holds the SHA-256 of the two tensor files and of itself, so a step folder can be copied alone and still be
verified.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opflow.files import DamagedFileError, discard, read_json, read_tensors, write_bytes
from opflow.training.state import unflatten

FORMAT = "opflow-checkpoint/1"
META, MODEL, STATE = "meta.json", "model.safetensors", "state.safetensors"
_NAME = re.compile(r"step_(\d{6,18})(?:_(\d{1,6}))?\Z")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, in memory.

    Attributes:
        path: the step folder.
        meta: versions, recipe, record.
        model: the model's state dict.
        state: the other parts' states by name: "optimizer", "loss", ...
    """

    path: Path
    meta: dict[str, Any]
    model: dict[str, Any]
    state: dict[str, Any]


def digest(meta: dict[str, Any]) -> str:
    """The SHA-256 of a meta.json without its own entry ``sha256``."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_meta(step_folder: Path) -> dict[str, Any]:
    """The verified meta.json of a step folder.

    Raises:
        DamagedFileError: it is missing, altered or of another format.
    """
    path = step_folder / META
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing, so {step_folder.name} is no whole checkpoint.")
    meta = read_json(path)
    if not isinstance(meta, dict) or "format" not in meta:
        raise DamagedFileError(f"{path} is not the meta.json of an opflow checkpoint.")
    if meta["format"] != FORMAT:
        raise DamagedFileError(
            f"{path} has the format {meta['format']!r} but this opflow reads {FORMAT!r}; use the version that wrote it."
        )
    if meta.get("sha256") != digest(meta):
        raise DamagedFileError(f"{path} does not match its own SHA-256; it was altered or damaged.")
    return meta


def read_step(step_folder: Path) -> Checkpoint:
    """Read and verify one step folder.

    Raises:
        DamagedFileError: a file is missing, altered, a pickle, or not what meta.json says.
    """
    meta = read_meta(step_folder)
    parts = []
    for name, skeleton in ((MODEL, "model"), (STATE, "state")):
        path = step_folder / name
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing, so {step_folder.name} is no whole checkpoint.")
        try:
            tensors = read_tensors(path, expected_sha256=meta["files"][name])
            part = dict(unflatten(meta[skeleton], tensors))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamagedFileError(f"{step_folder / META} was not written by opflow: {error}.") from error
        parts.append(part)
    return Checkpoint(step_folder, meta, *parts)


def read_checkpoint(folder: str | Path, which: str = "latest") -> Checkpoint:
    """The verified checkpoint `which` of a run's folder ("latest", "best" or a name), or the one step folder given.

    A damaged "latest" or "best" is passed over with a warning, for the newest that is whole.

    Raises:
        FileNotFoundError: there is no checkpoint, or not the one named.
        DamagedFileError: there are, but none is whole; or `folder` is a single file, a pickle for example.
    """
    folder = Path(folder)
    if folder.is_file():
        if folder.suffix != ".safetensors":
            read_tensors(folder)  # says so if this is a pickle
        raise DamagedFileError(f"{folder} is a file, but a checkpoint is a folder with {META}, {MODEL} and {STATE}.")
    if (folder / META).is_file():
        return read_step(folder)
    names, reasons = _candidates(folder, which)
    for name in names:
        try:
            checkpoint = read_step(folder / name)
        except DamagedFileError as error:
            if which not in ("latest", "best"):
                raise
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(
                f"{' '.join(reasons)} Continuing with the newest whole checkpoint, {checkpoint.path}.", stacklevel=3
            )
        return checkpoint
    raise DamagedFileError(f"no checkpoint in {folder} is whole: {' '.join(reasons)}")


def _candidates(folder: Path, which: str) -> tuple[list[str], list[str]]:
    """The step folders to try, best first, and what is already wrong."""
    names = step_names(folder)
    if not names:
        raise FileNotFoundError(f"there is no checkpoint in {folder}; save_checkpoint writes one, as step_000100.")
    if which not in ("latest", "best"):
        if which not in names:
            raise FileNotFoundError(
                f"{folder} has no checkpoint {which!r}; it has latest, best and {', '.join(names)}."
            )
        return [which], []
    first = pointed(folder, which)
    if first is not None:
        return [first, *(name for name in reversed(names) if name != first)], []
    if (folder / which).exists():
        return names[::-1], [f"{folder / which} names no checkpoint of this folder."]
    if which == "best":
        raise FileNotFoundError(
            f"{folder} has no best checkpoint: none was saved with a validation; use which='latest'."
        )
    return names[::-1], []  # the process ended between its first checkpoint and the first `latest`


def step_names(folder: Path) -> list[str]:
    """The step folders, in the order in which they were written; those whose meta.json is unreadable come first."""
    if not folder.is_dir():
        return []
    found = [child.name for child in folder.iterdir() if _NAME.match(child.name) and child.is_dir()]
    return sorted(found, key=lambda name: (serial(folder / name), _numbers(name)))


def serial(step_folder: Path) -> int:
    """The number of this save within its folder, from 1; 0 if it is unreadable."""
    try:
        value = read_meta(step_folder).get("serial")
    except DamagedFileError:
        return 0
    return value if isinstance(value, int) else 0


def new_name(folder: Path, step: int) -> str:
    """``step_000100``, or ``step_000100_2`` if that is taken: a whole checkpoint is never removed to make room."""
    name, n = f"step_{step:06d}", 1
    while (folder / name).exists():
        n += 1
        name = f"step_{step:06d}_{n}"
    return name


def _numbers(name: str) -> tuple[int, int]:
    match = _NAME.match(name)
    return (int(match[1]), int(match[2] or 1)) if match else (0, 0)


def pointed(folder: Path, pointer: str) -> str | None:
    """The name of the step folder that ``latest`` or ``best`` names; None if there is none or the name is not valid."""
    path = folder / pointer
    if not path.is_file():
        return None
    name = path.read_bytes()[:64].decode("ascii", errors="replace").strip()
    return name if _NAME.match(name) and (folder / name).is_dir() else None


def point(folder: Path, pointer: str, name: str) -> None:
    """Let ``latest`` or ``best`` name a step folder, in one step."""
    write_bytes(folder / pointer, f"{name}\n".encode())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` step folders, the latest and the best."""
    names = step_names(folder)
    kept = {*names[-keep:], pointed(folder, "latest"), pointed(folder, "best")}
    for name in names:
        if name not in kept:
            discard(folder / name)
