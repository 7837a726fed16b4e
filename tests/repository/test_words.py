"""The field's words: names, first lines of docstrings and pages use them, and not those that they replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.repository.sources import ROOT, Source, sources

# What stood for: an image; the direction of attention; a row of the batch; an attention layer.
REPLACED = re.compile(r"\b(?:pictures?|look(?:s|ed)? at|[Ll]anes?|[Ss]ites?)\b", re.IGNORECASE)
IN_NAMES = re.compile(r"(?:^|_)(?:pictures?|lanes?|sites?)(?:_|$)|Picture|Lane|Site(?![a-z])")
HABITS = ("Give", "Gives", "Say", "Says", "Tell", "Tells")
SHIPPED = ("t2ictl", "processors", "losses", "app", "benchmarks")


def _definitions(source: Source) -> Iterator[tuple[str, str]]:
    """Public names of a file, each with the first line of its docstring; the file itself has the name of its module."""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(source.tree):
        if isinstance(node, documented):
            name = getattr(node, "name", source.module.split(".")[-1])
            text = (ast.get_docstring(node) or "").partition("\n")[0]
            if not name.startswith("_") or name.startswith("__"):
                yield f"{source.path}: {name}", text
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield f"{source.path}: {node.target.id}", ""


def test_public_names_and_first_lines_use_the_words_of_the_field() -> None:
    found = []
    for source in sources(*SHIPPED):
        for where, line in _definitions(source):
            name = where.rpartition(" ")[2]
            if IN_NAMES.search(name) or REPLACED.search(line) or line.split(" ")[0] in HABITS:
                found.append(f"{where}: {line}")
    assert found == []


def test_pages_use_the_words_of_the_field() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [
        f"{page.relative_to(ROOT)}:{number}: {match.group()}"
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := REPLACED.search(line))
    ]
    assert found == []
