"""Results with several conditions become one table with a column a condition, short in the README."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.report import Row, allocator, huge_pages, machine, torch_flags, write_report

ROOT = Path(__file__).parents[2]


def measured() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measured", ROOT / "docs" / "measured.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [
    Row("step", 3.0, "x", ">= 2.5x", True, "default"),
    Row("step", 1.5, "x", ">= 2x", False, "equal"),
    Row("step", 2.0, "x", "reported", True, "two threads"),
    Row("error", 1e-7, "", "<= 5e-07", True),
    Row("forward", 2.5, "x", "reported", True, "default"),
    Row("forward", 2.25, "x", "reported", True, "equal"),
    Row("off", 1.0, "%", "<= 5 %", True, "default"),
    Row("off", 2.0, "%", "<= 5 %", True, "equal"),
]


def test_a_report_becomes_a_table_with_columns(tmp_path, capsys) -> None:
    path = write_report("speed", ROWS, device="cpu", conditions={"threads": "one"}, folder=tmp_path)
    report = json.loads(path.read_text())
    assert report["machine"]["threads"] == "one" and report["rows"][0]["column"] == "default"
    assert {"torch", "neuraloperator"} <= report["versions"].keys()
    printed = capsys.readouterr().out
    assert "step [equal]: 1.5 x (asked: >= 2x; NOT reached)" in printed
    assert "forward [default]: 2.5 x (asked: reported)" in printed

    page = measured().tables(tmp_path)
    assert "| what | default | equal | two threads | required | reached |" in page
    assert "| step | 3 x | 1.5 x | 2 x | >= 2.5x / >= 2x | **no** |" in page
    assert "| error | 1e-07 |  |  | <= 5e-07 | yes |" in page
    assert "| forward | 2.5 x | 2.25 x |  | reported | yes |" in page
    assert "| off | 1 % | 2 % |  | <= 5 % | yes |" in page


def test_a_long_table_is_short_in_the_readme(tmp_path) -> None:
    write_report("speed", ROWS, device="cpu", folder=tmp_path)
    short, whole = (measured().tables(tmp_path, longest=longest) for longest in (3, 4))
    assert "forward" not in short and "1 lines of which nothing is required" in short
    assert "forward" in whole and "of which nothing is required" not in whole


def test_the_same_thing_twice_is_two_lines(tmp_path) -> None:
    write_report("speed", [ROWS[3], ROWS[3]], device="cpu", folder=tmp_path)
    assert measured().tables(tmp_path).count("| error |") == 2


def test_the_readme_shows_some_benchmarks_and_a_picture_right_under_a_table(tmp_path) -> None:
    for name in ("speed", "other"):
        write_report(name, ROWS, device="cpu", folder=tmp_path)
    page = measured().tables(tmp_path, longest=3, benchmarks=("speed",), below={"speed_cpu": "![bars](bars.png)"})
    assert "## speed" in page and "## other" not in page
    assert "|\n\n![bars](bars.png)\n\n1 lines of which nothing is required" in page
    assert "## other" in measured().tables(tmp_path)


def test_a_record_of_something_else_is_not_shown_but_half_a_report_stops_the_build(tmp_path) -> None:
    (tmp_path / "kernels.json").write_text('{"kernels": [{"registers": 168}], "triton": "3.6"}')
    assert "Not measured yet" in measured().tables(tmp_path)
    for half in ('{"kernels": [], "rows": []}', "[]"):
        (tmp_path / "kernels.json").write_text(half)
        with pytest.raises(ValueError, match="is not a benchmark result"):
            measured().tables(tmp_path, benchmarks=())


def test_what_a_report_says_of_the_machine(monkeypatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    assert allocator() == "default"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert machine()["allocator"] == "MALLOC_MMAP_MAX_=0 GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
    assert huge_pages() in {"always", "madvise", "never", "unknown"}
    assert {"cpu_capability", "onednn", "float32_matmul_precision"} <= torch_flags().keys()
