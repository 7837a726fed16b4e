"""Objects of a prompt with their attributes, by character: "a small red circle" is circle with small and red.

The tags of :mod:`t2ictl.prompts.tagging` are refined by our word list and by rules where prompts differ from newspaper
English (striped, square, orange, glass). Then one regular expression over the tags finds the objects. Tokens,
tokenizers and models are unknown here.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t2ictl.errors import BadSetting, MissingExtra
from t2ictl.prompts.tagging import Range, Rule, RuleBook, Word, split_words, tagged_words
from t2ictl.prompts.word_lists import COMPOUNDS, OBJECT_LEXICON, OBJECTS, PLACES, PURPOSES, RESTING, VIEWS, Ending

GRAMMAR_VERSION = "3"
"""Part of the settings of an image: raised whenever objects or noun phrases may be found differently than before."""

# Attributes that follow each other, joined by commas, "and" or nothing. Every tag has one place in it: what does not
# match is given up after one pass, however many brackets there are.
LIST = r"R*+A(?:Q*+(?:(?:,?C|,)Q*+)?R*+A)*"
# A list that leads to no noun is passed over whole: no later start in it leads to one.
_OBJECT = re.compile(
    rf"(?P<before>(?:{LIST}Q*+)?)(?P<noun>N++)(?P<after>Q*+(?:(?:W?B|K){LIST}(?![AN])|W?B?KF++[dD]?A*+N++))?"
    rf"|{LIST}|R++"
)
# A run of place words that no noun follows is where, not what: "the left side", "on top", "left of". In the tags that
# this reads "l" is a place word, "t" a determiner of one place.
_PLACE = re.compile(r"(?:(?<=[IFt])l++|(?<![dDAl])l++(?=F))(?![ANEJ])")
_ONE_PLACE = frozenset({"the", "its", "each", "both", "one"})

# What stands before decides, from the first word to the last.
_IDIOMS = RuleBook(
    Rule("NN", "(?:[dDAEJC]|^) . <N>", before=PURPOSES),  # "a cutting board"
    Rule("R", "B <D>", word={"both", "all"}),  # "were both red"
)
_VERBS = RuleBook(
    Rule("X", "[NEJ] <N>", after={"the", "its", "their", "his", "her", "each"}),  # "the hook supports the robe"
    Rule("X", "[NEJ] <N> [IR]", word=RESTING),  # "the tires rest on"
)
# A verb form right after a determiner or attribute is a noun: "a red sink".
_VERB_FORMS = RuleBook(
    Rule("N", "[dDAJ] <UMZ>"),
    Rule("N", "[ET] <UM>"),
    Rule("X", "<UMZ>"),
    Rule("X", "B <N>", word=Ending("ing")),
)
# What comes after decides, from the last word to the first.
_ATTRIBUTES = RuleBook(
    Rule("A", "<E> [ANK]"),
    Rule("N", "<E>"),
    Rule("A", "<J> (?: N | Q* (?:,?C|,)? Q* R* [AK] )"),
    Rule("N", "[dDAEJ] <J>"),  # "a metallic key": the tagger's adjective that leads to no noun is one
    Rule("A", "<J>"),
    Rule("A", "(?: [dDAEJPR] | [AEJ][,C] | ^ ) <TG> [ANK]"),  # "a sleeping cat", "smooth, rounded stones"
    Rule("A", "[IF] <T> [ANK]"),
    Rule("X", "<TG> [ANK]"),  # "a dog chasing cats"
    Rule("N", "[dDAEJP] <TG> (?![dDP])"),
    Rule("X", "<TG>"),
    Rule("A", "[dDAEJP] <K> [ANK]"),
)


@dataclass(frozen=True, kw_only=True)
class ObjectGroup:
    """An object with what belongs to it; every range is half open and counts characters of the prompt.

    Args:
        text: from the first to the last word that belongs to it, without the determiner.
        start: first character.
        end: one past the last.
        noun: the head noun with its compound parts ("tennis ball").
        members: words that describe it, before it or after a copula ("the dog is brown"), and its accessories with the
            words that describe those, in text order.
        accessories: whether a member is something that it wears, carries, holds, has or is "with".
    """

    text: str
    start: int
    end: int
    noun: Range
    members: tuple[Range, ...]
    accessories: bool = False

    @classmethod
    def spanning(cls, text: str, noun: Range, members: Sequence[Range], *, accessories: bool = False) -> ObjectGroup:
        """Make the group of a noun and its members in a text."""
        start, end = min([noun, *members])[0], max(end for _, end in [noun, *members])
        own = tuple(sorted(members))
        return cls(text=text[start:end], start=start, end=end, noun=noun, members=own, accessories=accessories)


def group(text: str, parser: str = "grammar", names: Sequence[str] = ()) -> tuple[ObjectGroup, ...]:
    """Group a prompt into objects with their attributes.

    Args:
        text: the prompt.
        parser: ``"grammar"`` (offline, the default) or ``"spacy"`` (needs the extra and its English model).
        names: placeholder tokens of textual inversion; each is read as a noun.

    Returns:
        Objects in text order, those without attributes too; their members are attributes only.

    Raises:
        BadSetting: there is no such parser.
        MissingExtra: spaCy or its model is not installed; there is no silent fallback.

    Example:
        >>> [(one.text, len(one.members)) for one in group("a red apple and a small green bird")]
        [('red apple', 1), ('small green bird', 2)]
    """
    return _PARSERS[known_parser(parser)](text, names)


def parser_version(parser: str) -> str:
    """Name the parser's version, for the settings of an image.

    Args:
        parser: as for :func:`group`.

    Returns:
        Versions of everything that may change the grouping.

    Raises:
        BadSetting: there is no such parser.
        MissingExtra: the parser is not installed.
    """
    if known_parser(parser) == "grammar":
        return f"{GRAMMAR_VERSION}+textblob-{importlib.metadata.version('textblob')}"
    meta = load_spacy().meta
    return f"spacy-{importlib.metadata.version('spacy')}+{meta['name']}-{meta['version']}"


def known_parser(parser: str) -> str:
    """Return the name of a parser, or raise :class:`BadSetting` with the choices."""
    if parser not in _PARSERS:
        raise BadSetting(f"There is no parser '{parser}'.", f"Use one of: {', '.join(_PARSERS)}.")
    return parser


def _grammar(text: str, names: Sequence[str]) -> tuple[ObjectGroup, ...]:
    """Group by our grammar."""
    words = tagged_words(text, tuple(names))
    tags = object_tags(words)
    found = []
    for match in _OBJECT.finditer(tags):
        if match["noun"] is None:
            continue
        head, following = words[match.end("noun") - 1].key, tags[match.end("noun") : match.end("noun") + 1]
        if not (head in VIEWS and following == "F") and not _is_style(words, match.start()):
            first, last = match.span("noun")
            places = [*range(*match.span("before")), *range(last, match.end())]
            attributes = [(words[i].start, words[i].end) for i in places if tags[i] in "AN"]
            found.append(ObjectGroup.spanning(text, (words[first].start, words[last - 1].end), attributes))
    return tuple(found)


def _is_style(words: Sequence[Word], index: int) -> bool:
    """Whether "style of" leads to a word, with or without an article."""
    before = (word.key for word in reversed(words[max(0, index - 8) : index]) if word.key not in ("a", "an", "the"))
    return [next(before, ""), next(before, "")] == ["of", "style"]


def object_tags(words: Sequence[Word]) -> str:
    """Refine the tags of words by what stands around them, so that every object is a run of N.

    Args:
        words: the words of a prompt with their own tags.

    Returns:
        One tag per word.

    Example:
        >>> object_tags(tagged_words("a glass bowl, a glass and the left side"))
        'dAN,dNCdXX'
    """
    keys = [word.key for word in words]
    tags = "".join(map(_own_tag, words))
    for index, pair in enumerate(zip(keys, keys[1:], strict=False)):
        if "-".join(pair) in COMPOUNDS:
            tags = tags[:index] + "NN" + tags[index + 2 :]
    tags = _without_places(_IDIOMS.apply(tags, keys), keys)
    return _ATTRIBUTES.apply(_VERB_FORMS.apply(_VERBS.apply(tags, keys), keys), keys, backwards=True)


def _own_tag(word: Word) -> str:
    if word.kind == "mark":
        return word.tag
    if word.tag == "n":
        return "N"
    is_plural = word.key not in OBJECT_LEXICON and re.sub("e?s$", "", word.key) in OBJECTS
    return "N" if is_plural else OBJECT_LEXICON.get(word.key, word.tag)


def _without_places(tags: str, keys: Sequence[str]) -> str:
    """Tags with X for places: what a run of place words names is no object."""
    marked = ("l" if key in PLACES else "t" if key in _ONE_PLACE else tag for key, tag in zip(keys, tags, strict=True))
    for match in _PLACE.finditer("".join(marked)):
        tags = tags[: match.start()] + "X" * len(match[0]) + tags[match.end() :]
    return tags


def load_spacy() -> Any:
    """SpaCy with its English model; a missing one raises :class:`MissingExtra`."""
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise MissingExtra(
            f"The parser 'spacy' is not installed ({error}).",
            'Run: pip install "t2ictl[spacy]" && python -m spacy download en_core_web_sm.',
        ) from error


def read_with_spacy(text: str, names: Sequence[str]) -> Any:
    """Parse a text by spaCy, which sees a made-up noun of the same length in place of a placeholder."""
    shown, known = text, {name.casefold() for name in names}
    for word in split_words(text, names) if names else ():
        if word.key in known:
            shown = shown[: word.start] + "q" * (word.end - word.start) + shown[word.end :]
    return load_spacy()(shown)


def _spacy(text: str, names: Sequence[str]) -> tuple[ObjectGroup, ...]:
    """Group by spaCy's dependencies."""
    found = []
    for chunk in read_with_spacy(text, names).noun_chunks:
        head = chunk.root
        if head.pos_ not in ("NOUN", "PROPN") or (head.lemma_ in VIEWS and any(c.text == "of" for c in head.rights)):
            continue
        parts = [token for token in head.lefts if token.dep_ == "compound"]
        noun = (min([head, *parts], key=lambda token: int(token.idx)).idx, head.idx + len(head.text))
        described = [token for token in head.children if token.dep_ in ("amod", "nmod", "acl") and token.pos_ != "VERB"]
        if head.dep_ in ("nsubj", "nsubjpass") and head.head.lemma_ == "be":
            described += [token for token in head.head.children if token.dep_ == "acomp"]
        described = [one for token in described for one in (token, *token.conjuncts)]
        found.append(
            ObjectGroup.spanning(text, noun, [(token.idx, token.idx + len(token.text)) for token in described])
        )
    return tuple(found)


_PARSERS: dict[str, Callable[[str, Sequence[str]], tuple[ObjectGroup, ...]]] = {"grammar": _grammar, "spacy": _spacy}
