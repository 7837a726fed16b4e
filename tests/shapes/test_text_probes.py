from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from t2ictl.benchmarks.shapes.evaluate import text_probes
from t2ictl.benchmarks.shapes.evaluate.linear import fit_probe
from t2ictl.benchmarks.shapes.evaluate.text_rows import Rows, load_encoders
from t2ictl.errors import BadSetting
from t2ictl.shapes.world import COLORS, SHAPES

WORDS = (*SHAPES, *COLORS)


def _row(words: set[str]) -> np.ndarray:
    return np.array([word in words for word in WORDS], dtype=np.float64)


def _known(texts: Sequence[str]) -> Rows:
    """A noun tells its own color and the other noun; a color tells nothing; the end is a bag, the whole is bound."""
    states, offsets, bags, bound = [], [], [], []
    for text in texts:
        spans = [match.span() for match in re.finditer(r"\w+", text)]
        said = [text[first:last] for first, last in spans]
        colors = [word for word in said if word in COLORS]
        shapes = [word for word in said if word in SHAPES]
        rows = [_row(set()) for _ in said]
        for shape, color in zip(shapes, colors, strict=True):
            rows[said.index(shape)] = _row({color, *shapes} - {shape})
        width = 24
        states.append(np.array(rows + [np.zeros(len(WORDS))] * (width - len(rows))))
        offsets.append(np.array(spans + [(0, 0)] * (width - len(spans))))
        bags.append(_row(set(colors) | set(shapes)))
        table = np.zeros((len(SHAPES), len(COLORS)))
        for shape, color in zip(shapes, colors, strict=True):
            table[SHAPES.index(shape), COLORS.index(color)] = 1
        bound.append(table.ravel())
    whole = {"bag row": np.array(bags), "bound row": np.array(bound)}
    return Rows(states=np.array(states), offsets=np.array(offsets), whole=whole)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], tuple[float, float]]:
    lines = text_probes.probe_table({"known": _known}, ways=2).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[1], row[2]): (float(row[4].split()[0]), float(row[5].split()[0])) for row in cells}


def test_what_is_there_is_found(answers: dict[tuple[str, str], tuple[float, float]]) -> None:
    assert answers["noun", "its own color"][0] == 100
    assert answers["first noun", "the other noun"][0] > 95
    assert answers["bound row", "color of each shape"][0] == 100
    assert answers["bound row", "color of each shape, of the two said"][0] == 100


def test_what_is_not_there_is_not_found(answers: dict[tuple[str, str], tuple[float, float]]) -> None:
    assert answers["second noun", "color of the other noun"][0] < 30
    assert answers["first color", "its noun"][0] < 25
    assert abs(answers["noun", "first or second"][0] - 50) < 6
    assert answers["bag row", "color of each shape, of the two said"][0] < 56


def test_shuffled_labels_tell_nothing(answers: dict[tuple[str, str], tuple[float, float]]) -> None:
    for (_, what), (_, control) in answers.items():
        assert control < (60 if "first or" in what or "two said" in what else 30)


def test_captions_are_apart_and_swapped_twins_are_among_them() -> None:
    seen, held_out = text_probes.pairs_of(True, 2), text_probes.pairs_of(False, 1)
    combination = {frozenset(zip(pair.colors, pair.shapes, strict=True)) for pair in seen}
    others = {frozenset(zip(pair.colors, pair.shapes, strict=True)) for pair in held_out}
    assert not combination & others
    assert len(combination | others) == 450
    for pair in (*seen[:50], *held_out[:50]):
        for words, places in ((COLORS, pair.colors), (SHAPES, pair.shapes)):
            first, second = (pair.span(words[place]) for place in places)
            assert first < second


def test_a_probe_needs_no_scaling() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4)) * [1, 1000, 0.001, 1] + [0, 5, 7, 0]
    labels = (rows[:, 2] > 7).astype(int)
    assert (fit_probe(rows, labels, 2).scores(rows).argmax(1) == labels).mean() > 0.95


def test_words_of_the_packaged_encoder_are_found() -> None:
    from t2ictl.shapes import model_path

    (name, encode), *others = load_encoders(model_path()).items()
    assert not others
    assert name == "text_encoder (CLIPTextModel)"
    rows = encode(["a dotted red triangle and a blue ring", "a ring"])
    assert rows.states.shape[:2] == (2, 24)
    assert np.array_equal(rows.of_word(0, 13, 21), rows.states[0, 6])
    assert np.array_equal(rows.whole["end row"][1], rows.states[1, 3])


def test_a_folder_without_encoders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no text encoder"):
        load_encoders(tmp_path)
