"""Part-of-speech tagging of a prompt: its words with one tag each, and context rules by which readers refine the tags.

One pass serves all readers (:mod:`t2ictl.prompts.grammar`, :mod:`t2ictl.prompts.noun_phrases`): TextBlob's pattern
tagger, overruled by our word lists. A reader lays its own word list over the tags and applies its rules, in the manner
of Brill's tagger ("A simple rule-based part of speech tagger", ANLP 1992); the tags are one string then, so that
regular expressions find phrases in it.

Tags, one character each:
    N noun, n placeholder or emoji, E attribute or noun, A attribute, J adjective of the tagger, O pronoun
    D determiner or number, d article or possessive, p determiner before an article ("all the"), P possessive 's
    U base form of a verb, Y one that is hardly ever a noun, Z third person or past, S third person of our lists
    M modal verb, B copula, V finite verb, G form in -ing, T past participle, K participle of color or make
    R adverb, r particle, I preposition, F "of", H "with", C conjunction, W relative pronoun or conjunction of a clause
    w "where", & and - as themselves, comma as itself, Q quotation mark or bracket, X anything else
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Container, Sequence
from functools import lru_cache
from typing import NamedTuple

from t2ictl.prompts.word_lists import LEXICON, MARKS

Range = tuple[int, int]
TAGS = "NnEAJODdpPUYZSMBVGTKRrIFHCWw&-,QX"
_PENN = {
    penn: tag
    for tag, names in {
        "N": "NN NNS NNP NNPS", "J": "JJ JJR JJS", "O": "PRP EX", "D": "DT PDT CD WP$", "d": "PRP$", "P": "POS",
        "U": "VB VBP", "Z": "VBZ VBD", "M": "MD", "G": "VBG", "T": "VBN", "R": "RB RBR RBS", "r": "RP", "I": "IN TO",
        "C": "CC", "W": "WDT WP", "w": "WRB",
    }.items()
    for penn in names.split()
}  # fmt: skip

_COMBINING = "\udc00"  # a surrogate that stands for every combining character while a text is split
_MODIFIERS = "\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff"  # of an emoji
_TYPEWRITER = str.maketrans("\u2018\u2019\u2010\u2011", "''--")
_WORD = re.compile(
    rf"(?P<mark>(?<=[^\W_])['\u2019]s(?!\w))"
    rf"|(?P<word>[^\W_](?:[^\W_]|[{_COMBINING}{_MODIFIERS[:3]}]|(?!['\u2019]s(?!\w))[-\u2010\u2011'\u2019](?=[^\W_]))*)"
    rf"|(?P<symbol>[\S\x1c-\x1f](?:\u200d.|[{_MODIFIERS}])*)",
    re.IGNORECASE,
)


class Word(NamedTuple):
    """A word or a mark of the text, with its half-open character range.

    Args:
        text: its characters.
        start: first character.
        end: one past the last.
        kind: ``"word"`` (letters, digits, emoji) or ``"mark"`` (punctuation, and the 's of a possessive).
        key: what it is compared by: composed, without case, typewriter apostrophe and hyphen.
        tag: its part of speech, a letter of the list above; empty before tagging.
    """

    text: str
    start: int
    end: int
    kind: str
    key: str
    tag: str = ""


def split_words(text: str, names: Sequence[str] = ()) -> list[Word]:
    """Split a text into words and marks.

    Hyphens and apostrophes inside a word belong to it ("T-shirt"), a possessive 's does not; accents may be
    composed or not; an emoji is one word with its modifiers.

    Args:
        text: any text.
        names: placeholder tokens of textual inversion; one with its further vectors ("<toy> <toy>_1") is one word.

    Returns:
        Words in text order, without tags; all characters but white space are in one.

    Example:
        >>> [word.text for word in split_words("the dog's T-shirt, 'new'")]
        ['the', 'dog', "'s", 'T-shirt', ',', "'", 'new', "'"]
    """
    plain = text if text.isascii() else "".join(_COMBINING if _is_combining(char) else char for char in text)
    words, cursor = [], 0
    for name in _placeholders(text, names):
        words += [_word(text, match) for match in _WORD.finditer(plain, cursor, name.start())]
        words.append(Word(text=name[0], start=name.start(), end=name.end(), kind="word", key=_key(name[0].split()[0])))
        cursor = name.end()
    return words + [_word(text, match) for match in _WORD.finditer(plain, cursor)]


def _is_combining(char: str) -> bool:
    return unicodedata.category(char)[0] == "M" and char not in _MODIFIERS


def _placeholders(text: str, names: Sequence[str]) -> list[re.Match[str]]:
    """Occurrences of any name with its numbered vectors, longest name first."""
    ordered = [re.escape(name) for name in sorted(names, key=len, reverse=True)]
    pattern = "|".join(rf"{one}(?:\s+{one}_\d+)*" for one in ordered)
    return list(re.finditer(pattern, text, re.IGNORECASE)) if ordered else []


def _word(text: str, match: re.Match[str]) -> Word:
    start, end = match.span()
    is_word = match["word"] or (match["symbol"] and unicodedata.category(text[start]) == "So")
    kind, own = "word" if is_word else "mark", text[start:end]
    return Word(text=own, start=start, end=end, kind=kind, key=_key(own))


def _key(text: str) -> str:
    if text.isascii():
        return text.casefold()
    return unicodedata.normalize("NFC", text).casefold().translate(_TYPEWRITER)


@lru_cache(maxsize=256)
def tagged_words(text: str, names: tuple[str, ...] = ()) -> tuple[Word, ...]:
    """Split a text into words and marks, each with the tag that it has whatever stands around it.

    Args:
        text: any text.
        names: placeholder tokens of textual inversion; each is a noun.

    Returns:
        Words in text order.

    Example:
        >>> "".join(word.tag for word in tagged_words("a glass and the red dog's hat"))
        'dECdANPN'
    """
    from textblob.en import parser  # its tagger is bundled: nothing is downloaded

    words, known = split_words(text, names), {name.casefold() for name in names}
    found = parser.find_tags([word.key for word in words])
    return tuple(word._replace(tag=_tag(word, penn, known)) for word, (_, penn) in zip(words, found, strict=True))


def _tag(word: Word, penn: str, names: Collection[str]) -> str:
    if word.kind == "mark":
        return MARKS.get(word.key, "X")
    if word.key in names or not word.key[0].isalnum():
        return "n"
    return LEXICON.get(word.key) or _PENN.get(penn, "X")


class Rule(NamedTuple):
    """A change of a tag where its context fits.

    Args:
        gives: the new tag; two characters change the word before, too.
        context: ``"left <tags> right"``: regular expressions, in which blanks mean nothing, of the tags before and
            after, and between them the tags that may change (``.``: any).
        word: keys of words to which it applies; None: all.
        unless: keys of words to which it does not.
        before: keys of which the word before must have one.
        after: keys of which the word after must have one.
    """

    gives: str
    context: str
    word: Container[str] | None = None
    unless: Container[str] = ()
    before: Container[str] | None = None
    after: Container[str] | None = None


class RuleBook:
    """Context rules of a reader; of those for one tag the first that fits applies.

    Example:
        >>> RuleBook(Rule("N", "d <U>", word={"rest"})).apply("dUN", ["the", "rest", "area"])
        'dNN'
    """

    def __init__(self, *rules: Rule) -> None:
        self._by_tag: dict[str, list[tuple[Rule, re.Pattern[str], re.Pattern[str]]]] = {tag: [] for tag in TAGS}
        for rule in rules:
            left, _, rest = rule.context.rpartition("<")
            changed, _, right = rest.partition(">")
            patterns = re.compile(rf"(?:{left})\Z", re.VERBOSE), re.compile(right, re.VERBOSE)
            for tag in TAGS if changed == "." else changed:
                self._by_tag[tag].append((rule, *patterns))

    def apply(self, tags: str, keys: Sequence[str], *, backwards: bool = False) -> str:
        """Change the tags of words, one after the other; each sees what became of those before it.

        Args:
            tags: one tag per word.
            keys: the keys of the words.
            backwards: from the last word to the first, so that what stands after a word is settled.

        Returns:
            The new tags.
        """
        places, keys = range(len(keys)), [*keys, ""]  # the empty key stands after the last word, and before the first
        for index in reversed(places) if backwards else places:
            if gives := self._gives(tags, keys, index):
                tags = tags[: index + 1 - len(gives)] + gives + tags[index + 1 :]
        return tags

    def _gives(self, tags: str, keys: Sequence[str], index: int) -> str:
        """What the first rule that fits gives a word, or nothing; context is sought some forty words far."""
        for rule, left, right in self._by_tag[tags[index]]:
            if (
                right.match(tags, index + 1, index + 41)
                and (rule.word is None or keys[index] in rule.word)
                and keys[index] not in rule.unless
                and (rule.before is None or keys[index - 1] in rule.before)
                and (rule.after is None or keys[index + 1] in rule.after)
                and left.search(tags, max(0, index - 40), index)
            ):
                return rule.gives
        return ""
