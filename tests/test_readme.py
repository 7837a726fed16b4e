"""The lines of the README for FLUX.1, run as they stand on a tiny pipeline of the same class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from tests import tiny_transformers

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page that load FLUX.1."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "FluxPipeline" in each]


@pytest.mark.parametrize("page", ["README.md", "docs/transformers.md"])
def test_the_lines_for_flux_run(page: str, monkeypatch: Any, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(cls: Any, name: str, *, torch_dtype: torch.dtype) -> Any:
        """Stand in for weights that cannot be here: the same classes, tiny."""
        asked.append((name, torch_dtype))
        pipe = tiny_transformers.flux(dtype=torch_dtype)
        pipe.default_sample_size, pipe.enable_model_cpu_offload = 16, lambda: None
        pipe.set_progress_bar_config(disable=True)
        return pipe

    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", classmethod(load))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(page)
    assert len(code.strip().splitlines()) <= 11
    found: dict[str, Any] = {}
    exec(compile(code, page, "exec"), found)
    assert asked == [("black-forest-labs/FLUX.1-dev", torch.bfloat16)]
    assert Image.open("cat.png").size == found["image"].size
    assert found["session"].cost.extra_forwards > 0 and found["session"].record.steps == 28
