"""The predictor: NumPy in, NumPy out, from a verified checkpoint, and sentences for everything else."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from opflow.files import DamagedFileError
from opflow.interop.predictor import Predictor
from opflow.training.checkpoint import save_checkpoint
from opflow.training.record import Record


class Scale(nn.Module):
    """y = w x (+ the mean of the coordinates), with dropout so that a forgotten eval mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(()))
        self.dropout = nn.Dropout(0.9)
        self.sizes: list[int] = []

    def forward(self, x, coords=None):
        self.sizes.append(len(x))
        y = self.dropout(self.w * x)
        if coords is None:
            return y
        shift = coords.mean((-1, -2))
        return y + shift.reshape(-1, *[1] * (x.ndim - 1))


def scale(w: float) -> Scale:
    model = Scale()
    nn.init.constant_(model.w, w)
    return model


def record(step: int, validation: float | None) -> Record:
    return Record(epoch=1, step=step, loss=1.0, validation=validation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, scale(2.0), record=record(1, 0.5))
    save_checkpoint(tmp_path, scale(3.0), record=record(2, 0.9))
    return tmp_path


X = np.ones((2, 1, 3))


def test_the_best_is_loaded_unless_another_is_named(folder: Path):
    best = Predictor.load(folder, Scale)
    assert best(X).tolist() == (2 * X).tolist()
    assert best.path == folder / "step_000001" and best.record.validation == 0.5
    assert Predictor.load(folder, Scale, which="latest")(X)[0, 0, 0] == 3.0
    assert Predictor.load(folder / "step_000002", Scale)(X)[0, 0, 0] == 3.0
    (folder / "best").unlink()
    assert Predictor.load(folder, Scale)(X)[0, 0, 0] == 3.0


def test_averaged_weights_are_preferred_as_validation_chose_them(tmp_path: Path):
    model = scale(1.0)
    ema = AveragedModel(model)
    ema.update_parameters(scale(5.0))
    save_checkpoint(tmp_path, model, ema=ema)
    assert Predictor.load(tmp_path, Scale)(X)[0, 0, 0] == 5.0


def test_precision(folder: Path):
    assert Predictor.load(folder, Scale)(X).dtype == np.float32
    double = Predictor.load(folder, Scale, dtype=torch.float64)
    assert double(X.astype(np.float32)).dtype == np.float64
    torch.set_default_dtype(torch.float64)  # the trained precision counts, not what is the default today
    try:
        assert Predictor.load(folder, lambda: Scale().double())(X).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert Predictor(scale(2.0).bfloat16())(X).dtype == np.float32
    with pytest.raises(ValueError, match=r"dtype is torch\.float16"):
        Predictor.load(folder, Scale, dtype=torch.float16)


def test_complex_weights_are_not_cut_to_their_real_part(tmp_path: Path):
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))
            self.w = nn.Parameter(torch.tensor(1j))

        def forward(self, x):
            return (self.w * x).imag + self.bias

    save_checkpoint(tmp_path, Turn())
    assert (Predictor.load(tmp_path, Turn)(X) == 1).all()
    with pytest.raises(ValueError, match="complex weights"):
        Predictor.load(tmp_path, Turn, dtype=torch.float64)


def test_large_inputs_are_computed_in_pieces():
    model = scale(2.0)
    predictor = Predictor(model, batch_size=4)
    x = np.random.default_rng(0).random((10, 1, 5)).astype(np.float32)
    assert np.array_equal(predictor(x), 2 * x) and model.sizes == [4, 4, 2]
    model.sizes.clear()
    predictor(x, batch_size=10)
    assert model.sizes == [10]
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor(x, batch_size=0)


def test_an_empty_batch_has_the_right_shape():
    predictor = Predictor(nn.Linear(3, 2))
    assert predictor(np.ones((0, 4, 3))).shape == (0, 4, 2)
    assert Predictor(scale(1.0))(np.ones((0, 1, 3)), np.ones((0, 5, 2))).shape == (0, 1, 3)


