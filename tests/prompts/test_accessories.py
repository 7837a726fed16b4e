"""What belongs to which object: hand-written cases, the references where their prompts are, and any text at all."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from t2ictl.prompts.accessories import kept_ranges, merged_text, object_groups
from t2ictl.prompts.grammar import ObjectGroup
from tests.prompts.prompt_cases import PROMPTS, REFERENCES, needs_prompts, spacy_finds, spacy_token

with_prompts = needs_prompts("t2i_compbench")


def read(text: str, found: tuple[ObjectGroup, ...]) -> list[tuple[str, str, bool]]:
    return [
        (text[slice(*one.noun)], " ".join(text[slice(*place)] for place in one.members), one.accessories)
        for one in found
    ]


def said(expected: str) -> list[tuple[str, str, bool]]:
    """Read "cat: red hat *; dog: small" as expected groups; a star says that there is an accessory."""
    parts = (part.partition(":") for part in expected.split(";") if part.strip())
    return [(noun.strip(), members.strip(" *"), members.endswith("*")) for noun, _, members in parts]


# --- by hand: prompt -> groups => prompt without members ------------------------------------------------------------

CASES = """
an otter wearing goggles and a robot with a red hat -> otter: goggles*; robot: red hat* => an otter and a robot
a cat with a hat with a red feather -> cat: hat red feather* => a cat
a cat with a hat and a scarf and a dog with a bone -> cat: hat scarf*; dog: bone* => a cat and a dog
a duck with a hat, a frog with a tie and a bear -> duck: hat*; frog: tie* => a duck, a frog and a bear
a man in a red hat and a woman in a blue dress -> man: red hat*; woman: blue dress* => a man and a woman
a man in a boat -> => a man in a boat
a nurse in green and a king in white with a cape -> nurse: green; king: white cape* => a nurse and a king
a red house with a mountain in the background -> house: red => a house with a mountain in the background
a green jug with a cup beside it -> jug: green => a jug with a cup beside it
two dogs with each other -> => two dogs with each other
a girl with a dog wearing a red hat -> dog: red hat* => a girl with a dog
a bag with a kitten -> => a bag with a kitten
a woman cutting a cake with a knife -> => a woman cutting a cake with a knife
a mouse on a mat with a red hat -> hat: red => a mouse on a mat with a hat
a boy playing with a red kite -> kite: red => a boy playing with a kite
a boy holding a balloon and a kite -> boy: balloon kite* => a boy
a fox with a cup and a lamp -> fox: cup* => a fox and a lamp
a red car with white wheels and a green tree -> car: red white wheels*; tree: green => a car and a tree
a box with a lid and the lamp -> box: lid* => a box and the lamp
a mug with a lid and a jug with a spout -> mug: lid*; jug: spout* => a mug and a jug
a vase with flowers and the table is brown -> vase: flowers*; table: brown => a vase and the table
a studio with green walls, a round rug and a lamp -> studio: green walls round rug lamp* => a studio
a jar of honey with a yellow lid -> lid: yellow => a jar of honey with a lid
a dog wearing no hat -> => a dog wearing no hat
a knight who is holding a long sword -> knight: long sword* => a knight
an owl sitting and wearing a pair of blue boots -> owl: blue boots* => an owl
the wolf and the fox have red hats -> hats: red => the wolf and the fox have hats
the lion has a crown and the mouse has a cape -> lion: crown*; mouse: cape* => the lion and the mouse
the owl that has a red collar is brown -> owl: red collar brown* => the owl
a pig, wearing a red hat, and a hen -> pig: red hat* => a pig and a hen
a man with a red tie on and a dog -> man: red tie* => a man and a dog
the dog is brown -> dog: brown => the dog
the dog is not brown -> => the dog is not brown
a dog, which is brown, and a cat -> dog: brown => a dog and a cat
the cup on the table is red -> cup: red => the cup
the cup on the white table is red -> table: white => the cup on the table is red
a wide bench stands empty in a park -> bench: wide empty => a bench in a park
The cat is black. The dog has a white tail. -> cat: black; dog: white tail* => The cat. The dog.
a big, red ball -> ball: big red => a ball
a very large horse -> horse: large => a horse
a old owl and an red urn -> owl: old; urn: red => an owl and an urn
An orange cat. -> cat: orange => A cat.
AN ORANGE CAT WITH A HAT -> CAT: ORANGE HAT* => A CAT
a tiny hourglass and an old unicorn -> hourglass: tiny; unicorn: old => an hourglass and a unicorn
the man's red hat -> hat: red => the man's hat
a red T-shirt and a heart-shaped box -> T-shirt: red; box: heart-shaped => a T-shirt and a box
an orange and white fox and a lime and green apples -> fox: orange white; apples: green => a fox and a lime and apples
two red cars -> cars: red => two cars
a red cup and a red cup -> cup: red; cup: red => a cup and a cup
a red café, a green piñata -> café: red; piñata: green => a café, a piñata
a “red” apple and a (small) dog -> apple: red; dog: small => an apple and a dog
a dog (with a hat) and a cat [wearing a tie] -> dog: hat*; cat: tie* => a dog and a cat
a red (circle) -> circle: red => a (circle)
a red 🐱 wearing a hat -> 🐱: red hat* => a 🐱
a rubber band, a metallic key and fluffy clouds -> key: metallic; clouds: fluffy => a rubber band, a key and clouds
the soft tires rest on the road -> tires: soft => the tires rest on the road
blue -> => blue
-> =>
""".strip().splitlines()


def test_members_and_merged_prompt() -> None:
    wrong = []
    for case in CASES:
        text, _, rest = case.partition("->")
        expected, _, merged = rest.partition("=>")
        bound = object_groups(text.strip())
        found = read(text.strip(), bound), merged_text(text.strip(), bound)
        if found != (said(expected.strip()), merged.strip()):
            wrong.append((text, found, rest))
    assert wrong == [] and len(CASES) > 50


def test_ranges_count_characters_of_the_text() -> None:
    text = "An orange  cat wearing\na bow tie, alone"
    (one,) = object_groups(text)
    assert (one.text, one.start, one.end) == ("orange  cat wearing\na bow tie", 3, 32)
    assert [text[slice(*place)] for place in one.members] == ["orange", "bow tie"]
    assert kept_ranges(text, (one,)) == ((0, 3), (11, 14), (32, 39))
    assert merged_text(text, (one,)) == "A cat, alone"


def test_placeholder_is_an_object() -> None:
    text = "an ugly <toy> <toy>_1 with a hat and a dog"
    found = object_groups(text, names=("<toy>", "<toy>_1"))
    assert read(text, found) == [("<toy> <toy>_1", "ugly hat", True)]
    assert merged_text(text, found) == "a <toy> <toy>_1 and a dog"


def test_accessories_are_found_after_any_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that enclose others, repeat a word or come out of order make no overlapping bindings."""
    text = "a red cat with a hat is wet and a dog"

    def made(noun: str, *attributes: str) -> Any:
        described = [spacy_token(one, text.index(one), "ADJ", "amod") for one in attributes]
        return spacy_token(noun, text.index(noun), "NOUN", "dobj", described)

    spacy_finds(monkeypatch, made("dog", "wet"), made("cat", "red", "wet"), made("hat"), made("hat"))
    assert read(text, object_groups(text, "spacy")) == [("cat", "red hat wet", True)]


