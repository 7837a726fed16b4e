"""One unit through all arms: images, verdicts, and one row for each.

Plain images are made once: the plain arm shows the first candidate, and every best-of-N chooses
among the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from t2ictl import Control, Generation
from t2ictl.benchmarks.runs.arms import Arm, control_settings, measurable
from t2ictl.benchmarks.runs.random_direction import RandomDirection
from t2ictl.benchmarks.runs.sampling import Sample, Sampler
from t2ictl.benchmarks.runs.units import Unit, direction_seed, noise_seed
from t2ictl.benchmarks.suites.base import Judgement
from t2ictl.errors import T2ictlError

__all__ = ["ArmResult", "MadeImage", "UnitRun", "choose_by_judge", "choose_by_loss"]

Judge = Callable[[Image.Image, str], Judgement]
LONGEST_ERROR = 500  # characters of a message in a row; a traceback's worth of tensors helps nobody


@dataclass(frozen=True, kw_only=True)
class MadeImage:
    """One row, and its image where there is one.

    Args:
        row: the fields of the row that are known before the image is written.
        generation: the image with its settings, or None if making it failed.
    """

    row: dict[str, Any]
    generation: Generation | None = None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What one arm made of a unit.

    Args:
        arm: the arm.
        images: one for each pair of the unit.
        seconds: wall time of the batches that were made for this arm.
        peak_bytes: most memory in use.
    """

    arm: Arm
    images: list[MadeImage]
    seconds: float
    peak_bytes: int


def choose_by_judge(judgements: Sequence[Judgement]) -> int:
    """Choose as an oracle: strict first, then the most outcomes, then the earliest.

    Args:
        judgements: one a candidate.

    Returns:
        The index of the chosen one.

    Example:
        >>> choose_by_judge([Judgement(outcomes={"a": True, "b": False}), Judgement(outcomes={"a": True, "b": True})])
        1
    """
    return max(
        range(len(judgements)),
        key=lambda index: (judgements[index].is_strict, sum(judgements[index].outcomes.values()), -index),
    )


def choose_by_loss(losses: Sequence[float | None]) -> int:
    """Choose the lowest loss, the earliest of equals; a candidate without one comes last.

    Args:
        losses: one a candidate.

    Returns:
        The index of the chosen one.

    Example:
        >>> choose_by_loss([None, 0.5, 0.25, 0.25])
        2
    """
    return min(range(len(losses)), key=lambda index: (losses[index] is None, losses[index] or 0.0, index))


