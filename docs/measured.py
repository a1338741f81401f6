"""What the site reads instead of being told: the tables of benchmarks/results, and the pictures that examples draw."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parent / "_build" / "examples"
KEYS = ("benchmark", "command", "machine", "versions", "rows")
ROW_KEYS = ("what", "measured", "unit", "required", "reached")


def tables(folder: Path, heading: str = "##") -> str:
    """Every ``*.json`` in `folder` as Markdown, for the site and the README: a heading, the command, machine and versions, and one table.

    A file is {"benchmark": str, "command": str, "machine": {...}, "versions": {...}, "rows": [{"what": str,
    "measured": number, "unit": str, "required": str, "reached": bool}]}.

    Raises:
        ValueError: a file lacks one of these keys; the build stops rather than leave a number out.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return (
        "\n\n".join(_section(path, heading) for path in paths) or "*Not measured yet: `benchmarks/results/` is empty.*"
    )


def _section(path: Path, heading: str) -> str:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        benchmark, command, machine, versions, rows = (result[key] for key in KEYS)
        cells = [[row[key] for key in ROW_KEYS] for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a benchmark result ({type(error).__name__}: {error}); expected {', '.join(KEYS)} with rows of "
            f"{', '.join(ROW_KEYS)}."
        ) from error
    body = [
        [what, f"{_number(measured)} {unit}".strip(), required, "yes" if reached else "**no**"]
        for what, measured, unit, required, reached in cells
    ]
    facts = [f"{name} {value}" for part in (machine, versions) for name, value in part.items()]
    return "\n\n".join(
        [
            f"{heading} {_cell(benchmark)}",
            f"```text\n{command}\n```",
            _cell("; ".join(facts)),
            table(["what", "measured", "required", "reached"], body),
        ]
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def gallery_arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The command line of an example in the gallery: every example takes --out and --overwrite."""
    script = Path(script_vars["src_file"])
    # Relative to the example, where sphinx-gallery runs it: the page shows what the example prints.
    return ["--out", os.path.relpath(PICTURES / script.stem, script.parent), "--overwrite"]


def scrape_pictures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Move the pictures that an example has written to its page; opflow draws outside pyplot, where nobody else looks."""
    from sphinx_gallery.scrapers import figure_rst

    drawn = sorted((PICTURES / Path(block_vars["src_file"]).stem).glob("*.png"))
    placed = []
    for picture, place in zip(drawn, block_vars["image_path_iterator"], strict=False):
        shutil.move(picture, place)
        placed.append(place)
    return figure_rst(placed, gallery_conf["src_dir"])
