"""What tests may not do."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.repository.sources import Source, sources

MODULES = {source.module for source in sources("tests") if source.module.rpartition(".")[2].startswith("test_")}


def test_test_modules_give_nothing_to_others() -> None:
    """What several tests share lives in a file of its own, ``*_cases.py``."""
    found = [
        f"{source.path} imports {name}"
        for source in sources("tests")
        for name in source.imports()
        if name in MODULES or name.rpartition(".")[0] in MODULES
    ]
    assert found == []


def _patched_by_name(source: Source) -> Iterator[str]:
    """Names of ours that stand in a string at ``setattr`` or ``patch``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("setattr", "delattr", "patch"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("t2ictl."):
                    yield f"{source.path}:{node.lineno} patches {argument.value!r}"


def test_nothing_is_patched_by_the_name_of_its_place() -> None:
    """A string knows where a thing is kept, and breaks with every move of it, or silently patches nothing."""
    assert [each for source in sources("tests") for each in _patched_by_name(source)] == []