@dataclass
class UnitRun:
    """The state of one unit on its way through the arms.

    Args:
        unit: the pairs.
        arms: all arms, each after those that it needs.
        sampler: makes batches.
        judge: says what an image of a prompt shows.
        model: name of the embedded model that makes the images; empty for any other.
    """

    unit: Unit
    arms: Sequence[Arm]
    sampler: Sampler
    judge: Judge
    model: str = ""
    _candidates: list[Sample | Exception] = field(default_factory=list)
    _verdicts: dict[int, list[Judgement]] = field(default_factory=dict)
    _controlled: dict[str, Sample] = field(default_factory=dict)

    def results(self) -> Iterator[ArmResult]:
        """Run the arms one after the other. A failure becomes rows, and the other arms go on.

        Yields:
            What each arm made.
        """
        for arm in self.arms:
            before = len(self._candidates)
            try:
                made, images = getattr(self, f"_run_{arm.kind}")(arm)
            except Exception as error:  # whatever a control raises must not end a run of hours
                yield ArmResult(arm=arm, images=self._failed(arm, error), seconds=0.0, peak_bytes=0)
                continue
            new = [each for each in self._candidates[before:] if isinstance(each, Sample)] + made
            yield ArmResult(
                arm=arm,
                images=images,
                seconds=sum(each.cost.seconds for each in new),
                peak_bytes=max((each.cost.peak_bytes for each in new), default=0),
            )

    # -- the arms ---------------------------------------------------------------------------

    def _run_plain(self, arm: Arm) -> tuple[list[Sample], list[MadeImage]]:
        sample, verdicts = self._candidate(0), self._judged(0)
        return [], [self._image(arm, row, sample, verdicts[row]) for row in self._rows]

    def _run_control(self, arm: Arm) -> tuple[list[Sample], list[MadeImage]]:
        return self._moved(arm, arm.controls)

    def _run_random(self, arm: Arm) -> tuple[list[Sample], list[MadeImage]]:
        base = self._controlled.get(arm.base or "")
        if base is None:
            raise T2ictlError(f"The arm {arm.base!r}, whose moves this one repeats, failed.")
        seeds = [direction_seed(pair, arm.label) for pair in self.unit.pairs]
        made, images = self._moved(arm, (RandomDirection(base.trace, seeds, arm.controls),))
        endless = T2ictlError(f"A move of the arm {arm.base!r}, whose moves this one repeats, has no finite length.")
        for row in self._rows:
            if not all(math.isfinite(length) for _, length, _ in base.moves(row)):
                images[row] = self._failed(arm, endless)[row]
        return made, images

    def _moved(self, arm: Arm, acting: Sequence[Control]) -> tuple[list[Sample], list[MadeImage]]:
        sample = self.sampler(self._prompts, self._seeds(0), acting, measurable(arm.controls))
        verdicts = [self.judge(image, prompt) for image, prompt in zip(sample.images, self._prompts, strict=True)]
        self._controlled[arm.label] = sample
        return [sample], [self._image(arm, row, sample, verdicts[row]) for row in self._rows]

    def _run_best(self, arm: Arm) -> tuple[list[Sample], list[MadeImage]]:
        samples = [self._candidate(number) for number in range(arm.candidates)]
        verdicts = [self._judged(number) for number in range(arm.candidates)]
        images = []
        for row in self._rows:
            if arm.base is None:
                chosen = choose_by_judge([each[row] for each in verdicts])
            else:
                chosen = choose_by_loss([each.loss(arm.controls, row) for each in samples])
            image = self._image(arm, row, samples[chosen], verdicts[chosen][row])
            # All candidates had to be made, whichever was chosen.
            image.row.update(forwards=sum(each.passes for each in samples), chosen_seed=samples[chosen].seeds[row])
            images.append(image)
        return [], images

    # -- plain images, made once ----------------------------------------------------------

    def _candidate(self, number: int) -> Sample:
        while len(self._candidates) <= number:
            self._candidates.append(self._made_candidate(len(self._candidates)))
        found = self._candidates[number]
        if isinstance(found, Exception):
            raise found
        return found

    def _made_candidate(self, number: int) -> Sample | Exception:
        try:
            return self.sampler(self._prompts, self._seeds(number), (), self._selectors)
        except Exception as error:  # kept: every arm that needs it fails in the same way
            return error

    def _judged(self, number: int) -> list[Judgement]:
        if number not in self._verdicts:
            images = self._candidate(number).images
            self._verdicts[number] = [self.judge(*each) for each in zip(images, self._prompts, strict=True)]
        return self._verdicts[number]

    @property
    def _selectors(self) -> tuple[Control, ...]:
        """The controls whose losses choose among candidates, each once."""
        found = {id(each): each for arm in self.arms if arm.kind == "best" for each in arm.controls}
        return tuple(found.values())

    # -- rows -------------------------------------------------------------------------------

    @property
    def _rows(self) -> range:
        return range(len(self.unit.pairs))

    @property
    def _prompts(self) -> list[str]:
        return [pair.item.prompt for pair in self.unit.pairs]

    def _seeds(self, candidate: int) -> tuple[int, ...]:
        return tuple(noise_seed(pair, candidate) for pair in self.unit.pairs)

    def _row(self, arm: Arm, row: int) -> dict[str, Any]:
        pair = self.unit.pairs[row]
        return {
            "arm": arm.label,
            "category": pair.item.category,
            "prompt_id": pair.item.id,
            "prompt": pair.item.prompt,
            "seed": pair.seed,
            "noise_seed": noise_seed(pair),
        }

    def _image(self, arm: Arm, row: int, sample: Sample, verdict: Judgement) -> MadeImage:
        moves = sample.moves(row)
        fields = {
            "status": "ok",
            "error": None,
            "outcomes": verdict.outcomes,
            "failure": verdict.failure,
            "forwards": sample.passes + sample.extra_forwards(row),
            "backwards": sample.backwards(row),
            "chosen_seed": None,
            "lengths": [length if math.isfinite(length) else None for _, length, _ in moves],
            "length_steps": [step for step, _, _ in moves],
            "moved": sorted({moved for _, _, moved in moves}),
            "loss": sample.loss(arm.controls, row),
        }
        settings = self._settings(arm, row, sample.seeds[row])
        made = Generation(images=[sample.images[row]], settings=settings, cost=sample.cost, trace=())
        return MadeImage(row=self._row(arm, row) | fields, generation=made)

    def _settings(self, arm: Arm, row: int, seed: int) -> dict[str, Any]:
        """What an image says of itself. ``t2ictl generate --from`` makes it again, but for random directions."""
        pair = self.unit.pairs[row]
        settings: dict[str, Any] = {"bench": {"arm": arm.label, "prompt_id": pair.item.id, "seed": pair.seed}}
        if arm.kind == "random":
            return settings
        request = {
            "prompt": pair.item.prompt,
            "seed": seed,
            "steps": self.sampler.steps,
            "guidance_scale": self.sampler.guidance,
        }
        acting = arm.controls if arm.kind == "control" else ()
        settings |= {"request": request, "controls": [control_settings(each) for each in acting]}
        more = {"arguments": self.sampler.arguments} if self.sampler.arguments else {}
        return settings | more | ({"pipeline": {"model": self.model}} if self.model else {})

    def _failed(self, arm: Arm, error: Exception) -> list[MadeImage]:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
        return [MadeImage(row=self._row(arm, row) | {"status": "error", "error": message}) for row in self._rows]
