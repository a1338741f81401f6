"""Files that reach their name only whole, under every fault that can be staged on one machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opflow import files
from opflow.files import (
    DamagedFileError,
    atomic_file,
    atomic_folder,
    claim_folder,
    discard,
    read_json,
    read_tensors,
    remove_stale_temporaries,
    sha256,
    write_bytes,
    write_json,
    write_tensors,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="faults are staged with POSIX calls")


def child(code: str, *arguments: object) -> str:
    """Run Python in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def temporary_of(path: Path, pid: int) -> Path:
    """The name that a process `pid` of this machine would write `path` under."""
    name = files._temporary_name(path).name
    assert f".{os.getpid()}." in name
    return path.with_name(name.replace(f".{os.getpid()}.", f".{pid}."))


# Success


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"old", b"new"):
        with atomic_file(target) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == target.parent, "os.replace is atomic within one file system only"
            assert not target.exists() or target.read_bytes() == b"old"
        assert target.read_bytes() == content and names(target.parent) == ["file.bin"]


def test_what_was_written_is_synced_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append("fsync " + ("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file"))  # noqa: PTH112
        fsync(descriptor)

    def recorded_replace(source: object, target: object, **options: object) -> None:
        events.append("replace")
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_bytes(tmp_path / "file", b"x")
    assert events == ["fsync file", "replace", "fsync folder"]
    events.clear()
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_bytes(b"a")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_bytes(b"b")
    assert events == ["fsync file", "fsync folder", "fsync file", "fsync folder", "replace", "fsync folder"]


