"""Passes that a session makes for itself: they compute what the pass of the image computes."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.passes import PassKind
from tests.attention.layer_cases import CONTEXT, Listener, given, installed, layer, masks


class Halved(Edit):
    """Halves the attention to the first key."""

    def weights(self, call: AttentionCall, weights_BHQK: Tensor) -> Tensor:
        factor_K = torch.ones(weights_BHQK.shape[-1], dtype=weights_BHQK.dtype)
        factor_K[0] = 0.5
        return weights_BHQK * factor_K


@pytest.mark.parametrize("edits", [[], [Halved()]], ids=["no edit", "edit"])
@pytest.mark.parametrize("name", masks())
def test_our_own_passes_compute_what_the_image_computes(name: str, edits: list[Edit]) -> None:
    """They take maps and result from one projection; masks and edits count in them, too."""
    attn, (hidden, context), mask = layer(cross_attention_dim=CONTEXT), given("cross"), masks()[name]
    found = []
    for kind in (PassKind.IMAGE, PassKind.MAPS):
        tap = Listener()
        ours = installed(attn, AttnProcessor2_0(), edits=edits, taps=[tap], kind=kind)
        result = ours(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
        found.append((result, tap.heard[0][1]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    plain = AttnProcessor2_0()(attn, hidden, encoder_hidden_states=context, attention_mask=mask)
    assert torch.allclose(found[1][0], plain, rtol=0, atol=1e-12) == (not edits)
