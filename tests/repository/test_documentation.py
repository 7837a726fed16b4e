"""Every public thing is explained, its examples run, and every error has its paragraph."""

from __future__ import annotations

import doctest
import inspect
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from t2ictl import errors
from tests.repository.sources import ROOT, installed_modules, sources


def _public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes defined in ``module``, and the methods and properties that its classes define."""
    for name, member in vars(module).items():
        is_ours = getattr(member, "__module__", None) == module.__name__
        if name.startswith("_") or not is_ours or not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        yield name, member
        if inspect.isclass(member):
            for inner, value in vars(member).items():
                documentable = inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)
                if documentable and not inner.startswith("_"):
                    yield f"{name}.{inner}", getattr(member, inner)


def _is_generated(name: str, member: Any) -> bool:
    """Dataclasses and enums of the standard library write some docstrings themselves: the class's signature."""
    return inspect.isclass(member) and (member.__doc__ or "").startswith(f"{name}(")


def test_public_things_have_a_docstring() -> None:
    missing = [name for name in installed_modules() if not import_module(name).__doc__]
    for name in installed_modules():
        for inner, member in _public_members(import_module(name)):
            if not inspect.getdoc(member) or _is_generated(inner, member):
                missing.append(f"{name}.{inner}")
    assert missing == []


def _folder(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("folder", sorted({_folder(name) for name in installed_modules()}))
def test_examples_run(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a file
    output, failed = io.StringIO(), 0
    with redirect_stdout(output):
        for name in installed_modules():
            if _folder(name) == folder:
                options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
                failed += doctest.testmod(import_module(name), optionflags=options).failed
    assert failed == 0, output.getvalue()


def test_every_module_is_found_exactly_once() -> None:
    """Links and mapping show one package: no file under two names, and none that the walk misses."""
    files = Counter(str(Path(import_module(name).__file__ or "").resolve()) for name in installed_modules())
    ours = {
        str(ROOT / source.path)
        for source in sources()
        if source.module.startswith("t2ictl") and not source.module.endswith("__main__")
    }
    assert [file for file, count in files.items() if count > 1] == []
    assert set(files) == ours


def _error_classes() -> dict[str, type[errors.T2ictlError]]:
    return {
        name: member
        for name, member in vars(errors).items()
        if inspect.isclass(member) and issubclass(member, errors.T2ictlError)
    }


def test_every_error_has_its_paragraph() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)
    assert sorted(headings) == sorted(_error_classes())


def test_errors_are_defined_in_one_place() -> None:
    """So that the page on errors is complete."""
    elsewhere = [
        f"{name}.{member.__name__}"
        for name in installed_modules()
        for member in vars(import_module(name)).values()
        if inspect.isclass(member) and issubclass(member, errors.T2ictlError) and member.__module__ != "t2ictl.errors"
    ]
    assert elsewhere == []
