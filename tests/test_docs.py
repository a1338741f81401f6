"""The Python in the pages runs.

Every ```python block of README.md, CONTRIBUTING.md and docs/ is executed, the blocks of a page one after another in one
namespace and an empty folder, unless the line before it is ``<!-- not run: reason -->``.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "gallery"} & set(path.relative_to(DOCS).parts)),
]
BLOCK = re.compile(r"(?P<not_run><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line number, code) of every block that runs."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in BLOCK.finditer(text) if not match["not_run"]]
    return [(text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in found]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.exists() and blocks(page)],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = ModuleType("page")  # dataclasses look their own module up by its name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(page):
        # Leading newlines give a traceback the page's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), module.__dict__)


def measured() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measured", DOCS / "measured.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert "Not measured yet" in measured().tables(tmp_path)
    assert "Not measured yet" in measured().tables(tmp_path / "missing")


def test_results_become_tables(tmp_path: Path) -> None:
    row = {
        "what": "|error| on unseen media",
        "measured": 0.0234567,
        "unit": "",
        "required": "<= 0.025",
        "reached": True,
    }
    result = {
        "benchmark": "Darcy",
        "command": "python benchmarks/darcy.py",
        "machine": {"cores": 2},
        "versions": {"torch": "2.13"},
        "rows": [row, {**row, "what": "time", "measured": 200, "unit": "s", "reached": False}],
    }
    (tmp_path / "darcy_cpu.json").write_text(json.dumps(result))
    page = measured().tables(tmp_path)
    assert "## Darcy" in page and "python benchmarks/darcy.py" in page and "cores 2; torch 2.13" in page
    assert "| \\|error\\| on unseen media | 0.02346 | <= 0.025 | yes |" in page
    assert "| time | 200 s | <= 0.025 | **no** |" in page


def test_a_result_without_its_keys_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "darcy_cpu.json").write_text('{"benchmark": "Darcy", "rows": []}')
    with pytest.raises(ValueError, match="is not a benchmark result"):
        measured().tables(tmp_path)


def test_every_committed_result_can_be_shown() -> None:
    assert measured().tables(ROOT / "benchmarks" / "results")


def test_committed_pictures_are_small() -> None:
    large = {path.name: path.stat().st_size for path in DOCS.glob("images/*") if path.stat().st_size >= 300_000}
    assert not large


def test_the_accuracy_table_says_what_was_and_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    accuracy = importlib.import_module("accuracy_table").accuracy
    rows = tmp_path / "rows.toml"
    rows.write_text('[a]\ntitle = "A"\npublished = 0.5\nrequired = 0.2\n[b]\ntitle = "B"\npublished = 0.1\n')
    assert accuracy(rows, tmp_path).count("No run of this preset is on record") == 2
    run = {
        "row": "a", "seed": 0, "error": 0.3, "parameters": 1234, "train_seconds": 61.2, "predict_seconds": 2e-3, "commit": "abc",
        "classical": {"seconds": 5e-6, "error": 0.21, "grid": [8, 8]}, "machine": {"device": "cpu", "processor": "P", "threads": 1},
    }  # fmt: skip
    runs = [run, run | {"seed": 1, "error": 0.1, "classical": None}, run | {"seed": 2, "error": 0.25}]
    report = {"command": "run", "versions": {"torch": "2"}, "notes": {"runs": runs}}
    (tmp_path / "accuracy_cpu.json").write_text(json.dumps(report))
    page = accuracy(rows, tmp_path)
    assert (
        "| A | 0.5 | **0.25** | 0.1 to 0.3 | 3 | <= 0.2 | **no** | 1,234 | 61 s on 1 thread(s) | 2 ms | 5 us on 8 x 8, error 0.21 |"
        in page
    )
    assert "Not run: B." in page
