"""Checkpoints: whole or not at all, verified before anything changes, never a pickle."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_run import network, parts, result, run, start_child, unequal
from torch import nn

from opflow.files import DamagedFileError, read_json, read_tensors, write_json, write_tensors
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.checkpoint_files import digest, pointed, read_step, step_names
from opflow.training.record import Record

FILES = ("model.safetensors", "state.safetensors", "meta.json")


def record(step: int, validation: float | None = None) -> Record:
    return Record(epoch=step, step=step, loss=1.0, validation=validation)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three checkpoints of different weights: 10, 20 (the best) and 30."""
    for step, validation in ((10, 3.0), (20, 1.0), (30, 2.0)):
        model = network()
        nn.init.constant_(model[0].weight, float(step))
        save_checkpoint(tmp_path, model, record=record(step, validation))
    return tmp_path


def step_of(model: nn.Module) -> int:
    return int(model[0].weight[0, 0])


def test_layout_and_pointers(series: Path):
    assert sorted(path.name for path in series.iterdir()) == [
        "best",
        "latest",
        "step_000010",
        "step_000020",
        "step_000030",
    ]
    assert sorted(path.name for path in (series / "step_000010").iterdir()) == sorted(FILES)
    assert (series / "latest").read_text() == "step_000030\n" and (series / "best").read_text() == "step_000020\n"
    assert load_file(series / "step_000010" / "model.safetensors").keys() == network().state_dict().keys()
    for which, step in (("latest", 30), ("best", 20), ("step_000010", 10)):
        model = network()
        start = load_checkpoint(series, model, which=which)
        assert step_of(model) == step == start.record.step
    assert load_checkpoint(series / "step_000020", network()).record.validation == 1.0


def test_the_newest_the_latest_and_the_best_are_kept(tmp_path: Path):
    for step, validation in enumerate([5.0, 1.0, math.nan, 4.0, 3.0, 2.0], 1):
        save_checkpoint(tmp_path, network(), record=record(step, validation), keep=2)
    assert step_names(tmp_path) == ["step_000002", "step_000005", "step_000006"]
    assert pointed(tmp_path, "best") == "step_000002"
    with pytest.raises(ValueError, match="keep is 0"):
        save_checkpoint(tmp_path, network(), keep=0)


def test_a_step_saved_twice_is_kept_whole_under_another_name(series: Path):
    assert save_checkpoint(series, network(), record=record(20)).name == "step_000020_2"
    assert load_checkpoint(series, network()).path.name == "step_000020_2"
    assert step_names(series)[-1] == "step_000020_2"  # newest by time, not by step


def test_no_best_without_validation(tmp_path: Path):
    save_checkpoint(tmp_path, network(), record=record(1))
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        load_checkpoint(tmp_path, network(), which="best")
    with pytest.raises(FileNotFoundError, match="no checkpoint 'step_000002'; it has latest, best and step_000001"):
        load_checkpoint(tmp_path, network(), which="step_000002")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere", network())


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty", "pickle"])
def test_damage_falls_back_and_says_so(series: Path, name: str, damage: str):
    path = series / "step_000030" / name
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        flip(path, len(content) // 2)
    else:
        path.write_bytes({"truncate": content[:-2], "empty": b"", "pickle": pickle.dumps({"a": 1})}[damage])
    model = network()
    with pytest.warns(UserWarning, match=rf"{name}.*newest whole checkpoint.*step_000020"):
        assert load_checkpoint(series, model).record.step == 20
    assert step_of(model) == 20
    with pytest.raises(DamagedFileError, match=name):
        load_checkpoint(series, network(), which="step_000030")


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, name: str, where: float, bit: int):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        save_checkpoint(folder, nn.Linear(2, 1), record=record(1))
    path = folder / "step_000001" / name
    position = int(where * path.stat().st_size)
    before = load_checkpoint(folder, nn.Linear(2, 1)).record
    flip(path, position, bit)
    try:
        # JSON has room for white space that means nothing; whatever means something is noticed.
        assert name == "meta.json" and load_checkpoint(folder, nn.Linear(2, 1)).record == before
    except (AssertionError, DamagedFileError) as error:
        assert isinstance(error, DamagedFileError) or name != "meta.json"
        with pytest.raises(DamagedFileError):
            load_checkpoint(folder, nn.Linear(2, 1))
    finally:
        flip(path, position, bit)


def test_none_whole_is_an_error_and_changes_nothing(series: Path):
    for step in step_names(series):
        flip(series / step / "model.safetensors", -1)
    model = network()
    before = weights(model)
    with pytest.raises(DamagedFileError, match=r"no checkpoint in .* is whole"):
        load_checkpoint(series, model)
    assert unequal(before, weights(model)) == []


@pytest.mark.parametrize("content", [b"", b"../../etc\n", b"step_000099\n", b"\xff\x00", b"step_000030/../step_000010"])
def test_a_damaged_pointer_is_passed_over(series: Path, content: bytes):
    for pointer in ("latest", "best"):
        (series / pointer).write_bytes(content)
        with pytest.warns(UserWarning, match=f"{pointer} names no checkpoint"):
            assert load_checkpoint(series, network(), which=pointer).record.step == 30


