"""The bank of references: it gives back what it got, knows its limit, and says what it has not."""

from __future__ import annotations

import pytest
import torch

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall
from t2ictl.errors import NotRecorded
from t2ictl.families import find_adapter
from t2ictl.processors.isolation_reposition.reference_bank import ReferenceBank
from t2ictl.processors.isolation_reposition.story_context import StoryContext
from t2ictl.settings.windows import Step
from tests import tiny

INSIDE = torch.tensor([[True, False, True], [False, False, True]])


def call(step: int = 0) -> AttentionCall:
    layer = next(layer for layer in find_adapter(tiny.sd()).layers if layer.kind == "self")
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True)
    now = Step(index=step, total=2, timestep=1.0)
    return AttentionCall(layer=layer, size=(2, 3), batch=batch, step=now, attention=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_back_what_was_inside_and_zero_elsewhere(dtype: torch.dtype) -> None:
    bank, states_NC = ReferenceBank(limit=1000), torch.randn(6, 4, dtype=dtype)
    bank.keep("cat", call(), "cond", states_NC, INSIDE)
    found_NC = bank.states("cat", call(), "cond", states_NC)
    expected_NC = torch.where(INSIDE.flatten()[:, None], states_NC, 0)
    assert found_NC.dtype == dtype and torch.equal(found_NC, expected_NC)
    assert torch.equal(bank.inside("cat", call()), INSIDE)
    assert bank.bytes == 3 * 4 * states_NC.element_size()  # positions of the subject alone
    assert bank.subjects == {"cat"}


def test_what_it_keeps_does_not_change_with_the_tensor_it_came_from() -> None:
    bank, states_NC = ReferenceBank(limit=1000), torch.ones(6, 4)
    bank.keep("cat", call(), "cond", states_NC, torch.ones(2, 3, dtype=torch.bool))
    states_NC.zero_()
    assert torch.equal(bank.states("cat", call(), "cond", states_NC), torch.ones(6, 4))


@pytest.mark.parametrize(("subject", "step", "role"), [("dog", 0, "cond"), ("cat", 1, "cond"), ("cat", 0, "uncond")])
def test_what_it_has_not_is_named(subject: str, step: int, role: str) -> None:
    bank = ReferenceBank(limit=1000)
    bank.keep("cat", call(), "cond", torch.randn(6, 4), INSIDE)
    with pytest.raises(NotRecorded, match=subject):
        bank.states(subject, call(step), role, torch.zeros(1))


def test_at_its_limit_it_lets_go_of_everything() -> None:
    bank = ReferenceBank(limit=2 * 48)
    for role in ("uncond", "cond"):
        bank.keep("cat", call(), role, torch.randn(6, 4), INSIDE)
    assert (bank.is_full, bank.bytes) == (False, 96)
    bank.keep("dog", call(), "cond", torch.randn(6, 4), INSIDE)
    assert (bank.is_full, bank.bytes, bank.subjects) == (True, 0, frozenset())
    bank.keep("dog", call(), "cond", torch.randn(6, 4), INSIDE)
    assert bank.bytes == 0


def test_absent_are_those_in_the_bank_whose_portrait_is_not_in_the_call() -> None:
    bank, shown_by = ReferenceBank(limit=1000), {"cat": "photo of a cat", "dog": "photo of a dog"}
    bank.keep("cat", call(), "cond", torch.randn(6, 4), INSIDE)
    telling = StoryContext(names=("scene|0",), bank=bank)
    assert telling.absent(("a cat and a dog",), shown_by) == ("cat",)
    assert telling.absent(("photo of a cat", "a cat and a dog"), shown_by) == ()
    assert StoryContext(names=("scene|0",)).absent(("a cat and a dog",), shown_by) == ()
