"""Phrases of a prompt and their tokens, in the prompt and alone; the mistakes that are named; odd characters."""

from __future__ import annotations

import random
import unicodedata
import warnings
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from t2ictl.errors import AmbiguousWord, BadSetting, SpanNotFound, T2ictlError
from t2ictl.families import Adapter, find_adapter
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.processors.structured_guidance.phrases import ResolvedPhrase, resolve_phrases, why_none
from t2ictl.prompts.noun_phrases import NounPhrase
from t2ictl.prompts.prompt import Merge, Prompt
from t2ictl.prompts.tagging import split_words
from tests.prompts.prompt_cases import clip
from tests.tiny import TEXT_WIDTH, generator, sd, sdxl

PROMPT = "a red circle and a blue square"  # start a red circle and a blue square end: 0 to 8
NESTED = "a cat with a hat on a bench and a dog"  # start a cat with a hat on a bench and a dog end: 0 to 12


@dataclass(frozen=True, kw_only=True)
class Read(Prompt):
    """A prompt whose noun phrases are given, each by its first occurrence."""

    found: tuple[str, ...]

    def noun_phrases(self) -> tuple[NounPhrase, ...]:
        starts = [(self.text.index(each), each) for each in self.found if each in self.text]
        return tuple(NounPhrase(text=one, start=at, end=at + len(one), level=0) for at, one in starts)


def read(pipe: Any, prompt: Any, *found: str) -> Read:
    """A prompt in which ``found`` stands for what the parser finds."""
    one = find_adapter(pipe).parse((prompt,) if isinstance(prompt, str) else prompt)
    return Read(**{each.name: getattr(one, each.name) for each in fields(one)}, found=found)


def bound(
    pipe: Any, named: Any, *prompts: Any, levels: Any = "all", found: tuple[str, ...] | None = None
) -> tuple[tuple[ResolvedPhrase, ...], ...]:
    """The phrases of prompts; ``found`` stands for what the parser finds."""
    adapter = find_adapter(pipe)
    parsed = [adapter.parse((each,) if isinstance(each, str) else each) for each in prompts]
    if found is not None:
        parsed = [read(pipe, each, *found) for each in prompts]
    return resolve_phrases(named, levels, parsed, adapter, control="mine")


def places(own: tuple[ResolvedPhrase, ...]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return [(each.text, each.positions, each.rows) for each in own]


# -- named phrases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl])
def test_named_phrases_in_text_order_with_their_tokens_here_and_alone(build: Any) -> None:
    (own,) = bound(build(), ("blue  SQUARE", "a red circle"), PROMPT)
    assert places(own) == [("a red circle", (1, 2, 3), (1, 2, 3)), ("blue square", (6, 7), (1, 2))]
    assert [(each.start, each.end, each.level) for each in own] == [(0, 12, 0), (19, 30, 0)]


def test_words_of_several_tokens_and_repeated_ones_by_number() -> None:
    # start a red skate board and a cat and a skate board end
    pipe, prompt = sd(), "a red skateboard and a cat and a skateboard"
    assert places(bound(pipe, ("skateboard#2", "red skateboard"), prompt)[0]) == [
        ("red skateboard", (2, 3, 4), (1, 2, 3)),
        ("skateboard", (10, 11), (1, 2)),
    ]
    assert places(bound(pipe, ("skateboard",), prompt)[0]) == [("skateboard", (3, 4), (1, 2))]


def test_one_list_for_each_prompt_and_one_for_all() -> None:
    pipe = sd()
    own = bound(pipe, (("a red circle",), (), ("a blue cat", "cat")), PROMPT, "a dog", "a dog and a blue cat")
    assert [places(each) for each in own] == [
        [("a red circle", (1, 2, 3), (1, 2, 3))],
        [],
        [("a blue cat", (4, 5, 6), (1, 2, 3)), ("cat", (6,), (1,))],
    ]
    assert [each.level for each in own[2]] == [1, 0]
    own = bound(pipe, ("a cat",), "a cat and a dog", "a dog and a cat")
    assert [each[0].positions for each in own] == [(1, 2), (4, 5)]


def test_a_phrase_named_twice_counts_once() -> None:
    (own,) = bound(sd(), ("a red circle", "A  Red\tcircle", "a red circle#1"), PROMPT)
    assert places(own) == [("a red circle", (1, 2, 3), (1, 2, 3))]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + ".", f"({PROMPT})!", f"  {PROMPT} "])
