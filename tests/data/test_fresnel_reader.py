"""The reader of the Institut Fresnel's files, on files made here and on the measured ones."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from opflow.data import DataError, ScatteringMeasurement, read_fresnel

HEADER = """# Institut Fresnel, Marseille, FRANCE
# Object : inhomogeneous dielectric cylinder (FoamMade)
# Number of frequencies : {f} (2 --> 3 GHz, step 1 GHz)
# Number of views : {v}
# Number of receivers : {r} per view.
"""


def fields(views: int = 4, seed: int = 0) -> np.ndarray:
    """total and incident (2, frequencies, views, 360), NaN within 60 degrees of the source."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((2, 2, views, 360)) + 1j * generator.standard_normal((2, 2, views, 360))
    for view in range(views):
        apart = (np.arange(360) - 360 * view // views + 180) % 360 - 180
        values[:, :, view, np.abs(apart) < 60] = np.nan
    return values


def rows(values: np.ndarray) -> list[str]:
    _, n_frequencies, views, _ = values.shape
    lines = []
    for view in range(views):
        for receiver in np.flatnonzero(~np.isnan(values[0, 0, view])):
            for f in range(n_frequencies):
                total, incident = values[:, f, view, receiver]
                parts = (total.real, total.imag, incident.real, incident.imag)
                lines.append(f"{view + 1:3d} {receiver + 1:4d} {f + 2:6.1f} " + " ".join(f"{p:.17e}" for p in parts))
    return lines


def write_exp(path: Path, lines: list[str], header: str | None = None) -> Path:
    path.write_text((HEADER.format(f=2, v=4, r=241) if header is None else header) + "\n".join(lines) + "\n")
    return path


def write_npz(path: Path, values: np.ndarray, **parts: np.ndarray) -> Path:
    given = {
        "total": values[0],
        "incident": values[1],
        "freq_GHz": np.array([2.0, 3.0]),
        "view": np.arange(values.shape[2]) + 1,
        "receiver_index": np.arange(360) + 1,
    }
    np.savez(path, **{**given, **parts})
    return path


def check(read: ScatteringMeasurement, values: np.ndarray) -> None:
    mask = ~np.isnan(values[0])
    assert read.total.dtype == read.incident.dtype == torch.complex128 and read.total.shape == values.shape[1:]
    np.testing.assert_array_equal(read.mask.numpy(), mask)
    np.testing.assert_array_equal(read.total.numpy(), np.where(mask, values[0], 0))
    np.testing.assert_array_equal(read.incident.numpy(), np.where(mask, values[1], 0))
    assert read.frequencies.tolist() == [2e9, 3e9] and read.radius == 1.67
    np.testing.assert_allclose(read.wavenumbers, [41.917, 62.875], rtol=1e-4)
    np.testing.assert_allclose(read.source_angles, np.radians([0, 90, 180, 270]))
    assert float(read.receiver_angles[90]) == pytest.approx(math.pi / 2)
    expected = (read.total - read.incident).numpy().conj()
    np.testing.assert_array_equal(read.scattered.numpy(), expected)


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    values = fields()
    text = read_fresnel(write_exp(tmp_path / "a.exp", rows(values)))
    check(text, values)
    assert text.name == "FoamMade"
    lines = rows(values)
    np.random.default_rng(1).shuffle(lines)
    check(read_fresnel(write_exp(tmp_path / "shuffled.EXP", lines)), values)
    archive = read_fresnel(write_npz(tmp_path / "FoamOther.npz", values))
    check(archive, values)
    assert archive.name == "FoamOther"
    # A subset of the receivers, and a total that is missing where the incident field is there.
    some = write_npz(tmp_path / "some.npz", values[..., 100:200], receiver_index=np.arange(100, 200) + 1)
    assert int(read_fresnel(some).mask.sum()) == int((~np.isnan(values[0, ..., 100:200])).sum())
    values[0, 1, 2, 300] = np.nan
    assert not read_fresnel(write_npz(tmp_path / "gap.npz", values)).mask[1, 2, 300]


def test_a_file_without_header_and_one_view_of_several(tmp_path: Path) -> None:
    values = fields()
    check(read_fresnel(write_exp(tmp_path / "bare.exp", rows(values), header="")), values)
    second = [line for line in rows(values) if line.split()[0] == "2"]
    one = read_fresnel(write_exp(tmp_path / "one.exp", second))
    assert one.total.shape == (2, 1, 360) and float(one.source_angles[0]) == pytest.approx(math.pi / 2)


def test_convert_keeps_what_was_measured(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "datasets" / "convert.py"
    spec = importlib.util.spec_from_file_location("convert_script", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = [line for line in rows(fields()) if line.split()[0] in "23"]
    first = read_fresnel(write_exp(tmp_path / "two.exp", lines))
    module.main(["fresnel", str(tmp_path / "two.exp"), str(tmp_path / "two.npz")])
    again = read_fresnel(tmp_path / "two.npz")
    assert torch.equal(again.mask, first.mask) and torch.equal(again.frequencies, first.frequencies)
    assert again.n_views == first.n_views == 4 and torch.equal(again.source_angles, first.source_angles)
    torch.testing.assert_close(again.total, first.total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.incident, first.incident, rtol=1e-6, atol=1e-6)


def damage(lines: list[str], kind: str) -> list[str]:
    return {
        "cut": lines[:-7],
        "a line cut": [*lines[:-1], lines[-1][:40]],
        "twice": [*lines, lines[5]],
        "words": [*lines[:-1], "the end of the file is not here today"],
        "NaN": [lines[0].rsplit(" ", 1)[0] + " nan", *lines[1:]],
        "receiver": ["  1  400" + lines[0][8:], *lines[1:]],
        "half a view": ["1.5" + lines[0][3:], *lines[1:]],
        "view": [*lines, "  9   61    2.0  1 1 1 1"],
        "frequency": [lines[0].replace("2.0", "2.5"), *lines[1:]],
        "nothing": [],
    }[kind]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    "kind", ["cut", "a line cut", "twice", "words", "NaN", "receiver", "half a view", "view", "frequency", "nothing"]
)
def test_damaged_text_is_refused(kind: str, tmp_path: Path) -> None:
    path = write_exp(tmp_path / "a.exp", damage(rows(fields()), kind))
    with pytest.raises(DataError, match=r"a\.exp"):
        read_fresnel(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", fields())
    content = bytearray(path.read_bytes())
    for position in (len(content) // 3, len(content) // 2):
        broken = bytearray(content)
        broken[position] ^= 1
        (tmp_path / "broken.npz").write_bytes(broken)
        with pytest.raises(DataError, match=r"checksum|damaged"):
            read_fresnel(tmp_path / "broken.npz")
    (tmp_path / "cut.npz").write_bytes(content[:5000])
    with pytest.raises(DataError, match="damaged"):
        read_fresnel(tmp_path / "cut.npz")
    objects = np.empty((2, 4, 360), dtype=object)
    infinite = fields()
    infinite[0, 0, 0, 200] = np.inf
    wrong = {
        "objects": write_npz(tmp_path / "objects.npz", fields(), total=objects),
        "shape": write_npz(tmp_path / "shape.npz", fields(), view=np.arange(3) + 1),
        "real": write_npz(tmp_path / "real.npz", fields().real),
        "numbered": write_npz(tmp_path / "numbered.npz", fields(), receiver_index=np.arange(360)),
        "frequencies": write_npz(tmp_path / "frequencies.npz", fields(), freq_GHz=np.array([3.0, 2.0])),
        "infinite": write_npz(tmp_path / "infinite.npz", infinite),
        "empty": write_npz(tmp_path / "empty.npz", fields() * np.nan),
    }
    for name, path in wrong.items():
        with pytest.raises(DataError, match=name):
            read_fresnel(path)
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(DataError, match="no array 'total'"):
        read_fresnel(tmp_path / "other.npz")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"neither \.exp nor \.npz"):
        read_fresnel(tmp_path / "a.txt")


def measured() -> Path:
    folder = Path(os.environ.get("OPFLOW_REFERENCE_DATA", "")) / "fresnel2005"
    if "OPFLOW_REFERENCE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("OPFLOW_REFERENCE_DATA names no folder with fresnel2005")
    return folder


def test_the_measured_target() -> None:
    folder = measured()
    target = read_fresnel(folder / "FoamDielIntTM.npz")
    assert target.total.shape == (9, 8, 360) and int(target.mask.sum()) == 9 * 8 * 241
    np.testing.assert_allclose(np.degrees(target.source_angles.numpy()), 45 * np.arange(8))
    assert target.frequencies.tolist() == [1e9 * f for f in range(2, 11)]
    view = read_fresnel(folder / "FoamDielIntTM_view1.exp")
    assert view.name == "FoamDielInt" and view.source_angles.tolist() == [0.0]
    assert torch.equal(view.mask[:, 0], target.mask[:, 0])
    torch.testing.assert_close(view.total[:, 0], target.total[:, 0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(view.incident[:, 0], target.incident[:, 0], rtol=1e-5, atol=1e-7)