# --- any text -----------------------------------------------------------------------------------------------------

BITS = """a an the red big brown cat dogs hat wearing with has is in , . ( ) " ' “ ” 's and of that not on two T-shirt é
🐱 👨‍🚀 <toy> _ - -- \t \n \x1c \u200d \u00a0 8 ½ ß İ ﬁ 中文 عرب the,cat red,blue sits empty which glass
orange man woman holding e\u0301 table background very painted""".replace("\n", " \n ").split(" ")


def test_any_text_gives_disjoint_ranges_inside_it() -> None:
    dice = random.Random(5)
    for _ in range(2000):
        bits = [dice.choice(BITS) if dice.random() < 0.95 else chr(dice.randrange(1, 0xD800)) for _ in range(12)]
        text = dice.choice([" ", " ", ""]).join(bits[: dice.randrange(13)])
        found, last = object_groups(text, names=("<toy>",)), 0
        for one in found:
            places = sorted([one.noun, *one.members])
            assert last <= one.start == places[0][0] and one.end == max(end for _, end in places) <= len(text), text
            assert one.members and one.text == text[one.start : one.end], text
            assert list(one.members) == sorted(set(one.members)), text
            assert all(start < end for start, end in places), text
            assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False)), text
            last = one.end
        kept = kept_ranges(text, found)
        assert all(0 <= start < end <= len(text) for start, end in kept), text
        assert all(end < start for (_, end), (start, _) in zip(kept, kept[1:], strict=False)), text
        object_groups(merged_text(text, found), names=("<toy>",))
        if not found:
            assert merged_text(text, found) == text


# --- references ---------------------------------------------------------------------------------------------------


def reference_prompt(row: dict[str, Any]) -> str:
    line = (PROMPTS / row["file"]).read_text(encoding="utf-8").splitlines()[row["line"] - 1]
    prompt = str(json.loads(line)["prompt"]) if row["file"].endswith(".jsonl") else line
    assert hashlib.sha256(prompt.encode()).hexdigest().startswith(row["sha256"]), f"{row['file']}:{row['line']}"
    return prompt


def score(name: str) -> tuple[float, list[str]]:
    """Share of prompts of a references file that are wholly right, and the places of the others."""
    rows = [json.loads(line) for line in (REFERENCES / name).read_text(encoding="utf-8").splitlines()]
    wrong = []
    for row in rows:
        found = [
            (list(one.noun), [list(m) for m in one.members], [one.start, one.end])
            for one in object_groups(reference_prompt(row))
        ]
        if found != [(one["noun"], one["members"], one["phrase"]) for one in row["groups"]]:
            wrong.append(f"{row['file']}:{row['line']}")
    return 1 - len(wrong) / len(rows), wrong


@with_prompts
@pytest.mark.parametrize("half", ["dev", "sealed"])
def test_references(half: str) -> None:
    share, wrong = score(f"groups_{half}.jsonl")
    print(f"{half}: {share:.2f} wholly right; wrong: {wrong}")
    assert share >= 0.95, wrong