def test_the_whole_prompt_is_no_phrase(prompt: str) -> None:
    assert bound(sd(), (PROMPT,), prompt) == ((),)
    assert why_none((PROMPT,), find_adapter(sd()).parse((prompt,))) == "the prompt holds no phrase but the whole of it"
    (own,) = bound(sd(), (PROMPT, "blue square"), prompt)
    assert [each.text for each in own] == ["blue square"] and own[0].level == 0


def test_phrases_may_cross() -> None:
    (own,) = bound(sd(), ("a blue square", "red circle and a", "circle"), PROMPT)
    assert [(each.text, each.positions, each.level) for each in own] == [
        ("red circle and a", (2, 3, 4, 5), 1),
        ("circle", (3,), 0),
        ("a blue square", (5, 6, 7), 0),
    ]


def test_mistakes_are_named() -> None:
    pipe = sd()
    for named, message in ((("a dog",), "No 'a dog'"), (("circle#2",), "only once"), (("red square",), "red square")):
        with pytest.raises(SpanNotFound, match=message):
            bound(pipe, named, PROMPT)
    with pytest.raises(SpanNotFound, match="circle"):
        bound(pipe, ("circle",), PROMPT, "a dog and a cat")
    for lists in ((("circle",), ("square",)), ((), (), ())):
        with pytest.raises(BadSetting, match=f"mine.phrases has {len(lists)} lists for 1 prompts"):
            bound(pipe, lists, PROMPT)
    with pytest.raises(SpanNotFound, match="cut off"):
        bound(pipe, ("a yellow heart",), PROMPT + " and a green star and a yellow heart")


def test_two_encoders_must_have_a_phrase_at_the_same_place() -> None:
    pipe = sdxl()
    for second in ("a photo of " + PROMPT, "a blue square and a red circle"):
        with pytest.raises(AmbiguousWord, match="red circle"):
            bound(pipe, ("a red circle",), (PROMPT, second))
    with pytest.raises(SpanNotFound, match="'a dog' stands only in the second"):
        bound(pipe, ("a dog",), (PROMPT, "a dog and a cat"))
    with pytest.warns(UserWarning, match="'a red circle', 'a blue square': the prompts of the text encoders have it"):
        assert bound(pipe, (), (PROMPT, "a photo of " + PROMPT)) == ((),)  # nobody named it
    (own,) = bound(pipe, ("a blue square",), (PROMPT, "a green circle and a blue square"))
    assert places(own) == [("a blue square", (5, 6, 7), (1, 2, 3))]


# -- phrases that are found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (
            "all",
            [("a cat with a hat on a bench", 2), ("a cat with a hat", 1), ("a hat", 0), ("a bench", 0), ("a dog", 0)],
        ),
        ("highest", [("a cat with a hat on a bench", 2), ("a dog", 0)]),
        ("lowest", [("a hat", 0), ("a bench", 0), ("a dog", 0)]),
    ],
)
def test_levels_of_found_phrases(levels: Any, expected: Any) -> None:
    phrases = ("a dog", "a hat", "a cat with a hat", "a bench", "a cat with a hat on a bench", NESTED)
    (own,) = bound(sd(), (), NESTED, levels=levels, found=phrases)
    assert [(each.text, each.level) for each in own] == expected
    (own,) = bound(sd(), phrases, NESTED, levels=levels, found=phrases)  # what the user names is not thinned out
    assert len(own) == 5


