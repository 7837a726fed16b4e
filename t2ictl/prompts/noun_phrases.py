"""Noun phrases of a prompt, by character: "green pears" in "a bowl of green pears", and the wider ones around them.

Three steps. The tags of :mod:`t2ictl.prompts.tagging` are refined by our word list and by rules. One regular expression
over the tags finds base phrases. A recursive reader joins them at "of", "with" and "and".
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from t2ictl.prompts import word_lists as lists
from t2ictl.prompts.grammar import known_parser, read_with_spacy
from t2ictl.prompts.tagging import Range, Rule, RuleBook, Word, split_words, tagged_words
from t2ictl.prompts.word_lists import CREATURES, DEEDS, GERUNDS, LARGE, QUANTITIES, ROOMS, SCENERY, WORN

_THIRD_PERSON, _PLURAL = lists.Ending("[^s]s"), lists.Ending("[^sui]s")
_COARSE = str.maketrans("JZMrwGX", "AUVIWNN")  # what the tagger tells apart and this reader does not
_NOUN = "(?: R*[NEATUY] | G[NE] | (?:,|,?C)[AET]+[NE] )"  # at its start stands a noun with what describes it
_OPENED = "[dDpP]Q*+ (?:N(?=A))? [RAEC,Q]*"  # from a determiner to where its noun may stand
_LISTED_COLOR = "A (?:C?A)*"

_RULES = RuleBook(
    Rule("N", "d <.>", word={"can", "set"}),  # "a can"
    Rule("N", "[NEA] <.> (?:[FXC,]|$)", word={"can", "set"}),  # "a television set"
    # In -ing: a noun, or (G) what somebody does.
    Rule("GG", f"[NE] <G> (?!{_NOUN})", word=DEEDS, before={"snow", "surf"}),  # "a man snow boarding"
    Rule("GN", "[NE] <G> (?![NE])", word=DEEDS, before={"snow", "surf"}),
    Rule("G", "[NE] <G>", word=DEEDS, before=CREATURES),
    Rule("G", f"[NE] <G> (?!{_NOUN})", word=DEEDS),
    Rule("N", f"{_OPENED} <G>", word=DEEDS),
    Rule("G", "[^NE] <G> (?:I|$)", word=DEEDS),
    Rule("G", "[NE] <G> [dO]", word=GERUNDS),  # "a woman serving the cake"
    Rule("N", "<G>", word=GERUNDS),  # "a dining table"
    # A participle describes the noun after it (A), or opens a clause (G).
    Rule("G", "<GT> [dO]"),  # "riding a wave"
    Rule("G", "<GT>", word=lists.TAKING),
    Rule("G", "[VG] <G>"),
    Rule("A", "E <T> N"),  # "an orange covered plate"
    Rule("AA", "[NE] <T> [ATE]*(?:C[AE]+)?[NE]", word=lists.COMPOUNDING),  # "a snow covered roof"
    Rule("AA", "N <T> N", word={"painted"}),
    Rule("G", "[NE] <GT>"),  # "a bench painted blue"
    Rule("G", f"(?:^|[IC]) {_LISTED_COLOR} <G>", unless=lists.STATES),  # "a man in black riding"
    Rule("A", f"<T> {_NOUN}"),  # "glazed tiles"
    Rule("A", f"<G> {_NOUN}", word=lists.STATES),  # "sleeping cats"
    Rule("A", f"{_OPENED} <G> {_NOUN}"),  # "a rolling stone"
    Rule("N", f"d <G> (?!{_NOUN})"),
    Rule("G", "A <G>", before=lists.ATTRIBUTES),
    Rule("N", f"{_OPENED} (?<=A) <G>"),  # "a public gathering"
    Rule("G", "<GT>"),
    # A finite verb, or a noun of the same form: "a man stands", "a fruit stand". The first: "a girl knits a scarf".
    Rule("V", "[NE] <NU> [dDOIA]", word=_PLURAL, unless=WORN, before=CREATURES - lists.PLURALS),
    Rule("N", "[dP] <UYS>"),  # "the rest"
    Rule("V", f"I {_LISTED_COLOR} <UYS> (?:[IdO]|$)"),  # "a man in white looks up"
    Rule("N", "[dDP][RAECQ,]* (?<=A) <YS> [NFE]"),
    Rule("V", "A <YS>"),
    Rule("N", "[AE] <U>"),
    Rule("V", "[WO] <UY>"),  # "that wear", "they sit"
    Rule("V", "<UY>", before=lists.MODALS),  # "to sit"
    Rule("V", "<S>"),  # "stands", if nothing above made it a noun
    Rule("V", "(?:[RX,]|^) <UY> [dID]"),
    Rule("V", "C <Y> [dID]"),
    Rule("V", "C <U> [dID]", word=_THIRD_PERSON, unless=lists.COUNTED),
    Rule("N", "(?:[^NE]|^) <UY>"),
    Rule("V", "<UY> [dO]"),  # "men ride the horses"
    Rule("V", "<U> D", word=_THIRD_PERSON),
    Rule("N", "<U>", word=lists.COUNTED),  # "stone steps"
    Rule("V", "<U>", word=_THIRD_PERSON),
    Rule("V", "<UY>", before=lists.PLURALS),  # "people rest"
    Rule("V", "<UY>", before=_PLURAL),
    Rule("V", "C[dA]*N <UY>"),  # "a cat and a dog rest"
    Rule("V", "<Y> I"),
    Rule("V", "<U> I", before=CREATURES),  # "a deer stand in"
    Rule("V", "<Y>", word={"play", "roam"}),
    Rule("N", "<UY>"),
    # Words that are not what they are elsewhere.
    Rule("d", "(?:[^NE]|^) <.> [AENTG]", word={"that"}),  # "wears that coat"
    Rule("N", "[dD][RAEC,]*[AE] <.>", word={"one", "ones"}),  # "a red one"
    Rule("A", f"d <IXR> {_NOUN}", unless={"up", "down"}),  # "a nearby tree"
    Rule("N", "d <I>", unless={"up", "down"}),  # "the inside"
    Rule("R", f"[dR] <p> {_NOUN}"),  # "an all white kitchen"
    Rule("N", "[dA] <A> (?:[XIVSHFWO]|$)", unless=lists.ATTRIBUTES),  # "a red liquid"
    Rule("A", "AC <.>", word={"snow"}),  # its color
    Rule("A", "(?:d|^) <.> CA", word={"snow"}),
    Rule("V", "<P> (?:[dDVSGRIp]|A(?![ANEC]))"),  # "it's a"
)

# One base phrase. Attributes may be joined, a label in quotes may stand before the noun, a possessor belongs to it, and
# so do bare nouns joined to it. Tag E fits both an attribute and a noun. Bounded, and an attribute once read is not
# read in another way, so that no prompt takes long.
_ATTRIBUTE = r"(?:R{0,3}[AE]|Q[ANEdDRFIpG]{1,6}Q(?=Q?[ANE]))"
_LIST = rf"{_ATTRIBUTE}(?>(?:Q?(?:,?C|,)Q?|Q{{0,2}}){_ATTRIBUTE}){{0,7}}Q?"
_CORE = rf"p?d?(?:[Dp]Q?){{0,4}}Q?(?:N(?=A))?(?:{_LIST})?[NE]++"
_BARE = r"(?:N|E(?!,?C[AE]))(?![NEFA])"
_PHRASE = re.compile(
    rf"(?P<base>(?:(?:O|{_CORE})P){{0,3}}{_CORE})(?:(?:,{_BARE})*,?C{_BARE}|(?:,{_BARE})+(?=,?C|,[AN]))?"
    r"|(?P<headless>p?d[DR]*+[AE](?:R*+[AE])*(?:C(?:R*+[AE])+)*)(?![NE])"  # "the red"
    r"|(?P<number>(?<![pD])[pD]++(?=F))|(?<=F)(?P<color>A(?:,?CA)*+)(?![NE])"  # "all of", "of white"
)


# Of the tags of phrases (N) and of what stands between them: a joint in a list, one of a part, and where a thing is.
_JOINT, _PART_JOINT, _PLACED = re.compile(",?CN|,N"), re.compile("CN"), re.compile("I+[ON]")


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
    words = [word for word in split_words(text, names) if word.kind == "word"]
    starts, ends = [word.start for word in words], [word.end for word in words]
    found = set[Range]()
    for start, end in _PARSERS[known_parser(parser)](text, names):
        first, last = bisect_left(starts, start), bisect_right(ends, end) - 1
        if first < last:
            found.add((starts[first], ends[last]))
    ordered = sorted(_levels(found).items(), key=lambda one: (one[0][0], -one[0][1]))
    return tuple(NounPhrase(text=text[a:b], start=a, end=b, level=level) for (a, b), level in ordered)


def _levels(found: set[Range]) -> dict[Range, int]:
    """The level of each range; of two that cross, the longer one is left out."""
    levels: dict[Range, int] = {}
    widest: list[Range] = []  # those that lie in no other so far, in text order
    for start, end in sorted(found, key=lambda one: (one[1] - one[0], one)):
        first = bisect_right(widest, start, key=itemgetter(1))
        last = bisect_left(widest, end, key=itemgetter(0))
        inside = widest[first:last]
        if not inside or (start <= inside[0][0] and inside[-1][1] <= end):
            levels[start, end] = 1 + max((levels[one] for one in inside), default=-1)
            widest[first:last] = [(start, end)]
    return levels


class _Chunk(NamedTuple):
    """A phrase (tag N, and the key of its head noun), or a word outside of all phrases."""

    start: int
    end: int
    key: str
    tag: str
    has_determiner: bool
    is_base_phrase: bool


def _grammar(text: str, names: Sequence[str]) -> set[Range]:
    """Base phrases by one expression over the tags, wider ones by the reader."""
    words, tags = _joined_words(text, tagged_words(text, tuple(names)))
    chunks = list(_chunks(words, _RULES.apply(tags, [word.key for word in words])))
    return {(chunk.start, chunk.end) for chunk in chunks if chunk.is_base_phrase} | _Reader(chunks).found


def _own_tag(word: Word) -> str:
    """Tag of a word by our list, else by its ending or by the tagger; neighbors are not asked yet."""
    key = word.key
    if word.kind == "mark" or word.tag == "n":
        return {"&": "C", "n": "N"}.get(word.tag, word.tag)
    if key in GERUNDS or (key.endswith("ing") and len(key) > 4 and key not in lists.PHRASE_LEXICON):
        return "G"
    if key in lists.PHRASE_LEXICON and key not in lists.COMPOUNDING:
        return lists.PHRASE_LEXICON[key]
    if key.endswith("n't"):
        return "V"
    if key.endswith("ed") or key in lists.COMPOUNDING:
        return "T"
    tag = word.tag.translate(_COARSE)
    return "Y" if tag == "U" and key in lists.STRONG else tag


def _joined_words(text: str, found: Sequence[Word]) -> tuple[list[Word], str]:
    """Words with their tags, after words that mean something else together: "a tied - back chair", "men 's"."""
    edge = Word(text="", start=0, end=0, kind="mark", key="")
    words, tags = [edge, *found, edge], ["", *map(_own_tag, found), ""]
    opening = next((index for index, word in enumerate(words) if word.key == "'"), len(words))
    for index in reversed(range(1, len(words) - 1)):
        (before, word, after), (left, tag, right) = words[index - 1 : index + 2], tags[index - 1 : index + 2]
        if tag == "-" and left not in "XQVSdW," and right not in "XQVSdHFW,":
            words[index - 1 : index + 2] = [_span(text, before, after, f"{before.key}-{after.key}")]
            tags[index - 1 : index + 2] = "N" if right in "NE" else "A"
        elif word.key == "'" and after.key == "s" and after.start == word.end:
            words[index : index + 2] = [_span(text, word, after, "'s")]
            tags[index : index + 2] = "P"
        elif word.key == "'" and before.key.endswith("s") and right in ("N", "E", "A"):
            tags[index] = "Q" if opening < index else "P"
        elif word.key in ("to", "by") and before.key == after.key:  # "back to back"
            tags[index - 1 : index + 2] = "AAA"
        elif pair := lists.PAIRS.get(f"{word.key} {after.key}"):
            tags[index : index + 2] = pair * 2
            words[index + 1] = _span(text, after, after, f"{word.key}-{after.key}")
        elif left == "I" and word.key in ("top", "front", "back", "side") and right not in ("N", "E", "A"):
            tags[index] = "I"  # "on top of"
    return words[1:-1], "".join(tags[1:-1])


def _span(text: str, first: Word, last: Word, key: str) -> Word:
    """One word from one to another."""
    return Word(text=text[first.start : last.end], start=first.start, end=last.end, kind="word", key=key)


def _chunks(words: Sequence[Word], tags: str) -> Iterator[_Chunk]:
    """Phrases and bare nouns as one chunk each, with what stands between them."""
    end = 0
    while end < len(words):
        start, match = end, _PHRASE.match(tags, end)
        if match and match["headless"] and _shares_noun(words[start : match.end()]):
            match = None
        end = match.end() if match else start + 1
        opening = next((tag for tag in tags[start:end] if tag not in "QRp"), tags[start])
        head = words[(match.end("base") if match and match["base"] else end) - 1].key
        is_counting = tags.startswith("F", end) and head in QUANTITIES
        is_phrase = match and not (match["number"] or match["color"] or is_counting)
        yield _Chunk(
            start=words[start].start,
            end=words[end - 1].end,
            key=head,
            tag="N" if match else opening,
            has_determiner=opening in "dD",
            is_base_phrase=bool(is_phrase) and end > start + 1,
        )


def _shares_noun(words: Sequence[Word]) -> bool:
    """ "a red" of "a red and a blue car"; but "the red" is a phrase of its own."""
    return words[0].key != "the" and words[-1].key in lists.ATTRIBUTES


class _Reader:
    """Joins the phrases of a prompt to wider ones, from left to right."""

    def __init__(self, chunks: Sequence[_Chunk]) -> None:
        self.chunks, self.tags = chunks, "".join(chunk.tag for chunk in chunks)
        self.found: set[Range] = set()
        self._learn()
        self.first = index = 0
        while index < len(chunks):
            self.first = index
            index = self._list(index) + 1 if self.tags[index] == "N" else index + 1

    def _learn(self) -> None:
        """What is asked of each place, read once: the last verb before it, and whether "and" closes its list."""
        tags, verb, border = self.tags, -1, -1
        self.has_verb = list[bool]()
        for index, tag in enumerate(tags):
            self.has_verb.append(verb > border)
            verb, border = index if tag == "V" else verb, index if tag in "XW" else border
        self.closes = [False] * (len(tags) + 2)
        for index in reversed(range(len(tags))):
            goes_on = tags[index + 1 : index + 2] in tuple("FH,") and tags.startswith("N", index + 2)
            self.closes[index] = self.closes[index + 2] if goes_on else tags.startswith(("C", ",C"), index + 1)
        self.is_all_phrases = bool(re.fullmatch("[N,FHC]+X?", tags))
        creatures = (index for index, chunk in enumerate(self.chunks) if chunk.tag == "N" and chunk.key in CREATURES)
        self.first_creature = next(creatures, len(tags))

    def _whole(self, index: int) -> int:
        """Last chunk of a phrase with its "of" and with what it has."""
        end = index
        if index > self.first + 60:  # no prompt nests so deep
            return end
        if self.tags.startswith("FN", end + 1):
            end = self._list(end + 2, part=True)
            self._add(index, end)
        if self.tags.startswith("HN", end + 1) and self._has(end, end + 2):
            end = self._list(end + 2, owner=self.chunks[index])
            self._add(index, end)
        return end

    def _add(self, first: int, last: int) -> None:
        self.found.add((self.chunks[first].start, self.chunks[last].end))

    def _list(self, index: int, owner: _Chunk | None = None, part: bool = False) -> int:
        """Last chunk of phrases joined by "and", "or" and commas, from this one on."""
        end = first_end = self._whole(index)
        while joint := (_PART_JOINT if part else _JOINT).match(self.tags, end + 1):
            following = joint.end() - 1
            if part and self.chunks[following].has_determiner != self.chunks[index].has_determiner:
                break  # "a cup of tea and a pan"
            if joint[0] == ",N" and not self._comma_joins(index, following):
                break
            if not self._joins(index, following, owner):
                break
            end = self._whole(following)
        if end > first_end:
            self._add(index, end)
        return end

    def _comma_joins(self, index: int, following: int) -> bool:
        """A comma joins in a list that "and" closes, or where nothing but phrases is said; not "On a bed, a cat"."""
        before = self.tags[max(index - 2, 0) : index]
        is_at_place = before == "XI" or (before == "I" and index == 1)
        return (self.closes[following] or self.is_all_phrases) and not is_at_place

    def _joins(self, index: int, following: int, owner: _Chunk | None) -> bool:
        """Whether the phrase after "and" stands beside this one rather than beside an earlier one."""
        left, right, after = self.chunks[index], self.chunks[following], self.tags[following + 1 : following + 2]
        if self.has_verb[index] and after == "V":
            return False  # "a man rides a horse and a dog runs"
        if self.tags[max(index - 1, 0) : index] in tuple("IGVH") and right.has_determiner and right.key in CREATURES:
            if left.key not in CREATURES and self._people_before(index):
                return False  # "a man in a hat and a woman"
        if owner is None or owner.key in ROOMS or owner.key in SCENERY or not right.has_determiner:
            return True
        is_like_owner = after == "H" and left.key not in WORN  # "a table with a lamp and a chair with a cushion"
        return not (is_like_owner or (right.key in LARGE and left.key not in LARGE) or right.key == owner.key)

    def _people_before(self, index: int) -> bool:
        return self.first_creature < index

    def _has(self, left: int, right: int) -> bool:
        """Whether "with" belongs to the noun right before it."""
        thing, had, link = self.chunks[left], self.chunks[right], _PLACED.match(self.tags, right + 1)
        place = self.chunks[link.end() - 1] if link else had
        if link and (place.key in lists.APART or (place.tag == "O" and self.chunks[right + 1].key in lists.APART)):
            return False  # "with a tree behind it"
        if not self._people_before(left) or thing.key in CREATURES or self.tags[left - 1] not in "IGV":
            return True
        if had.key in CREATURES and thing.key not in SCENERY:
            return False  # somebody's company
        is_used = any(had.key in words for words in (WORN, LARGE, lists.TOOLS))
        return not is_used and not (link and place.key in lists.BODY)


def _spacy(text: str, names: Sequence[str]) -> set[Range]:
    """Read spaCy's noun chunks and dependencies."""
    found = set[Range]()
    starts = {chunk.root: chunk.start_char for chunk in read_with_spacy(text, names).noun_chunks}
    for noun in [noun for noun in starts if noun.dep_ != "conj" or noun.head not in starts]:
        _reach(noun, starts, found)
    return found


def _reach(noun: Any, starts: dict[Any, int], found: set[Range], is_joined: bool = False) -> int:
    """Add the phrases of a noun, and return the end of the widest; one that is joined adds no list of its own."""
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
