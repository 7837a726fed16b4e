"""Objects of a prompt with their attributes, by character: "a small red circle" is circle with small and red.

Two steps. A tagger gives every word a class; our word lists overrule it where image prompts differ from
newspaper English (striped, square, orange, glass). Then one regular expression over the classes, written
as one letter per word, finds the objects. Tokens, tokenizers and models are unknown here.
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from t2ictl.errors import BadSetting, MissingExtra

GRAMMAR_VERSION = "2"
"""Part of the settings of an image: raised whenever objects or noun phrases may be found differently than before."""

Range = tuple[int, int]

# Word lists. A word of COLORS or TEXTURES is an attribute and never an object.
COLORS = frozenset(
    """red yellow green cyan blue purple pink brown black white gray grey beige teal maroon turquoise magenta crimson
    scarlet navy azure ivory tan khaki multicolored multicoloured colorful colourful golden reddish blueish bluish
    greenish yellowish purplish brownish""".split()
)
TEXTURES = frozenset(
    """striped dotted spotted checkered chequered checked plaid plain wooden woolen metallic fluffy furry hairy fuzzy
    feathery spiky smooth rough shiny glossy matte transparent translucent frosted patterned floral polka-dot
    small medium large big tiny huge little tall short long wide narrow thick thin gigantic
    round circular oblong rectangular triangular cubic spherical conical cylindrical pyramidal hexagonal pentagonal
    star-shaped heart-shaped diamond-shaped curved flat hollow filled solid sharp pointed
    old young new ancient modern vintage rusty dirty clean wet dry frozen sleepy cute beautiful
    asleep awake alone open closed broken bright dark pale vivid deep left right upper lower front back""".split()
)
# Attribute before a noun or another attribute ("a glass bowl", "a square table"), object otherwise ("a glass").
EITHER = frozenset(
    """orange gold silver bronze copper rose lime olive peach coral salmon cream chocolate mint lemon lavender violet
    indigo metal glass leather plastic rubber fabric wood stone brick marble paper cotton wool silk velvet denim steel
    iron concrete ceramic clay crystal porcelain cardboard straw bamboo lace tin fur foam square oval
    diamond teardrop crescent light baby giant miniature antique""".split()
)
OBJECTS = frozenset(
    """circle triangle star cross ring heart hexagon pentagon cube sphere cone pyramid cylinder ellipse rectangle
    bear bird cat dog elephant frog horse lion monkey mouse rabbit turtle apple backpack balloon bench bow bowl car
    chair clock crown glasses suitcase ball painting drawing building top remote handle handles key""".split()
)
# "a photo of a cat" shows a cat; "a pair of shoes" shows shoes.
VIEWS = frozenset(
    """photo photos photograph picture pictures image images painting drawing sketch illustration rendering render
    portrait view close-up closeup shot snapshot depiction artwork art print poster scene pair pairs group bunch set
    couple row lot lots number kind type sort variety collection series assortment pack style""".split()
)
PLACES = frozenset(
    """left right top bottom front back side sides middle center centre edge corner foreground background distance
    upper lower hand end inside outside""".split()
)
QUALITY = frozenset(
    """quality resolution masterpiece detail details hdr uhd hd bokeh 4k 8k lighting something someone anything
    everything""".split()
)
COUNTS = frozenset("many several few some various other another same such".split())
COMPOUNDS = frozenset(
    """hot-dog hot-dogs potted-plant potted-plants polar-bear polar-bears ice-cream soda-can paper-clip paper-clips
    paper-towel light-bulb light-fixture light-active_pass cream-cheese watering-can""".split()
)
# Before a noun what it is for, not what it does: "a cutting board", but "a sleeping cat".
PURPOSES = frozenset("living cutting serving measuring mixing frying hiking magnifying sewing swimming".split())
# Verbs that the tagger takes for nouns: "the clouds drift over the lake".
RESTING = frozenset(
    "rest drift float gleam shine glow sparkle rattle clink simmer slide creak hang lean lie sit".split()
)
HAVING = frozenset("has have had wears wearing holds holding carries carrying".split())
NEAR = frozenset(
    "next near adjacent above below beneath underneath under over behind beside between inside outside".split()
)
DYED = frozenset("painted colored coloured dyed made built".split())
COPULAS = frozenset("is are was were be being looks look appears appear".split())

# One letter per word: D determiner or number, A attribute, N noun, R adverb, C and/or, W that/which, B copula,
# K painted/made, F of/from, I other preposition, P possessive, Q quote or bracket, comma as itself, X anything else.
# Until resolved: E attribute or noun, J adjective of the tagger, V and G participles, U and Z verb forms.
_PENN = {
    tag: letter
    for letter, tags in {
        "D": "DT PDT CD PRP$ WP$", "J": "JJ JJR JJS", "N": "NN NNS NNP NNPS", "G": "VBG", "V": "VBN", "U": "VB VBP MD",
        "Z": "VBZ VBD", "R": "RB RBR RBS", "C": "CC", "W": "WDT WP", "I": "IN TO", "P": "POS",
    }.items()
    for tag in tags.split()
}  # fmt: skip
LIST = r"R*A(?:Q*(?:,?C|,)?Q*R*A)*"
_OBJECT = re.compile(rf"(?P<before>(?:{LIST}Q*)?)(?P<noun>N+)(?P<after>Q*(?:(?:W?B|K){LIST}(?![AN])|W?B?KF+D?A*N+))?")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A word or a mark of the text, with its half-open character range.

    Args:
        text: its characters.
        start: first character.
        end: one past the last.
        kind: ``"word"`` (letters, digits, emoji) or ``"mark"`` (punctuation, and the 's of a possessive).
        key: what it is compared by: composed, without case, typewriter apostrophe and hyphen.
    """

    text: str
    start: int
    end: int
    kind: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """An object with its attributes; every range is half open and counts characters of the prompt.

    Args:
        text: from the first to the last character that belongs to it, without the determiner.
        start: first character.
        end: one past the last.
        noun: the head noun with its compound parts ("tennis ball").
        attributes: words that describe it, before it or after a copula ("the dog is brown").
    """

    text: str
    start: int
    end: int
    noun: Range
    attributes: tuple[Range, ...]


