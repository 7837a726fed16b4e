"""Simulated runs with known truth: what the coverage of intervals is measured on.

Letters: ``P`` prompt, ``S`` seed, ``C`` simulated run (column).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from t2ictl.evaluation.statistics.resampling import Array


@dataclass(frozen=True, kw_only=True)
class Population:
    """One category: where its prompts come from, and what the second arm does to the images of the first.

    The probability that an image of a prompt is right is drawn from a beta distribution. The second arm keeps
    an image's outcome with probability ``agreement`` and else draws it again for the same prompt; then a wrong
    image is put right with probability ``gain`` and a right one broken with probability ``loss``. The last
    two act on a random half of the prompts, with twice the probability: controls help some prompts, not all.

    Args:
        prompts: how many are drawn.
        seeds: images of each.
        share: mean probability, between 0 and 1.
        correlation: between two images of the same prompt, at least 0 and below 1.
        agreement: 0 to 1.
        gain: 0 to 0.5.
        loss: 0 to 0.5.

    Example:
        >>> population = Population(prompts=50, share=0.5, gain=0.1)
        >>> population.truth(paired=False), population.truth(paired=True)
        (0.5, 0.05)
    """

    prompts: int
    share: float
    seeds: int = 4
    correlation: float = 0.3
    agreement: float = 0.8
    gain: float = 0.0
    loss: float = 0.0

    def truth(self, *, paired: bool) -> float:
        """Return the expected share of the first arm, or the expected difference of the two."""
        return self.gain * (1 - self.share) - self.loss * self.share if paired else self.share

    def draw(self, runs: int, generator: Generator, *, paired: bool) -> Array:
        """Return simulated prompt means of the first arm, or of the difference.

        Args:
            runs: how many runs.
            generator: source of randomness.
            paired: whether the difference of two arms is wanted.

        Returns:
            ``values_PC``.
        """
        size = (self.prompts, runs)
        if self.correlation > 0:
            total = 1 / self.correlation - 1
            right_PC = generator.beta(self.share * total, (1 - self.share) * total, size)
        else:
            right_PC = np.full(size, self.share)
        if not paired:
            return np.asarray(generator.binomial(self.seeds, right_PC) / self.seeds)
        affected_PC = 2.0 * generator.integers(0, 2, size)
        sum_PC = np.zeros(size)
        for _ in range(self.seeds):
            before_PC = generator.random(size) < right_PC
            again_PC = generator.random(size) < right_PC
            after_PC = np.where(generator.random(size) < self.agreement, before_PC, again_PC)
            fixed_PC = ~after_PC & (generator.random(size) < affected_PC * self.gain)
            broke_PC = after_PC & (generator.random(size) < affected_PC * self.loss)
            sum_PC += (after_PC | fixed_PC) & ~broke_PC
            sum_PC -= before_PC
        return sum_PC / self.seeds


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A quantity to put an interval around: a share or a difference, of one category or the mean of several.

    Args:
        name: for the table.
        categories: one population a category.
        paired: a difference of two arms instead of a share.

    Example:
        >>> [scenario.name for scenario in SCENARIOS][:2]
        ['share 2%, r 0.1, 50 prompts', 'share 2%, r 0.3, 50 prompts']
    """

    name: str
    categories: tuple[Population, ...]
    paired: bool

    @property
    def truth(self) -> float:
        """Expected value: the mean over categories."""
        return float(np.mean([population.truth(paired=self.paired) for population in self.categories]))

    def draw(self, runs: int, generator: Generator) -> list[Array]:
        """Return ``values_PC`` of every category."""
        return [population.draw(runs, generator, paired=self.paired) for population in self.categories]


PROMPTS = (50, 200, 400)
SHARES = (0.02, 0.1, 0.5, 0.9, 0.98)
CORRELATIONS = (0.1, 0.3, 0.6)
#: What is changed by the second arm: share of the first, agreement, gain, loss.
CHANGES = (
    (0.5, 0.5, 0.0, 0.0),
    (0.5, 0.8, 0.04, 0.0),
    (0.5, 0.8, 0.2, 0.0),
    (0.5, 0.95, 0.04, 0.02),
    (0.1, 0.8, 0.05, 0.0),
    (0.9, 0.8, 0.0, 0.05),
    (0.9, 0.8, 0.1, 0.0),
    (0.02, 0.8, 0.02, 0.0),
    (0.98, 0.8, 0.0, 0.02),
)


def _shares() -> list[Scenario]:
    return [
        Scenario(
            name=f"share {share:.0%}, r {correlation}, {prompts} prompts",
            categories=(Population(prompts=prompts, share=share, correlation=correlation),),
            paired=False,
        )
        for prompts in PROMPTS
        for share in SHARES
        for correlation in CORRELATIONS
    ]


def _differences() -> list[Scenario]:
    found = []
    for prompts in PROMPTS:
        for share, agreement, gain, loss in CHANGES:
            population = Population(prompts=prompts, share=share, agreement=agreement, gain=gain, loss=loss)
            points = 100 * population.truth(paired=True)
            name = f"difference {points:+.1f} from {share:.0%}, agreement {agreement}, {prompts} prompts"
            found.append(Scenario(name=name, categories=(population,), paired=True))
    return found


def _macros() -> list[Scenario]:
    found = []
    for sizes in ((50, 50, 50), (200, 200, 200), (400, 200, 50)):
        text = "/".join(str(size) for size in sizes)
        for shares in ((0.3, 0.5, 0.7), (0.02, 0.5, 0.98)):
            populations = tuple(
                Population(prompts=size, share=share, gain=0.05, loss=0.02)
                for size, share in zip(sizes, shares, strict=True)
            )
            words = "/".join(f"{share:.0%}" for share in shares)
            for paired, kind in ((False, "share"), (True, "difference")):
                name = f"macro {kind}, {words}, {text} prompts"
                found.append(Scenario(name=name, categories=populations, paired=paired))
    untouched = Population(prompts=200, share=0.98, agreement=1.0)
    touched = Population(prompts=200, share=0.5, gain=0.05)
    found.append(
        Scenario(
            name="macro difference, one of 3 untouched, 200 prompts",
            categories=(untouched, touched, touched),
            paired=True,
        )
    )
    return found


SCENARIOS = (*_shares(), *_differences(), *_macros())

#: Cells in which a rare outcome meets few prompts: a handful of images decide, and no interval is accurate.
EXTREME = (
    *(
        Scenario(
            name=f"one image a prompt, share {share:.0%}, 50 prompts",
            categories=(Population(prompts=50, seeds=1, share=share, correlation=0.0),),
            paired=False,
        )
        for share in (0.02, 0.98)
    ),
    *(
        Scenario(
            name=f"difference from {share:.0%}, agreement {agreement}, gain {gain}, {prompts} prompts",
            categories=(Population(prompts=prompts, share=share, agreement=agreement, gain=gain),),
            paired=True,
        )
        for share, agreement, gain, prompts in (
            (0.1, 0.95, 0.0, 50),
            (0.9, 0.95, 0.05, 50),
            (0.9, 1.0, 0.02, 200),
            (0.5, 1.0, 0.0, 200),
        )
    ),
)
