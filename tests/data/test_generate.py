"""Data folders: the same bytes whatever the shards and the interruptions; nothing lost, nothing mixed."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import in_child, limit_file_size
from toy_problem import Toy, content

from opflow import Grid
from opflow.data import DataError, FieldDataset, generate, open_dataset
from opflow.data.folder import FolderSource
from opflow.files import _HOST

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

GRID = Grid((6, 5))
SMALL = {"block": 4, "samples_per_file": 8, "progress": False}


def make(folder, n=30, problem=None, **options):
    return generate(problem or Toy(), GRID, folder, n, **{**SMALL, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make(folder)
    return content(folder / "train")


def test_a_folder_holds_what_the_problem_gives(tmp_path):
    source = make(tmp_path, seed=7, split="validation", dtype=torch.float64)
    assert (source.grid, source.inputs, source.targets, source.split) == (
        GRID,
        ("permeability",),
        ("pressure",),
        "validation",
    )
    assert len(source) == 30 and source.index.tolist() == list(range(30))
    expected = Toy().sample(range(28, 32), GRID, seed=7, split="validation")
    np.testing.assert_array_equal(source.read("permeability", [29, 28]), expected["permeability"][[1, 0]])
    np.testing.assert_array_equal(source.read("pressure", [28, 29]), Toy().solve(expected, GRID)["pressure"][:2])
    opened = open_dataset(tmp_path / "validation")
    order = [29, 0, 8, 7, 16, 0]
    np.testing.assert_array_equal(
        opened.read("pressure", order), np.stack([source.read("pressure", [i])[0] for i in order])
    )
    assert opened.fingerprint == source.fingerprint
    assert FieldDataset(tmp_path / "validation").read([5, 25]).input.shape == (2, 1, 6, 5)


def test_the_manifest_states_the_recipe(whole):
    manifest = json.loads(whole["manifest.json"])
    assert manifest["recipe"]["parameters"] == {"contrast": 4.0, "levels": [3.0, 12.0]}
    assert manifest["recipe"]["problem"] == "Toy" and manifest["recipe"]["torch"] == torch.__version__
    assert [(p["start"], p["stop"]) for p in manifest["parts"]] == [(0, 8), (8, 16), (16, 24), (24, 30)]
    assert "time" not in whole["manifest.json"].decode()


def test_a_longer_data_set_begins_with_the_shorter(tmp_path, whole):
    longer = make(tmp_path, n=33)
    a = longer.read("pressure", range(30))
    (tmp_path / "short").mkdir()
    for name, data in whole.items():
        (tmp_path / "short" / name).write_bytes(data)
    np.testing.assert_array_equal(open_dataset(tmp_path / "short").read("pressure", range(30)), a)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shards_give_the_same_bytes(tmp_path, whole, count):
    sources = [make(tmp_path, shard=(i, count)) for i in reversed(range(count))]
    assert all(source is None for source in sources[:-1]) and isinstance(sources[-1], FolderSource)
    assert content(tmp_path / "train") == whole


def _killed_at(folder, seconds, shard):
    child = multiprocessing.get_context("fork").Process(
        target=make, args=(folder,), kwargs={"resume": True, "shard": shard}
    )
    child.start()
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [1, 3])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, whole, monkeypatch, kills, count):
    monkeypatch.setattr(Toy, "delay", 0.005)
    random = np.random.default_rng(kills + count)
    exits = []
    for _ in range(kills):
        for i in range(count):
            exits.append(_killed_at(tmp_path, random.uniform(0.01, 0.09), (i, count)))
        if random.random() < 0.4:  # and sometimes from the start
            shutil.rmtree(tmp_path / "train", ignore_errors=True)
    for i in range(count):
        make(tmp_path, resume=True, shard=(i, count))
    assert content(tmp_path / "train") == whole
    assert -signal.SIGKILL in exits


def test_resume_makes_again_what_was_damaged_or_lost(tmp_path, whole):
    make(tmp_path)
    folder = tmp_path / "train"
    part = folder / "part-00001-of-00004.h5"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    (folder / "part-00002-of-00004.h5").unlink()
    (folder / "part-00003-of-00004.json").write_text("[")
    (folder / f"part-00000-of-00004.h5.tmp.{_HOST}.999999999.00000000").write_text("left by a dead process")
    (folder / "manifest.json").unlink()
    make(tmp_path, resume=True)
    assert content(folder) == whole


def test_resume_keeps_what_is_whole(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(Toy, "solve", None)
    assert len(make(tmp_path, resume=True)) == 30


def test_an_existing_folder_is_refused(tmp_path, whole):
    make(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        make(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        make(tmp_path, shard=(1, 2))
    assert content(tmp_path / "train") == whole
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="did not write"):
            make(tmp_path / "other", resume=resume)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        make(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"n": 31}, "n is 30 there and 31 here"),
        ({"problem": Toy(contrast=5.0)}, "parameters.contrast is 4.0 there and 5.0 here"),
        ({"dtype": torch.float64}, "dtype is 'float32'"),
        ({"block": 2}, "block is 4 there"),
    ],
)
def test_another_recipe_is_refused(tmp_path, whole, change, key):
    folder = tmp_path / "train"
    folder.mkdir()
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=f"made with another recipe: {key}"):
        make(tmp_path, resume=True, **change)
    assert content(folder) == whole


def test_two_processes_at_once_do_no_harm(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(Toy, "delay", 0.003)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=make, args=(tmp_path,), kwargs={"resume": True}) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert content(tmp_path / "train") == whole


def test_values_that_are_not_finite_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "poisoned", 2)
    with pytest.raises(DataError, match=r"Toy\.solve: field 'pressure' is not finite .* first in sample 2"):
        make(tmp_path)
    monkeypatch.setattr(Toy, "poisoned", None)
    with pytest.raises(DataError, match="first in sample 0"):  # too large for float32
        make(tmp_path / "huge", problem=Toy(contrast=1e30))


def test_a_problem_that_breaks_its_word_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "solve", lambda self, inputs, grid, rtol: {"velocity": inputs["permeability"]})
    with pytest.raises(DataError, match=r"Toy\.solve gave 'pressure' as missing"):
        make(tmp_path)
    with pytest.raises(TypeError, match="dataclass"):
        make(tmp_path / "plain", problem=object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (2, 2)}, "0 <= i < m"),
        ({"n": 0}, "positive"),
        ({"samples_per_file": 6}, "multiple of block"),
        ({"split": "../train"}, "not allowed"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def _on_a_full_disk(folder):
    limit_file_size(4000)
    try:
        make(folder)
    except OSError as error:
        return str(error)
    return "written"


def test_a_full_disk_leaves_no_half_parts(tmp_path, whole):
    assert "part-00000-of-00004.h5" in in_child(_on_a_full_disk, tmp_path)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["recipe.json"]
    make(tmp_path, resume=True)
    assert content(tmp_path / "train") == whole


def _manifest(change):
    def damage(folder):
        values = json.loads((folder / "manifest.json").read_text())
        change(values)
        (folder / "manifest.json").write_text(json.dumps(values))

    return damage


def _swap(folder):
    a, b = folder / "part-00000-of-00004.h5", folder / "part-00001-of-00004.h5"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def _lead_elsewhere(folder):
    part = folder / "part-00001-of-00004.h5"
    part.rename(folder.parent / "elsewhere.h5")
    part.symlink_to(folder.parent / "elsewhere.h5")


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "not complete: 4 of 4 parts .* resume=True"),
    "manifest cut": (lambda f: (f / "manifest.json").write_text("{"), "manifest"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest"),
    "newer": (_manifest(lambda m: m.update(schema="opflow/2")), "reads 'opflow/1'"),
    "path": (_manifest(lambda m: m["parts"][0].update(file="../secret.h5")), "is refused"),
    "hash": (_manifest(lambda m: m["parts"][0].update(sha256="0" * 64)), "does not have the SHA-256"),
    "no hash": (_manifest(lambda m: m["parts"][0].update(sha256=None)), "not a SHA-256"),
    "gap": (_manifest(lambda m: m["parts"].pop(1)), "starts at sample 16 where 8"),
    "huge": (_manifest(lambda m: m["parts"][3].update(stop=1 << 50)), "cannot be"),
    "no parts": (_manifest(lambda m: m.update(parts=[])), "lists 0 parts"),
    "grid": (_manifest(lambda m: m["recipe"]["grid"].update(shape=[6, 6])), "does not hold the samples, names or grid"),
    "part lost": (lambda f: (f / "part-00002-of-00004.h5").unlink(), "missing"),
    "part cut": (lambda f: os.truncate(f / "part-00002-of-00004.h5", 100), "100 bytes where"),
    "parts swapped": (_swap, "SHA-256"),
    "part elsewhere": (_lead_elsewhere, "leads elsewhere"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_refused(tmp_path, whole, case):
    damage, message = DAMAGES[case]
    folder = tmp_path / "train"
    folder.mkdir()
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_dataset(folder).read("pressure", range(30))


def test_the_folder_above_the_splits_says_so(tmp_path):
    make(tmp_path, n=4)
    with pytest.raises(DataError, match="holds the splits train; open one of them"):
        open_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a data folder"):
        open_dataset(tmp_path / "empty")


def _open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_parts_need_few_open_files(tmp_path):
    source = make(tmp_path, n=40, block=2, samples_per_file=2)
    before = _open_files()
    expected = source.read("pressure", range(40))
    assert _open_files() <= before + 17
    np.testing.assert_array_equal(source.read("pressure", range(39, -1, -1)), expected[::-1])
    source.close()


def test_workers_read_a_folder(tmp_path):
    source = make(tmp_path)
    expected = source.read("pressure", [25, 3])
    np.testing.assert_array_equal(in_child(source.read, "pressure", [25, 3]), expected)