def group(text: str, parser: str = "grammar", names: Sequence[str] = ()) -> tuple[Group, ...]:
    """Group a prompt into objects with their attributes.

    Args:
        text: the prompt.
        parser: ``"grammar"`` (offline, the default) or ``"spacy"`` (needs the extra and its English model).
        names: placeholder tokens of textual inversion; each is read as a noun.

    Returns:
        Groups in text order; objects without attributes too.

    Raises:
        BadSetting: there is no such parser.
        MissingExtra: spaCy or its model is not installed; there is no silent fallback.

    Example:
        >>> [(one.text, len(one.attributes)) for one in group("a red apple and a small green bird")]
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


def pieces(text: str, names: Sequence[str] = ()) -> tuple[Piece, ...]:
    """Split a text into words and marks.

    Hyphens and apostrophes inside a word belong to it ("T-shirt"), a possessive 's does not; accents may be
    composed or not; an emoji is one word with its modifiers.

    Args:
        text: any text.
        names: placeholder tokens of textual inversion; one with its further vectors ("<toy> <toy>_1") is one word.

    Returns:
        Pieces in text order; all characters but white space are in one.

    Example:
        >>> [piece.text for piece in pieces("the dog's T-shirt, 'new'")]
        ['the', 'dog', "'s", 'T-shirt', ',', "'", 'new', "'"]
    """
    found, cursor = [], 0
    placeholder = _placeholder(names)
    while cursor < len(text):
        named = placeholder.match(text, cursor) if placeholder else None
        if named:
            found.append(_piece(text, cursor, named.end(), "word", named[0].split()[0]))
            cursor = named.end()
        elif text[cursor].isspace() and not "\x1c" <= text[cursor] <= "\x1f":
            cursor += 1
        else:
            end, kind = _piece_end(text, cursor)
            if placeholder and (inner := placeholder.search(text, cursor + 1, end)):
                end = inner.start()
            found.append(_piece(text, cursor, end, kind, text[cursor:end]))
            cursor = end
    return tuple(found)


def _placeholder(names: Sequence[str]) -> re.Pattern[str] | None:
    """Match any name with its numbered vectors, longest name first."""
    ordered = [re.escape(name) for name in sorted(names, key=len, reverse=True)]
    return re.compile("|".join(rf"{one}(?:\s+{one}_\d+)*" for one in ordered), re.IGNORECASE) if ordered else None


def _piece(text: str, start: int, end: int, kind: str, name: str) -> Piece:
    plain = unicodedata.normalize("NFC", name).casefold()
    key = re.sub("[\u2018\u2019]", "'", re.sub("[\u2010\u2011]", "-", plain))
    return Piece(text=text[start:end], start=start, end=end, kind=kind, key=key)


def _piece_end(text: str, start: int) -> tuple[int, str]:
    """End and kind of the piece that starts here."""
    kinds = unicodedata.category(text[start])
    if kinds[0] not in "LN":
        clitic = re.compile(r"['\u2019]s(?!\w)", re.IGNORECASE).match(text, start)
        if clitic and start and text[start - 1].isalnum():
            return clitic.end(), "mark"
        joined = re.compile("(?:\u200d.|[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff])*").match(text, start + 1)
        return joined.end() if joined else start + 1, "word" if kinds == "So" else "mark"
    end = start + 1
    while end < len(text):
        rest = text[end : end + 2]
        is_joint = rest[0] in "-\u2010\u2011'\u2019" and rest[1:].isalnum()
        if is_joint and re.match(r"['\u2019]s(?!\w)", text[end : end + 3], re.IGNORECASE):
            break
        if not is_joint and unicodedata.category(rest[0])[0] not in "LNM":
            break
        end += 1
    return end, "word"


def _grammar(text: str, names: Sequence[str]) -> tuple[Group, ...]:
    """Group with TextBlob's pattern tagger and our grammar."""
    words = pieces(text, names)
    letters = "".join(word_classes(words))
    found = []
    for match in _OBJECT.finditer(letters):
        head, following = words[match.end("noun") - 1].key, letters[match.end("noun") : match.end("noun") + 1]
        opening = [word.key for word in words[: match.start()] if word.key not in ("a", "an", "the")][-2:]
        if not (head in VIEWS and following == "F") and opening != ["style", "of"]:
            first, last = match.span("noun")
            places = [*range(*match.span("before")), *range(last, match.end())]
            attributes = [(words[i].start, words[i].end) for i in places if letters[i] in "AN"]
            found.append(_group(text, (words[first].start, words[last - 1].end), attributes))
    return tuple(found)