def test_coords_are_shared_or_one_set_a_sample():
    predictor = Predictor(scale(0.0), batch_size=2)
    x = np.ones((3, 1, 2))
    coords = np.arange(3.0)[:, None, None] * np.ones((3, 4, 2))
    assert predictor(x, coords)[:, 0, 0].tolist() == [0, 1, 2]
    assert predictor(x, coords[1])[:, 0, 0].tolist() == [1, 1, 1]
    assert predictor(x, coords[1:2])[:, 0, 0].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="coords has 2 sets of points but x has 3 samples"):
        predictor(x, coords[:2])
    with pytest.raises(ValueError, match=r"coords has shape \(2,\)"):
        predictor(x, np.ones(2))


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 3), dtype=np.int32),
        [[1.0, 2.0]],
        np.ones((4, 6))[::-2, ::2],
        np.ones((2, 3), dtype=">f8"),
        np.ones((3, 2)).T,
    ],
    ids=["int", "list", "strides", "big-endian", "transposed"],
)
def test_every_kind_of_real_array(x):
    assert np.array_equal(Predictor(scale(2.0))(x), 2 * np.asarray(x))


def test_read_only_arrays_stay_as_they_are():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    x = np.ones((1, 3), dtype=np.float32)
    x.flags.writeable = False
    assert Predictor(InPlace())(x).tolist() == [[2, 2, 2]] and x.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones(3), ValueError, r"x has shape \(3,\) but \(batch, channel, \*grid\) is expected"),
        (
            np.array([[1.0, np.nan], [np.inf, 1]]),
            ValueError,
            r"2 entries that are NaN or infinity, the first at \(0, 1\)",
        ),
        (np.full((1, 1), 1e300), ValueError, r"beyond the range of torch\.float32"),
        (np.ones((1, 1), dtype=complex), TypeError, "x holds complex128, but real numbers"),
        (np.array([["a"]]), TypeError, "real numbers are expected"),
        (None, TypeError, "real numbers are expected"),
        (torch.ones(1, 1), TypeError, "a predictor speaks NumPy"),
    ],
)
def test_bad_input_is_a_sentence(x, error, match):
    with pytest.raises(error, match=match):
        Predictor(scale(1.0))(x)


def test_it_leaves_no_traces(folder: Path):
    state = torch.get_rng_state()
    predictor = Predictor.load(folder, Scale)
    assert torch.equal(torch.get_rng_state(), state)
    predictor.model.train()  # somebody else's hands
    assert predictor(X).tolist() == (2 * X).tolist()
    assert torch.is_grad_enabled() and predictor.model.w.grad is None


def test_a_damaged_best_is_passed_over_with_a_warning(folder: Path):
    (folder / "step_000001" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="newest whole checkpoint"):
        assert Predictor.load(folder, Scale)(X)[0, 0, 0] == 3.0


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no recipe.*pass build="):
        Predictor.load(folder)
    with pytest.raises(ValueError, match="does not fit Linear: missing: bias, weight; unexpected: w"):
        Predictor.load(folder, lambda: nn.Linear(1, 1))
    with pytest.raises(TypeError, match="build returned int"):
        Predictor.load(folder, lambda: 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Predictor.load(tmp_path / "nowhere", Scale)
    weights = tmp_path / "weights.pt"
    weights.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(DamagedFileError, match="is a pickle"):
        Predictor.load(weights, Scale)
    with pytest.raises(TypeError, match="needs one tensor"):

        class Pair(nn.Module):
            def forward(self, x):
                return x, x

        Predictor(Pair())(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(folder: Path):
    with pytest.raises(ValueError, match="no CUDA device"):
        Predictor.load(folder, Scale, device="cuda")


def test_opflow_models_are_rebuilt_from_their_recipe(tmp_path: Path):
    from opflow.layers.normalizer import Normalized, Normalizer
    from opflow.models.fno import FNO

    model = Normalized(FNO.build((4, 4), 1, 1, 4, n_layers=2), Normalizer([3.0], [2.0]), Normalizer([-1.0], [0.1]))
    save_checkpoint(tmp_path, model)
    x = np.random.default_rng(0).normal(3, 2, (3, 1, 9, 8))
    with torch.no_grad():
        expected = model(torch.tensor(x, dtype=torch.float32)).numpy()
    assert np.allclose(Predictor.load(tmp_path)(x), expected, rtol=1e-5, atol=1e-6)
    assert Predictor.load(tmp_path, dtype=torch.float64)(x).dtype == np.float64


def test_a_run_folder_stands_for_its_checkpoints(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    run = tmp_path_factory.mktemp("run")
    checkpoints = shutil.copytree(folder, run / "checkpoints")
    assert Predictor.load(run, Scale).path == Predictor.load(checkpoints, Scale).path
