from __future__ import annotations

import re

import numpy as np
import pytest

from t2ictl.benchmarks.shapes.train.text.facts import Thing, relations_of, sample_things
from t2ictl.benchmarks.shapes.train.text.gaps import choose_gaps, corrupt, cut_into
from t2ictl.benchmarks.shapes.train.text.language import Speaker, sample_text
from t2ictl.benchmarks.shapes.train.text.tokenizer import SPACE, build_t5_tokenizer, pieces
from t2ictl.benchmarks.shapes.train.text.words import ALL_COLORS
from t2ictl.benchmarks.shapes.train.vocabulary import IN_PIECES, WORDS
from t2ictl.shapes.prompts import KINDS, suite
from t2ictl.shapes.world import COLORS, SHAPES, Look, split_of

TOKENIZER = build_t5_tokenizer()


def _sentences(kind: str, count: int = 400) -> list[tuple[Speaker, str]]:
    said = []
    for index in range(count):
        generator = np.random.default_rng([7, index])
        speaker = Speaker(sample_things(generator), generator)
        if len(speaker.things) > 1 or kind in ("attribute", "negation", "count"):
            said.append((speaker, getattr(speaker, kind)()))
    return said


def test_every_word_of_the_grammar_is_one_token_but_the_two_in_pieces() -> None:
    for word in WORDS:
        expected = [SPACE + word]
        if word in IN_PIECES:
            expected = [SPACE + IN_PIECES[word][0], IN_PIECES[word][1]]
        assert TOKENIZER.tokenize(f"the {word}")[1:] == expected
    assert len(set(pieces())) == len(pieces())


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_need_no_characters(kind: str) -> None:
    for asked in suite(kind, "tune", 10):  # type: ignore[arg-type]
        assert all(
            len(token.strip(SPACE)) > 1 or token in (f"{SPACE}a", ",") for token in TOKENIZER.tokenize(asked.prompt)
        )


@pytest.mark.parametrize("text", ["", "Zwölf Boxkämpfer", "漢字 <b>", "x" * 300, "a\tred\ncircle", "\x00"])
def test_any_text_is_tokens_and_an_end(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert ids[-1] == TOKENIZER.eos_token_id == 1
    assert TOKENIZER.pad_token_id == 0
    assert all(0 <= index < len(TOKENIZER) for index in ids)


def test_texts_are_words_of_the_vocabulary() -> None:
    vocabulary = TOKENIZER.get_vocab()
    for index in range(400):
        text = sample_text(np.random.default_rng([3, index]))
        for word in re.findall(r"[A-Za-z]+", text):
            stem = word.lower().removesuffix("s")
            assert SPACE + word in vocabulary or stem in IN_PIECES or word.lower() in IN_PIECES, (word, text)
        assert "  " not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower()), text


def test_shapes_of_a_text_are_combinations_of_the_training_split() -> None:
    for index in range(500):
        things = sample_things(np.random.default_rng([5, index]))
        looks = [Look(shape=t.noun, color=t.color) for t in things if t.noun in SHAPES and t.color in COLORS]
        assert all(split_of((one, two)) == "train" for at, one in enumerate(looks) for two in looks[:at])
        colors = [t.color for t in things] + [t.mark.color for t in things if t.mark is not None]
        assert len(set(colors)) == len(colors)


def test_what_is_said_of_a_color_is_true() -> None:
    for speaker, sentence in _sentences("attribute"):
        color = re.match(r"the color of the (\w+) is (\w+)$", sentence)
        if color is not None:
            assert (color[1], color[2]) in {(thing.name, thing.color) for thing in speaker.things}
        one = re.match(r"the (\w+) (?:one|thing) is an? (\w+)$", sentence)
        if one is not None:
            assert (one[2], one[1]) in {(thing.noun, thing.color) for thing in speaker.things}


def test_contrasts_do_not_lie() -> None:
    patterns = 0
    for speaker, sentence in _sentences("contrast"):
        colors = {thing.name: thing.color for thing in speaker.things}
        negated = re.match(r"the (\w+) (?:is|are) not (\w+), the (\w+) (?:is|are)$", sentence)
        if negated is not None:
            assert colors[negated[1]] != negated[2] == colors[negated[3]]
            patterns += 1
        both = re.match(r"the (\w+) (?:is|are) (\w+),? (?:and|but|while) the (\w+) (?:is|are) (\w+)$", sentence)
        if both is not None:
            assert colors[both[1]] == both[2]
            assert (both[4] == "not") or colors[both[3]] == both[4]
            patterns += 1
    assert patterns > 100


def test_negations_name_what_is_absent() -> None:
    for speaker, sentence in _sentences("negation"):
        absent = re.search(r"\bno (\w+)$|there is no (\w+)", sentence)
        if absent is not None:
            noun = absent[1] or absent[2]
            assert noun not in {thing.noun for thing in speaker.things} or "dot" in sentence or "bar" in sentence
        nothing = re.match(r"nothing is (\w+)$", sentence)
        if nothing is not None:
            assert nothing[1] in ALL_COLORS
            assert nothing[1] not in {thing.color for thing in speaker.things}


def test_relations_are_converse() -> None:
    pairs = {"left of": "right of", "above": "below", "next to": "next to", "over": "under"}
    for index in range(200):
        things = sample_things(np.random.default_rng([9, index]))
        for one in things:
            for other in things:
                if one is other:
                    continue
                ways, back = relations_of(one, other), relations_of(other, one)
                assert ways
                assert all((way in ways) == (converse in back) for way, converse in pairs.items())


def test_gaps_hide_the_asked_share_and_can_be_filled_again() -> None:
    generator = np.random.default_rng(0)
    for length in range(2, 60):
        row = list(range(100, 100 + length))
        gaps = choose_gaps(length, 0.2, 2.0, generator)
        assert sum(last - first for first, last in gaps) == min(max(1, round(0.2 * length)), length - 1)
        assert all(one[1] < two[0] for one, two in zip(gaps, gaps[1:], strict=False))
        sentinels = list(range(50, 66))
        shown, hidden = corrupt(row, gaps, sentinels, 1)
        assert shown[-1] == hidden[-1] == 1
        filled: list[int] = []
        for token in shown[:-1]:
            if token not in sentinels:
                filled.append(token)
                continue
            rest = hidden[hidden.index(token) + 1 : -1]
            stop = next((at for at, each in enumerate(rest) if each in sentinels), len(rest))
            filled += rest[:stop]
        assert filled == row


def test_parts_of_a_length() -> None:
    generator = np.random.default_rng(0)
    seen = {tuple(cut_into(4, 2, generator)) for _ in range(100)}
    assert seen == {(1, 3), (2, 2), (3, 1)}
    assert cut_into(3, 1, generator) == [3]


def test_names_in_the_plural() -> None:
    assert Thing(noun="child", color="red", column=0, row=0, count=3).name == "children"
