"""Fixtures of the benchmarks: models that take a moment to make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.scoring_cases import save_blip


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with BLIP's question answering at a toy size."""
    with torch.random.fork_rng(devices=[]):
        return save_blip(tmp_path_factory.mktemp("blip"))
