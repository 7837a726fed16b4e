"""The control TokenFlow: its rows, its forms, what it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.processors import StructuredGuidance, TokenFlow
from t2ictl.processors.token_flow.items import Item
from t2ictl.processors.token_flow.readings import read_all
from tests.processors.token_flow.flow_cases import LENGTH, PROMPT, Case
from tests.tiny import run, sd, sd2, sdxl

families = pytest.mark.parametrize("build", [sd, sd2, sdxl])
FORMS: tuple[dict[str, Any], ...] = (
    {"how": "masked"},
    {"how": "pairwise"},
    {"how": "pairwise", "special": "masked", "pooled": "masked"},
    {"how": "masked", "strength": 0.5, "special": "empty"},
)


def embeds(pipe: Any, *prompts: str, **settings: Any) -> torch.Tensor:
    rows: torch.Tensor = TokenFlow.embeds(pipe, list(prompts), **settings)["prompt_embeds"]
    return rows


@families
@pytest.mark.parametrize("settings", FORMS)
def test_embeds_give_the_image_of_the_session(build: Any, settings: dict[str, Any]) -> None:
    pipe = build()
    given = TokenFlow.embeds(pipe, [PROMPT], **settings)
    with t2ictl.controlled(pipe, [TokenFlow(**settings)]):
        inside = run(pipe, PROMPT, steps=3)
    negative = pipe.encode_prompt("", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    more = {"negative_prompt_embeds": torch.zeros_like(given["prompt_embeds"])}
    if "pooled_prompt_embeds" in given:  # SDXL takes zeros for an absent negative prompt
        more["negative_pooled_prompt_embeds"] = torch.zeros_like(given["pooled_prompt_embeds"])
    else:
        more["negative_prompt_embeds"] = negative[0].detach()
    outside = run(pipe, None, steps=3, **given, **more)
    torch.testing.assert_close(outside, inside, rtol=0, atol=1e-5)
    assert (inside - run(pipe, PROMPT, steps=3)).abs().max() > 1e-4


@families
def test_masked_rows_are_the_isolated_ones_and_the_rest_is_untouched(build: Any) -> None:
    case = Case(build())
    rows = embeds(case.pipe, PROMPT, how="masked")[0]
    full = case.stock(PROMPT).embeds[0]
    for item in case.items:
        reading = case.make.isolated(item)
        wanted = read_all([reading], case.encode, LENGTH)[reading].states
        torch.testing.assert_close(rows[list(item.rows)], wanted[list(item.rows)], rtol=0, atol=1e-6)
    others = [place for place in range(LENGTH) if place not in (3, 7)]
    assert torch.equal(rows[others], full[others])


def test_strength_is_graded() -> None:
    pipe = sd()
    plain = Case(pipe).stock(PROMPT).embeds[0]
    whole, half = (embeds(pipe, PROMPT, strength=strength)[0] for strength in (1.0, 0.5))
    torch.testing.assert_close(half, plain + 0.5 * (whole - plain), rtol=0, atol=1e-6)
    tiny = embeds(pipe, PROMPT, strength=1e-6)[0]
    torch.testing.assert_close(tiny, plain, rtol=0, atol=1e-5)


def test_named_items_alone_are_cleaned_and_named_sources_alone_go() -> None:
    pipe = sd()
    plain = Case(pipe).stock("a cat and a dog and a bear").embeds[0]
    rows = embeds(pipe, "a cat and a dog and a bear", items=("bear",), sources=("dog",), how="pairwise")[0]
    assert [place for place in range(LENGTH) if not torch.equal(rows[place], plain[place])] == [8]
    all_others = embeds(pipe, "a cat and a dog and a bear", items=("bear",), how="pairwise")[0]
    assert not torch.equal(rows[8], all_others[8])


def test_causal_rows_have_nothing_to_lose_to_later_items() -> None:
    pipe = sd()
    plain = Case(pipe).stock(PROMPT).embeds[0]
    first = embeds(pipe, PROMPT, items=("circle",), how="pairwise")[0]
    torch.testing.assert_close(first, plain, rtol=0, atol=1e-6)


@families
def test_a_batch_of_unlike_prompts_equals_its_single_ones(build: Any) -> None:
    pipe = build()
    prompts = [PROMPT, "a cat", "a cat and a dog and a bear"]
    together = embeds(pipe, *prompts)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, embeds(pipe, prompt)[0], rtol=0, atol=1e-6)


def test_lists_of_items_are_for_each_prompt() -> None:
    pipe = sd()
    found = embeds(pipe, PROMPT, "a cat and a dog", items=(("square",), ("dog",)))
    torch.testing.assert_close(found[0], embeds(pipe, PROMPT, items=("square",))[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], embeds(pipe, "a cat and a dog", items=("dog",))[0], rtol=0, atol=1e-6)
    with pytest.raises(BadSetting, match="2 lists for 1 prompts"):
        embeds(pipe, PROMPT, items=(("square",), ("dog",)))


def test_given_embeddings_keep_what_is_not_cleaned() -> None:
    pipe = sd()
    own = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].detach() * 1.25
    negative = pipe.encode_prompt("", "cpu", 1, False)[0].detach()
    seen: list[torch.Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    with t2ictl.controlled(pipe, [TokenFlow(items=("square",))], prompt=[PROMPT]):
        run(pipe, None, steps=1, prompt_embeds=own, negative_prompt_embeds=negative)
    hook.remove()
    others = [place for place in range(LENGTH) if place != 7]
    assert torch.equal(seen[0][1, others], own[0, others]) and not torch.equal(seen[0][1, 7], own[0, 7])


def test_it_works_beside_a_control_of_attention() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [TokenFlow(), StructuredGuidance()]):
        both = run(pipe, PROMPT, steps=2)
    with t2ictl.controlled(pipe, [StructuredGuidance()]):
        one = run(pipe, PROMPT, steps=2)
    assert (both - one).abs().max() > 1e-4


def test_nothing_to_clean_is_the_plain_image() -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [TokenFlow(how="pairwise")]):
        controlled = run(pipe, "a cat", steps=2)
    assert torch.equal(controlled, run(pipe, "a cat", steps=2))
    with t2ictl.controlled(pipe, [TokenFlow()]):
        assert torch.equal(run(pipe, "in and on", steps=2), run(sd(), "in and on", steps=2))


def test_alone_warns_that_clip_has_learned_positions() -> None:
    with pytest.warns(UserWarning, match="how='masked' reads it at its place"):
        embeds(sd(), PROMPT, how="alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeds(sd(), PROMPT)


def test_alone_takes_the_text_that_is_given() -> None:
    pipe = sd()
    with pytest.warns(UserWarning):
        rows = embeds(pipe, PROMPT, how="alone", items=(Item(words="square", alone="a big square"),))[0]
    assert torch.equal(rows[7], Case(pipe).stock("a big square").embeds[0, 3])


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "match"),
    [
        (PROMPT, {"items": ("heart",)}, SpanNotFound, "heart"),
        (PROMPT, {"items": ("circle",), "sources": ("heart",)}, SpanNotFound, "heart"),
        ('a cat and a board with "red circle"', {"items": ("circle",)}, BadSetting, "stands in quotes"),
        (PROMPT, {"strength": 1.5}, BadSetting, "strength"),
        (PROMPT, {"how": "guess"}, BadSetting, "how"),
    ],
)
def test_bad_settings_are_refused(prompt: str, settings: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        embeds(sd(), prompt, **settings)


def test_items_with_settings_survive_json() -> None:
    from t2ictl.controls.registry import control_from_dict, control_to_dict

    control = TokenFlow(items=(Item(words="bat", senses={"ball": "baseball bat"}), "ball"), sources=("ball",))
    assert control_from_dict(control_to_dict(control)) == control


@pytest.mark.parametrize("how", ["pairwise", "masked", "alone"])
@pytest.mark.parametrize("text", ["a fire truck and a truck", "a cat and a black cat", "a teddy bear and a bear"])
@pytest.mark.filterwarnings("ignore:Rows of an item:UserWarning")
def test_objects_whose_names_hold_each_other_are_told_apart(how: Any, text: str) -> None:
    pipe = sd(max_length=32)
    rows = [phrase.noun.tokens for phrase in t2ictl.parse(pipe, text).objects()]
    plain = pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    changed = (embeds(pipe, text, how=how) - plain).abs().amax(dim=(0, 2)) > 1e-4
    assert changed[list(rows[1])].all(), "the second object has read the first, and is cleaned of it"
    assert not changed[0] and not changed[rows[0][-1] + 1]  # the start, and the word between the two


def test_sources_are_known_by_place_too() -> None:
    pipe, text = sd(), "a cat and a dog"
    told = [embeds(pipe, text, items=("dog",), sources=(name,)) for name in ("cat", "cat#1", "CAT")]
    assert torch.equal(told[0], told[1]) and torch.equal(told[0], told[2])
    both = [embeds(pipe, text, items=("cat", "dog"), sources=(name,)) for name in ("cat", "first cat")]
    assert torch.equal(*both)
    with pytest.raises(BadSetting, match="'cat' and 'cat#1' share words"):
        embeds(pipe, text, items=("cat", "cat#1"))