def _group(text: str, noun: Range, attributes: Sequence[Range]) -> Group:
    places = [noun, *attributes]
    start, end = min(places)[0], max(places, key=lambda place: place[1])[1]
    return Group(text=text[start:end], start=start, end=end, noun=noun, attributes=tuple(sorted(attributes)))


def word_classes(words: Sequence[Piece]) -> list[str]:
    """One class letter per piece; what the class alone leaves open is resolved by its neighbors."""
    letters = [_letter(word, tag) for word, tag in zip(words, penn_tags([word.key for word in words]), strict=True)]
    for index in range(1, len(words)):
        if f"{words[index - 1].key}-{words[index].key}" in COMPOUNDS:
            letters[index - 1 : index + 1] = "NN"
        if words[index - 1].key in PURPOSES and letters[index] == "N" and "".join(letters[: index - 1])[-1:] in "DAEJC":
            letters[index - 1] = "N"
        if letters[index - 1] == "B" and letters[index] == "D":  # "were both red"
            letters[index] = "R" if words[index].key in ("both", "all") else "D"
    _mark_places(words, letters)
    for index in range(1, len(letters) - 1):  # "the hook supports the robe", "the tires rest on"
        is_closed = words[index + 1].key in ("the", "its", "their", "his", "her", "each")
        if letters[index - 1] in "NEJ" and letters[index] == "N":
            if is_closed or (re.sub("s$", "", words[index].key) in RESTING and letters[index + 1] in "IR"):
                letters[index] = "X"
    for index in range(1, len(letters)):  # a verb form right after a determiner or attribute is a noun: "a red sink"
        before = letters[index - 1]
        if letters[index] in "UZ":
            letters[index] = "N" if before in "DAJ" or (letters[index] == "U" and before in "EV") else "X"
        elif before == "B" and letters[index] == "N" and words[index].key.endswith("ing"):
            letters[index] = "X"
    for index in reversed(range(len(letters))):
        letters[index] = _resolved(letters[index], "".join(letters[:index]), "".join(letters[index + 1 :]))
    return letters


