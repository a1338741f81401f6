"""No file of the project opens a pickle: that would run whatever its author put there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "weights_only=False": re.compile(r"weights_only\s*=\s*False"),
    "pickle.load": re.compile(r"\b(c?[pP]ickle|dill|cloudpickle|joblib)\s*\.\s*(loads?|Unpickler)\b"),
    "allow_pickle=True": re.compile(r"allow_pickle\s*=\s*True"),
    "import of pickle": re.compile(r"^\s*(from|import)\s+(c?[pP]ickle|dill|cloudpickle|joblib|shelve|marshal)\b", re.MULTILINE),
    "torch.load without weights_only": re.compile(r"torch\.load\((?![^()]*(\([^()]*\)[^()]*)*weights_only\s*=\s*True)"),
    "eval or exec": re.compile(r"(?<![\w.])(eval|exec)\("),
}
FILES = [path for folder in ("opflow", "examples", "benchmarks", "datasets") for path in sorted((ROOT / folder).rglob("*.py"))]


def code(path: Path) -> str:
    """The file without its comments and strings' line structure changed: sentences may name what is forbidden."""
    import io
    import tokenize

    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    kept = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.STRING)]
    return tokenize.untokenize((t.type, t.string) for t in kept)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_unsafe_is_loaded(what: str) -> None:
    assert FILES
    found = [str(path.relative_to(ROOT)) for path in FILES if FORBIDDEN[what].search(code(path))]
    assert not found, f"{what} in {found}"


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("weights_only=False", "torch.load(path, weights_only = False)"),
        ("pickle.load", "x = pickle.load(file)"),
        ("pickle.load", "pickle.loads(b)"),
        ("allow_pickle=True", "np.load(path, allow_pickle=True)"),
        ("import of pickle", "import pickle"),
        ("import of pickle", "    from cloudpickle import load"),
        ("torch.load without weights_only", "torch.load(path)"),
        ("torch.load without weights_only", "torch.load(open(path), map_location=f(x))"),
        ("eval or exec", "eval(text)"),
    ],
)
def test_the_patterns_catch_what_they_name(what: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(("if 1:\n" if line.startswith(" ") else "") + line + "  # a comment\n")
    assert FORBIDDEN[what].search(code(path))
    path.write_text("# " + line.strip() + "\n")
    assert not FORBIDDEN[what].search(code(path))


def test_safe_loading_passes() -> None:
    for line in ("torch.load(path, weights_only=True)", "torch.load(f(path), map_location='cpu', weights_only=True)", "model.eval()"):
        assert not any(pattern.search(line) for pattern in FORBIDDEN.values()), line
