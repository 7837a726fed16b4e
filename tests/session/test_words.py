"""How a session learns the words, and the mistakes that it names before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.controls.layouts import Region
from t2ictl.errors import (
    AmbiguousWord,
    BadSetting,
    BudgetExceeded,
    NoLayerMatched,
    NotRecorded,
    PromptUnknown,
    ShapeMismatch,
    SpanNotFound,
    T2ictlError,
)
from t2ictl.guidance.rules import StepSize
from t2ictl.maps.recorder import Recording
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from tests import tiny
from tests.session.pipeline_cases import unreached
from tests.session.session_cases import PROMPT, THREE, pipeline

RULE = StepSize(scale=0.05, mode="normalized")
MOVES = AttentionSegregation(step=RULE)


def encoded(pipe: Any, prompt: Any = PROMPT, images: int = 1) -> dict[str, Any]:
    """What ``encode_prompt`` gives, as arguments of the call."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        found = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=images, do_classifier_free_guidance=True)
    return dict(zip(names, found, strict=False))


@pytest.mark.parametrize(
    "family", ["sd", "sd_img2img", "sd_inpaint", "sd_controlnet", "sd_lcm", "sdxl", "sdxl_inpaint"]
)
def test_prompt_is_learned_from_the_call(family: str) -> None:
    pipe = pipeline(family)
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, list(THREE[:2]), steps=2)
    assert [prompt.text for prompt in session.record.prompts] == list(THREE[:2])
    assert session.record.map("circle").shape == session.record.map("frog", image=1).shape
    with pytest.raises(SpanNotFound):
        session.record.map("frog", image=0)


def test_negative_prompt_is_not_taken_for_the_prompt() -> None:
    pipe = pipeline("sd")
    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        tiny.run(pipe, PROMPT, steps=2, negative_prompt="a green frog")
    assert session.record.prompts[0].text == PROMPT
    with pytest.raises(SpanNotFound):
        session.record.map("frog")


def test_map_of_the_session_is_that_of_the_last_call() -> None:
    pipe = pipeline("sd")
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, PROMPT, steps=1)
        first = session.record
        tiny.run(pipe, "a cat", steps=2)
    assert first.steps == 1 and first.prompts[0].text == PROMPT
    assert session.record.steps == 2 and session.record.prompts[0].text == "a cat"


# -- embeddings in place of words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_words_of_embeddings_that_were_made_inside(family: str) -> None:
    pipe = pipeline(family)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        first, second = encoded(pipe), encoded(pipe, "a cat")
        assert torch.equal(tiny.run(pipe, None, steps=2, **first), expected)
        assert session.record.prompts[0].text == PROMPT
        tiny.run(pipe, None, steps=2, **second)
        assert session.record.prompts[0].text == "a cat"
        unknown = {key: value.clone() for key, value in first.items()}
        with unreached(pipe), pytest.raises(PromptUnknown):
            tiny.run(pipe, None, steps=2, **unknown)


def test_embeddings_that_are_gone_are_not_kept() -> None:
    pipe = pipeline("sd")
    with t2ictl.controlled(pipe, record=True) as session:
        for prompt in THREE:
            tiny.run(pipe, prompt, steps=1)
        assert sum(each.embeddings() is not None for each in session._words.seen) <= 1


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_words_of_embeddings_that_are_named(family: str) -> None:
    pipe = pipeline(family)
    given = encoded(pipe)
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT, record=True) as session:
        assert torch.equal(tiny.run(pipe, None, steps=2, **given), expected)
    assert session.record.map("square").shape == ((16, 16) if family == "sd" else (8, 8))
    with unreached(pipe), pytest.raises(PromptUnknown, match="AttentionSegregation"):
        with t2ictl.controlled(pipe, [MOVES]):
            tiny.run(pipe, None, **given)
    with unreached(pipe), pytest.raises(PromptUnknown, match="record="):
        with t2ictl.controlled(pipe, record=True):
            tiny.run(pipe, None, **given)
    plain = tiny.run(pipe, None, steps=2, **given)
    with t2ictl.controlled(pipe):  # nothing here needs the words
        assert torch.equal(tiny.run(pipe, None, steps=2, **given), plain)


def test_one_named_prompt_for_each_row() -> None:
    pipe = pipeline("sd")
    given = encoded(pipe, list(THREE))
    with t2ictl.controlled(pipe, [MOVES], prompt=THREE, record=True) as session:
        tiny.run(pipe, None, steps=1, num_images_per_prompt=2, **given)
    assert [prompt.text for prompt in session.record.prompts] == [text for text in THREE for _ in range(2)]
    with unreached(pipe), pytest.raises(PromptUnknown, match="2 prompts"):
        with t2ictl.controlled(pipe, [MOVES], prompt=THREE[:2]):
            tiny.run(pipe, None, **given)


