"""Convert a published file to one that the library's readers open everywhere: python datasets/convert.py ktc data1.mat phantom1.npz

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


CONVERTERS: dict[str, Callable[[Path, Path], str]] = {"ktc": convert_ktc}


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
