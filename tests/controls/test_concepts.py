"""Concepts of unlike prompts in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.attributes import resolve_concepts
from t2ictl.controls.base import PlanContext
from t2ictl.controls.concepts import ConceptMaps, NormalizeOver, chosen_concepts, concept_table, without_concepts
from t2ictl.errors import AmbiguousWord, BadSetting, NoLayerMatched, SpanNotFound
from t2ictl.families import find_adapter
from t2ictl.processors import AttentionSegregation, TokenMerging
from t2ictl.prompts.prompt import Span
from tests.controls.context_cases import context
from tests.tiny import run, sd, sd2, sdxl

PROMPTS = ("a red circle and a blue square", "a cat on a skateboard")


def texts(rows: Any) -> list[list[str]]:
    return [[span.text for span in spans] for spans in rows]


def test_objects_of_each_prompt_stand_at_each_of_its_images() -> None:
    rows = chosen_concepts((), context(sd(), *PROMPTS, images=2), control="x")
    assert texts(rows) == [["circle", "square"]] * 2 + [["cat", "skateboard"]] * 2


def test_named_concepts_for_all_prompts_or_for_each() -> None:
    pipe = sd()
    both = context(pipe, "a red circle", "a blue circle on a car")
    assert texts(chosen_concepts(("circle",), both, control="x")) == [["circle"], ["circle"]]
    each = (("red circle",), ("circle", "car"))
    assert texts(chosen_concepts(each, both, control="x")) == [["red circle"], ["circle", "car"]]
    mixed: Any = ((), ("car",))
    assert texts(chosen_concepts(mixed, both, control="x")) == [["circle"], ["car"]]
    with pytest.raises(BadSetting, match=r"x\.concepts has 1 lists for 2 prompts"):
        chosen_concepts((("circle",),), both, control="x")
    with pytest.raises(SpanNotFound, match="car"):
        chosen_concepts(("car",), both, control="x")


def test_the_second_of_two_equal_words() -> None:
    (spans,) = chosen_concepts(("cat", "cat#2"), context(sd(), "a cat and a cat"), control="x")
    assert [span.tokens for span in spans] == [(2,), (5,)]


SHARED = [("circle", "circle"), ("red circle", "circle"), ("circle", "Circle#1"), ("circle", "first circle")]


@pytest.mark.parametrize("words", SHARED)
def test_a_word_is_not_compared_with_itself(words: tuple[str, str]) -> None:
    here = context(sd(), PROMPTS[0])
    for choose in (chosen_concepts, resolve_concepts):
        with pytest.raises(BadSetting, match=f"concepts '{words[0]}' and '{words[1]}' share words"):
            choose((*words, "square"), here, control="x")
    apart = context(sd(), "a red circle and a circle")
    assert texts(chosen_concepts(("red circle", "circle#2"), apart, control="x")) == [["red circle", "circle"]]


@pytest.mark.parametrize("words", SHARED)
def test_it_is_refused_before_the_first_step_in_every_list_of_a_batch(words: tuple[str, str]) -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [AttentionSegregation(concepts=(("cat",), words))]) as session:
        with pytest.raises(BadSetting, match="a map would be compared with itself"):
            run(pipe, ["a cat", PROMPTS[0]], steps=2)
    assert session.cost.forwards == 0


def test_words_that_were_merged_into_one_token_are_one() -> None:
    pipe, merged = sd(), TokenMerging(merge=True, entropy_steps=0)
    with t2ictl.controlled(pipe, [merged, AttentionSegregation(concepts=("red", "circle"))]):
        with pytest.raises(BadSetting, match="'red' and 'circle' are merged into one token"):
            run(pipe, PROMPTS[0], steps=1)


def test_objects_whose_names_hold_each_other_are_found_by_place() -> None:
    for text, words in (("a teddy bear and a bear", ["teddy bear", "bear"]), ("a cat and a black cat", ["cat", "cat"])):
        here = context(sd(), text)
        (spans,) = chosen_concepts((), here, control="x")
        assert [span.text for span in spans] == words and not {*spans[0].tokens} & {*spans[1].tokens}
        found = resolve_concepts((), here, control="x")
        assert [span.tokens for span in found.spans[0] if span.role == "object"] == [span.tokens for span in spans]


def test_no_objects_is_an_empty_row_and_a_reason() -> None:
    rows = chosen_concepts((), context(sd(), "in white", PROMPTS[0]), control="x")
    assert texts(rows) == [[], ["circle", "square"]]
    (idle,) = without_concepts(rows)
    assert idle.reason == "it found no objects in the prompt" and idle.images == (0,)
    assert without_concepts(rows[1:]) == ()


def span(*tokens: int) -> Span:
    return Span(text="t", start=0, end=1, by_encoder=(tokens,))


def test_table_pads_concepts_and_tokens() -> None:
    table = concept_table([[span(2), span(5, 6, 7)], [], [span(1)]])
    assert table.index_BNK.tolist() == [[[2, 0, 0], [5, 6, 7]], [[0, 0, 0]] * 2, [[1, 0, 0], [0, 0, 0]]]
    assert table.index_mask_BNK.sum(-1).tolist() == [[1, 3], [0, 0], [1, 0]]
    assert table.mask_BN.tolist() == [[True, True], [False, False], [True, False]]
    assert table.names == (("t", "t"), (), ("t",))


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_table_without_concepts_keeps_its_shape(rows: Any) -> None:
    table = concept_table(rows)
    assert table.index_BNK.shape == (len(rows), 1, 1) and not table.mask_BN.any()


def maps_for(pipe: Any, *prompts: str, layers: Any = (), smoothing: Any = "none", words: Any = ()) -> ConceptMaps:
    here = context(pipe, *prompts)
    return ConceptMaps.from_context(here, chosen_concepts(words, here, control="x"), layers, smoothing)


def test_which_tokens_compete() -> None:
    """All but the start and the last position where padding repeats the end token, else those before the end."""
    long = "a red cat and a blue dog on a big car in a ball with a hat"
    assert maps_for(sd(), PROMPTS[0]).ends == (15,)
    ends = maps_for(sd2(), PROMPTS[0], "a cat", long, "", words=((), (), ("cat",), ())).ends
    assert ends == (8, 3, 15, 2)  # an empty prompt keeps its end token: a softmax over nothing has no meaning


CHOICES: tuple[NormalizeOver, ...] = ("auto", "all_tokens", "prompt_words", "none")


def test_the_tokens_that_compete_can_be_chosen() -> None:
    pipe, raw_BYXT = sd(), torch.rand(1, 2, 2, 16, generator=torch.Generator().manual_seed(0)) / 20
    here = context(pipe, PROMPTS[0])
    rows = chosen_concepts(("circle",), here, control="x")
    made = {name: ConceptMaps.from_context(here, rows, (), "none", name) for name in CHOICES}
    (place,) = rows[0][0].tokens
    assert made["auto"].ends == made["all_tokens"].ends == (15,) and made["prompt_words"].ends == (8,)
    for name, last in zip(CHOICES[1:3], (15, 8), strict=True):
        by_hand = torch.softmax(100 * raw_BYXT[..., 1:last], -1)[..., place - 1]
        torch.testing.assert_close(made[name](raw_BYXT)[:, 0], by_hand)
    assert torch.equal(made["none"](raw_BYXT)[:, 0], raw_BYXT[..., place])


def test_maps_of_a_padded_batch_equal_the_single_ones() -> None:
    pipe = sd()
    rows = maps_for(pipe, *PROMPTS, words=(("circle",), ("cat", "skateboard")), smoothing="attend_and_excite")
    raw_BYXT = torch.rand(2, 5, 7, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
    together = rows(raw_BYXT)
    assert together.shape == (2, 2, 5, 7) and together[0, 1].abs().sum() == 0
    first = maps_for(pipe, PROMPTS[0], words=("circle",), smoothing="attend_and_excite")(raw_BYXT[:1])
    second = maps_for(pipe, PROMPTS[1], words=("cat", "skateboard"), smoothing="attend_and_excite")(raw_BYXT[1:])
    assert torch.equal(together[0, :1], first[0]) and torch.equal(together[1], second[0])


def test_several_tokens_are_averaged_after_the_softmax() -> None:
    maps = maps_for(sd(), PROMPTS[1], words=("skateboard",))
    raw_BYXT = torch.rand(1, 2, 2, 16, generator=torch.Generator().manual_seed(0)) / 20
    shares = torch.softmax(100 * raw_BYXT[..., 1:15], -1)
    torch.testing.assert_close(maps(raw_BYXT)[0, 0], shares[0, :, :, 4:6].mean(-1))


@pytest.mark.parametrize("build", [sd, sdxl])
def test_words_have_maps_in_cross_attention_only(build: Any) -> None:
    pipe = build()
    assert {layer.kind for layer in maps_for(pipe, PROMPTS[0], layers=("up",)).layers} == {"cross"}
    assert {layer.kind for layer in maps_for(pipe, PROMPTS[0], layers=("*",)).layers} == {"cross"}
    with pytest.raises(NoLayerMatched, match="'self'"):
        maps_for(pipe, PROMPTS[0], layers=("self",))


def test_a_word_at_two_places_is_refused_before_the_first_step() -> None:
    pipe = sdxl()
    prompt = find_adapter(pipe).parse(("a red circle", "a small red circle"))
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False)
    here = PlanContext(adapter=find_adapter(pipe), prompts=(prompt,), batch=batch)
    with pytest.raises(AmbiguousWord, match="circle"):
        ConceptMaps.from_context(here, chosen_concepts(("circle",), here, control="x"), (), "none")