def test_named_prompt_of_another_length() -> None:
    pipe = pipeline("sd")
    longer = {key: torch.cat([value, value], dim=1) for key, value in encoded(pipe).items()}
    with unreached(pipe), pytest.raises(PromptUnknown, match=r"\[16\] tokens.* rows of 32"):
        with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
            tiny.run(pipe, None, **longer)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("library", ["stretched", "away from nothing", "down"])
def test_weights_of_words_leave_them_where_they_are(family: str, library: str) -> None:
    """The two ways in which embedding libraries weight a word: its row, or its distance from the empty text."""
    pipe = pipeline(family)
    given, empty = encoded(pipe), encoded(pipe, "")["prompt_embeds"]
    embeds = given["prompt_embeds"]
    weight = torch.ones(1, embeds.shape[1], 1)
    weight[:, 3] = 0.2 if library == "down" else 1.4
    changed = embeds * weight if library == "stretched" else empty + (embeds - empty) * weight
    with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT, record=True) as session:
        tiny.run(pipe, None, steps=1, **{**given, "prompt_embeds": changed})
    assert session.record.prompts[0].text == PROMPT


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("named", "made_of"),
    [
        ("a red circle!! and a blue square", PROMPT),  # marks of a library, which has left them out
        ("red circle and a blue square", PROMPT),
        (PROMPT, "a blue square and a red circle"),
        (PROMPT, "a red circle and a blue star"),
    ],
)
def test_prompt_that_does_not_spell_the_embeddings(family: str, named: str, made_of: str) -> None:
    pipe = pipeline(family)
    given = encoded(pipe, made_of)
    with unreached(pipe), pytest.raises(PromptUnknown, match="does not spell the embeddings"):
        with t2ictl.controlled(pipe, [MOVES], prompt=named):
            tiny.run(pipe, None, steps=1, **given)


def test_one_wrong_prompt_of_several() -> None:
    pipe = pipeline("sd")
    given = encoded(pipe, list(THREE))
    wrong = (THREE[0], "a cat and a frog and a dog", THREE[2])
    with unreached(pipe), pytest.raises(PromptUnknown, match="a cat and a frog and a dog"):
        with t2ictl.controlled(pipe, record=True, prompt=wrong):
            tiny.run(pipe, None, steps=1, num_images_per_prompt=2, **given)


@pytest.mark.parametrize("named", [PROMPT, None])
def test_embeddings_of_several_windows_are_named_as_such(named: str | None) -> None:
    """Whoever gives the prompt is not told to give it, and whoever does not is not sent the wrong way."""
    pipe = pipeline("sd")
    longer = {key: torch.cat([value, value], dim=1) for key, value in encoded(pipe).items()}
    with unreached(pipe), pytest.raises(PromptUnknown) as caught:
        with t2ictl.controlled(pipe, [MOVES], prompt=named):
            tiny.run(pipe, None, **longer)
    assert "several windows" in caught.value.remedy and "one window of 16 positions" in caught.value.remedy
    plain = tiny.run(pipe, None, steps=1, **longer)
    with t2ictl.controlled(pipe):  # nothing here needs the words
        assert torch.equal(tiny.run(pipe, None, steps=1, **longer), plain)


def test_text_encoder_that_was_dropped() -> None:
    """Encode once, drop the encoder to save memory: the tokenizer still says where the words are."""
    for build in (tiny.sd, tiny.sdxl):
        pipe = build()
        given = encoded(pipe)
        with t2ictl.controlled(pipe, [MOVES]):
            expected = tiny.run(pipe, PROMPT, steps=1)
        pipe.text_encoder = None
        if build is tiny.sdxl:
            pipe.text_encoder_2 = None
        with t2ictl.controlled(pipe, [MOVES], prompt=PROMPT):
            assert torch.equal(tiny.run(pipe, None, steps=1, **given), expected)


# -- two encoders, two prompts ----------------------------------------------------------------------------------------


def test_word_at_other_places_of_the_second_prompt() -> None:
    pipe = pipeline("sdxl")
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, "a red cat and a dog", steps=1, prompt_2="a cat of and red dog")
    assert float(session.record.map("and").sum()) > 0  # at one place in both
    with pytest.raises(AmbiguousWord, match=r"\[3\], \[2\]"):
        session.record.map("cat")
    with unreached(pipe), pytest.raises(AmbiguousWord):
        with t2ictl.controlled(pipe, [AttentionSegregation(concepts=("cat", "dog"), step=RULE)]):
            tiny.run(pipe, "a red cat and a dog", prompt_2="a cat and a red dog")


