"""Write the measured numbers of `benchmarks/results/` into the README, between its two markers."""

from __future__ import annotations

import sys
from pathlib import Path

from opflow.files import write_bytes

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
from measured import tables  # noqa: E402  (one rendering for the site and the README)

BEGIN = "<!-- measured: written by `python -m benchmarks.readme` from benchmarks/results/ -->\n"
END = "<!-- end of measured -->"
BENCHMARKS = (
    "accuracy, preset cpu",
    "darcy_fno",
    "darcy_generation",
    "evolution",
    "inverse problems, preset cpu",
    "mgno_step",
    "pinn",
    "pinn_cost",
    "solvers",
    "spectral_conv",
    "tank",
    "train_step",
)  # the site shows the others too
LONGEST = 10  # lines of a table, before the README shows only those of which something is required
PICTURES = {
    "spectral_conv_cpu": (
        "Step time of neuraloperator's spectral convolution over ours, with what is required and what would be ambitious",
        "docs/images/spectral_conv.png",
    ),
}


def with_tables(readme: str) -> str:
    """The README with the tables between its markers."""
    before, rest = readme.split(BEGIN)
    results = tables(
        ROOT / "benchmarks" / "results",
        heading="###",
        longest=LONGEST,
        benchmarks=BENCHMARKS,
        below={name: f"![{text}]({path})" for name, (text, path) in PICTURES.items() if (ROOT / path).exists()},
    )
    return f"{before}{BEGIN}\n{results}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    write_bytes(ROOT / "README.md", with_tables((ROOT / "README.md").read_text()).encode())
