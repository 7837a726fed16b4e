"""Check the judge: ``python -m t2ictl.benchmarks.shapes.evaluate.validate_judge``.

Three tables: true images of every kind, which it must find right; one mistake of every
kind, which it must name; and generated images that a person has read, with which it should
agree. The first two are repeated with every image blurred and noisy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.shapes.evaluate.cases import TRUE, Case
from t2ictl.benchmarks.shapes.evaluate.mistakes import WRONG
from t2ictl.benchmarks.shapes.evaluate.shares import percent
from t2ictl.errors import BadSetting
from t2ictl.shapes.verdict import FAILURES, Verdict, judge, judge_expectation

#: Every kind must be judged right this often.
AIM = 0.995
#: Standard deviation of the blur in pixels, and of the noise in levels of 0 to 255.
BLUR, NOISE = 0.6, 5.0
#: Pixels of a cell of a sheet of images.
CELL = 64
#: What a reader may say: right, wrong without a kind, or one of the failures.
READINGS = ("right", "wrong", *FAILURES)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A generated image that a person has read.

    Args:
        image: bytes of shape ``(Y, X, 3)``.
        name: of the file, and the cell if it is a sheet.
        prompt: in the closed grammar.
        reading: one of :data:`READINGS`.

    Example:
        >>> Reading(image=np.zeros((2, 2, 3), np.uint8), name="a.png", prompt="a star", reading="missing").name
        'a.png'
    """

    image: np.ndarray
    name: str
    prompt: str
    reading: str


def soften(image_YXC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Blur an image a little and add noise.

    Args:
        image_YXC: bytes.
        generator: of the noise.

    Returns:
        Bytes of the same shape.

    Example:
        >>> soften(np.full((4, 4, 3), 99, np.uint8), np.random.default_rng(0)).shape
        (4, 4, 3)
    """
    blurred = ndimage.gaussian_filter(image_YXC.astype(float), (BLUR, BLUR, 0))
    return np.clip(np.round(blurred + generator.normal(0, NOISE, blurred.shape)), 0, 255).astype(np.uint8)


def is_judged_right(verdict: Verdict, case: Case) -> bool:
    """Return whether a verdict names exactly the mistake of a drawn case.

    Args:
        verdict: of the judge.
        case: with the truth.

    Returns:
        Whether the failure kind agrees, and strictness with it.

    Example:
        >>> case = TRUE["single"](np.random.default_rng(0))
        >>> is_judged_right(judge_expectation(case.image, case.asked), case)
        True
    """
    return verdict.failure == case.failure and verdict.is_strict == (case.failure is None)


def count_right(name: str, count: int, seed: int) -> tuple[int, int, Counter[str]]:
    """Judge drawn cases of one kind.

    Args:
        name: of :data:`t2ictl.benchmarks.shapes.evaluate.cases.TRUE` or
            :data:`t2ictl.benchmarks.shapes.evaluate.mistakes.WRONG`.
        count: cases.
        seed: of the scenes and the noise.

    Returns:
        How many are judged right as drawn, how many softened, and what the wrong verdicts on
        those as drawn say.

    Example:
        >>> count_right("swap", 3, 0)
        (3, 3, Counter())
    """
    generator = np.random.default_rng([seed, (*TRUE, *WRONG).index(name)])
    as_drawn, softened, said = 0, 0, Counter[str]()
    for _ in range(count):
        case = {**TRUE, **WRONG}[name](generator)
        verdict = judge_expectation(case.image, case.asked)
        if is_judged_right(verdict, case):
            as_drawn += 1
        else:
            said[verdict.failure or "right"] += 1
        softened += is_judged_right(judge_expectation(soften(case.image, generator), case.asked), case)
    return as_drawn, softened, said


def read_labels(folder: Path) -> list[Reading]:
    """Read every list of labels in a folder.

    ``NAME.json`` is a list of objects with ``prompt``, ``reading``, and either ``file``, the name of a
    image in the folder, or ``cell``, the number of a cell of the sheet ``NAME.png`` (64 pixels
    a side, row by row, from 0).

    Args:
        folder: with the lists and the images.

    Returns:
        The readings in order.

    Raises:
        BadSetting: no list in the folder, or a reading that is not one of :data:`READINGS`.

    Example:
        >>> import tempfile
        >>> read_labels(Path(tempfile.mkdtemp()))
        Traceback (most recent call last):
            ...
        t2ictl.errors.BadSetting: ...
    """
    readings, images = [], {}
    for path in sorted(folder.glob("*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            if entry["reading"] not in READINGS:
                raise BadSetting(f"{path.name} has the reading {entry['reading']!r}.", f"Use one of {READINGS}.")
            name = entry.get("file", f"{path.stem}.png")
            if name not in images:
                images[name] = np.asarray(Image.open(folder / name).convert("RGB"))
            image = images[name]
            if "cell" in entry:
                row, column = divmod(entry["cell"], image.shape[1] // CELL)
                image = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                name = f"{name} {entry['cell']}"
            readings.append(Reading(image=image, name=name, prompt=entry["prompt"], reading=entry["reading"]))
    if not readings:
        raise BadSetting(f"No labels in {folder}.", "Name a folder with a JSON list and its images.")
    return readings


def compare(readings: Sequence[Reading]) -> tuple[int, int, list[str]]:
    """Compare the judge with a reader.

    Args:
        readings: at least one.

    Returns:
        How often both say right or both say wrong; how often they name the same kind, where
        ``"wrong"`` agrees with every failure; and one line for every disagreement in either.
    """
    same_outcome, same_kind, lines = 0, 0, []
    for item in readings:
        verdict = judge(item.image, item.prompt)
        said = verdict.failure or "right"
        agrees_outcome = verdict.is_strict == (item.reading == "right")
        agrees_kind = agrees_outcome and item.reading in (said, "wrong")
        same_outcome += agrees_outcome
        same_kind += agrees_kind
        if not agrees_kind:
            lines.append(f"{item.name}: {item.prompt!r} read as {item.reading}, judged {said}")
    return same_outcome, same_kind, lines


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the status is 1 if a kind misses the aim as drawn."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.shapes.evaluate.validate_judge", description=__doc__)
    parser.add_argument("--scenes", type=int, default=1500, help="drawn images a kind; 0: labels only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=Path, default=None, help="folder of images that a person has read")
    options = parser.parse_args(arguments)
    is_good = True
    for title, kinds in (("shown", TRUE), ("mistake", WRONG)) if options.scenes else ():
        print(f"| {title} | n | right | % | softened % | otherwise judged |\n|---|---|---|---|---|---|")
        for name in kinds:
            as_drawn, softened, said = count_right(name, options.scenes, options.seed)
            is_good = is_good and as_drawn >= AIM * options.scenes
            others = ", ".join(f"{kind} {count}" for kind, count in said.most_common())
            shares = f"{percent(as_drawn, options.scenes, 2)} | {percent(softened, options.scenes, 2)}"
            print(f"| {name} | {options.scenes} | {as_drawn} | {shares} | {others or 'none'} |", flush=True)
        print()
    if options.labels is not None:
        readings = read_labels(options.labels)
        outcome, kind, lines = compare(readings)
        print(f"Right or wrong as read: {outcome} of {len(readings)}, {percent(outcome, len(readings))} %")
        print(f"The kind as read: {kind} of {len(readings)}, {percent(kind, len(readings))} %")
        print(*lines, sep="\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