def test_second_prompt_with_the_word_at_the_same_place() -> None:
    pipe = pipeline("sdxl")
    with t2ictl.controlled(pipe, [AttentionSegregation(concepts=("cat", "dog"), step=RULE)], record=True) as session:
        tiny.run(pipe, "a red cat and a dog", steps=1, prompt_2="a blue cat and a dog")
    assert session.record.map("cat").shape == (8, 8)
    with t2ictl.controlled(pipe, [MOVES]) as session:
        expected = tiny.run(pipe, PROMPT, steps=1)
        assert torch.equal(tiny.run(pipe, PROMPT, steps=1, prompt_2=""), expected)  # to the pipeline, no prompt_2


# -- mistakes, before the first step ----------------------------------------------------------------------------------

Open = Callable[[Any], Any]


def with_controls(*controls: Control, **more: Any) -> Open:
    return lambda pipe: t2ictl.controlled(pipe, controls, **more)


MISTAKES: list[tuple[str, Open, type[T2ictlError], str]] = [
    ("word", with_controls(AttentionSegregation(concepts=("giraffe",))), SpanNotFound, "giraffe"),
    ("word-2", with_controls(AttendAndExcite(concepts=("circle#2",))), SpanNotFound, "once"),
    ("layers", with_controls(AttendAndExcite(layers=("cross@64",))), NoLayerMatched, "cross@64"),
    ("record-word", with_controls(record=Recording(words=("giraffe",))), SpanNotFound, "giraffe"),
    ("budget", with_controls(record=Recording(budget_mb=1e-3)), BudgetExceeded, "budget"),
    (
        "layout",
        with_controls(AttentionSegregation(concepts=("square",), layout=(Region(word="circle", box=(0, 0, 1, 1)),))),
        BadSetting,
        "none of the concepts",
    ),
    ("lists", with_controls(AttendAndExcite(concepts=(("circle",), ("cat",)))), BadSetting, "2 lists for 1 prompts"),
]


@pytest.mark.parametrize(("open_it", "error", "match"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistakes_are_named_before_the_first_step(open_it: Open, error: type[T2ictlError], match: str) -> None:
    pipe = pipeline("sd")
    plain = tiny.run(pipe, PROMPT, steps=1)
    with unreached(pipe), pytest.raises(error, match=match) as caught:
        with open_it(pipe):
            tiny.run(pipe, PROMPT, steps=2)
    assert caught.value.cause and caught.value.remedy
    assert torch.equal(tiny.run(pipe, PROMPT, steps=1), plain)


def test_mistakes_are_named_on_opening() -> None:
    pipe = pipeline("sd")
    with pytest.raises(NoLayerMatched, match="up.9"):
        t2ictl.controlled(pipe, record=Recording(layers=("up.9.*",)))
    with pytest.raises(BadSetting, match="is not a control"):
        t2ictl.controlled(pipe, [AttentionSegregation])  # type: ignore[list-item]
    with pytest.raises(BadSetting, match="skip"):
        t2ictl.controlled(pipe, on_nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match="strength"):
        AttentionSegregation(strength=-1.0)


def test_nothing_recorded() -> None:
    pipe = pipeline("sd")
    with t2ictl.controlled(pipe) as silent, pytest.raises(NotRecorded):
        tiny.run(pipe, PROMPT, steps=1)
        silent.record.map("circle")
    with t2ictl.controlled(pipe, record=True) as early, pytest.raises(NotRecorded, match="call the pipeline"):
        early.record.map("circle")
    assert early.trace == ()
    with t2ictl.controlled(pipe, record=Recording(words=("circle",), per_step=False)) as session:
        tiny.run(pipe, PROMPT, steps=2)
    for query in ({"word": "square"}, {"word": "circle", "step": 0}, {"word": "circle", "image": 1}):
        with pytest.raises(NotRecorded):
            session.record.map(**query)  # type: ignore[arg-type]


def test_layers_that_do_not_fit_are_named() -> None:
    """Something else merges image tokens inside the denoiser."""
    pipe = tiny.sd()
    attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    handle = attention.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, ::2], *inputs[1:]))
    with pytest.raises(ShapeMismatch, match="positions were expected"):
        with t2ictl.controlled(pipe, record=Recording(layers=("down.0.*",))):
            tiny.run(pipe, PROMPT, steps=1)
    handle.remove()
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, PROMPT, steps=1)
    assert session.record.map("circle").shape == (16, 16)