def test_where_nothing_is_found_the_reason_is_known(recwarn: pytest.WarningsRecorder) -> None:
    pipe = sd()
    found = {text: read(pipe, text, PROMPT) for text in ("", "  ", "cat", PROMPT)}
    for prompt in found.values():
        assert resolve_phrases((), "all", [prompt], find_adapter(pipe), control="mine") == ((),)
    why = {text: why_none(None, prompt) for text, prompt in found.items()}
    assert why == dict.fromkeys(("", "  ", "cat"), "the prompt has no phrase") | {
        PROMPT: "the prompt holds no phrase but the whole of it"
    }
    assert not [each for each in recwarn if "mine" in str(each.message)]  # the session tells it, for every control


@pytest.mark.parametrize(("first", "kept"), [("", True), ("a ", False), ("a big ", False), ("a big brown ", False)])
def test_a_phrase_that_the_limit_cuts_or_halves_is_left_out(first: str, kept: bool) -> None:
    """Of 16 tokens 14 are words: with one word more, of skate|board only the first half is left."""
    prompt = first + "photo of a red circle and a blue square and a green skateboard"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (own,) = bound(sd(), (), prompt, found=("a red circle", "a green skateboard"))
    assert [each.text for each in own] == ["a red circle", "a green skateboard"][: 1 + kept]
    messages = [str(each.message) for each in told if "mine" in str(each.message)]
    assert messages == ([] if kept else ["mine leaves out 'a green skateboard': the token limit cut it off."])


@pytest.mark.parametrize(("limit", "kept"), [(15, True), (14, False), (13, False), (12, False)])
def test_a_phrase_whose_last_character_is_halved_is_left_out(limit: int, kept: bool) -> None:
    """Each of these characters is three tokens: 4 words, 9 tokens of the phrase, start and end are 15."""
    pipe = sd()
    pipe.tokenizer = clip(max_length=limit)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (own,) = bound(pipe, (), "cat red one one \u732b\u72ac\u732b", found=("\u732b\u72ac\u732b",))
    assert [len(each.positions) for each in own] == ([9] if kept else [])
    assert bool([each for each in told if "token limit" in str(each.message)]) is not kept


def test_words_that_were_merged_are_left_out_and_the_others_have_moved() -> None:
    adapter = find_adapter(sd())
    merge = Merge(noun=(6, 12), parts=((2, 5), (6, 12)))  # red circle, of which one token stays
    prompt = adapter.parse((PROMPT,)).merged_by([merge], [(0, 1, 2, 2, *range(3, 15))])
    with pytest.warns(UserWarning, match="leaves out 'a red circle': words of it are merged into one token"):
        (own,) = resolve_phrases(("a red circle", "a blue square"), "all", [prompt], adapter, control="mine")
    assert places(own) == [("a blue square", (4, 5, 6), (1, 2, 3))]


def test_a_phrase_that_alone_has_other_tokens_is_left_out() -> None:
    pipe = sd()
    pipe.tokenizer = clip()
    with pytest.warns(UserWarning, match="leaves out '☺': standing alone it has other tokens"):
        assert bound(pipe, ("☺",), "a ☺☻ cat") == ((),)
    assert len(bound(pipe, ("☺",), "a ☺ cat")[0]) == 1


def test_a_placeholder_of_several_vectors_is_written_by_its_name() -> None:
    # start a red <toy> <toy>_1 and a blue dog end
    pipe = sd()
    vectors = torch.randn(2, TEXT_WIDTH, generator=generator(5))
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    (own,) = bound(pipe, ("a red <toy>", "a blue dog"), "a red <toy> and a blue dog")
    assert places(own) == [("a red <toy>", (1, 2, 3, 4), (1, 2, 3, 4)), ("a blue dog", (6, 7, 8), (1, 2, 3))]


# -- odd characters ---------------------------------------------------------------------------------------------------

