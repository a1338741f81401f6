"""The Fresnel example does what it promises: on simulation here, on the measured target in the slow suite."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from opflow.data import read_fresnel

pytest.importorskip("matplotlib")
TINY = {
    "frequencies": (2.0, 3.0),
    "size": 16,
    "scenes": 6,
    "test_scenes": 1,
    "newton_scenes": 1,
    "steps": 6,
    "members": 2,
    "width": 4,
}


def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "fresnel_scattering.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    module.PRIOR_MODES = 5
    return module


def made_target(module: ModuleType, folder: Path) -> Path:
    """A file as the laboratory would write it: 360 receivers, a gain a frequency, exp(+j omega t)."""
    from opflow.problems import OpenScattering

    lab = module.problem((2.0, 3.0), 8)
    wide = OpenScattering(**{**vars(lab), "receivers": 360})
    q = module.paint(module.KNOWN["FoamDielExt"], lab.grid(32))
    waves = wide.forward(lab.grid(32), rtol=1e-6)(q[None])[0]
    scattered = torch.complex(waves[:, 0], waves[:, 1]).view(2, 8, 360)
    degrees = torch.arange(360, dtype=torch.float64).deg2rad()
    free = torch.stack(
        [module.free_space_green(module._circle(lab.angles), module._circle(degrees), k) for k in lab.wavenumbers]
    )
    gain = torch.tensor([3 + 4j, -20j], dtype=torch.complex128)[:, None, None]
    apart = module._apart(degrees, lab.angles[:, None])
    free, scattered = (
        w.conj().resolve_conj().numpy() for w in (torch.where(apart < 1, torch.nan, gain * free), gain * scattered)
    )
    path = folder / "FoamDielExtTM.npz"
    np.savez(
        path, total=free + scattered, incident=free, freq_GHz=np.array([2.0, 3.0]), view=np.arange(8) + 1,
        receiver_index=np.arange(360) + 1,
    )  # fmt: skip
    return path


def test_fresnel_scattering_on_simulation(tmp_path: Path) -> None:
    main, data = example().main, tmp_path / "data"
    ratio = main(**TINY, data_folder=data, out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    simulated = results["simulated"]
    assert len(simulated["learned"]) == len(simulated["classical"]) == 2
    assert ratio == pytest.approx(sum(simulated["learned"]) / sum(simulated["classical"]))
    assert min(simulated["classical"]) > 0 and max(simulated["classical"]) < 1.2
    assert (tmp_path / "run" / "permittivity.png").stat().st_size > 10_000
    with pytest.raises(FileExistsError, match="overwrite"):
        main(**TINY, data_folder=data, out=tmp_path / "run")


def test_a_target_from_a_file(tmp_path: Path) -> None:
    module = example()
    path = made_target(module, tmp_path)
    scan = module.calibrated(read_fresnel(path), (2.0, 3.0))
    q = module.paint(module.KNOWN["FoamDielExt"], module.problem((2.0, 3.0), 8).grid(32))
    F = module.problem((2.0, 3.0), 8).forward(module.problem((2.0, 3.0), 8).grid(32), rtol=1e-6)
    waves = F(q[None])[0]
    exact = torch.complex(waves[:, 0], waves[:, 1]).view(2, 8, 72)
    assert torch.equal(scan.mask, module._apart(scan.receivers, scan.sources[:, None]) > module.BLIND)
    # The gains are gone; averaging over five receivers leaves a percent.
    assert (scan.waves[0] - exact)[:, scan.mask].norm() < 0.02 * exact[:, scan.mask].norm()
    ratio = module.main(target=path, **TINY, data_folder=tmp_path / "data", out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["target"] == "FoamDielExtTM"
    assert ratio == pytest.approx(results["contrast"]["learned"] / results["contrast"]["Gauss-Newton"])
    assert results["contrast"]["Gauss-Newton"] < 0.8
    with pytest.raises(ValueError, match="GHz but"):
        module.calibrated(read_fresnel(path), (2.0, 4.0))


def test_symmetries_of_the_square_and_their_inverses() -> None:
    module, x = example(), torch.arange(2 * 36.0).view(2, 1, 6, 6)
    turned = [module.symmetric(x, number) for number in range(8)]
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert all(torch.equal(module.undone(t, number), x) for number, t in enumerate(turned))


@pytest.mark.slow
def test_the_measured_target(tmp_path: Path) -> None:
    path = Path(os.environ.get("OPFLOW_REFERENCE_DATA", "")) / "fresnel2005" / "FoamDielIntTM.npz"
    if not path.is_file():
        pytest.skip("OPFLOW_REFERENCE_DATA names no folder with fresnel2005")
    ratio = example().main(target=path, data_folder=tmp_path / "data", out=tmp_path / "run")
    seconds = json.loads((tmp_path / "run" / "results.json").read_text())["seconds"]
    assert ratio <= 1.5 and seconds["learned"] <= seconds["classical"] / 20
