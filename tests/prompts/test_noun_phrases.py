"""Noun phrases of a prompt: hand-written cases, the references where their prompts are, and any text at all."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
import types
from typing import Any

import pytest

from t2ictl.errors import BadSetting, MissingExtra
from t2ictl.prompts.noun_phrases import NounPhrase, noun_phrases
from t2ictl.prompts.tagging import split_words
from tests.prompts.prompt_cases import PROMPTS, REFERENCES, needs_prompts, without_spacy

with_prompts = needs_prompts("abc_6k")

DEV_AT_LEAST = 50  # prompts of 50 with exactly the right base phrases
SEALED_AT_LEAST = 48


def is_base(phrase: NounPhrase) -> bool:
    """A wider phrase of bare words ("people with hats") has nothing inside it either, but has its link."""
    return phrase.level == 0 and not re.search(r"\b(?:of|with|without)\b", phrase.text, re.IGNORECASE)


def read(text: str, **settings: Any) -> tuple[list[str], list[str]]:
    """Texts of the base phrases and of the wider ones."""
    found = noun_phrases(text, **settings)
    return [one.text for one in found if is_base(one)], [one.text for one in found if not is_base(one)]


# --- by hand: prompt -> base phrases => wider phrases -----------------------------------------------------------------

CASES = (
    """
a red apple -> a red apple =>
two sleeping cats -> two sleeping cats =>
a small white dog on the grey sofa -> a small white dog; the grey sofa =>
a blue and white truck and a yellow bus -> a blue and white truck; a yellow bus => a blue and white truck and a yellow
    bus
a red, white and green flag -> a red, white and green flag =>
her red scarf and his old brown hat -> her red scarf; his old brown hat => her red scarf and his old brown hat
four people under brightly colored umbrellas -> four people; brightly colored umbrellas =>
the dog's red collar -> the dog's red collar =>
the dogs' red collars -> the dogs' red collars =>
a white sink and door -> a white sink and door =>
a brown toilet, walls, and bidet -> a brown toilet, walls, and bidet =>
cats and dogs -> cats and dogs =>
a white desk and black bed -> a white desk; black bed => a white desk and black bed
a couple of green horses -> green horses => a couple of green horses
a group of people near a lake -> a lake => a group of people
a lot of old books on some shelves -> old books; some shelves => a lot of old books
a bowl of red apples -> a bowl; red apples => a bowl of red apples
a bowl of fruit and a blue cup -> a bowl; a blue cup => a bowl of fruit and a blue cup; a bowl of fruit
a bowl of red apples and green pears -> a bowl; red apples; green pears => a bowl of red apples and green pears; red
    apples and green pears
the side of a narrow road -> the side; a narrow road => the side of a narrow road
a fox in front of a wooden barn -> a fox; a wooden barn =>
a kite on top of a green hill -> a kite; a green hill =>
a lamp next to the left window -> a lamp; the left window =>
the owl is brown -> the owl =>
this is a very old castle -> a very old castle =>
a man wearing a tall hat -> a man; a tall hat =>
a bench painted blue -> a bench =>
a snow covered roof -> a snow covered roof =>
a man on skis with a black hat -> a man; a black hat =>
a man on skis with a black hat -> a man; a black hat =>
a woman with a red hat -> a woman; a red hat => a woman with a red hat
people with red hats -> red hats => people with red hats
a kitchen with a white stove and blue walls -> a kitchen; a white stove; blue walls => a kitchen with a white stove
    and blue walls; a white stove and blue walls
a kitchen without windows -> a kitchen => a kitchen without windows
a boy eats a cake with a fork -> a boy; a cake; a fork =>
a duck with a hat, a frog with a tie and a bear -> a duck; a hat; a frog; a tie; a bear => a duck with a hat, a frog
    with a tie and a bear; a duck with a hat; a frog with a tie
a cat with a bow and a dog with a bone -> a cat; a bow; a dog; a bone => a cat with a bow and a dog with a bone; a cat
    with a bow; a dog with a bone
a table with a lamp and a chair with a cushion -> a table; a lamp; a chair; a cushion => a table with a lamp and a
    chair with a cushion; a table with a lamp; a chair with a cushion
