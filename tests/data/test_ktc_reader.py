"""Files of the Kuopio Tomography Challenge: what is read, what is masked, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from opflow.data import DataError, read_ktc
from opflow.problems import ElectrodeTomography, calibrate

Arrays = dict[str, np.ndarray]


def arrays() -> Arrays:
    """A measurement of 4 electrodes, 2 currents and 3 differences on a square, with a truth."""
    return {
        "Inj": np.array([[1.0, 0], [-1, 1], [0, -1], [0, 0]]),
        "Mpat": np.array([[1, 0, 0], [-1, 1, 0], [0, -1, 1], [0, 0, -1]], dtype=np.int16),
        "Uel": np.arange(6.0),
        "truth": np.array([[1, 0], [0, 2]], dtype=np.uint8),
        "nodes": np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
        "triangles": np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32),
        "electrode_edges": np.array([[[0, 1]], [[1, 2]], [[2, 3]], [[3, 0]]], dtype=np.int32),
    }


def as_npz(folder: Path, content: Arrays) -> Path:
    np.savez(folder / "tank.npz", **content)
    return folder / "tank.npz"


def as_mat(folder: Path, content: Arrays) -> Path:
    from scipy.io import savemat

    savemat(folder / "tank.mat", content, do_compression=True)
    return folder / "tank.mat"


@pytest.fixture(params=[as_npz, as_mat])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Arrays], Path]:
    return lambda content: request.param(tmp_path, content)


def test_what_was_written_is_read(write: Callable[[Arrays], Path]) -> None:
    content = arrays()
    tank = read_ktc(write(content))
    np.testing.assert_array_equal(tank.currents.numpy(), content["Inj"])
    np.testing.assert_array_equal(
        tank.voltages.numpy(), [[0, 1, 2], [3, 4, 5]]
    )  # all differences of a current together
    assert tank.mask.all() and tank.voltages.dtype == torch.float64
    # The first row of the image is the top: largest y. Library fields have x first.
    assert tank.truth.tolist() == [[0, 1], [2, 0]]
    problem = ElectrodeTomography(tank.mesh, tank.electrodes, 0.1, tank.currents, tank.pattern)
    assert problem.observe(problem.sample(1))["measurements"].shape == (1, 2, 1, 3)


def test_missing_voltages_are_masked_and_never_zero(write: Callable[[Arrays], Path]) -> None:
    content = arrays()
    content["Uel"][[1, 5]] = np.nan
    tank = read_ktc(write(content))
    assert tank.mask.tolist() == [[True, False, True], [True, True, False]]
    assert tank.voltages.isnan().sum() == 2


def test_a_file_may_lack_truth_and_mesh(write: Callable[[Arrays], Path], tmp_path: Path) -> None:
    content = arrays()
    reference = {"Injref": content["Inj"], "Mpat": content["Mpat"], "Uelref": content["Uel"][:, None]}
    tank = read_ktc(write(reference))
    assert tank.truth is None and tank.mesh is None and tank.electrodes is None
    np.savez(tmp_path / "true.npz", truth=content["truth"])
    assert read_ktc(write(reference), truth=tmp_path / "true.npz").truth.sum() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Inj": None}, "no array Inj or Injref"),
        ({"Uel": np.arange(5.0)}, "do not fit"),
        ({"Uel": np.full(6, np.nan)}, "no voltage was measured"),
        ({"Uel": np.array([np.inf, 1, 2, 3, 4, 5])}, "infinite"),
        ({"Uel": np.zeros(6, dtype=complex)}, "real numbers"),
        ({"Inj": np.eye(4)[:, :2]}, "currents is zero or does not sum to zero"),
        ({"Mpat": np.eye(4)[:, :3]}, "differences is zero or does not sum to zero"),
        ({"Inj": np.full((4, 2), np.nan)}, "NaN"),
        ({"truth": np.array([[3, 0], [0, 2]])}, "labels"),
        ({"electrode_edges": np.array([[[0, 9]]] * 4)}, "name points"),
        ({"electrode_edges": None}, "electrode_edges"),
        ({"triangles": np.array([[0, 1, 2], [0, 2, 7]])}, "cells name points"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: Arrays, message: str, write: Callable[[Arrays], Path]) -> None:
    content = {name: value for name, value in (arrays() | change).items() if value is not None}
    path = write(content)
    with pytest.raises(DataError, match=message) as refusal:
        read_ktc(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "noise"])
def test_a_damaged_file_is_refused(fault: str, write: Callable[[Arrays], Path]) -> None:
    path = write(arrays())
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:at],
            "flipped": content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :],
            "empty": b"",
            "noise": np.random.default_rng(0).bytes(len(content)),
        }[fault]
    )
    with pytest.raises(DataError, match=str(path)):
        read_ktc(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "tank.npz", **arrays(), extra=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_ktc(tmp_path / "tank.npz")
    (tmp_path / "tank.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"neither \.mat nor \.npz"):
        read_ktc(tmp_path / "tank.csv")


def test_the_command_converts(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("convert", Path(__file__).parents[2] / "datasets" / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content = arrays()
    content["Uel"][2] = np.nan
    module.main(["ktc", str(as_mat(tmp_path, content)), str(tmp_path / "out.npz")])
    one, two = read_ktc(tmp_path / "tank.mat"), read_ktc(tmp_path / "out.npz")
    assert torch.equal(one.mask, two.mask) and torch.equal(one.truth, two.truth)
    assert torch.equal(one.voltages.nan_to_num(9), two.voltages.nan_to_num(9))
    assert torch.equal(one.mesh.cells, two.mesh.cells) and torch.equal(one.electrodes[2], two.electrodes[2])
    with pytest.raises(SystemExit):
        module.main(["nothing", "a", "b"])


def test_the_measured_tank(reference_data: Callable[[str], Path]) -> None:
    """The excerpts: one phantom in both formats, and an empty tank that the model fits to four per cent."""
    reference = read_ktc(reference_data("ktc2023/reference_tank.npz"))
    from_mat = read_ktc(reference_data("ktc2023/data1.mat"))
    phantom = read_ktc(reference_data("ktc2023/phantom1.npz"))
    assert torch.equal(from_mat.voltages, phantom.voltages) and from_mat.truth is None
    assert torch.equal(phantom.truth.unique(), torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert reference.voltages.shape == (76, 31) and reference.mask.all()
    problem = ElectrodeTomography(reference.mesh, reference.electrodes, 1e-4, reference.currents, reference.pattern)
    found = calibrate(problem, reference.voltages)
    assert found.misfit < 0.04
    # The offsets explain what is constant over the currents, so that without them the misfit would be twice as large.
    offsets = float(found.offsets.norm() * 76**0.5 / reference.voltages.norm())
    assert found.misfit < 0.5 * math.hypot(found.misfit, offsets)