def test_a_folder_appears_whole_and_an_existing_one_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "results"
    with atomic_folder(target) as temporary:
        (temporary / "a.txt").write_text("a")
        assert not target.exists()
    assert names(tmp_path) == ["results"] and (target / "a.txt").read_text() == "a"
    with pytest.raises(FileExistsError, match="exists already; choose another name"), atomic_folder(target):
        raise AssertionError("no work may start")
    assert names(tmp_path) == ["results"]


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and sha256(tmp_path / "a") == sha256(
        tmp_path / "b"
    )
    assert read_json(tmp_path / "a") == {"a": [1.5, None], "b": 1}
    x, y = torch.rand(3), torch.arange(4)
    write_tensors(tmp_path / "c", {"x": x, "y": y})
    write_tensors(tmp_path / "d", {"y": y, "x": x})
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()
    write_bytes(tmp_path / "empty", b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# Failures inside one process


STEPS = ["write", "fsync", "replace"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("existing", [b"old", None])
def test_a_failure_leaves_the_old_content_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existing: bytes | None
) -> None:
    target = tmp_path / "file"
    if existing is not None:
        target.write_bytes(existing)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(
            OSError, match=r"could not write .*file: No space left on device; what was there before is unch"
        ) as caught,
        atomic_file(target) as temporary,
    ):
        if step == "write":
            temporary.write_bytes(b"ha")
            fail()
        temporary.write_bytes(b"new")
        monkeypatch.setattr(os, step, fail)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert names(tmp_path) == (["file"] if existing else [])
    assert not existing or target.read_bytes() == existing


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(OSError, match=r"could not write .*folder: Input/output error"),
        atomic_folder(tmp_path / "folder") as temporary,
    ):
        (temporary / "a").write_bytes(b"a")
        if step == "write":
            fail()
        monkeypatch.setattr(os, step, fail)
    monkeypatch.undo()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_other_exceptions_pass_unchanged_and_leave_nothing(
    tmp_path: Path, make: Callable, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught, make(tmp_path / "target") as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_bytes(b"a")
        raise error
    assert caught.value is error and names(tmp_path) == []


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_when_only_the_last_sync_fails_the_message_does_not_say_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable
) -> None:
    """By then the new content is in place."""
    fsync, replace, replaced = os.fsync, os.replace, []
    monkeypatch.setattr(os, "replace", lambda *a, **k: replaced.append(1) or replace(*a, **k))

    def fail_after_replace(descriptor: int) -> None:
        if replaced:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_after_replace)
    code = errno.EIO
    said = r"target is written, but its folder could not be synced: .*; a power cut"
    with pytest.raises(OSError, match=said), make(tmp_path / "target") as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_bytes(b"new")
    assert names(tmp_path) == ["target"]
    code = errno.EINVAL  # what network file systems say that cannot sync folders
    replaced.clear()
    with make(tmp_path / "other") as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_bytes(b"new")
    assert names(tmp_path) == ["other", "target"]


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):  # below a regular file
        write_bytes(tmp_path / "file" / "below", b"x")
    with pytest.raises(OSError, match="could not write"):
        write_bytes(tmp_path / ("n" * 250), b"x")
    assert names(tmp_path) == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"could not write .*folder"):
        write_bytes(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["file", "folder"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_bytes() == b""


# Failures of the process


STEPS_OF_DEATH = [
    # what is written, the call that kills (and which one of it), whether the new content is in place by then
    ("file", "written", False),
    ("file", "fsync 1", False),
    ("file", "replace 1", False),
    ("file", "fsync 2", True),
    ("folder", "written", False),
    ("folder", "fsync 1", False),
    ("folder", "fsync 2", False),
    ("folder", "replace 1", False),
    ("folder", "fsync 3", True),
]

KILLED = """
    import os, sys
    from pathlib import Path
    from opflow.files import atomic_file, atomic_folder

    def dying(name, at):
        function, count = getattr(os, name), [0]
        def call(*arguments, **options):
            count[0] += 1
            if count[0] == at:
                os._exit(9)
            return function(*arguments, **options)
        setattr(os, name, call)

    def write(folder, kind, step):
        with {"file": atomic_file, "folder": atomic_folder}[kind](folder / "target") as temporary:
            (temporary if kind == "file" else temporary / "part").write_bytes(b"new")
            if step == "written":
                os._exit(9)
            name, at = step.split()
            dying(name, int(at))

    for folder, kind, step in zip(*[iter(sys.argv[1:])] * 3):
        process = os.fork()
        if process == 0:
            write(Path(folder), kind, step)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9, (kind, step)
"""


def test_killed_at_each_step(tmp_path: Path) -> None:
    """The old content or the new under the final name, never a part; what is left over goes with the next claim."""
    arguments = []
    for kind, step, _ in STEPS_OF_DEATH:
        folder = tmp_path / kind / step
        folder.mkdir(parents=True)
        if kind == "file":
            (folder / "target").write_bytes(b"old")
        arguments += [folder, kind, step]
    child(KILLED, *arguments)
    for kind, step, whole in STEPS_OF_DEATH:
        folder = tmp_path / kind / step
        target = folder / "target"
        if kind == "file":
            assert target.read_bytes() == (b"new" if whole else b"old"), step
        else:
            assert target.exists() == whole and (not whole or (target / "part").read_bytes() == b"new"), step
        present = ["target"] if target.exists() else []
        assert len(names(folder)) == len(present) + (not whole), (kind, step)
        remove_stale_temporaries(folder)
        assert names(folder) == present, (kind, step)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: a write beyond it fails as one on a full disk does."""
    write_tensors(tmp_path / "weights.safetensors", {"w": torch.arange(5.0)})
    before = sha256(tmp_path / "weights.safetensors")
    out = child(
        """
        import resource, signal, sys, torch
        from pathlib import Path
        from opflow.files import write_tensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            write_tensors(Path(sys.argv[1]) / "weights.safetensors", {"w": torch.zeros(100_000)})
        except OSError as error:
            print(error.errno, error)
        """,
        tmp_path,
    )
    assert (
        out.startswith(f"{errno.EFBIG} ")
        and "weights.safetensors" in out
        and "what was there before is unchanged" in out
    )
    assert names(tmp_path) == ["weights.safetensors"] and sha256(tmp_path / "weights.safetensors") == before


def test_only_the_temporaries_of_dead_processes_of_this_machine_go(tmp_path: Path) -> None:
    pid = dead_process()
    stale, stale_folder = temporary_of(tmp_path / "a.json", pid), temporary_of(tmp_path / "run", pid)
    stale.write_bytes(b"half")
    (stale_folder / "deep").mkdir(parents=True)
    alive = temporary_of(tmp_path / "b.json", os.getppid())
    own = files._temporary_name(tmp_path / "c.json")
    elsewhere = tmp_path / f"d.json.tmp.{files._HOST}-2.{pid}.0123abcd"
    absurd = temporary_of(tmp_path / "e.json", 10**30)
    lookalikes = [
        tmp_path / "f.tmp.json",
        tmp_path / f"g.tmp.{pid}",
        tmp_path / f"{stale.name}.json",
        tmp_path / "plain",
    ]
    for path in (alive, own, elsewhere, absurd, *lookalikes):
        path.write_bytes(b"")
    remove_stale_temporaries(tmp_path, prefix="z")
    assert len(names(tmp_path)) == 10
    remove_stale_temporaries(tmp_path)
    assert set(names(tmp_path)) == {path.name for path in (alive, own, elsewhere, *lookalikes)}


def test_discard_removes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    monkeypatch.setattr(files, "_remove", lambda path: None)  # killed right after the renaming
    discard(folder)
    assert not folder.exists() and len(names(tmp_path)) == 1
    monkeypatch.undo()
    (tmp_path / "file").write_bytes(b"")
    discard(tmp_path / "file")
    assert len(names(tmp_path)) == 1, "a living process' temporary stays"


# Output folders


def test_claiming_a_folder(tmp_path: Path) -> None:
    new, empty, full = tmp_path / "a" / "new", tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "weights").write_bytes(b"w")
    stale = temporary_of(full / "metrics", dead_process())
    stale.write_bytes(b"half")
    assert claim_folder(new) == new and names(new) == [".opflow"]
    assert claim_folder(str(empty)) == empty and names(empty) == [".opflow"]
    with pytest.raises(
        FileExistsError, match="full already holds files; pass --resume to continue there or --overwrite"
    ):
        claim_folder(full)
    assert names(full) == sorted(["weights", stale.name])
    with pytest.raises(ValueError, match="resume and overwrite were both given"):
        claim_folder(full, resume=True, overwrite=True)
    with pytest.raises(FileExistsError, match="files that no run of opflow began with, so it is not emptied"):
        claim_folder(full, overwrite=True)
    assert "weights" in names(full), "a mistyped --out must not empty somebody's folder"
    claim_folder(full, resume=True)
    assert names(full) == [".opflow", "weights"]
    claim_folder(full, overwrite=True)
    assert names(full) == [".opflow"]
    (tmp_path / "file").write_bytes(b"precious")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="file is a file, not a folder"):
            claim_folder(tmp_path / "file", **options)
    assert (tmp_path / "file").read_bytes() == b"precious"
    with pytest.raises(OSError):
        claim_folder(tmp_path / "file" / "below")


# Damaged and hostile files


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"1 2"],
    ids=range(7),
)
def test_json_that_is_none_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"a.json is not valid JSON .*; it is damaged or not written by opflow"):
        read_json(tmp_path / "a.json")


def example(path: Path) -> dict[str, torch.Tensor]:
    shared = torch.arange(6.0)
    tensors = {
        "w": torch.rand(3, 4, dtype=torch.float64),
        "view": shared[::2],
        "same": shared,
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(path, {**tensors, "grad": torch.ones(2, requires_grad=True)})
    return {**tensors, "grad": torch.ones(2)}


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    expected = example(path)
    for found in (read_tensors(path), read_tensors(path, expected_sha256=sha256(path))):
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in found
        )
    found["w"].zero_()
    assert not torch.equal(read_tensors(path)["w"], found["w"])
    write_tensors(path, {})
    assert read_tensors(path) == {}


def test_truncated_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    example(path)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError, match=r"is not a whole safetensors file|is a pickle"):
            read_tensors(path)
    path.write_bytes(content + b"more")
    with pytest.raises(DamagedFileError):
        read_tensors(path)


def test_every_flipped_bit_is_noticed_with_the_hash_and_harmless_without(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    example(path)
    content, digest = bytearray(path.read_bytes()), sha256(path)
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"SHA-256 is not the one recorded|is a pickle"):
            read_tensors(path, expected_sha256=digest)
        with contextlib.suppress(DamagedFileError):
            read_tensors(path)


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1, 10**9])
def test_an_absurd_header_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(DamagedFileError):
        read_tensors(path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**10], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(DamagedFileError):
        read_tensors(path)


class Hostile:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch", "legacy", "pickle"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, save: str) -> None:
    trap, path = tmp_path / "trap", tmp_path / "weights.safetensors"
    if save == "pickle":
        path.write_bytes(pickle.dumps(Hostile(trap)))
    else:
        torch.save({"w": Hostile(trap)}, path, _use_new_zipfile_serialization=save == "torch")
    for options in ({}, {"expected_sha256": sha256(path)}):
        with pytest.raises(
            DamagedFileError, match=r"is a pickle \(.pt or .pth\), which can run code.*safetensors only.*Convert it"
        ):
            read_tensors(path, **options)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.exists(), "the trap works"


def test_a_header_that_begins_like_a_zip_is_still_safetensors(tmp_path: Path) -> None:
    """The first two bytes are the length of the header: 0x4b50 is "PK"."""
    path = tmp_path / "w.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x4B50)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f")
    assert path.read_bytes()[:2] == b"PK"
    assert read_tensors(path)["w"].tolist() == [1.0]


def test_missing_files_stay_file_not_found(tmp_path: Path) -> None:
    for read in (read_json, read_tensors, sha256):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(tmp_path / "nothing")