a man rides a horse and a dog runs -> a man; a horse; a dog =>
a pink "Keep Out" sign -> a pink "Keep Out" sign =>
a (small) robot and a [very big] tree -> a (small) robot; a [very big] tree => a (small) robot and a [very big] tree
a “red” apple -> a “red” apple =>
it's a rainy day -> a rainy day =>
the cat licks it's paw -> the cat; it's paw =>
she can't see the old house -> the old house =>
The fox sleeps. A red bird sings! -> The fox; A red bird =>
a red cup and a red cup -> a red cup; a red cup => a red cup and a red cup
a red café and a green piñata -> a red café; a green piñata => a red café and a green piñata
a heart-shaped box and a T-shirt -> a heart-shaped box; a T-shirt => a heart-shaped box and a T-shirt
a tied - back curtain beside a t - shirt -> a tied - back curtain; a t - shirt =>
the men 's room -> the men 's room =>
red ->  =>
a dog -> a dog =>
smiling and running ->  =>
soccer ->  =>
a dining table and chairs -> a dining table and chairs =>
a parking meter beside a swimming pool -> a parking meter; a swimming pool =>
a man painting a wall -> a man; a wall =>
a surfer in black riding a wave -> a surfer; a wave =>
a girl knits a long scarf -> a girl; a long scarf =>
horses graze in an open field -> an open field =>
a fruit stand -> a fruit stand =>
a nurse stands by a fruit stand -> a nurse; a fruit stand =>
a large black and white photo of a bear -> a bear => a large black and white photo of a bear
all of the furniture -> the furniture => all of the furniture
one of two old clocks -> two old clocks => one of two old clocks
the other one ->  =>
two dogs with each other -> two dogs =>
a green bench, a red car -> a green bench; a red car => a green bench, a red car
on a table, a lamp and a vase -> a table; a lamp; a vase => a lamp and a vase
a room with a bed, two chairs and a rug -> a room; a bed; two chairs; a rug => a room with a bed, two chairs and a
    rug; a bed, two chairs and a rug
a lake with a mountain in the background -> a lake; a mountain; the background =>
an orange and white cat beside an orange -> an orange and white cat; an orange =>
a glass bowl and a glass -> a glass bowl; a glass => a glass bowl and a glass
the field of white -> the field => the field of white
a train station clock -> a train station clock =>
a young boy's wooden toy -> a young boy's wooden toy =>
a black piece of luggage ->  => a black piece of luggage
the inside of a nearby cave -> the inside; a nearby cave => the inside of a nearby cave
a quick brown fox, jumping over a lazy dog -> a quick brown fox; a lazy dog =>
a woman who wears that green coat -> a woman; that green coat =>
a red 🐱 with a 🎩 -> a red 🐱; a 🎩 => a red 🐱 with a 🎩
a red coat and water skis -> a red coat; water skis => a red coat and water skis
an orange covered plate -> an orange covered plate =>
a blue watering can -> a blue watering can =>
a vase of clear liquid -> a vase; clear liquid => a vase of clear liquid
a lone, green tree -> a lone, green tree =>
a television set and a radio -> a television set; a radio => a television set and a radio
wooden poles and skis on a wall -> wooden poles and skis; a wall =>
a shelf with glazed, green tiles -> a shelf; glazed, green tiles => a shelf with glazed, green tiles
long beaks and orange and white feathers -> long beaks; orange and white feathers => long beaks and orange and white
    feathers
""".strip()
    .replace("\n    ", " ")
    .splitlines()
)


def test_base_and_wider_phrases() -> None:
    wrong = []
    for case in CASES:
        text, _, rest = case.partition(" ->")
        expected = [[one.strip() for one in part.split(";") if one.strip()] for part in rest.split("=>")]
        if (found := [*read(text.strip())]) != expected:
            wrong.append((text, found, expected))
    assert wrong == [] and len(CASES) > 80


def test_levels_count_from_the_base() -> None:
    text = "a kitchen with a bowl of green pears and a red lamp"
    found = [(one.text, one.level) for one in noun_phrases(text)]
    assert found == [
        (text, 3),
        ("a kitchen", 0),
        ("a bowl of green pears and a red lamp", 2),
        ("a bowl of green pears", 1),
        ("a bowl", 0),
        ("green pears", 0),
        ("a red lamp", 0),
    ]
    assert [(one.text, one.level) for one in noun_phrases("people with hats")] == [("people with hats", 0)]


def test_ranges_count_characters_of_the_text() -> None:
    text = "  Two\tred  cafe\u0301s,\nand (a “tiny” dog)."
    found = noun_phrases(text)
    assert [text[one.start : one.end] for one in found] == [one.text for one in found]
    assert [(one.start, one.end, one.level) for one in found] == [(2, 36, 1), (2, 17, 0), (24, 36, 0)]


def test_placeholder_is_a_noun() -> None:
    assert read("an ugly <toy> <toy>_1 with a hat", names=("<toy>", "<toy>_1")) == (
        ["an ugly <toy> <toy>_1", "a hat"],
        ["an ugly <toy> <toy>_1 with a hat"],
    )
    assert read("a big running on the sofa", names=("running",))[0] == ["a big running", "the sofa"]


def test_unknown_parser_lists_the_choices() -> None:
    with pytest.raises(BadSetting, match="'stanza'.*grammar, spacy"):
        noun_phrases("a cat", "stanza")


# --- any text ---------------------------------------------------------------------------------------------------------

BITS = (
    """a an the red big brown cat dogs hat wearing with has is in , . ( ) " ' “ ” 's and of that not on two T-shirt é