def test_killed_before_the_first_latest(series: Path):
    (series / "latest").unlink()
    assert load_checkpoint(series, network()).record.step == 30


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["raw", "torch"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, form: str):
    trap = tmp_path / "sprung"
    content = tmp_path / "weights.pt"
    if form == "raw":
        content.write_bytes(pickle.dumps(Trap(trap)))
    else:
        torch.save({"weight": Trap(trap)}, content)
    with pytest.raises(DamagedFileError, match="is a pickle"):
        load_checkpoint(content, network())
    path = save_checkpoint(tmp_path / "run", network())
    meta = read_json(path / "meta.json")
    (path / "model.safetensors").write_bytes(content.read_bytes())
    import hashlib

    meta["files"]["model.safetensors"] = hashlib.sha256(content.read_bytes()).hexdigest()
    write_json(path / "meta.json", meta | {"sha256": digest(meta)})  # a forger can compute hashes too
    with pytest.raises(DamagedFileError, match="is a pickle"):
        load_checkpoint(path, network())
    assert not trap.exists()


def test_no_code_of_ours_unpickles():
    import opflow

    for path in Path(opflow.__file__).parent.rglob("*.py"):
        source = path.read_text()
        assert "import pickle" not in source and "pickle.load" not in source and "weights_only=False" not in source, (
            path
        )


def test_safetensors_whose_header_length_looks_like_a_pickle_is_read(tmp_path: Path):
    """The first byte is the header's length: 0x80 as in a pickle for one file in 32."""
    firsts = set()
    for n in range(1, 40):
        path = tmp_path / f"{n}.safetensors"
        write_tensors(path, {"a" * (8 * n): torch.ones(1)})
        firsts.add(path.read_bytes()[:1])
        assert read_tensors(path)
    assert b"\x80" in firsts


def test_one_file_is_no_checkpoint(tmp_path: Path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFileError, match="a checkpoint is a folder"):
        load_checkpoint(tmp_path / "model.safetensors", network())


def forged(path: Path, **changes) -> None:
    meta = read_json(path / "meta.json") | changes
    write_json(path / "meta.json", meta | {"sha256": digest(meta)})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "opflow-checkpoint/9"},
        {"files": {}},
        {"files": None},
        {"model": {"dict": [["a", {"tensor": "b"}]]}},
        {"model": [1]},
        {"state": 3},
        {"state": {"dict": []}},
        {"record": {"epoch": 1}},
        {"record": 7},
    ],
    ids=str,
)
def test_a_foreign_meta_is_refused_before_anything_changes(tmp_path: Path, changes):
    path = save_checkpoint(tmp_path, network(), record=record(1))
    forged(path, **changes)
    model = nn.Sequential(*network())
    nn.init.zeros_(model[0].weight)
    with pytest.raises((DamagedFileError, ValueError), match="step_000001"):
        load_checkpoint(path, model)
    assert step_of(model) == 0


def test_json_of_absurd_depth_is_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, network())
    (path / "meta.json").write_text("[" * 100_000)
    with pytest.raises(DamagedFileError):
        load_checkpoint(path, network())


def other_models():
    yield network(width=9), r"other shapes: 0\.weight \(8, 3\) instead of \(9, 3\)"
    yield nn.Sequential(nn.Linear(3, 8)), r"unexpected: 1\.bias"
    yield nn.Sequential(*network(), nn.Linear(1, 1)), r"missing: 5\.bias, 5\.weight"
    yield network().double(), r"other dtypes: 0\.weight torch\.float32 instead of torch\.float64"


@pytest.mark.parametrize(("model", "match"), list(other_models()), ids=["width", "fewer", "more", "double"])
def test_another_model_is_refused_by_name(series: Path, model: nn.Module, match: str):
    before = weights(model)
    with pytest.raises(ValueError, match=f"step_000030 does not fit the model Sequential: .*{match}"):
        load_checkpoint(series, model)
    assert unequal(before, weights(model)) == []


def wrong_parts(made):
    model, loss = made["model"], made["loss"]
    everything = [*model.parameters(), *loss.parameters()]
    yield "kind", {"optimizer": torch.optim.SGD(everything, lr=0.1)}, "state of AdamW but the optimizer is SGD"
    yield "fewer", {"optimizer": torch.optim.AdamW(model.parameters())}, r"has \[6\] parameters .* had \[7\]"
    yield "order", {"optimizer": torch.optim.AdamW(everything[::-1])}, "order differ"
    yield "scheduler", {"scheduler": torch.optim.lr_scheduler.ConstantLR(made["optimizer"])}, "state of OneCycleLR"
    yield "loss", {"loss": nn.Linear(1, 1)}, "does not fit the loss Linear"
    yield "ema", {"ema": torch.optim.swa_utils.AveragedModel(network(width=5))}, "does not fit the averaged model"

    class Refusing:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            if state:
                raise ValueError("another data set")

    yield "batches", {"batches": Refusing()}, "another data set"

    class Failing(torch.optim.lr_scheduler.OneCycleLR):
        def load_state_dict(self, state):
            super().load_state_dict(state)
            if state["last_epoch"] == 20:
                raise KeyError("half way")

    Failing.__name__ = "OneCycleLR"
    yield "half way", {"scheduler": Failing(made["optimizer"], 1.0, total_steps=7)}, "half way"


