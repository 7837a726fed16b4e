"""A file states one idea and a function fits a screen. Complexity is ruff's (C901 in pyproject.toml)."""

from __future__ import annotations

import ast

from tests.repository.sources import sources

FILE_LINES = 400
FUNCTION_LINES = 60


def test_files_are_short() -> None:
    long = {source.path: len(source.text.splitlines()) for source in sources()}
    assert {path: lines for path, lines in long.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{source.path}:{node.lineno} {node.name} has {length} lines"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert long == []