🐱 👨‍🚀 <toy> _ - -- \\t \\n \\x1c \u200d \u00a0 8 ½ ß İ ﬁ 中文 عرب the,cat red,blue sits empty which glass all each one
orange man woman holding e\u0301 table background very painted ’ [ ] { } / & # ; : snow set can light to by top
close up other without ing ed s""".replace("\\t", "\t")
    .replace("\\x1c", "\x1c")
    .split(" ")
)


def any_prompts() -> list[str]:
    dice = random.Random(11)
    prompts = ["", " ", "\n\t", ".,;!?", "'" * 4, "((((", "- - -", "a" * 5000, "cat-" * 500, "of of of", "'s 's 's"]
    for _ in range(2500):
        bits = [dice.choice(BITS) if dice.random() < 0.93 else chr(dice.randrange(1, 0xD800)) for _ in range(16)]
        prompts.append(dice.choice([" ", " ", " ", ""]).join(bits[: dice.randrange(17)]))
    return prompts


def test_any_text_gives_nested_or_disjoint_ranges_inside_it() -> None:
    for text in any_prompts():
        found = noun_phrases(text, names=("<toy>",))
        words = [word for word in split_words(text, ("<toy>",)) if word.kind == "word"]
        places = [(one.start, one.end) for one in found]
        assert places == sorted(set(places), key=lambda place: (place[0], -place[1])), text
        assert found == noun_phrases(text, names=("<toy>",)), text
        for one in found:
            inside = [word for word in words if one.start <= word.start and word.end <= one.end]
            assert one.text == text[one.start : one.end] and len(inside) >= 2, text
            assert (inside[0].start, inside[-1].end) == (one.start, one.end), text
            held = [other for other in found if other is not one and one.start <= other.start and other.end <= one.end]
            assert one.level == max((other.level + 1 for other in held), default=0), text
        for start, end in places:
            assert not any(start < other[0] < end < other[1] for other in places), text


@pytest.mark.parametrize(
    "bit", ['"red" ', "red and ", "a cup of ", "a cat with ", "orange ", "very ", "the dog's ", "( "]
)
def test_long_prompts_end(bit: str) -> None:
    noun_phrases("a warm start")
    began = time.perf_counter()
    noun_phrases(bit * 400)
    assert time.perf_counter() - began < 30


# --- spaCy ------------------------------------------------------------------------------------------------------------


class Token:
    """A stand-in with the attributes of a spaCy token."""

    def __init__(self, text: str, idx: int, dep: str = "", children: tuple[Token, ...] = ()) -> None:
        self.text, self.lemma_, self.idx, self.dep_ = text, text.lower(), idx, dep
        self.lefts = [child for child in children if child.idx < idx]
        self.rights = [child for child in children if child.idx > idx]
        self.head = self
        for child in children:
            child.head = self


def spacy_says(monkeypatch: pytest.MonkeyPatch, *chunks: tuple[Token, int]) -> list[str]:
    """Let spaCy answer with these chunks, each a root and where it starts; the texts that it is shown come back."""
    shown: list[str] = []

    def parse(text: str) -> types.SimpleNamespace:
        shown.append(text)
        return types.SimpleNamespace(noun_chunks=[types.SimpleNamespace(root=a, start_char=b) for a, b in chunks])

    fake = types.ModuleType("spacy")
    fake.load = lambda name: parse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", fake)
    return shown


def test_spacy_reads_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a photo of a room with white walls, chairs and a <toy>"
    toy = Token("<toy>", text.index("<toy>"), "conj", (Token("a", text.index("a <toy>"), "det"),))
    chairs = Token("chairs", text.index("chairs"), "conj", (toy,))
    walls = Token("walls", text.index("walls"), "pobj", (Token("white", text.index("white"), "amod"), chairs))
    linked = Token("with", text.index("with"), "prep", (walls,))
    room = Token("room", text.index("room"), "pobj", (Token("a", text.index("a room"), "det"), linked))
    photo = Token("photo", 2, "ROOT", (Token("a", 0, "det"), Token("of", 8, "prep", (room,))))
    chunks = ((photo, 0), (room, 11), (walls, text.index("white")), (chairs, chairs.idx), (toy, text.index("a <toy>")))
    shown = spacy_says(monkeypatch, *chunks)
    base, wider = read(text, parser="spacy", names=("<toy>",))
    assert shown == [text.replace("<toy>", "qqqqq")]
    assert base == ["a room", "white walls, chairs", "a <toy>"]
    assert wider == [text, text[11:], text[text.index("white") :]]


def test_missing_spacy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without_spacy(monkeypatch)
    with pytest.raises(MissingExtra, match=re.escape('pip install "t2ictl[spacy]"')):
        noun_phrases("a cat", "spacy")


# --- references -------------------------------------------------------------------------------------------------------


def prompts_of(file: str) -> list[str]:
    return [str(json.loads(line)["prompt"]) for line in (PROMPTS / file).read_text(encoding="utf-8").splitlines()]


def reference_prompt(row: dict[str, Any]) -> str:
    prompt = prompts_of(row["file"])[row["line"] - 1]
    assert hashlib.sha256(prompt.encode()).hexdigest().startswith(row["sha256"]), f"{row['file']}:{row['line']}"
    return prompt


def score(rows: list[dict[str, Any]]) -> dict[str, tuple[int, float, float, list[str]]]:
    """For base phrases and for all: prompts wholly right, precision, recall, and the places of the others."""
    scores = {}
    for name in ("base", "all"):
        wrong, right, found_total, known_total = [], 0, 0, 0
        for row in rows:
            kept = [one for one in noun_phrases(reference_prompt(row)) if name == "all" or is_base(one)]
            found = {(one.start, one.end) for one in kept}
            known = {(start, end) for start, end in row["phrases"] + (row["wider"] if name == "all" else [])}
            wrong += [f"{row['file']}:{row['line']}"] * (found != known)
            right += len(found & known)
            found_total += len(found)
            known_total += len(known)
        scores[name] = (len(rows) - len(wrong), right / max(found_total, 1), right / max(known_total, 1), wrong)
    return scores


@with_prompts
@pytest.mark.parametrize(("half", "least"), [("dev", DEV_AT_LEAST), ("sealed", SEALED_AT_LEAST)])
def test_references(half: str, least: int) -> None:
    path = REFERENCES / f"phrases_{half}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = score(rows)
    for name, (exact, precision, recall, wrong) in scores.items():
        print(f"{half}, {name}: {exact} of {len(rows)} exact, precision {precision:.3f}, recall {recall:.3f}; {wrong}")
    assert scores["base"][0] >= least, scores["base"][3]


@with_prompts
@pytest.mark.parametrize(("file", "count"), [("abc_6k/abc_6k.jsonl", 6411), ("cc_500/cc_500.jsonl", 563)])
def test_every_prompt_is_read(file: str, count: int) -> None:
    prompts = prompts_of(file)
    assert len(prompts) == count
    bare = [prompt for prompt in prompts if not noun_phrases(prompt)]
    assert len(bare) <= count // 200, bare


@with_prompts
def test_prompts_of_two_things_are_wholly_right() -> None:
    """ "a <color> <thing> and a <color> <thing>", of which most of CC-500 is made."""
    pattern = re.compile(r"(an? \w+ \w+) and (an? \w+ \w+)", re.IGNORECASE)
    matches = [match for prompt in prompts_of("cc_500/cc_500.jsonl") if (match := pattern.fullmatch(prompt))]
    assert len(matches) > 400
    assert [match[0] for match in matches if read(match[0]) != ([match[1], match[2]], [match[0]])] == []
