"""The site: Sphinx, MyST pages, the API from the docstrings, and a gallery over examples/."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import accuracy_table  # noqa: E402
import inverse_table  # noqa: E402
import measured  # noqa: E402
import pinn_table  # noqa: E402
import solver_table  # noqa: E402

from opflow import __version__  # noqa: E402
from opflow.solvers import Reason  # noqa: E402

project = "opflow"
author = "The opflow authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py"]
html_theme = "furo"
html_title = f"opflow {release}"
smartquotes = False

# Numbers and lists that the pages show are read here; no page holds a measured number of its own.
picture = HERE / "images" / "darcy_fno.png"
myst_enable_extensions = ["dollarmath", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {
    "accuracy": accuracy_table.accuracy(
        HERE.parent / "benchmarks" / "accuracy.toml", HERE.parent / "benchmarks" / "results"
    ),
    "mgno_ablation": accuracy_table.comparison(
        HERE.parent / "benchmarks" / "accuracy.toml",
        HERE.parent / "benchmarks" / "results",
        ("darcy64-fno", "darcy64-mgno", "darcy64-mgno-v"),
    ),
    "mgno_curves": "![Validation error of FNO and MgNO against seconds of training](../images/darcy64_curves.png)"
    if (HERE / "images" / "darcy64_curves.png").exists()
    else "",
    "learned_multigrid": measured.tables(
        HERE.parent / "benchmarks" / "results", "###", benchmarks={"learned_multigrid"}
    ),
    "solvers": solver_table.solvers(HERE.parent / "benchmarks" / "results" / "solvers_cpu.json"),
    "solver_verdict": solver_table.verdict(HERE.parent / "benchmarks" / "results" / "solvers_cpu.json"),
    "pinns": pinn_table.pinns(HERE.parent / "benchmarks" / "results" / "pinn_cpu.json"),
    "pinns_classical": pinn_table.beside_classical(HERE.parent / "benchmarks" / "results" / "pinn_cpu.json"),
    "tank_results": measured.tables(HERE.parent / "benchmarks" / "results", "###", benchmarks={"tank"}),
    "pinn_cost": measured.tables(HERE.parent / "benchmarks" / "results", "###", benchmarks={"pinn_cost"}),
    "inverse_problems": inverse_table.problems(HERE.parent / "benchmarks" / "results" / "inverse_cpu.json"),
    "inverse_problems_l2": inverse_table.problems(HERE.parent / "benchmarks" / "results" / "inverse_cpu.json", "l2"),
    "inverse_ablations": inverse_table.ablations(HERE.parent / "benchmarks" / "results" / "inverse_cpu.json"),
    "inverse_cost": inverse_table.cost(HERE.parent / "benchmarks" / "results" / "inverse_cpu.json"),
    "solver_picture": "![Iterations and seconds against the number of unknowns](images/solvers.png)"
    if (HERE / "images" / "solvers.png").exists()
    else "",
    "measurements": measured.tables(HERE.parent / "benchmarks" / "results"),
    "reasons": measured.table(
        ["reason", "claims success", "message"],
        [[f"`{reason.name}`", "yes" if reason.converged else "no", reason.value] for reason in Reason],
    ),
    "darcy_picture": "![Permeability, reference, prediction and signed error](images/darcy_fno.png)\n\n"
    "Permeability, reference pressure, predicted pressure and signed error on unseen media."
    if picture.exists()
    else "*The picture of the last measured run is not here yet; `make demo` draws it.*",
}

# Docstrings are Google style; the constructor's arguments stand with the class.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"

# The gallery runs an example only if its name matches; one that takes minutes is shown with docs/images/<name>.png.
EXECUTED = ("darcy_resolution",)
sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": rf"[\\/](?:{'|'.join(EXECUTED)})\.py$",
    "image_scrapers": ("measured.scrape_pictures",),
    "reset_argv": "measured.gallery_arguments",
    "within_subsection_order": "ExampleTitleSortKey",
    "write_computation_times": False,
    "show_memory": False,
    "min_reported_time": 1e6,
    "abort_on_example_error": True,
    "run_stale_examples": True,  # the library may have changed where the example has not
}

# In a docstring, *grid is a shape and |k| a modulus: only `names`, ``code`` and examples are markup.
_SPAN = re.compile(r"(``.+?``|`[^`]+`|:\w+:`[^`]+`)")


def escape_mathematics(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            parts = _SPAN.split(line)
            parts[::2] = [re.sub(r"([*|])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def place_thumbnails(app: Any) -> None:
    """Give sphinx-gallery the committed picture of each example that it does not run."""
    images = HERE / "gallery" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for path in (HERE / "images").glob("*.png"):
        if path.stem not in EXECUTED and (HERE.parent / "examples" / f"{path.stem}.py").exists():
            shutil.copyfile(path, images / f"sphx_glr_{path.stem}_001.png")
            (images / "thumb" / f"sphx_glr_{path.stem}_thumb.png").unlink(missing_ok=True)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_mathematics, priority=400)  # before napoleon
    app.connect("builder-inited", place_thumbnails, priority=400)  # before sphinx-gallery
