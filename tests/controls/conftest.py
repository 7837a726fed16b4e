"""Fixtures of the controls' tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import t2ictl.processors
from t2ictl.controls import registry
from t2ictl.controls.registry import list_controls


@pytest.fixture
def clean() -> Iterator[None]:
    """Put the registry back, and forget what was imported from a temporary folder."""
    list_controls()
    known, broken, modules = dict(registry._REGISTRY), dict(registry._BROKEN), set(sys.modules)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)
    registry._BROKEN.clear()
    registry._BROKEN.update(broken)
    for name in set(sys.modules) - modules:
        if name.startswith(("t2ictl.processors.", "stray_", "my_controls")):
            del sys.modules[name]
            vars(t2ictl.processors).pop(name.rpartition(".")[2], None)
