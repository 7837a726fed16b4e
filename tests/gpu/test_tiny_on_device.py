"""The toy pipelines run on a device, so that the other GPU tests can be written on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("build", [tiny.sd, tiny.sd2, tiny.sdxl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_runs_and_repeats(build: Any, dtype: torch.dtype) -> None:
    pipe = build(dtype=dtype).to("cuda")
    first = tiny.run(pipe, "a red circle and a blue square")
    assert torch.isfinite(first).all()
    assert torch.equal(first, tiny.run(pipe, "a red circle and a blue square"))
