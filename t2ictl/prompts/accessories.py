"""Which words of a prompt belong to which object, for the merging of tokens: attributes and accessories.

:func:`t2ictl.prompts.grammar.group` finds the objects and what describes them; here the words between two objects say
whether the second belongs to the first ("a cat wearing sunglasses"). A wrong group costs more than a missed one,
so what may be read in two ways stays apart. Grammar only: tokens and models are unknown here.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from t2ictl.prompts import word_lists as lists
from t2ictl.prompts.grammar import LIST, ObjectGroup, group, object_tags
from t2ictl.prompts.tagging import Range, Word, tagged_words
from t2ictl.prompts.word_lists import COLORS, CREATURES, LARGE, SCENERY, WORN

# The words between two objects, as _between writes them, when the second may belong to the first.
_LINK = re.compile(
    rf"""(?P<comma>,\ )?(?:and\ )?(?P<relative>(?:that|which|who)\ )?(?:(?:is|are|was|were)\ )?
    (?:(?:{"|".join(lists.STANDING.split())})(?:\ down|\ up)?\ (?:and\ )?)?
    (?:(?P<has>has|have|had|having|with)|(?P<wears>wears?|wearing|sporting)|(?P<holds>carry|carries|carrying|holds?|holding)
    |(?P<inside>(?:(?:dressed|clad|clothed)\ )?in))
    (?P<close>(?:\ (?:a|the|its))*(?:\ (?:pair|set|bunch)\ of)?(?:\ (?:a|the|its))*)""",
    re.VERBOSE,
)
_FINITE = re.compile(r"\b(?:has|have|had|wears?|holds?|carry|carries)\b")
_LISTED = re.compile(r"(?:,|, and|and|or|&)(?P<close>(?: (?:a|the|its))*)")
# The second object stands beside the first: "with a tree in the background", "and a sink behind it".
_BESIDE = re.compile(
    r"(?:in|at|on|to) (?:a )?(?:far )?(?:background|foreground|distance|left|right|side|front|end)\b"
    r"|(?:behind|beside|near|next to|in front of|around|above|below|under) (?:it|them|him|her)\b"
)
# An object named at the start of a clause, not the place or goal of something ("a cup on a table").
_OPENS = re.compile(
    r"(?:.*(?:[,.;:!?]|\b(?:and|or|while|but|(?:left|right|front|top|side|bunch\w*) of)))?(?: ?\b(?:a|the|its))*"
)
# An attribute after a verb (V) of position or "in" (L): "the tub sits empty", "a man in red".
_LATE = re.compile(rf"(?:,WB|W?B?V|V?L)(?P<list>{LIST})(?![AN])")
_ADVERB = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(lists.INTENSIFIERS))}|(?!only\Z)[\w-]+ly)\Z", re.IGNORECASE)
_NEGATION, _ONE = re.compile(r"\b(?:not|never)\Z", re.IGNORECASE), re.compile(r"\ban?\Z", re.IGNORECASE)
_PARTICLE, _COMMA = re.compile(r"\s+on(?=\s*(?:$|[,.]|and\b))"), re.compile(r"\s*,")
_ITEM = re.compile(r",(?: (?:a|the|its))*")  # between two objects of a list, before its last
_LAST_ARTICLE = re.compile(r"(?<!\w)(an?)[^\w.,;:!?]*\Z", re.IGNORECASE)
_MARKS_PASSED = 100  # so many characters before a noun are searched for its article
_PAIRS = {")": "(", "]": "[", "}": "{", "\u201d": "\u201c", "\u2019": "\u2018", "\u00bb": "\u00ab", '"': '"', "'": "'"}


@dataclass(kw_only=True)
class _Thing:
    """An object on its way to a group: head word, attributes, words between it and the next, and its owner.

    Where it stands in a list, ``closing`` are the words after the first object from it on that ends an item otherwise.
    """

    noun: Range
    head: str
    attributes: list[Range]
    after: str = ""
    closing: str = ""
    owner: int = 0
    link: str = ""

    def end_before(self, place: int) -> int:
        """End of its last word before a place."""
        return max([self.noun[1], *[end for _, end in self.attributes if end <= place]])


def object_groups(text: str, parser: str = "grammar", names: Sequence[str] = ()) -> tuple[ObjectGroup, ...]:
    """Find the objects of a prompt to which other words belong.

    Args:
        text: the prompt.
        parser: who finds objects and attributes, see :func:`t2ictl.prompts.grammar.group`; accessories are found the
            same way.
        names: placeholder tokens of textual inversion; each is read as a noun.

    Returns:
        Groups in text order; they do not overlap. An object to which nothing belongs is left out.

    Raises:
        BadSetting: there is no such parser.
        MissingExtra: spaCy or its model is not installed.

    Example:
        >>> found = object_groups("a red cat wearing a small hat and a dog with a tie")
        >>> [(one.text, len(one.members)) for one in found]
        [('red cat wearing a small hat', 3), ('dog with a tie', 1)]
    """
    things = _things(text, parser, names)
    for index in range(1, len(things)):
        things[index].owner = index
        if _belongs(things, index):
            things[index].owner = things[index - 1].owner
    return _assemble(text, things)


def kept_ranges(text: str, groups: Sequence[ObjectGroup]) -> tuple[Range, ...]:
    """Character ranges of a prompt that stay when every object is reduced to its noun.

    Args:
        text: the prompt.
        groups: its objects with what belongs to them, in text order.

    Returns:
        Half-open ranges in text order; no quotation mark or bracket loses its partner.

    Example:
        >>> text = "a red cat with a hat"
        >>> [text[slice(*kept)] for kept in kept_ranges(text, object_groups(text))]
        ['a ', 'cat']
    """
    pieces = [match.span() for match in re.finditer(r"\S+", text)]
    gone = {place for one in groups for place in _without_members(text, pieces, one)}
    kept: list[int] = []
    for place in [place for place in range(len(text)) if place not in gone]:
        if place - 1 in gone and text[kept[-1] if kept else place] == _PAIRS.get(text[place]):
            del kept[-1:]  # nothing is left between the two marks
        else:
            kept.append(place)
    left = set(kept)
    shown = "".join("x" if place in left else " " for place in range(len(text)))
    return tuple(match.span() for match in re.finditer("x+", shown))


def _without_members(text: str, pieces: Sequence[Range], one: ObjectGroup) -> set[int]:
    """Places that go when an object is reduced to its noun: its members with the words and commas that link them."""
    start, end = one.start, one.end
    if start < one.noun[0]:
        start = _before_adverbs(text, pieces, start)
    if end > one.noun[1]:
        if particle := _PARTICLE.match(text, end):  # "with a red tie on"
            end = particle.end()
        if _COMMA.match(text, one.noun[1], end) and (comma := _COMMA.match(text, end)):
            end = comma.end()
    parts = ((start, one.noun[0]), (one.noun[1], end))
    return {place for part in parts for place in set(range(*part)) - _unpaired(text, *part)}


def _before_adverbs(text: str, pieces: Sequence[Range], start: int) -> int:
    """Where the adverbs right before a place begin: "very" of "a very red cat"."""
    for index in reversed(range(bisect_right(pieces, start, key=itemgetter(1)))):
        first, last = pieces[index]
        adverb = _ADVERB.search(text, first, last)
        if adverb is None or not text[last:start].isspace():
            break
        start = adverb.start()
        if start > first:
            break
    return start


def merged_text(text: str, groups: Sequence[ObjectGroup]) -> str:
    """Write a prompt with every object reduced to its noun.

    Args:
        text: the prompt.
        groups: its objects with what belongs to them, in text order.

    Returns:
        The prompt without members and the words that link them; "a" and "an" follow the sound of the noun.

    Example:
        >>> text = "an orange cat wearing sunglasses and a dog with a red hat"
        >>> merged_text(text, object_groups(text))
        'a cat and a dog'
    """
    kept, merged, done = kept_ranges(text, groups), "", 0
    for one in groups:
        merged += _within(text, kept, done, one.noun[0])
        done = one.noun[0]
        if one.start < done and (article := _LAST_ARTICLE.search(merged, max(0, len(merged) - _MARKS_PASSED))):
            first, last = article.span(1)
            merged = merged[:first] + _article(article[1], text[slice(*one.noun)]) + merged[last:]
    return merged + _within(text, kept, done, len(text))


def _within(text: str, ranges: Sequence[Range], first: int, last: int) -> str:
    here = ranges[bisect_right(ranges, first, key=itemgetter(1)) : bisect_left(ranges, last, key=itemgetter(0))]
    return "".join(text[max(first, start) : min(last, end)] for start, end in here)


def _article(old: str, noun: str) -> str:
    """ "a" or "an" by the first sound of the noun, in the case of the old article."""
    plain = "".join(re.findall(r"[\w-]", unicodedata.normalize("NFD", noun))).casefold()
    is_vowel = bool(re.match(r"[aeiou]|8|11|18|hour|honest|honou?r|heir|x-ray|suv", plain))
    new = "an" if is_vowel and not re.match(r"uni(?!n|m)|use|usu|ute|uku|ufo|eu|ewe|one(?!i)|once", plain) else "a"
    return new.upper() if old.isupper() and noun.isupper() else new.capitalize() if old[0].isupper() else new


def _unpaired(text: str, first: int, last: int) -> set[int]:
    """Positions of brackets and quotation marks in a stretch whose partner is not in it."""
    opened: list[int] = []
    for place in range(first, last):
        mark = text[place]
        is_inner = mark in "'\u2019" and text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()
        if opened and text[opened[-1]] == _PAIRS.get(mark):
            opened.pop()
        elif not is_inner and (mark in _PAIRS or mark in _PAIRS.values()):
            opened.append(place)
    return set(opened)


class _Text(NamedTuple):
    """A prompt with its words, their tags, and where they start."""

    text: str
    words: Sequence[Word]
    tags: str
    starts: Sequence[int]

    @classmethod
    def read(cls, text: str, names: Sequence[str]) -> _Text:
        words = tagged_words(text, tuple(names))
        return cls(text, words, object_tags(words), [word.start for word in words])

    def inside(self, start: int, end: int) -> range:
        """Numbers of the words that lie in a range."""
        first, last = bisect_left(self.starts, start), bisect_left(self.starts, end)
        return range(first, last - (last > first and self.words[last - 1].end > end))

    def follows(self, place: int, pattern: re.Pattern[str]) -> bool:
        """Whether the word before a place, and before the white space there, ends with a pattern."""
        index = bisect_left(self.starts, place) - 1
        return index >= 0 and self.words[index].end < place and bool(pattern.search(self.words[index].text))


def _things(text: str, parser: str, names: Sequence[str]) -> list[_Thing]:
    """Objects with their attributes, those after a verb of position too, and the words between the objects."""
    read, things = _Text.read(text, names), list[_Thing]()
    for one in sorted(group(text, parser, names), key=lambda one: one.noun):
        if not things or one.noun[0] >= things[-1].noun[1]:
            last_word = bisect_left(read.starts, one.noun[1]) - 1
            head = read.words[last_word].key if read.starts[last_word] >= one.noun[0] else ""
            kept = [place for place in one.members if place[1] <= one.noun[0] or place[0] >= one.noun[1]]
            kept = [place for place in kept if not read.follows(place[0], _NEGATION)]
            if things and kept and _is_hue(read, things[-1], one.noun, min(kept)):
                kept.insert(0, things.pop().noun)
            things.append(_Thing(noun=one.noun, head=head, attributes=kept))
    for thing, following in zip(things, [*things[1:], None], strict=False):
        last = following.noun[0] if following else len(text)
        _name_whole(text, thing)
        thing.attributes += _late(read, (thing.end_before(last), last), thing.head in CREATURES)
    for thing, following in zip(things, [*things[1:], None], strict=False):
        last = len(text)
        if following:
            last = min([following.noun, *[one for one in following.attributes if one[0] >= thing.noun[1]]])[0]
        thing.after = _between(read, thing.end_before(last), last)
    closing = ""
    for thing in reversed(things):
        closing = thing.closing = closing if _ITEM.fullmatch(thing.after) else thing.after
    _raise_predicates(text, things)
    return things


def _is_hue(read: _Text, hue: _Thing, noun: Range, color: Range) -> bool:
    """ "an orange and white cat": the first object is a color of the second."""
    text, is_one = read.text, read.follows(hue.noun[0], _ONE)
    between = text[hue.noun[1] : color[0]]
    is_listed = re.fullmatch(r"\s+and\s+|\s*,\s*", between) and text[slice(*color)].casefold() in COLORS
    is_plural = bool(re.search(r"[^s]s$", text[slice(*noun)]))
    return bool(is_listed) and hue.head in lists.HUES and not hue.attributes and not (is_one and is_plural)


def _name_whole(text: str, thing: _Thing) -> None:
    """Join a noun with the word before it where both are one name."""
    before = [place for place in thing.attributes if place[1] <= thing.noun[0]][-1:]
    if before and " ".join(text[before[0][0] : thing.noun[1]].casefold().split()) in lists.NAMED:
        thing.attributes.remove(before[0])
        thing.noun = (before[0][0], thing.noun[1])


def _late(read: _Text, between: Range, is_creature: bool) -> list[Range]:
    """Attributes after a verb of position, "in" or a comma."""
    words, tags, here, shown = read.words, read.tags, read.inside(*between), ""
    for index in here:
        is_color = is_creature and index < here[-1] and words[index + 1].key in COLORS
        is_verb = words[index].key in lists.PREDICATE_VERBS and tags[index] != "A"
        shown += "L" if is_color and words[index].key == "in" else "V" if is_verb else tags[index]
    found = _LATE.match(shown + tags[here[-1] + 1 : here[-1] + 2]) if here else None
    listed = here[slice(*found.span("list"))] if found else range(0)
    return [(words[index].start, words[index].end) for index in listed if shown[index - here[0]] == "A"]


def _between(read: _Text, start: int, end: int) -> str:
    """Words from one object to the next: determiners and numbers as "a", without adverbs and quotation marks."""
    shown = ""
    for index in read.inside(start, end):
        word, tag = read.words[index], read.tags[index]
        if tag not in "RQ" or word.key in ("not", "never"):
            key = "its" if word.key in ("his", "her", "their") else word.key
            key = "a" if tag in "dD" and key not in ("no", "neither", "the", "its") else key
            shown += key if key in ",.;:!?" else f" {key}"
    return shown.strip()


def _raise_predicates(text: str, things: list[_Thing]) -> None:
    """ "The cup on the table is red": a predicate goes to the subject, or to nothing where words lie between."""
    subject = described = 0  # the object that opens the clause, and the last one so far that has attributes
    for index, thing in enumerate(things):
        if index and any(pattern.fullmatch(things[index - 1].after) for pattern in (_OPENS, _LINK)):
            subject = index
        late = {place for place in thing.attributes if place[0] >= thing.noun[1]}
        verb = text[thing.noun[1] : min(late)[0]] if late else ""
        if subject < index and re.match(r"\s*(?:is|are|was|were|\w+s|looked|appeared|seemed)\b", verb, re.IGNORECASE):
            thing.attributes = [place for place in thing.attributes if place not in late]
            if not thing.attributes and described <= subject:
                things[subject].attributes += sorted(late)
        described = index if thing.attributes else described


def _belongs(things: Sequence[_Thing], index: int) -> bool:
    """Whether an object is an accessory of the owner of the one before it; a creature never is."""
    before, thing = things[index - 1], things[index]
    owner = things[before.owner]
    if thing.head in CREATURES or thing.head in SCENERY or _BESIDE.match(thing.after):
        return False
    if link := _LINK.fullmatch(before.after):
        fits = _link_fits(things, index, link)
        owner.link = link[0] if fits and not owner.link else owner.link
        return fits
    listed = _LISTED.fullmatch(before.after)
    return bool(listed) and before is not owner and _list_fits(things, index, listed["close"] if listed else "")


def _link_fits(things: Sequence[_Thing], index: int, link: re.Match[str]) -> bool:
    """Whether the words that link an object to the one before it say that it wears, has or holds it."""
    before, thing = things[index - 1], things[index]
    owner = things[before.owner]
    earlier = things[before.owner - 1].after if before.owner else ""
    is_creature = owner.head in CREATURES
    if link["inside"]:
        return is_creature and thing.head in WORN
    in_list = bool(before.owner and _LISTED.fullmatch(earlier))
    if in_list and (link["comma"] or re.search(r"\b(?:have|hold|wear|carry)\b", link[0])):
        return False  # of both, or of neither
    if before is owner and not is_creature and not link["relative"] and "its" not in link["close"]:
        if before.owner and not _OPENS.fullmatch(earlier):
            return False  # "a cup on a table with a lid"
    if link["holds"]:
        return is_creature or owner.head == "hand"
    return bool(link["wears"]) or owner.head not in SCENERY and not (is_creature and thing.head in LARGE)


def _list_fits(things: Sequence[_Thing], index: int, close: str) -> bool:
    """Whether an object in a list after an accessory is one more, not the next object of the image."""
    thing, owner = things[index], things[things[index - 1].owner]
    is_worn, is_creature = thing.head in WORN, owner.head in CREATURES
    if things[index - 1].after.startswith(",") and "and" not in things[index - 1].after:
        if not (_LISTED.fullmatch(thing.closing) and (is_worn or not is_creature)):
            return False
    has_verb = re.match(r"(?:is|are|was|were)\b", thing.after) or any(one > thing.noun for one in thing.attributes)
    if has_verb and _FINITE.search(owner.link):
        return False  # the verb of the owner is there already
    if re.search(r"\bthe\b", close) and not re.search(r"\bthe\b", owner.link):
        return False
    if (own := _LINK.fullmatch(thing.after)) and not own["inside"] and not (is_worn and is_creature):
        return False
    if re.match(r"\w+ing\b", thing.after) and close and not is_worn:
        return False
    if is_creature:
        return is_worn or (thing.head not in LARGE and (not close or bool(re.search("hold|carr", owner.link))))
    return not (thing.head in LARGE and close and owner.head not in lists.ROOMS)


def _assemble(text: str, things: Sequence[_Thing]) -> tuple[ObjectGroup, ...]:
    """Groups of the objects that own something, cut where another's words begin."""
    found: list[ObjectGroup] = []
    described = [*(one.noun for one in things if one.attributes), (len(text), len(text))]
    for index, thing in enumerate(things):
        end = index + 1
        while end < len(things) and things[end].owner == index:
            end += 1
        owned = things[index + 1 : end]
        before = bisect_right(described, thing.noun[0], key=itemgetter(1))
        after = bisect_right(described, (owned[-1] if owned else thing).noun)
        first = max(described[before - 1][1] if before else 0, found[-1].end if found else 0)
        last = described[after][0]
        members = {one.noun for one in owned} | {place for one in (thing, *owned) for place in one.attributes}
        kept = sorted(place for place in members if first <= place[0] and place[1] <= last)
        if kept and thing.owner == index:
            has_accessories = any(one.noun in kept for one in owned)
            found.append(ObjectGroup.spanning(text, thing.noun, kept, accessories=has_accessories))
    return tuple(found)
