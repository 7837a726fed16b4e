"""The screen of each text encoder by itself: against encodings made by hand, and against that of the whole row."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.processors.token_flow.analysis.encoders import screen_encoders
from t2ictl.processors.token_flow.analysis.scoring import Request, Scoring
from t2ictl.processors.token_flow.analysis.screen import POOLED, screen
from t2ictl.processors.token_flow.items import Item
from tests import tiny, tiny_transformers

PROMPT = "a red circle and a blue square"
ITEMS = (Item(words="circle", swap="star"), "square")
CLIPS, T5 = "text_encoder + text_encoder_2", "text_encoder_3"


@functools.cache
def _sd3() -> Any:
    return tiny_transformers.sd3()


@functools.cache
def _cells() -> dict[str, dict[tuple[str, str], Any]]:
    found = screen_encoders(_sd3(), PROMPT, ITEMS, max_sequence_length=24)
    return {name: {(cell.target, cell.source): cell for cell in cells} for name, cells in found.items()}


def test_segments_have_the_names_of_their_encoders() -> None:
    assert list(_cells()) == [CLIPS, T5]
    assert not any(POOLED in key for cells in _cells().values() for key in cells)


def test_words_of_clip_have_read_nothing_behind_them_and_those_of_t5_have() -> None:
    clip, t5 = _cells()[CLIPS], _cells()[T5]
    for cells, is_possible in ((clip, False), (t5, True)):
        back = cells["circle", "square"]
        assert back.is_possible is is_possible
        assert (back.total > 0) is is_possible and (back.direct > 0) is is_possible
        assert cells["square", "circle"].is_possible and cells["square", "circle"].total > 0


@torch.no_grad()
def _t5(text: str, hidden: tuple[int, ...] = ()) -> Tensor:
    """Rows of T5, called as the pipeline calls it but for a mask."""
    pipe = _sd3()
    ids = pipe.tokenizer_3(text, padding="max_length", max_length=24, return_tensors="pt").input_ids
    mask = torch.ones_like(ids)
    mask[0, list(hidden)] = 0
    return pipe.text_encoder_3(ids, attention_mask=mask)[0][0].double()


def test_a_cell_of_t5_is_that_of_encodings_made_by_hand() -> None:
    """Tokens of T5: a 0, red 1, circle 2, and 3, a 4, blue 5, square 6."""
    full, empty = _t5(PROMPT), _t5("")
    for target, source, place, gone in (("square", "circle", 6, 2), ("circle", "square", 2, 6)):
        scale = (full[place] - empty[place]).norm()
        expected = (full[place] - _t5(PROMPT, (gone,))[place]).norm() / scale
        assert _cells()[T5][target, source].total == pytest.approx(float(expected), rel=1e-4)
    swapped = (full[6] - _t5(PROMPT.replace("circle", "star"))[6]).norm() / (full[6] - empty[6]).norm()
    assert _cells()[T5]["square", "circle"].swapped == pytest.approx(float(swapped), rel=1e-4)


def test_one_segment_is_the_whole_row_of_a_u_net() -> None:
    pipe = tiny.sd()
    found = screen_encoders(pipe, PROMPT, ITEMS)
    scoring = Scoring(pipe, Request(prompt=PROMPT), ITEMS, None, seeds=())
    expected = screen(scoring.conditions, scoring.items, scoring.encode)
    assert found == {"text_encoder": tuple(cell for cell in expected if cell.target != POOLED)}


def test_texts_are_encoded_as_the_pipeline_encodes_them() -> None:
    pipe = _sd3()
    adapter = find_adapter(pipe)
    rows = adapter.encode(pipe.encode_prompt, {"device": adapter.device, "max_sequence_length": 24}, [PROMPT, "a cat"])
    for own, text in zip(rows.embeds, (PROMPT, "a cat"), strict=True):
        made = pipe.encode_prompt(text, None, None, do_classifier_free_guidance=False, max_sequence_length=24)
        torch.testing.assert_close(own, made[0][0])


def test_other_families_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedPipeline, match="FluxPipeline cannot be read one by one. Use a pipeline of one of"):
        screen_encoders(tiny_transformers.flux(), PROMPT, ITEMS)


@pytest.mark.parametrize("build", [tiny.sdxl, tiny_transformers.pixart_sigma])
def test_further_families(build: Any) -> None:
    how = {"max_sequence_length": 24} if build is tiny_transformers.pixart_sigma else {}
    found = screen_encoders(build(), PROMPT, ITEMS, **how)
    assert len(found) == 1
    (cells,) = found.values()
    assert {(cell.target, cell.source) for cell in cells} >= {("circle", "square"), ("square", "circle")}
