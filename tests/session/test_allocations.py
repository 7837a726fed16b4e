"""Sessions on joint attention: no tensor with an entry for each pair of positions is made beside the fused kernel."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

import t2ictl
from t2ictl import Recording
from t2ictl.processors import AttentionSegregation
from tests.allocations import Largest
from tests.tiny_transformers import flux, run, sd3

PROMPT = "a red circle and a blue square"
#: Positions of the image; the pairs of them outnumber whatever else is made.
PLACES = 32 * 24
SIZE = {"height": 256, "width": 192}
PIPELINES = {"flux": flux, "sd3": lambda: sd3(sample_size=32, pos_embed_max_size=32)}


def largest(pipe: Any) -> int:
    """Elements of the largest tensor that two steps make."""
    with Largest() as found:
        run(pipe, PROMPT, steps=2, **SIZE)
    return found.elements


@pytest.mark.parametrize("build", PIPELINES.values(), ids=PIPELINES)
def test_a_latent_update_makes_no_tensor_of_all_pairs_of_positions(build: Any) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, [AttentionSegregation()]) as session:
        assert largest(pipe) < PLACES**2 / 2
    assert len(session.trace) == 2  # so there were backward passes


@pytest.mark.parametrize("build", PIPELINES.values(), ids=PIPELINES)
def test_a_recording_makes_no_tensor_of_all_pairs_of_positions(build: Any) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, record=Recording(layers=("joint",))) as session:
        assert largest(pipe) < PLACES**2 / 2
    assert session.record is not None and session.record.steps == 2


@pytest.mark.parametrize("build", PIPELINES.values(), ids=PIPELINES)
def test_an_explicit_softmax_would_be_seen(build: Any) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert largest(build()) > 2 * PLACES**2  # of two heads
