"""A file states one idea and a function fits a screen."""

from __future__ import annotations

import ast

import pytest

from tests.repository.sources import Source, sources

FILE_LINES = 400
FUNCTION_LINES = 60  # without the docstring, whose sections are prescribed


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.path)
def test_file_and_functions_are_short(source: Source) -> None:
    lines = len(source.text.splitlines())
    assert lines <= FILE_LINES, f"{source.path} has {lines} lines; split it by idea"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _lines_of_code(node)
            assert length <= FUNCTION_LINES, f"{source.path}:{node.lineno} {node.name} has {length} lines"