def _resolved(letter: str, past: str, rest: str) -> str:
    """Final class of a word from the classes before it and the classes after it, which are final already."""
    is_nominal, is_opened = rest[:1] in ("A", "N", "K"), bool(re.search(r"[DAEJP]$", past))
    if letter == "E":
        return "A" if is_nominal else "N"
    if letter == "J":  # "a metallic key": the tagger's adjective that leads to no noun is one
        return "A" if not re.search(r"[DAEJ]$", past) or re.match(r"N|Q*(?:,?C|,)?Q*R*[AK]", rest) else "N"
    if letter in "VG":  # "a sleeping cat", "smooth, rounded stones", but not "a dog chasing cats"
        if is_nominal:
            is_listed = re.search(r"[AEJ][,C]$|^R?$|R$", past) or (letter == "V" and past[-1] in "IF")
            return "A" if is_opened or is_listed else "X"
        return "N" if is_opened and rest[:1] not in ("D", "P") else "X"
    return "A" if letter == "K" and is_nominal and is_opened else letter


def _letter(word: Piece, tag: str) -> str:
    """Class of a word by our lists, else by the tagger."""
    key = word.key
    if word.kind == "word" and not key[0].isalnum():  # an emoji, a placeholder of textual inversion
        return "N"
    if word.kind == "mark":
        return {"'s": "P", ",": ","}.get(key, "Q" if key in _QUOTES else "X")
    for letter, listed in _LISTS:
        if key in listed or (letter == "N" and re.sub("e?s$", "", key) in listed):
            return letter
    return _PENN.get(tag, "X")


_QUOTES = "'\"`()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb"
_LISTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("X", QUALITY | HAVING),
    ("D", COUNTS),
    ("I", NEAR),
    ("A", COLORS | TEXTURES),
    ("E", EITHER),
    ("N", OBJECTS),
    ("K", DYED),
    ("B", COPULAS),
    ("C", frozenset({"and", "or", "&"})),
    ("F", frozenset({"of", "from", "out"})),
    ("W", frozenset({"that", "which", "who"})),
)


def _mark_places(words: Sequence[Piece], letters: list[str]) -> None:
    """ "the left side", "on top": a run of place words that no noun follows is where, not what."""
    index = 0
    while index < len(words):
        end = index
        while end < len(words) and words[end].key in PLACES:
            end += 1
        before, after = "".join(letters[:index])[-1:], "".join(letters[end:])[:1]
        opens = before in ("I", "F") or (index and words[index - 1].key in ("the", "its", "each", "both", "one"))
        opens = opens or (after == "F" and before not in ("D", "A"))
        if end > index and opens and after not in ("A", "N", "E", "J"):
            letters[index:end] = "X" * (end - index)
        index = max(end, index + 1)


def penn_tags(words: Sequence[str]) -> list[str]:
    """Penn tags by TextBlob's bundled pattern tagger, which needs no download."""
    from textblob.en import parser

    return [str(tag) for _, tag in parser.find_tags(list(words))]


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


def _spacy(text: str, names: Sequence[str]) -> tuple[Group, ...]:
    """Group by spaCy's dependencies; a placeholder is shown to it as a made-up noun of the same length."""
    found, shown = [], text
    for word in pieces(text, names) if names else ():
        if word.key in {name.casefold() for name in names}:
            shown = shown[: word.start] + "q" * (word.end - word.start) + shown[word.end :]
    for chunk in load_spacy()(shown).noun_chunks:
        head = chunk.root
        if head.pos_ not in ("NOUN", "PROPN") or (head.lemma_ in VIEWS and any(c.text == "of" for c in head.rights)):
            continue
        parts = [token for token in head.lefts if token.dep_ == "compound"]
        noun = (min([head, *parts], key=lambda token: int(token.idx)).idx, head.idx + len(head.text))
        described = [token for token in head.children if token.dep_ in ("amod", "nmod", "acl") and token.pos_ != "VERB"]
        if head.dep_ in ("nsubj", "nsubjpass") and head.head.lemma_ == "be":
            described += [token for token in head.head.children if token.dep_ == "acomp"]
        described = [one for token in described for one in (token, *token.conjuncts)]
        found.append(_group(text, noun, [(token.idx, token.idx + len(token.text)) for token in described]))
    return tuple(found)


_PARSERS: dict[str, Callable[[str, Sequence[str]], tuple[Group, ...]]] = {"grammar": _grammar, "spacy": _spacy}
