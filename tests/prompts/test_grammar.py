"""Objects and their attributes: hand-written cases, and agreement with the prompt sets where their files are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ictl.errors import BadSetting, MissingExtra
from t2ictl.prompts.grammar import group, parser_version
from t2ictl.prompts.tagging import split_words
from tests.prompts.prompt_cases import PROMPTS, needs_prompts, spacy_finds, spacy_token, without_spacy
from tests.repository.sources import ROOT

Named = list[tuple[str, list[str]]]

with_prompts = needs_prompts("attend_and_excite")


def read(text: str, parser: str = "grammar", names: tuple[str, ...] = ()) -> Named:
    """Nouns with their attributes, as the characters of the text."""
    return [
        (text[slice(*one.noun)], [text[slice(*place)] for place in one.members]) for one in group(text, parser, names)
    ]


def said(text: str) -> Named:
    """Read "circle: small red; square" as expected groups."""
    parts = (part.partition(":") for part in text.split(";") if part.strip())
    return [(noun.strip(), attributes.split()) for noun, _, attributes in parts]


# --- by hand ------------------------------------------------------------------------------------------------------

CASES = """
a small striped red circle and a large blue square -> circle: small striped red; square: large blue
a large blue square to the left of a yellow star -> square: large blue; star: yellow
a red square left of a blue circle -> square: red; circle: blue
a dotted cross below the large green ring -> cross: dotted; ring: large green
a red apple, a green bird and a blue car -> apple: red; bird: green; car: blue
a red apple, green birds and blue cars -> apple: red; birds: green; cars: blue
a cat and a cat -> cat; cat
a black and white cat -> cat: black white
a big, bright, red ball -> ball: big bright red
a red fire truck -> fire truck: red
a tennis ball and a teddy bear -> tennis ball; teddy bear
a red stop sign -> stop sign: red
a hot dog and a hot stove -> hot dog; stove: hot
the dog is brown -> dog: brown
the dog is brown and black cats are sleeping -> dog: brown; cats: black
the tiles are white and green. the toilet is white -> tiles: white green; toilet: white
the book and the cup were both red -> book; cup: red
a ball that is red next to a box which is blue -> ball: red; box: blue
a fence painted white and a car -> fence: white; car
a bowl made of dark wood -> bowl: dark wood
a painted bowl -> bowl: painted
a dog wearing a red hat -> dog; hat: red
a sleeping cat and a dog chasing birds -> cat: sleeping; dog; birds
smooth, rounded stones -> stones: smooth rounded
a tennis player in white wearing a white cap -> tennis player; cap: white
a metallic key and a rubber tire -> key: metallic; tire: rubber
the metallic key is red and shiny -> key: metallic red shiny
a glass and a glass bowl -> glass; bowl: glass
a red orange and an orange ball -> orange: red; ball: orange
a square table and a red square -> table: square; square: red
a pink sink and two bears -> sink: pink; bears
two dogs playing with tennis balls -> dogs; tennis balls
A DOG AND A RED CAT. -> DOG; CAT: RED
a photo of a cat -> cat
an oil painting of two red birds -> birds: red
a red painting on a wall -> painting: red; wall
picture of a pair of green shoes -> shoes: green
a cat in the style of Van Gogh -> cat
a cat on a white background, best quality, 4k -> cat; background: white
a cat on top of the wooden table, a dog on the right -> cat; table: wooden; dog
a cat in the background -> cat
a woman's left hand -> woman; hand: left
the dog's red collar -> dog; collar: red
a "red" apple [a blue-green T-shirt] -> apple: red; T-shirt: blue-green
a red (circle) and a 'blue' square -> circle: red; square: blue
“red” birds and «blue» cars -> birds: red; cars: blue
a red-haired woman -> woman: red-haired
a red café with a green piñata -> café: red; piñata: green
a red 🐱 and a dog -> 🐱: red; dog
several other red cars and various trees -> cars: red; trees
a very large and rather dark horse -> horse: large dark
circle -> circle
blue ->
and of the ->
""".strip().splitlines()


def test_objects_and_attributes() -> None:
    pairs = [case.partition("->")[::2] for case in CASES]
    found = {text: read(text.strip()) for text, _ in pairs}
    wrong = [(text, found[text], expected) for text, expected in pairs if found[text] != said(expected)]
    assert wrong == [] and len(pairs) > 50


def test_ranges_count_characters_of_the_text() -> None:
    text = "(The  small, red cafe\u0301 is wet)"
    (one,) = group(text)
    assert one.text == text[one.start : one.end] == "small, red cafe\u0301 is wet"
    assert text[slice(*one.noun)] == "cafe\u0301"
    assert [text[slice(*place)] for place in one.members] == ["small", "red", "wet"]


def test_placeholder_is_an_object() -> None:
    text = "a red <toy> <toy>_1 and a dog"
    assert read(text, names=("<toy>", "<toy>_1")) == [("<toy> <toy>_1", ["red"]), ("dog", [])]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("a red's,-and (cat)is of", max_size=40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_gives_ordered_ranges_inside_it(text: str) -> None:
    last = 0
    for one in group(text):
        places = [one.noun, *one.members]
        assert last <= one.start == min(places)[0] and one.end == max(end for _, end in places) <= len(text)
        assert one.text == text[one.start : one.end]
        assert all(start < end for start, end in places)
        assert len(set(places)) == len(places)
        last = one.end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog's  T-shirt, don\u2019t", ["the", "dog", "'s", "T-shirt", ",", "don\u2019t"]),
        ("-red- rock-'n'-roll dogs'", ["-", "red", "-", "rock", "-", "'", "n", "'", "-", "roll", "dogs", "'"]),
        ("e\u0301te\u0301 \U0001f468\u200d\U0001f680!", ["e\u0301te\u0301", "\U0001f468\u200d\U0001f680", "!"]),
    ],
)
def test_words_and_marks(text: str, expected: list[str]) -> None:
    assert [word.text for word in split_words(text)] == expected


# --- parsers ------------------------------------------------------------------------------------------------------


def test_unknown_parser_lists_the_choices() -> None:
    for ask in (lambda: group("a cat", "stanza"), lambda: parser_version("stanza")):
        with pytest.raises(BadSetting, match="'stanza'.*grammar, spacy"):
            ask()


def test_grammar_names_its_version() -> None:
    assert re.fullmatch(r"\d+\+textblob-[\d.]+", parser_version("grammar"))


def test_grammar_needs_no_downloaded_corpus(tmp_path: Path) -> None:
    code = (
        "import sys, nltk; nltk.data.path[:] = []\n"
        "nltk.data.find = nltk.download = lambda *a, **k: sys.exit('a corpus was asked for')\n"
        "from t2ictl.prompts.grammar import group; print([one.text for one in group('a red cat and a small dog')])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['red cat', 'small dog']", done.stderr


def test_missing_spacy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without_spacy(monkeypatch)
    for ask in (lambda: group("a cat", "spacy"), lambda: parser_version("spacy")):
        with pytest.raises(MissingExtra, match=re.escape('pip install "t2ictl[spacy]"')):
            ask()


def test_spacy_reads_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a black and white tennis ball is wet"
    white = spacy_token("white", 12, "ADJ", "conj")
    black = spacy_token("black", 2, "ADJ", "amod", conjuncts=[white])
    verb = spacy_token("is", 30, "AUX", "ROOT", [spacy_token("wet", 33, "ADJ", "acomp")])
    verb.lemma_ = "be"
    ball = spacy_token("ball", 25, "NOUN", "nsubj", [black, spacy_token("tennis", 18, "NOUN", "compound")], head=verb)
    spacy_finds(monkeypatch, ball)
    assert read(text, "spacy") == [("tennis ball", ["black", "white", "wet"])]
    assert group(text, "spacy")[0].text == "black and white tennis ball is wet"


# --- prompt sets --------------------------------------------------------------------------------------------------


def lines(path: str) -> list[Any]:
    return [json.loads(line) for line in (PROMPTS / path).read_text(encoding="utf-8").splitlines()]


def by_template(prompt: str) -> Named:
    """What "a <attributes> <noun>" chunks joined by "and" or "with" say, for prompts that are nothing else."""
    chunks = [chunk.split()[1:] for chunk in re.split(r" (?:and|with) ", prompt)]
    return [(words[-1], words[:-1]) for words in chunks]


@with_prompts
def test_every_attend_and_excite_prompt() -> None:
    rows = lines("attend_and_excite/attend_and_excite.jsonl")
    assert len(rows) == 276
    assert [row["prompt"] for row in rows if read(row["prompt"]) != by_template(row["prompt"])] == []


@with_prompts
@pytest.mark.parametrize(("name", "count"), [("multi_modifier", 200), ("multi_subject", 50)])
def test_every_prompt_with_known_bindings(name: str, count: int) -> None:
    rows = lines(f"project_generated/{name}.jsonl")
    assert len(rows) == count
    for row in rows:
        expected = [(noun, [of] if isinstance(of, str) else of) for noun, of in row["bindings"]]
        assert read(row["prompt"]) == expected, row["prompt"]


@with_prompts
def test_worn_things_are_objects_of_their_own() -> None:
    rows = lines("project_generated/object_binding.jsonl")
    for row in rows:
        assert [noun for noun, _ in read(row["prompt"])] == [noun for pair in row["bindings"] for noun in pair]


@with_prompts
def test_geneval_objects_and_colors() -> None:
    """Class names and colors of all 553 prompts; plural forms count as the class."""
    for row in lines("geneval/evaluation_metadata.jsonl"):
        found = sorted(read(row["prompt"]))
        expected = sorted((one["class"], [one["color"]] if "color" in one else []) for one in row["include"])
        assert [of for _, of in found] == [of for _, of in expected], row["prompt"]
        for (noun, _), (name, _) in zip(found, expected, strict=True):
            assert noun[:2] == name[:2] and abs(len(noun) - len(name)) <= 2, row["prompt"]


@with_prompts
@pytest.mark.parametrize(
    ("path", "known", "least"),
    [
        ("t2i_compbench/color_val.txt", 159, 159),
        ("t2i_compbench/texture_val.txt", 132, 132),
        ("t2i_compbench/shape_val.txt", 146, 144),
    ],
)
def test_compbench_pairs(path: str, known: int, least: int) -> None:
    """Prompts of the form "a <attribute> <noun> and a <attribute> <noun>", the noun of at most three words."""
    noun = r"((?:[\w-]+ ){0,2}[\w-]+)"
    pattern = re.compile(rf"(?:an?|the) ([\w-]+) {noun} and (?:an?|the) ([\w-]+) {noun}\.?")
    right = total = 0
    for prompt in (PROMPTS / path).read_text(encoding="utf-8").lower().splitlines():
        if (match := pattern.fullmatch(prompt)) and not re.search(r"\b(is|are|with|on|in|of|at)\b", prompt):
            total += 1
            first, second = (match[1], match[2].split()[-1]), (match[3], match[4].split()[-1])
            found = [(of[0] if of else "", name.split()[-1]) for name, of in read(prompt)]
            right += found == [first, second]
    assert (total, right >= least) == (known, True)
