"""Tags of words, and the rules that change them where their context fits."""

from __future__ import annotations

import pytest

from t2ictl.prompts import grammar, noun_phrases, word_lists
from t2ictl.prompts.tagging import TAGS, Rule, RuleBook, split_words, tagged_words


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("a small red circle", "dAAN"),
        ("two of the dog's glasses", "DFdNPN"),
        ("a glass - and \u201cred\u201d, red/blue & 5!", "dE-CQAQ,A&A&DX"),
        ("a \U0001f431 is sleeping", "dnZG"),
        ("", ""),
    ],
)
def test_words_have_the_tags_of_our_lists_or_of_the_tagger(text: str, tags: str) -> None:
    assert "".join(word.tag for word in tagged_words(text)) == tags


def test_tagging_leaves_the_words_as_they_were_split() -> None:
    text, names = "The  T-shirt of a running <toy> <toy>_1", ("running", "<toy>", "<toy>_1")
    found = tagged_words(text, names)
    assert [word._replace(tag="") for word in found] == split_words(text, names)
    assert "".join(word.tag for word in found) == "dJFdnn"
    assert not any(word.tag for word in split_words(text, names))


def test_every_word_list_uses_the_tags_of_the_legend() -> None:
    assert len(set(TAGS)) == len(TAGS)
    lists = (word_lists.LEXICON, word_lists.OBJECT_LEXICON, word_lists.PHRASE_LEXICON, word_lists.MARKS)
    assert all(set(tags.values()) <= set(TAGS) for tags in (*lists, word_lists.PAIRS))


def test_first_rule_that_fits_applies_and_later_words_see_it() -> None:
    rules = RuleBook(
        Rule("N", "d <U>"),
        Rule("V", "N <U> (?:I|$)", unless={"rest"}),
        Rule("X", "^ <.>", word={"look"}),
    )
    assert rules.apply("dUU", ["the", "stand", "stands"]) == "dNV"
    assert rules.apply("dUU", ["the", "stand", "rest"]) == "dNU"
    assert rules.apply("UUN", ["look", "rest", "now"]) == "XUN"


def test_rules_ask_for_neighbors_and_may_change_the_word_before() -> None:
    rules = RuleBook(Rule("AA", "N <T> N", before={"snow"}), Rule("X", "<N>", after={"the"}))
    assert rules.apply("NTN", ["snow", "covered", "hill"]) == "AAN"
    assert rules.apply("NTN", ["ice", "covered", "hill"]) == "NTN"
    assert rules.apply("NN", ["hook", "supports"]) == "NN"
    assert rules.apply("NNd", ["hook", "supports", "the"]) == "NXd"


def test_rules_backwards_see_what_became_of_the_words_after() -> None:
    rules = RuleBook(Rule("A", "<E> [AN]"), Rule("N", "<E>"))
    words = ["glass", "orange", "ball"]
    assert rules.apply("EEE", words, backwards=True) == "AAN"
    assert rules.apply("EEE", words) == "NNN"


def test_plurals_count_as_their_lemma_and_endings_as_all_their_words() -> None:
    lemmas, ending = word_lists.Lemmas({"dress", "hat"}), word_lists.Ending("[^s]s")
    assert [word for word in ("hat", "hats", "dresses", "dress", "hatter", "s") if word in lemmas] == [
        "hat", "hats", "dresses", "dress",
    ]  # fmt: skip
    assert "hats" in ending and "dress" not in ending and "s" not in ending


def test_objects_and_phrases_resolve_every_tag_that_is_open() -> None:
    """E, J and U fit two classes; what readers search for phrases has none of them, but E in noun phrases."""
    for text in ("a metallic key and a glass", "the orange rest is a soft rubber stand", "people look at square sinks"):
        words = tagged_words(text)
        assert not set(grammar.object_tags(words)) & set("EJUZ"), text
        found, tags = noun_phrases._joined_words(text, words)
        assert not set(noun_phrases._RULES.apply(tags, [word.key for word in found])) & set("JUYZST"), text
