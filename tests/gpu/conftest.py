"""A run of this folder without a CUDA device is a failure with one line, never a set of skips."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stop before the first test when GPU tests were asked for and there is no device for them."""
    asked_for = "gpu" in config.option.markexpr and "not gpu" not in config.option.markexpr
    if asked_for and not torch.cuda.is_available() and any(item.get_closest_marker("gpu") for item in items):
        pytest.exit("GPU tests need a CUDA device, and torch finds none here.", returncode=1)
