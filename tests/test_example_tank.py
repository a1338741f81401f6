"""The example of the measured tank does what it promises, on simulated files and, slowly, on the measured ones."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.problems import ElectrodeTomography, calibrate

pytest.importorskip("matplotlib")
TINY = {"samples": 24, "held_out": 3, "size": 16, "steps": 4, "nio_steps": 3, "hidden_channels": 6, "batch_size": 6, "copies": 2, "classical_levels": (0.3, 0.03)}  # fmt: skip


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "tank_impedance_tomography.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def written(folder: Path) -> Path:
    """A folder as the challenge's: a tank of 8 electrodes, its reference, a target with truth, one without and one voltage missing."""
    tank = replace(
        ElectrodeTomography.disc(8, radius=0.1, start=torch.pi / 2, background=0.7), impedances=torch.full((8,), 1e-3)
    )
    names = {"Inj": tank.currents.numpy(), "Mpat": tank.pattern.numpy()}
    water = {"conductivity": torch.full((1, len(tank.mesh.cells)), 0.7, dtype=torch.float64)}
    empty = tank.observe(water)["measurements"].numpy().ravel()
    mesh = {
        "nodes": tank.mesh.points.numpy(),
        "triangles": tank.mesh.cells.numpy(),
        "electrode_edges": np.stack(tank.electrodes),
    }
    np.savez(folder / "reference.npz", Injref=names["Inj"], Mpat=names["Mpat"], Uelref=empty, **mesh)
    for i, name in enumerate(("target1", "target2")):
        voltages = tank.observe(tank.sample([i]), noise=0.01)["measurements"].numpy().ravel()
        ratio = tank.sample([i], Grid((256, 256), (-0.1, 0.1), layout="cells"))["conductivity"][0].numpy() / 0.7
        extra = {"truth": np.ascontiguousarray(((ratio < 0.9) + 2 * (ratio > 1.1)).T[::-1])} if i == 0 else {}
        voltages[5] = np.nan if i else voltages[5]
        np.savez(folder / f"{name}.npz", **names, Uel=voltages, **extra)
    return folder


def test_a_folder_of_measurements_end_to_end(example: ModuleType, tmp_path: Path) -> None:
    folder, out = tmp_path / "tank", tmp_path / "run"
    folder.mkdir()
    score = example.main(written(folder), **TINY, out=out)
    results = json.loads((out / "results.json").read_text())
    table = results["score_and_dice"]
    assert set(table) == {"3 test tanks", "target1"}  # the other has no truth, but a picture
    assert set(table["target1"]) == {"U-Net", "NIO", "kernel ridge", "linearised + Otsu", "empty"}
    assert table["target1"]["U-Net"][0] == pytest.approx(score, abs=1e-4) and 0 <= score <= 1
    assert table["target1"]["empty"][1] == 0.0
    assert results["calibration_misfit"] < 1e-2
    from matplotlib.image import imread

    picture = imread(out / "tanks.png")
    assert min(picture.shape[:2]) > 300 and float(np.std(picture[..., :3])) > 0.05
    with pytest.raises(FileExistsError, match="overwrite"):
        example.main(folder, **TINY, out=out)


def test_without_a_folder_the_tank_is_simulated(example: ModuleType, tmp_path: Path) -> None:
    score = example.main(**(TINY | {"samples": 8, "steps": 1, "nio_steps": 1}), out=tmp_path / "run")
    table = json.loads((tmp_path / "run" / "results.json").read_text())["score_and_dice"]
    assert list(table) == ["3 test tanks"] and table["3 test tanks"]["U-Net"][0] == pytest.approx(score, abs=1e-4)


def test_the_folder_is_read_with_care(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 files with 'ref'"):
        example.read_folder(tmp_path)
    reference, targets = example.read_folder(written(tmp_path))
    assert list(targets) == ["target1", "target2"] and targets["target2"].truth is None
    assert targets["target2"].mask.sum() == targets["target1"].mask.sum() - 1
    # A copy of a measurement is no second target; other currents are another tank.
    (tmp_path / "target3.npz").write_bytes((tmp_path / "target1.npz").read_bytes())
    assert list(example.read_folder(tmp_path)[1]) == ["target1", "target2"]
    content = dict(np.load(tmp_path / "target1.npz"))
    np.savez(tmp_path / "target4.npz", **(content | {"Inj": 2 * content["Inj"], "Uel": 2 * content["Uel"]}))
    with pytest.raises(ValueError, match="other currents"):
        example.read_folder(tmp_path)
    assert len(example.first_of_each(torch.cat([reference.currents.T, reference.currents.T]))) == 8


def test_a_reference_without_a_mesh_takes_a_disc(example: ModuleType, tmp_path: Path) -> None:
    """As the challenge's own files, which have none; the first electrode is at the top."""
    reference, _ = example.read_folder(written(tmp_path))
    own, disc = (example.as_problem(one) for one in (reference, replace(reference, mesh=None, electrodes=None)))
    top = disc.mesh.points[disc.electrodes[0]].mean((0, 1))
    assert abs(float(top[0])) < 1e-3 and float(top[1]) > 0.1
    assert torch.equal(disc.currents, own.currents)
    assert calibrate(disc, reference.voltages).misfit < 0.05


def test_symmetries_are_undone(example: ModuleType) -> None:
    field = torch.randn(2, 3, 6, 6)
    pictures = [example.turned(field, k) for k in range(8)]
    assert all(torch.equal(example.turned(p, k, back=True), field) for k, p in enumerate(pictures))
    assert len({tuple(p.flatten().tolist()) for p in pictures}) == 8


@pytest.mark.slow
def test_the_measured_tanks(example: ModuleType, reference_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = reference_data("ktc2023/reference_tank.npz").parent
    assert example.main(folder, out=tmp_path / "run") >= 0.8
    table = json.loads((tmp_path / "run" / "results.json").read_text())["score_and_dice"]
    for phantom in ("phantom1", "phantom2"):
        assert min(table[phantom]["U-Net"]) >= 0.8, table
        assert table[phantom]["U-Net"][0] > table[phantom]["linearised + Otsu"][0] > table[phantom]["empty"][0], table
