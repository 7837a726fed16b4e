"""``python -m t2ictl.benchmarks.shapes.evaluate.text_probes``: what the rows of words tell of other words.

Linear probes are fitted on captions of the combinations that training has seen and read
captions of held-out ones. Beside each is the same probe fitted on shuffled labels. *Chance* is
what is right without anything from the other words: two objects never share a color or a
shape, so whoever knows one color guesses the other right once in five times. A test caption
whose attributes are exchanged is, as a bag of words, the same caption: what is read of the
binding from the row of a whole caption, among the two colors said, is then right half the time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.shapes.evaluate.linear import fit_probe
from t2ictl.benchmarks.shapes.evaluate.shares import percent
from t2ictl.benchmarks.shapes.evaluate.text_rows import Encode, Rows, load_encoders
from t2ictl.shapes import model_path
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, RELATIONS, Expectation, Wanted
from t2ictl.shapes.world import COLORS, SHAPES, Look, split_of

#: Ways in which each combination is said to fit the probes; it is said in one way to test them.
FIT_WAYS = 4
#: Part of the captions that has a texture, a size, a relation.
DRESSED, RELATED = 0.35, 0.3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A caption of two objects.

    Args:
        text: the caption.
        colors: of the first and the second object, places in ``COLORS``.
        shapes: likewise.

    Example:
        >>> pair = Pair(text="a red star and a blue ring", colors=(0, 4), shapes=(3, 5))
        >>> pair.span("ring")
        (22, 26)
    """

    text: str
    colors: tuple[int, int]
    shapes: tuple[int, int]

    def span(self, word: str) -> tuple[int, int]:
        """Return where a word begins and ends, in characters."""
        found = re.search(rf"\b{word}\b", self.text)
        assert found is not None
        return found.span()


