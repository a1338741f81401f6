"""Convert a published file to one that the library's readers open everywhere: python datasets/convert.py ktc data1.mat phantom1.npz

fresnel  a target of the Institut Fresnel's scattering database of 2005, .exp or .npz, to .npz
ktc      the Kuopio Tomography Challenge's measurement, .mat or .npz, to .npz
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def convert_ktc(file: Path, out: Path) -> str:
    """A measured tank as ``.npz``, with the challenge's names; missing voltages stay NaN."""
    import numpy as np

    from opflow.data import read_ktc

    tank = read_ktc(file)
    arrays = {"Inj": tank.currents.numpy(), "Mpat": tank.pattern.numpy(), "Uel": tank.voltages.numpy().ravel()}
    if tank.truth is not None:
        arrays["truth"] = np.ascontiguousarray(tank.truth.numpy().T[::-1])
    if tank.mesh is not None and tank.electrodes is not None:
        arrays |= {
            "nodes": tank.mesh.points.numpy(),
            "triangles": tank.mesh.triangles.numpy(),
            "electrode_edges": np.stack([sides.numpy() for sides in tank.electrodes]),
        }
    with out.open("xb") as target:
        np.savez_compressed(target, **arrays)
    return f"{int(tank.mask.sum())} voltages of {tank.mask.numel()}"


def convert_fresnel(file: Path, out: Path) -> str:
    """A measured target as ``.npz``: fields of the file's own time factor, single precision, NaN where not measured."""
    import numpy as np

    from opflow.data import read_fresnel

    target = read_fresnel(file)
    views = np.rint(target.source_angles.numpy() / (2 * np.pi) * target.n_views).astype(np.int64) + 1
    missing = ~target.mask.numpy()
    fields = {"total": target.total.numpy(), "incident": target.incident.numpy()}
    with out.open("xb") as opened:
        np.savez_compressed(
            opened,
            freq_GHz=target.frequencies.numpy() / 1e9,
            view=views,
            n_views=np.array(target.n_views),
            receiver_index=np.arange(1, missing.shape[-1] + 1),
            **{name: np.where(missing, np.nan, values).astype(np.complex64) for name, values in fields.items()},
        )
    return f"{target.name}, {int(target.mask.sum())} fields of {target.mask.numel()}"


CONVERTERS: dict[str, Callable[[Path, Path], str]] = {"fresnel": convert_fresnel, "ktc": convert_ktc}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=CONVERTERS, metavar="FORMAT", help="one of those above")
    parser.add_argument("file", type=Path, metavar="FILE", help="the published file")
    parser.add_argument("out", type=Path, metavar="OUT", help="what to write; it must not exist")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"{options.out} exists already; give another name or remove it")
    print(f"{options.out}: {CONVERTERS[options.format](options.file, options.out)}")


if __name__ == "__main__":
    main()
