"""SD 3 without its largest text encoder: T5's part of the row is zero, and words stand in CLIP's part alone."""

from __future__ import annotations

from typing import Any

import torch

import t2ictl
from t2ictl.processors import AttendAndExcite
from tests import tiny_transformers as tiny

PROMPT = "a red circle and a blue square"


def pipeline() -> Any:
    pipe = tiny.sd3()
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    return pipe


def test_words_are_those_of_clip_and_latents_move() -> None:
    pipe = pipeline()
    plain = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [AttendAndExcite(refinement=None)], record=True) as session:
        moved = tiny.run(pipe, PROMPT, steps=2)
    assert t2ictl.parse(pipe, PROMPT).find("circle").by_segment == ((3,),)
    assert not torch.equal(moved, plain) and "circle" in session.record.names()
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_embeddings_with_named_words_are_the_prompt() -> None:
    pipe = pipeline()
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    states = dict(zip(names, pipe.encode_prompt(PROMPT, None, None, max_sequence_length=tiny.TEXT), strict=True))
    found = []
    for prompt, given, words in ((PROMPT, {}, None), (None, states, PROMPT)):
        with t2ictl.controlled(pipe, [AttendAndExcite(refinement=None)], prompt=words):
            found.append(tiny.run(pipe, prompt, steps=2, **given))
    assert torch.equal(*found)
