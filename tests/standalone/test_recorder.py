"""Plain processors that recognize their rows: the same maps as a session's, and images left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ictl.errors import NoLayerMatched, NotRecorded, ShapeMismatch, SpanNotFound
from t2ictl.session.session import controlled
from t2ictl.standalone.by_content import RowMatcher
from t2ictl.standalone.recorder import MapRecorder, encode
from tests.tiny import run, sd, sdxl

PROMPTS = ["a red circle and a blue square", "a cat", "a dog and a hat"]


@pytest.mark.parametrize("make", [sd, sdxl])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_the_maps_are_those_of_a_session(make: Any, guidance: float, prompts: list[str]) -> None:
    pipe = make()
    call: dict[str, Any] = {"guidance_scale": guidance, "num_images_per_prompt": 2}
    plain = run(pipe, prompts, **call)
    with controlled(pipe, record=True) as session:
        run(pipe, prompts, **call)
    recorder, before = MapRecorder(pipe, prompts), pipe.unet.attn_processors
    pipe.unet.set_attn_processor(recorder.processors())
    listened = run(pipe, prompts, **call)
    pipe.unet.set_attn_processor(dict(before))
    assert torch.equal(plain, listened)
    for image in range(2 * len(prompts)):
        words = session.record.names(image)
        assert recorder.record.names(image) == words
        for word in words:
            theirs, ours = session.record.map(word, image=image), recorder.record.map(word, image=image)
            assert torch.allclose(theirs, ours, atol=1e-5)
    assert all(pipe.unet.attn_processors[name] is each for name, each in before.items())


def test_a_size_that_is_not_square_has_to_be_told() -> None:
    pipe = sd()
    recorder, before = MapRecorder(pipe, PROMPTS[:1], size=(48, 64)), pipe.unet.attn_processors
    pipe.unet.set_attn_processor(recorder.processors())
    run(pipe, PROMPTS[0], height=48, width=64)
    assert recorder.record.map("circle").shape == (12, 16)
    pipe.unet.set_attn_processor(dict(before))
    pipe.unet.set_attn_processor(MapRecorder(pipe, PROMPTS[:1]).processors())
    with pytest.raises(ShapeMismatch, match="12 x 16|16 x 16"):
        run(pipe, PROMPTS[0], height=48, width=64)


def test_rows_of_other_prompts_pass_through() -> None:
    pipe = sd()
    plain = run(pipe, "a dog")
    recorder = MapRecorder(pipe, ["a cat"])
    pipe.unet.set_attn_processor(recorder.processors())
    assert torch.equal(plain, run(pipe, "a dog"))
    with pytest.raises(NotRecorded, match="very same prompts"):
        _ = recorder.record


def test_a_recorder_is_for_one_call() -> None:
    pipe = sd()
    pipe.unet.set_attn_processor(MapRecorder(pipe, ["a cat", "a dog"]).processors())
    run(pipe, "a cat")
    with pytest.raises(ShapeMismatch, match="new MapRecorder"):
        run(pipe, "a dog")


def test_the_encodings_of_prompts_are_far_apart() -> None:
    from t2ictl.families import find_adapter

    adapter = find_adapter(sd())
    encoded_PKC = encode(adapter, [*PROMPTS, ""])
    match = RowMatcher(encoded_PKC)
    assert match(encoded_PKC.flip(0)) == (3, 2, 1, 0)
    assert match(encode(adapter, ["a bird"])) == (None,)
    assert match(encoded_PKC[:, :-1]) == (None,) * 4


def test_what_is_not_there_is_named_at_once() -> None:
    with pytest.raises(SpanNotFound):
        MapRecorder(sd(), ["a cat"], words=["dog"])
    with pytest.raises(NoLayerMatched):
        MapRecorder(sd(), ["a cat"], layers=["self"])