WORDS = """a an the red blue big and with of on cat dog hat giraffe dogs ball can't dog's T-shirt rock-'n'-roll Ca
\u00c9clair cafe\u0301 caf\u00e9 na\u00efve stra\u00dfe \u0130stanbul \ufb01sh A\u030angstro\u0308m 7 3d
10,000 \u00bd x\u00b2 \u732b \u72ac\u3068\u732b \uac15\uc544\uc9c0 \u043a\u043e\u0442
\u05d7\u05ea\u05d5\u05dc \u0e41\u0e21\u0e27""".split()
MARKS = [*"\"'`()[]{}<>,.;:!?-_/\\*&%$#@+=~|^", "\u201c", "\u201d", "\u2018", "\u2019", "\u2026", "\u2014", "...", "''"]
SIGNS = """\U0001f600 \u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea
\u263a 5\ufe0f\u20e3 \u2122 \u20ac""".split()
HIDDEN = [
    "\u200b",
    "\u200c",
    "\u200d",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\x00",
    "\x07",
    "\x1b",
    "\x1c",
    "\x7f",
    "\u0301",
    "\ufffd",
]
SPACES = [" "] * 12 + ["", "", "  ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\x0b"]


def odd_prompt(chance: random.Random) -> str:
    made = ""
    for _ in range(chance.randint(1, 14)):
        part = chance.choice(WORDS if chance.random() < 0.7 else chance.choice((MARKS, SIGNS, HIDDEN)))
        made += (part.upper() if chance.random() < 0.1 else part) + chance.choice(SPACES)
    return made


def plain(text: str) -> str:
    """Up to case, normalization and white space."""
    kept = "".join(char for char in text if not char.isspace())
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", kept).lower())


def check(prompt: Prompt, each: ResolvedPhrase, adapter: Adapter) -> None:
    words = prompt.text[each.start : each.end]
    alone = adapter.parse((each.text,))
    for written, own, tokenizer in zip(prompt.encodings, alone.encodings, adapter.tokenizers, strict=True):
        here, there = [written.ids[token] for token in each.positions], [own.ids[row] for row in each.rows]
        assert here == there and plain(tokenizer.decode(here)) == plain(words)
        assert {written.roles[token] for token in each.positions} == {own.roles[row] for row in each.rows} == {"item"}
    assert list(each.positions) == sorted(set(each.positions)) and list(each.rows) == sorted(set(each.rows))
    outside = [span for span in prompt.words() if not each.start <= span.start < each.end]
    assert outside and each.text == words


def slices(chance: random.Random, text: str) -> list[str]:
    """Some runs of words and marks of a text."""
    here, made = split_words(text), []
    for _ in range(min(3, len(here))):
        first = chance.randrange(len(here))
        last = min(len(here) - 1, first + chance.randint(0, 4))
        made.append(text[here[first].start : here[last].end])
    return made


@pytest.mark.filterwarnings("ignore:mine:UserWarning")
@pytest.mark.parametrize("seed", range(6))
def test_odd_prompts_give_named_errors_or_tokens_that_spell_the_phrase(seed: int) -> None:
    chance, pipe = random.Random(seed), sdxl() if seed == 5 else sd()
    pipe.tokenizer = clip(max_length=(77, 77, 24, 300, 77, 77)[seed])
    pipe.tokenizer_2 = clip(max_length=77, pad="!")
    adapter, made = find_adapter(pipe), {"named": 0, "found": 0, "refused": 0}
    for _ in range(400):
        text = odd_prompt(chance)
        prompt = adapter.parse((text,))
        for kind, named in (("found", ()), *(("named", (words,)) for words in slices(chance, text))):
            try:
                (own,) = resolve_phrases(named, "all", [prompt], adapter, control="mine")
            except T2ictlError as error:
                made["refused"] += 1
                assert kind == "named" and isinstance(error, SpanNotFound)
                continue
            made[kind] += len(own)
            for each in own:
                check(prompt, each, adapter)
    assert made["named"] > 100 and made["found"] > 50


def test_one_phrase_need_not_be_a_list() -> None:
    assert StructuredGuidance(phrases="a red circle") == StructuredGuidance(phrases=("a red circle",))