def pairs_of(is_seen: bool, ways: int, seed: int = 0) -> list[Pair]:
    """List every combination of two objects that training has seen, or every one that it has not.

    Args:
        is_seen: whether to take the training split, or the two held-out ones.
        ways: captions of each, in each order; textures, sizes and relations are drawn for each.
        seed: of the draw.

    Returns:
        Captions, those of one combination in a row.

    Example:
        >>> len(pairs_of(True, 1)) + len(pairs_of(False, 1))
        900
    """
    generator = np.random.default_rng([seed, int(is_seen)])

    def maybe(words: Sequence[str], share: float) -> str | None:
        """Choose a word, or none."""
        return str(generator.choice(words)) if generator.random() < share else None

    found = []
    for shapes, colors in itertools.product(itertools.permutations(SHAPES, 2), itertools.permutations(COLORS, 2)):
        looks = [Look(shape=shape, color=color) for shape, color in zip(shapes, colors, strict=True)]
        if (split_of(looks) == "train") != is_seen:
            continue
        for _ in range(ways):
            objects = tuple(
                Wanted(
                    shape=look.shape,
                    color=look.color,
                    texture=maybe(NAMED_TEXTURES, DRESSED),
                    size=maybe(NAMED_SIZES, DRESSED),
                )
                for look in looks
            )
            said = Expectation(objects=objects, relation=maybe(RELATIONS, RELATED))
            places = [COLORS.index(color) for color in colors], [SHAPES.index(shape) for shape in shapes]
            found.append(
                Pair(text=said.prompt, colors=(places[0][0], places[0][1]), shapes=(places[1][0], places[1][1]))
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is read from which row.

    Args:
        row: ``"noun"``, ``"color"``, or the name of a row of the whole caption.
        objects: which of the two objects it is asked of.
        name: of the question, for the table.
        answer: from a caption and a place to a class.
        classes: how many answers there are.
        chance: share that is right without anything from the other words.
        group: from a caption and a place to the probe that answers; one by default.
        choices: the answers to choose among; all by default.

    Example:
        >>> QUESTIONS[0].name
        'its own color'
    """

    row: str
    objects: tuple[int, ...]
    name: str
    answer: Callable[[Pair, int], int]
    classes: int = 6
    chance: float = 1 / 6
    group: Callable[[Pair, int], int] | None = None
    choices: Callable[[Pair, int], Sequence[int]] | None = None

    @property
    def place(self) -> str:
        """Whose row is read, in words."""
        if self.row not in ("noun", "color"):
            return self.row
        which = {(0,): "first ", (1,): "second ", (0, 1): ""}[self.objects]
        return which + self.row


def _questions() -> Iterator[Question]:
    """List what is asked of the rows of words."""
    yield Question(row="noun", objects=(0, 1), name="its own color", answer=lambda pair, at: pair.colors[at])
    for at in (0, 1):
        name = "color of the other noun"
        yield Question(row="noun", objects=(at,), name=name, answer=lambda pair, at: pair.colors[1 - at], chance=1 / 5)
    for at in (0, 1):
        yield Question(
            row="noun", objects=(at,), name="the other noun", answer=lambda pair, at: pair.shapes[1 - at], chance=1 / 5
        )
    for at in (0, 1):
        yield Question(row="color", objects=(at,), name="its noun", answer=lambda pair, at: pair.shapes[at])
    yield Question(
        row="noun", objects=(0, 1), name="first or second", answer=lambda pair, at: at, classes=2, chance=1 / 2
    )


QUESTIONS = tuple(_questions())


def whole_questions(row: str) -> tuple[Question, Question]:
    """List what is asked of a row of the whole caption.

    Args:
        row: its name.

    Returns:
        The color of each shape, read by one probe a shape: among all colors, and among the two that are said.

    Example:
        >>> [question.name for question in whole_questions("end row")]
        ['color of each shape', 'color of each shape, of the two said']
    """
    both = {"row": row, "objects": (0, 1), "answer": _color_at, "group": _shape_at}
    return (
        Question(name="color of each shape", **both),  # type: ignore[arg-type]
        Question(name="color of each shape, of the two said", chance=1 / 2, choices=_colors, **both),  # type: ignore[arg-type]
    )


def _color_at(pair: Pair, place: int) -> int:
    """Return the color of an object."""
    return pair.colors[place]


def _shape_at(pair: Pair, place: int) -> int:
    """Return the shape of an object."""
    return pair.shapes[place]


def _colors(pair: Pair, place: int) -> Sequence[int]:
    """Return both colors that are said."""
    return pair.colors


def _items(question: Question, pairs: Sequence[Pair], rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Collect rows, answers and groups, one for each caption and object."""
    read, answers, groups = [], [], []
    for index, pair in enumerate(pairs):
        for place in question.objects:
            if question.row in rows.whole:
                read.append(rows.whole[question.row][index])
            else:
                word = SHAPES[pair.shapes[place]] if question.row == "noun" else COLORS[pair.colors[place]]
                read.append(rows.of_word(index, *pair.span(word)))
            answers.append(question.answer(pair, place))
            groups.append(0 if question.group is None else question.group(pair, place))
    return np.array(read, dtype=np.float64), np.array(answers), np.array(groups)


def ask(
    question: Question, fitted: tuple[Sequence[Pair], Rows], tested: tuple[Sequence[Pair], Rows], is_shuffled: bool
) -> tuple[int, int]:
    """Fit the probes of a question and count the right answers.

    Args:
        question: what is read from where.
        fitted: captions to fit on, with their rows.
        tested: captions to count on, with their rows.
        is_shuffled: whether to fit on shuffled answers, as a control.

    Returns:
        Right answers and all answers.
    """
    read, answers, groups = _items(question, *fitted)
    test_read, test_answers, test_groups = _items(question, *tested)
    generator = np.random.default_rng(0)
    allowed = np.zeros((len(test_answers), question.classes))
    if question.choices is not None:
        places = ((pair, place) for pair in tested[0] for place in question.objects)
        for index, (pair, place) in enumerate(places):
            allowed[index] = -np.inf
            allowed[index, list(question.choices(pair, place))] = 0
    right = 0
    for group in np.unique(groups):
        mine, theirs = groups == group, test_groups == group
        labels = generator.permutation(answers[mine]) if is_shuffled else answers[mine]
        probe = fit_probe(read[mine], labels, question.classes)
        guesses = (probe.scores(test_read[theirs]) + allowed[theirs]).argmax(1)
        right += int((guesses == test_answers[theirs]).sum())
    return right, len(test_answers)


def probe_table(encoders: dict[str, Encode], ways: int = FIT_WAYS, seed: int = 0) -> str:
    """Ask all questions of some encoders.

    Args:
        encoders: functions from texts to rows, by name.
        ways: captions of each combination to fit on.
        seed: of the captions.

    Returns:
        A Markdown table, percent with 95 % intervals.
    """
    fit, test = pairs_of(True, ways, seed), pairs_of(False, 1, seed)
    lines = [
        "| encoder | row | what is read | n | right | shuffled labels | chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, encode in encoders.items():
        fitted = fit, encode([pair.text for pair in fit])
        tested = test, encode([pair.text for pair in test])
        whole = [question for row in tested[1].whole for question in whole_questions(row)]
        for question in (*QUESTIONS, *whole):
            right, total = ask(question, fitted, tested, is_shuffled=False)
            control, _ = ask(question, fitted, tested, is_shuffled=True)
            lines.append(
                f"| {name} | {question.place} | {question.name} | {total} | {percent(right, total)} "
                f"| {percent(control, total)} | {100 * question.chance:.0f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and print the table; returns 0."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.evaluate.text_probes", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=model_path(), help="folder of a model; the packaged one by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the captions' textures, sizes and relations")
    options = parser.parse_args(arguments)
    print(probe_table(load_encoders(options.model), seed=options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
