"""Files and folders that reach their final name only whole, and that are read only when they are what they claim.

A writer works on a temporary name in the same folder, then: flush, fsync, `os.replace`, fsync of the folder. A crash, a
full disk or a SIGKILL at any moment leaves the old content, or none, under the final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

# Host and process are part of the name: on a shared file system another machine's temporaries may be alive.
_HOST = re.sub(r"[^\w-]", "_", platform.node()) or "host"
_TEMPORARY = re.compile(rf"\.tmp\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]{{8}}$")


# Marks a folder as an output of opflow: only such a folder is ever emptied.
_CLAIM = ".opflow"


class DamagedFileError(OSError):
    """A file is truncated, altered or not what its name says."""


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    if sys.platform == "win32":  # it cannot open a folder; os.replace is atomic there all the same
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_parent(path: Path) -> None:
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            return
        raise OSError(
            error.errno,
            f"{path} is written, but its folder could not be synced: {error.strerror or error}; a power cut may still undo it",
        ) from error


def _remove(path: Path) -> None:
    with suppress(OSError):  # it must not hide the error that made the file useless
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path` in one step, on failure it vanishes.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_file(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what was there before is unchanged",
        ) from error
    finally:
        _remove(temporary)
    _sync_parent(path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path` in one step. An existing `path` is refused."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for child in sorted(temporary.rglob("*")):
            _sync(child)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error  # of a file in the folder
        raise OSError(
            error.errno,
            f"could not write {path}: {reason.strerror or reason}; what was there before is unchanged",
        ) from error
    finally:
        _remove(temporary)
    _sync_parent(path)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file, or say in one sentence what is wrong with it."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{path} is not valid JSON ({error}); it is damaged or not written by opflow."
        ) from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_stale_temporaries(folder: str | Path, prefix: str | tuple[str, ...] = "") -> None:
    """Remove the temporaries that dead processes left in `folder` (a SIGKILL skips every clean-up).

    Process ids say nothing about other machines: where several write to one folder, say by `prefix`
    how the names of your own files begin.
    """
    for child in Path(folder).iterdir():
        match = _TEMPORARY.search(child.name)
        if match and child.name.startswith(prefix) and not _is_alive(int(match.group(1))):
            _remove(child)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def discard(path: str | Path) -> None:
    """Remove a file or folder in one step: renamed first, so that a crash leaves no half of it under its name."""
    path = Path(path)
    temporary = _temporary_name(path)
    path.replace(temporary)
    _remove(temporary)


def claim_folder(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Take `folder` for output: new or empty is fine, an existing one needs ``resume`` (kept) or ``overwrite`` (emptied).

    Raises:
        FileExistsError: it holds something and neither was asked for, or `overwrite` would empty a folder that was never
            claimed here.
        OSError: it cannot be written to; raised now, before any work.
    """
    folder = Path(folder)
    if resume and overwrite:
        raise ValueError(
            "resume and overwrite were both given; resume keeps the folder, overwrite empties it: choose one."
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder; choose another output folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if overwrite:
            if not (folder / _CLAIM).exists():
                raise FileExistsError(
                    f"{folder} holds files that no run of opflow began with, so it is not emptied; choose another folder or "
                    "empty it yourself."
                )
            shutil.rmtree(folder)
        elif not resume:
            raise FileExistsError(
                f"{folder} already holds files; pass --resume to continue there or --overwrite to start again."
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CLAIM).touch()
    remove_stale_temporaries(folder)
    return folder


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically. Tensors that share memory are written apart."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def read_tensors(path: str | Path, *, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file; with `expected_sha256`, only if these very bytes have it.

    Raises:
        DamagedFileError: the file is a pickle (refused: unpickling runs code), truncated, altered, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = Path(path).read_bytes()
    altered = expected_sha256 is not None and hashlib.sha256(content).hexdigest() != expected_sha256
    try:
        if not altered:
            return load(content)
        reason = "its SHA-256 is not the one recorded when it was written"
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        reason = str(error)
    # Only now: a whole safetensors file may begin with these bytes too, as they are the length of its header.
    if content[:2] == b"PK" or content[:1] == b"\x80":
        raise DamagedFileError(
            f"{path} is a pickle (.pt or .pth), which can run code when it is opened; "
            "opflow reads weights from safetensors only. "
            "Convert it where you trust it: torch.load(..., weights_only=True), then safetensors.torch.save_file."
        )
    raise DamagedFileError(f"{path} is not a whole safetensors file ({reason}); restore it or use an older checkpoint.")
