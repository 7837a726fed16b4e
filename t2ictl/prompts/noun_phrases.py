"""Noun phrases of a prompt, by character: "green pears" in "a bowl of green pears", and the wider ones around them.

Three steps. Every word gets a class letter, by word lists, the tagger of :mod:`t2ictl.prompts.grammar` and its
neighbors. One regular expression over the letters finds base phrases. A recursive reader joins them at "of", "with" and
"and".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t2ictl.prompts.accessories import CREATURES, LARGE, ROOMS, SCENERY, WORN
from t2ictl.prompts.grammar import Piece, Range, known_parser, load_spacy, penn_tags, pieces
from t2ictl.prompts.word_lists import (
    APART,
    BODY,
    COMPOUNDING,
    COUNTED,
    DEEDS,
    DYES,
    GERUNDS,
    PAIRS,
    PENN,
    PLURALS,
    QUANTITIES,
    QUOTES,
    STATES,
    STRONG,
    TAKING,
    TOOLS,
    WORDS,
)

# One base phrase. Attributes may be joined, a label in quotes may stand before the noun, a possessor belongs to it, and
# so do bare nouns joined to it. Letter E fits both an attribute and a noun. Bounded, so that no prompt takes long.
_ATTRIBUTE = r"(?:R{0,3}[AE]|Q[ANEdDRFIBGTU]{1,6}Q(?=Q?[ANE]))"
_LIST = rf"{_ATTRIBUTE}(?:Q?(?:,?C|,)?Q?{_ATTRIBUTE}){{0,7}}Q?"
_CORE = rf"B?d?(?:[DB]Q?){{0,4}}Q?(?:N(?=A))?(?:{_LIST})?[NE]++"
_BARE = r"(?:N|E(?!,?C[AE]))(?![NEFA])"
_PHRASE = re.compile(
    rf"(?P<base>(?:(?:O|{_CORE})P){{0,3}}{_CORE})(?:(?:,{_BARE})*,?C{_BARE}|(?:,{_BARE})+(?=,?C|,[AN]))?"
    r"|(?P<headless>B?d[DR]*(?:R*[AE])+(?:C(?:R*[AE])+)*)(?![NE])"  # "the red"
    r"|(?P<number>[BD]+(?=F))|(?<=F)(?P<color>A(?:,?CA)*+)(?![NE])"  # "all of", "of white"
)
_NOMINAL = re.compile(r"R*[NEATU]|G[NE]|(?:,|,?C)[AET]+[NE]")


@dataclass(frozen=True, kw_only=True)
class NounPhrase:
    """A noun phrase of a prompt; its half-open range counts characters of the prompt.

    Args:
        text: its characters.
        start: first character.
        end: one past the last.
        level: 0 when no other phrase lies inside it, else one more than the highest level inside it.
    """

    text: str
    start: int
    end: int
    level: int


@dataclass
class _Unit:
    """A word, words that hyphens join, a mark, or later a whole phrase (letter n), whose key is its head noun."""

    start: int
    end: int
    key: str
    letter: str
    is_opened: bool = False

    def is_in(self, words: frozenset[str]) -> bool:
        return any(re.sub(ending, "", self.key) in words for ending in ("$^", "s$", "es$"))


def noun_phrases(text: str, parser: str = "grammar", names: Sequence[str] = ()) -> tuple[NounPhrase, ...]:
    """Find all noun phrases of a prompt: base phrases, and wider ones with "of", with "with" and joined by "and".

    Args:
        text: the prompt.
        parser: ``"grammar"`` (offline, the default) or ``"spacy"`` (needs the extra and its English model).
        names: placeholder tokens of textual inversion; each is read as a noun.

    Returns:
        Phrases of two words or more, by start, the longer first; two nest or are disjoint. One may be the whole prompt.

    Raises:
        BadSetting: there is no such parser.
        MissingExtra: spaCy or its model is not installed; there is no silent fallback.

    Example:
        >>> [(one.text, one.level) for one in noun_phrases("a bowl of green pears on the table")]
        [('a bowl of green pears', 1), ('a bowl', 0), ('green pears', 0), ('the table', 0)]
    """
    words = [word for word in pieces(text, names) if word.kind == "word"]
    levels: dict[Range, int] = {}
    for start, end in sorted(_PARSERS[known_parser(parser)](text, names), key=lambda one: (one[1] - one[0], one)):
        inside = [word for word in words if start <= word.start and word.end <= end]
        if len(inside) > 1:
            first, last = inside[0].start, inside[-1].end
            within = [level for (a, b), level in levels.items() if first <= a and b <= last]
            if not any(a < first < b < last or first < a < last < b for a, b in levels):
                levels.setdefault((first, last), 1 + max(within, default=-1))
    ordered = sorted(levels.items(), key=lambda one: (one[0][0], -one[0][1]))
    return tuple(NounPhrase(text=text[a:b], start=a, end=b, level=level) for (a, b), level in ordered)


def _grammar(text: str, names: Sequence[str]) -> set[Range]:
    """Base phrases by one expression over class letters, wider ones by the reader."""
    items, base = _items(_units(text, names))
    return base | _Reader(items).found


def _units(text: str, names: Sequence[str]) -> list[_Unit]:
    """Words and marks with their final class letters."""
    words = pieces(text, names)
    known, tags = {name.casefold() for name in names}, penn_tags([word.key for word in words])
    letters = ["N" if word.key in known else _letter(word, tag) for word, tag in zip(words, tags, strict=True)]
    units = [_Unit(word.start, word.end, word.key, letter) for word, letter in zip(words, letters, strict=True)]
    units = [_Unit(0, 0, "", ""), *units, _Unit(0, 0, "", "")]
    _join_words(units)
    for index in range(1, len(units) - 1):  # a decision looks some forty words far
        past = "".join(one.letter for one in units[max(0, index - 40) : index])
        rest = "".join(one.letter for one in units[index + 1 : index + 40])
        units[index].letter = _resolved(units[index], units[index - 1], past, rest)
    return units[1:-1]


def _letter(word: Piece, tag: str) -> str:
    """Class of a word by our lists, else by its ending or by the tagger; neighbors are not asked yet."""
    key = word.key
    if key in GERUNDS or (key.endswith("ing") and len(key) > 4 and key not in WORDS):
        return "G"
    if (key in WORDS and key not in COMPOUNDING) or word.kind == "mark":
        return WORDS.get(key, "Q" if key in QUOTES else "X")
    if not key[0].isalnum():  # an emoji, a placeholder of textual inversion
        return "N"
    return "V" if key.endswith("n't") else "T" if key.endswith("ed") or key in COMPOUNDING else PENN.get(tag, "N")


def _join_words(units: list[_Unit]) -> None:
    """Read words that are not what they are alone: "a tied - back chair", "men 's", "on top of", "back to back"."""
    for index in reversed(range(1, len(units) - 1)):
        before, unit, after = units[index - 1 : index + 2]
        if unit.letter == "-" and before.letter not in "XQVdW," and after.letter not in "XQVdHFW,":
            letter = "N" if after.letter in "NE" else "A"
            units[index - 1 : index + 2] = [_Unit(before.start, after.end, f"{before.key}-{after.key}", letter)]
        elif unit.key in ("'", "\u2019") and after.key == "s" and after.start == unit.end:
            units[index : index + 2] = [_Unit(unit.start, after.end, "'s", "P")]
        elif unit.key in ("'", "\u2019") and before.key.endswith("s") and after.letter in ("N", "E", "A"):
            unit.letter = "Q" if any(one.key == unit.key for one in units[:index]) else "P"
        elif unit.key in ("to", "by") and before.key == after.key:
            before.letter = unit.letter = after.letter = "A"
        elif letter := PAIRS.get(f"{unit.key} {after.key}", ""):
            unit.letter = after.letter = letter
            after.key = f"{unit.key}-{after.key}"
        elif before.letter == "I" and unit.key in ("top", "front", "back", "side"):
            unit.letter = unit.letter if after.letter in ("N", "E", "A") else "I"


def _resolved(unit: _Unit, before: _Unit, past: str, rest: str) -> str:
    """Final class of a word from the final classes before it and the first classes after it."""
    letter, key, last, is_nominal = unit.letter, unit.key, past[-1:], bool(_NOMINAL.match(rest))
    if key in ("can", "set") and (last == "d" or (last in ("N", "E", "A") and rest[:1] in ("", *"FXC,"))):
        return "N"
    if letter in "GT":
        return _participle(unit, before, past, rest)
    is_form = letter in "NU" and re.search("[^sui]s$", key) and last in ("N", "E") and not unit.is_in(WORN)
    if is_form and before.key in CREATURES - PLURALS and rest[:1] in tuple("dDOIA"):
        return "V"  # "a girl knits a scarf"
    if letter == "U" or (letter == "V" and key.endswith("s") and key not in ("is", "was", "has")):
        return _verb_or_noun(unit, before, past, rest)
    if key == "that" and last not in ("N", "E") and re.match("[AENTG]", rest):
        return "d"
    if key in ("one", "ones") and re.search(r"[dD][RAEC,]*[AE]$", past):
        return "N"
    if letter in "IXR" and last == "d" and key not in ("up", "down"):  # "a nearby tree", "the inside"
        return "A" if is_nominal else "N" if letter == "I" else letter
    if letter == "B" and last in ("d", "R") and is_nominal:  # "an all white kitchen"
        return "R"
    if letter == "A" and last in ("d", "A") and key not in DYES and rest[:1] in ("", *"XIVHFWO"):
        return "N"  # "a red liquid"
    if key == "snow" and (re.search("AC$", past) or (last in ("d", "") and re.match("CA", rest))):
        return "A"  # its color
    return "V" if letter == "P" and re.match(r"[dDVGRIB]|A(?![ANEC])", rest) else letter  # "it's a"


def _participle(unit: _Unit, before: _Unit, past: str, rest: str) -> str:
    """A for one that describes the noun after it, N for a noun in -ing, G for one that opens a clause."""
    last, key, follows, is_nominal = past[-1:], unit.key, rest[:1], bool(_NOMINAL.match(rest))
    is_gerund, is_opened = unit.letter == "G", last != "E" and re.search(r"[dDBP]Q*(?:N(?=A))?[RAEC,Q]*$", past)
    follows_noun = last == "N" or (last == "E" and (is_gerund or follows != "N"))
    if key in GERUNDS:
        if before.key in ("snow", "surf") and key in DEEDS and follows not in ("N", "E"):
            before.letter = "G"  # "a man snow boarding"
        is_free = before.is_in(CREATURES) or not is_nominal if follows_noun else follows in ("I", "") and not is_opened
        return "G" if (key in DEEDS and past and is_free) or (follows in ("d", "O") and follows_noun) else "N"
    if follows in ("d", "O") or key in TAKING or (last in ("V", "G") and is_gerund):
        return "G"
    if follows_noun:
        is_compound = key in COMPOUNDING and re.match(r"[ATE]*(?:C[AE]+)?[NE]", rest)
        if is_gerund or not (is_compound or (key == "painted" and follows == "N")):
            return "G"
        before.letter = "A"
        return "A"
    if re.search(r"(?:^|[IC])A(?:C?A)*$", past) and key not in STATES:  # "a man in black riding"
        return "G" if is_gerund or not is_nominal else "A"
    if is_nominal and (is_opened or not is_gerund or key in STATES):
        return "A"
    is_thing = last == "d" or (last == "A" and is_opened and before.key not in DYES)
    return "N" if is_thing and is_gerund and not is_nominal else "G"  # "a public gathering"


def _verb_or_noun(unit: _Unit, before: _Unit, past: str, rest: str) -> str:
    """V for a finite verb, N for a noun of the same form ("a man stands", "a fruit stand")."""
    last, follows, is_strong = past[-1:], rest[:1], unit.letter == "V" or unit.key in STRONG
    if last in ("d", "P") or (last in ("D", "T") and not is_strong):
        return "N"
    if last == "A" or (last == "E" and not is_strong):
        if re.search("IA(?:C?A)*$", past) and follows in ("I", "d", "O", ""):  # "a man in white looks up"
            return "V"
        return "V" if is_strong and not (follows in ("N", "F", "E") and re.search(r"[dDP][RAECQ,]*$", past)) else "N"
    if last in ("W", "O") or before.key in ("to", "can", "could", "will", "would", "may", "must") or unit.letter == "V":
        return "V"
    is_third = bool(re.search("[^s]s$", unit.key))
    if last not in ("N", "E"):
        is_free = last in ("R", "", "X", ",") or (last == "C" and (is_strong or (is_third and unit.key not in COUNTED)))
        return "V" if is_free and follows in ("d", "I", "D") else "N"
    if is_third:
        return "V" if follows in ("d", "D", "O") or unit.key not in COUNTED else "N"
    is_plural = before.key in PLURALS or re.search("[^sui]s$", before.key) or re.search("C[dA]*N$", past)
    is_deed = follows == "I" and (is_strong or before.key in CREATURES) or unit.key in ("play", "roam")
    return "V" if follows in ("d", "O") or is_plural or is_deed else "N"


def _items(units: Sequence[_Unit]) -> tuple[list[_Unit], set[Range]]:
    """Phrases and bare nouns as one unit each, with what stands between them, and the places of the base phrases."""
    letters, items, base, cursor = "".join(unit.letter for unit in units), [], set(), 0
    while cursor < len(units):
        match = _PHRASE.match(letters, cursor)
        if match and match["headless"] and units[cursor].key != "the" and units[match.end() - 1].key in DYES:
            match = None  # "a red and a blue car"
        inside = units[cursor : match.end() if match else cursor + 1]
        first = next((unit for unit in inside if unit.letter not in "QRB"), inside[0])
        head = units[match.end("base") - 1] if match and match["base"] else inside[-1]
        letter, is_opened = "n" if match else first.letter, first.letter in "dD"
        items.append(_Unit(inside[0].start, inside[-1].end, head.key, letter, is_opened))
        cursor += len(inside)
        counts = letters[cursor : cursor + 1] == "F" and items[-1].is_in(QUANTITIES)
        if match and len(inside) > 1 and not (counts or match["number"] or match["color"]):
            base.add((items[-1].start, items[-1].end))
    return items, base


class _Reader:
    """Joins the phrases of a prompt to wider ones, from left to right."""

    def __init__(self, items: Sequence[_Unit]) -> None:
        self.items, self.letters = items, "".join(item.letter for item in items)
        self.found: set[Range] = set()
        self.first = index = 0
        while index < len(items):
            self.first = index
            index = self._listing(index) + 1 if self.letters[index] == "n" else index + 1

    def _whole(self, index: int) -> int:
        """Last item of a phrase with its "of" and with what it has."""
        end = index
        if index > self.first + 60:  # no prompt nests so deep
            return end
        if self.letters.startswith("Fn", end + 1):
            end = self._listing(end + 2, part=True)
            self.found.add((self.items[index].start, self.items[end].end))
        if self.letters.startswith("Hn", end + 1) and self._has(end, end + 2):
            end = self._listing(end + 2, owner=self.items[index])
            self.found.add((self.items[index].start, self.items[end].end))
        return end

    def _listing(self, index: int, owner: _Unit | None = None, part: bool = False) -> int:
        """Last item of phrases joined by "and", "or" and commas, from this one on."""
        end = first_end = self._whole(index)
        while joint := re.match("Cn" if part else "Cn|,Cn|,n", self.letters[end + 1 :]):
            following = end + joint.end()
            is_apart = (
                part and self.items[following].is_opened != self.items[index].is_opened
            )  # "a cup of tea and a pan"
            is_apart = is_apart or (joint[0] == ",n" and not self._comma_joins(index, following))
            if is_apart or not self._joins(index, following, owner):
                break
            end = self._whole(following)
        if end > first_end:
            self.found.add((self.items[index].start, self.items[end].end))
        return end

    def _comma_joins(self, index: int, following: int) -> bool:
        """A comma joins in a list that "and" closes, or where nothing but phrases is said; not "On a bed, a cat"."""
        is_list = re.match("n(?:[FH,]n)*,?C", self.letters[following:]) or re.fullmatch("[n,FHC]+X?", self.letters)
        return bool(is_list) and self.letters[:index].split("X")[-1] != "I"

    def _joins(self, index: int, following: int, owner: _Unit | None) -> bool:
        """Whether the phrase after "and" stands beside this one rather than beside an earlier one."""
        left, right, after = self.items[index], self.items[following], self.letters[following + 1 : following + 2]
        clause = re.split("[XW]", self.letters[:index])[-1]
        if "V" in clause and after == "V":
            return False  # "a man rides a horse and a dog runs"
        if clause[-1:] in tuple("IGVH") and right.is_opened and right.is_in(CREATURES) and not left.is_in(CREATURES):
            if any(item.is_in(CREATURES) for item in self.items[:index] if item.letter == "n"):
                return False  # "a man in a hat and a woman"
        if owner is None or owner.is_in(ROOMS | SCENERY) or not right.is_opened:
            return True
        is_like_owner = after == "H" and not left.is_in(WORN)  # "a table with a lamp and a chair with a cushion"
        return not (is_like_owner or (right.is_in(LARGE) and not left.is_in(LARGE)) or right.key == owner.key)

    def _has(self, left: int, right: int) -> bool:
        """Whether "with" belongs to the noun right before it."""
        thing, had, link = self.items[left], self.items[right], re.match("I+[On]", self.letters[right + 1 :])
        place = self.items[right + link.end()] if link else had
        if link and (place.key in APART or (place.letter == "O" and self.items[right + 1].key in APART)):
            return False  # "with a tree behind it"
        people = [item for item in self.items[:left] if item.letter == "n" and item.is_in(CREATURES)]
        if not people or thing.is_in(CREATURES) or self.letters[left - 1] not in "IGV":
            return True
        is_company = had.is_in(CREATURES) and not thing.is_in(SCENERY)
        return not (had.is_in(WORN | LARGE | TOOLS) or is_company or (link and place.is_in(BODY)))


def _spacy(text: str, names: Sequence[str]) -> set[Range]:
    """Read spaCy's noun chunks and dependencies; it sees a made-up noun in place of a placeholder."""
    shown, known, found = text, {name.casefold() for name in names}, set[Range]()
    for word in [word for word in pieces(text, names) if word.key in known]:
        shown = shown[: word.start] + "q" * (word.end - word.start) + shown[word.end :]
    starts = {chunk.root: chunk.start_char for chunk in load_spacy()(shown).noun_chunks}
    for noun in [noun for noun in starts if noun.dep_ != "conj" or noun.head not in starts]:
        _reach(noun, starts, found)
    return found


def _reach(noun: Any, starts: dict[Any, int], found: set[Range], is_joined: bool = False) -> int:
    """Add the phrases of a noun, and give the end of the widest; one that is joined adds no list of its own."""
    start, end, rights = starts.get(noun, noun.idx), noun.idx + len(noun.text), list(noun.rights)
    links = [one for one in rights if one.dep_ == "prep" and one.text.casefold() in ("of", "with", "without")]
    bare, joined = noun, [one for one in rights if one.dep_ == "conj"]
    while following := [one for one in bare.rights if one.dep_ == "conj" and not list(one.lefts)]:
        bare = following[0]
    if not (links and links[0].text == "of" and noun.lemma_ in QUANTITIES or is_joined and not list(noun.lefts)):
        found.add((start, bare.idx + len(bare.text) if not links else end))
    for other in [one for link in links for one in link.rights if one.dep_ == "pobj"] + joined:
        end = max(end, _reach(other, starts, found, is_joined=other in joined))
        if not (is_joined and other in joined):
            found.add((start, end))
    return end


_PARSERS: dict[str, Callable[[str, Sequence[str]], set[Range]]] = {"grammar": _grammar, "spacy": _spacy}