@pytest.mark.parametrize("case", range(8))
def test_a_failed_load_leaves_every_part_as_it_was(tmp_path: Path, case: int):
    run(tmp_path, parts())
    made = parts()
    _, changes, match = list(wrong_parts(made))[case]
    made |= changes
    before = result(made)
    states = [repr(made[name].state_dict()) for name in ("optimizer", "scheduler", "batches")]
    streams = torch.get_rng_state()
    with pytest.raises((ValueError, KeyError), match=match):
        load_checkpoint(tmp_path, **made)
    assert unequal(result(made), before) == []
    assert states == [repr(made[name].state_dict()) for name in ("optimizer", "scheduler", "batches")]
    assert torch.equal(torch.get_rng_state(), streams)


def test_a_part_that_was_not_saved_is_said(tmp_path: Path):
    made = parts()
    save_checkpoint(tmp_path, made["model"], optimizer=made["optimizer"])
    with pytest.raises(ValueError, match="holds no state of loss, scheduler, batches, ema"):
        load_checkpoint(tmp_path, **made)
    start = load_checkpoint(tmp_path, made["model"], optimizer=made["optimizer"])
    from opflow.training.loop import fit

    with pytest.raises(ValueError, match=r"loaded without loss, scheduler, batches, ema.*pass loss=loss"):
        fit(**made, epochs=1, start=start)


def test_a_plain_list_and_a_plain_function_have_no_state(tmp_path: Path):
    plain = {"loss": lambda model, batch: {}, "batches": [1, 2]}
    save_checkpoint(tmp_path, network(), **plain)
    assert load_checkpoint(tmp_path, network(), **plain).restored == {"model"}


def test_wrapped_models_share_checkpoints(tmp_path: Path):
    model = network()
    save_checkpoint(tmp_path, nn.DataParallel(torch.compile(model)))
    nn.init.zeros_(model[0].weight)
    other = network()
    load_checkpoint(tmp_path, torch.compile(other))
    assert step_of(other) == step_of(network())


def test_weights_that_are_not_finite_are_never_saved(series: Path):
    model = network()
    with torch.no_grad():
        model[4].bias[0] = math.nan
    with pytest.raises(ValueError, match=r"'4\.bias' holds NaN"):
        save_checkpoint(series, model, record=record(40, 0.0))
    assert step_names(series)[-1] == "step_000030"


def test_state_that_needs_a_pickle_and_recipes_that_need_more_than_json(tmp_path: Path):
    class Odd:
        def state_dict(self):
            return {"generator": torch.Generator()}

    with pytest.raises(TypeError, match=r"batches\.generator is torch.*without a pickle"):
        save_checkpoint(tmp_path, network(), batches=Odd())
    model = network()
    model.recipe = {"activation": nn.GELU()}
    with pytest.raises(TypeError, match=r"model\.recipe"):
        save_checkpoint(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_recipe_versions_and_complex_or_tied_weights(tmp_path: Path):
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    model.tied = model.weight
    model.recipe = {"model": "FNO", "n_modes": (4, 4)}
    path = save_checkpoint(tmp_path, model)
    other = nn.Module()
    other.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    other.tied = other.weight
    load_checkpoint(tmp_path, other)
    assert torch.equal(other.weight, model.weight)
    meta = read_step(path).meta
    assert meta["recipe"] == {"model": "FNO", "n_modes": [4, 4]} and meta["torch"] == torch.__version__
    assert json.loads((path / "meta.json").read_text()) == meta


def test_record_and_parts_round_trip(tmp_path: Path):
    made = parts()
    run(tmp_path, made)
    again = parts()
    start = load_checkpoint(tmp_path, **again)
    assert start.restored == {"model", "loss", "optimizer", "scheduler", "batches", "ema"}
    assert unequal(result(again), result(made)) == []
    assert replace(start.record, epoch_streams=None) == Record.from_json(read_step(start.path).meta["record"])


def save_on_a_full_disk(folder: Path, limit: int, report: Path) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    model = network(width=64)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_checkpoint(folder, model, record=record(2))
        said = "saved"
    except OSError as error:
        said = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    report.write_text(said)


@pytest.mark.parametrize("limit", [0, 100, 3000, 6000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, limit: int):
    folder = tmp_path / "run"
    save_checkpoint(folder, network(width=64), record=record(1))
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    child = start_child(save_on_a_full_disk, folder, limit, tmp_path / "report")
    child.join()
    report = (tmp_path / "report").read_text()
    assert report.startswith("OSError") and str(folder / "step_000002") in report, report
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert load_checkpoint(folder, network(width=64)).record.step == 1


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_checkpoint(tmp_path / "file" / "run", network())
