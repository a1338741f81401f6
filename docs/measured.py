"""What the site reads instead of being told: the tables of benchmarks/results, and the pictures that examples draw."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parent / "_build" / "examples"
KEYS = ("benchmark", "command", "machine", "versions", "rows")
ROW_KEYS = ("what", "measured", "unit", "required", "reached")
REPORTED = "reported"  # in the place of a requirement, where none was set


def tables(
    folder: Path,
    heading: str = "##",
    *,
    longest: int | None = None,
    benchmarks: Collection[str] | None = None,
    below: Mapping[str, str] | None = None,
) -> str:
    """Every ``*.json`` in `folder` as Markdown, for the site and the README: a heading, the command, machine and versions, and one table.

    A file is {"benchmark": str, "command": str, "machine": {...}, "versions": {...}, "rows": [{"what": str,
    "measured": number, "unit": str, "required": str, "reached": bool}]}. Rows may name a "column", the conditions under
    which they were measured: then the rows of one thing are one line. A file with none of these keys is a record of
    something else, which a test or a tool reads, and is not shown.

    Args:
        longest: of a table with more lines than this, show only those of which something is required.
        benchmarks: show only these.
        below: {name of a file without its suffix: Markdown to stand right under its table}.

    Raises:
        ValueError: a file lacks some of these keys; the build stops rather than leave a number out.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    reports = {path: report for path in paths if (report := _report(path)) is not None}
    sections = [
        _section(report, heading, longest, (below or {}).get(path.stem))
        for path, report in reports.items()
        if benchmarks is None or report["benchmark"] in benchmarks
    ]
    return "\n\n".join(sections) or "*Not measured yet: `benchmarks/results/` is empty.*"


def _report(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.keys().isdisjoint(KEYS):
            return None
        report = {key: result[key] for key in KEYS}
        report["rows"] = [{**row, **{key: row[key] for key in ROW_KEYS}} for row in report["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a benchmark result ({type(error).__name__}: {error}); expected {', '.join(KEYS)} with rows of "
            f"{', '.join(ROW_KEYS)}."
        ) from error
    return report


def _section(report: dict[str, Any], heading: str, longest: int | None, below: str | None) -> str:
    benchmark, command, machine, versions, rows = (report[key] for key in KEYS)
    lines = _lines(rows)
    shown = lines
    if longest is not None and len(lines) > longest:
        shown = [line for line in lines if any(row["required"] != REPORTED for row in line.values())]
    columns = list(dict.fromkeys(column for line in shown for column in line if column))
    shape = _by_column if columns else _plain
    facts = [f"{name} {value}" for part in (machine, versions) for name, value in part.items()]
    parts = [
        f"{heading} {_cell(benchmark)}",
        f"```text\n{command}\n```",
        _cell("; ".join(facts)),
        shape(shown, columns),
        *([below] if below else []),
    ]
    if len(shown) < len(lines):
        parts.append(
            f"{len(lines) - len(shown)} lines of which nothing is required are on the site's page of measurements."
        )
    return "\n\n".join(parts)


def _lines(rows: Sequence[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """The rows of one thing together, {column: row}; the same column again starts a new line."""
    lines: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        number, column = 0, row.get("column", "")
        while column in lines.get((row["what"], number), {}):
            number += 1
        lines.setdefault((row["what"], number), {})[column] = row
    return list(lines.values())


def _plain(lines: Sequence[dict[str, dict[str, Any]]], columns: Sequence[str]) -> str:
    body = [
        [row["what"], _value(row), row["required"], "yes" if row["reached"] else "**no**"]
        for line in lines
        for row in line.values()
    ]
    return table(["what", "measured", "required", "reached"], body)


def _by_column(lines: Sequence[dict[str, dict[str, Any]]], columns: Sequence[str]) -> str:
    body = []
    for line in lines:
        rows = {column: row for column, row in line.items() if not column or column in columns}
        first = next(iter(rows.values()))
        asked = {column: row["required"] for column, row in rows.items() if row["required"] != REPORTED}
        required = list(dict.fromkeys(asked.values())) if len(set(asked.values())) < 2 else list(asked.values())
        cells = [_value(rows[column]) if column in rows else "" for column in columns]
        if "" in rows:  # one number for all conditions
            cells[0] = _value(rows[""])
        reached = "yes" if all(row["reached"] for row in rows.values()) else "**no**"
        body.append([first["what"], *cells, " / ".join(required) or REPORTED, reached])
    return table(["what", *columns, "required", "reached"], body)


def _value(row: dict[str, Any]) -> str:
    return f"{_number(row['measured'])} {row['unit']}".strip()


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
