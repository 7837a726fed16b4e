"""Words hidden from text encoders: against the encoders' own argument, and put back whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.families.text_masking import masked_tokens, seen_without_pairs, visible_except
from tests.tiny import sd, sd2, sdxl

PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8
LENGTH = 16


def encoders(pipe: Any) -> list[tuple[Any, Any]]:
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    return [*pairs, (pipe.tokenizer_2, pipe.text_encoder_2)] if hasattr(pipe, "tokenizer_2") else pairs


def by_own_argument(pipe: Any, texts: list[str], mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows and pooled states by the encoders' own attention_mask."""
    rows, pooled = [], None
    for tokenizer, encoder in encoders(pipe):
        ids = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        with torch.no_grad():
            made = encoder(ids, attention_mask=mask, output_hidden_states=True)
        rows.append(made.hidden_states[-2] if len(encoders(pipe)) == 2 else made[0])
        pooled = made[0] if len(encoders(pipe)) == 2 else None
    return torch.cat(rows, dim=-1), pooled


def encode(pipe: Any, texts: list[str], seen: list[Tensor] | None = None) -> Any:
    return find_adapter(pipe).encode(pipe.encode_prompt, {"device": "cpu"}, texts, seen=seen)


@pytest.mark.parametrize("build", [sd, sd2, sdxl])
def test_masked_rows_are_those_of_the_encoders_own_argument(build: Any) -> None:
    pipe = build()
    seen_BK = visible_except([[2, 3], []], LENGTH)
    found = encode(pipe, [PROMPT, "a cat"], [seen_BK] * len(encoders(pipe)))
    rows, pooled = by_own_argument(pipe, [PROMPT, "a cat"], seen_BK.long())
    torch.testing.assert_close(found.embeds, rows, rtol=0, atol=1e-6)
    if pooled is not None:
        torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [sd, sdxl])
def test_hidden_words_are_read_by_nobody_and_others_do_not_change(build: Any) -> None:
    pipe = build()
    texts = [PROMPT, "a blue heart and a blue square"]  # other words at the two hidden places
    seen = [visible_except([[2, 3], [2, 3]], LENGTH)] * len(encoders(pipe))
    found = encode(pipe, texts, seen)
    others = [0, 1, *range(4, LENGTH)]
    assert torch.equal(found.embeds[0, others], found.embeds[1, others])
    assert not torch.equal(found.embeds[0, [2, 3]], found.embeds[1, [2, 3]])
    if found.pooled is not None:
        assert torch.equal(found.pooled[0], found.pooled[1])


@pytest.mark.parametrize("build", [sd, sdxl])
def test_a_changed_word_changes_itself_and_what_comes_after(build: Any) -> None:
    found = encode(build(), [PROMPT, "a red circle and a green square"]).embeds
    changed = [bool((found[0, place] != found[1, place]).any()) for place in range(LENGTH)]
    assert changed == [False] * 6 + [True] * (LENGTH - 6)


def test_pairs_keep_causality_and_all_else() -> None:
    pipe = sd()
    plain = encode(pipe, [PROMPT]).embeds[0]
    nothing = encode(pipe, [PROMPT], [seen_without_pairs([[7]], [[]], LENGTH)]).embeds[0]
    torch.testing.assert_close(nothing, plain, rtol=0, atol=1e-6)
    direct = encode(pipe, [PROMPT], [seen_without_pairs([[7]], [[3]], LENGTH)]).embeds[0]
    # The reader changes, and what reads the reader: nothing before it does.
    torch.testing.assert_close(direct[:7], plain[:7], rtol=0, atol=1e-6)
    assert (direct[7] - plain[7]).abs().max() > 1e-4


def test_direct_is_not_total_where_a_third_word_carries_on() -> None:
    pipe = sd()
    direct = encode(pipe, [PROMPT], [seen_without_pairs([[7]], [[3]], LENGTH)]).embeds[0, 7]
    total = encode(pipe, [PROMPT], [visible_except([[3]], LENGTH)]).embeds[0, 7]
    assert (direct - total).abs().max() > 1e-4


def test_masks_of_a_batch_do_not_touch_each_other() -> None:
    pipe = sd()
    together = encode(pipe, [PROMPT] * 3, [visible_except([[3], [], [7]], LENGTH)]).embeds
    for row, hidden in enumerate(([3], [], [7])):
        alone = encode(pipe, [PROMPT], [visible_except([hidden], LENGTH)]).embeds[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


def test_a_mask_of_the_pipeline_stays_in_force() -> None:
    pipe = sd()
    ids = pipe.tokenizer([PROMPT], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    own = visible_except([[7]], LENGTH).long()
    with torch.no_grad(), masked_tokens([pipe.text_encoder], [visible_except([[3]], LENGTH)]):
        both = pipe.text_encoder(ids, attention_mask=own)[0]
        by_position = pipe.text_encoder(ids, own)[0]
    with torch.no_grad():
        wanted = pipe.text_encoder(ids, attention_mask=visible_except([[3, 7]], LENGTH).long())[0]
    torch.testing.assert_close(both, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_position, wanted, rtol=0, atol=1e-6)


def test_encoders_are_put_back_after_an_error() -> None:
    pipe = sd()
    before = encode(pipe, [PROMPT]).embeds
    with pytest.raises(UnsupportedPipeline, match="where 2 texts of 16 positions were announced"):
        encode(pipe, [PROMPT], [visible_except([[], []], LENGTH)])
    with pytest.raises(KeyboardInterrupt):
        with masked_tokens([pipe.text_encoder], [visible_except([[3]], LENGTH)]):
            raise KeyboardInterrupt
    assert torch.equal(encode(pipe, [PROMPT]).embeds, before)
    assert not any(module._forward_pre_hooks for module in pipe.text_encoder.modules())


def test_half_precision_gets_a_mask_of_its_own() -> None:
    pipe = sd(dtype=torch.bfloat16)
    found = encode(pipe, [PROMPT], [seen_without_pairs([[7]], [[3]], LENGTH)]).embeds
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())
