"""Arms: equal noise, moves of equal length, and choices worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl.benchmarks.runs.arms import Arm
from t2ictl.benchmarks.runs.random_direction import RandomDirection
from t2ictl.benchmarks.runs.sampling import Sample, Sampler
from t2ictl.benchmarks.runs.unit_run import UnitRun, choose_by_judge, choose_by_loss
from t2ictl.benchmarks.runs.units import Pair, Unit, noise_seed
from t2ictl.benchmarks.suites.base import Item, Judgement
from t2ictl.guidance.rules import Refinement
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.processors.token_merging.control import TokenMerging
from t2ictl.settings.windows import Step, Window

PROMPTS = ["a red circle and a blue square", "a green star and a yellow ring", "a blue heart and a red cross"]
SEEDS = (11, 12, 13)
REFINING = AttendAndExcite(refinement=Refinement(thresholds=((0.0, 0.3), (0.4, 0.9)), max_iterations=3))


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return Sampler(pipe=pipe, steps=4, guidance=4.0)


def pixels(sample: Sample) -> list[bytes]:
    return [image.tobytes() for image in sample.images]


def random_moves(base: Sample, seeds: Sequence[int]) -> RandomDirection:
    return RandomDirection(base.trace, seeds)


# -- random direction ---------------------------------------------------------------------------


@pytest.mark.parametrize("control", [AttentionSegregation(), REFINING], ids=["each step", "refined"])
def test_random_moves_are_as_long_as_those_they_repeat(sampler: Sampler, control: Any) -> None:
    base = sampler(PROMPTS, SEEDS, (control,), ())
    repeated = sampler(PROMPTS, SEEDS, (random_moves(base, (1, 2, 3)),), (control,))
    for row in range(len(PROMPTS)):
        wanted, found = base.moves(row), repeated.moves(row)
        assert [step for step, _, _ in found] == [step for step, _, _ in wanted] and wanted
        np.testing.assert_allclose([each for _, each, _ in found], [each for _, each, _ in wanted], rtol=1e-6)
        assert repeated.backwards(row) == 0 and base.backwards(row) >= len(wanted)
    plain = sampler(PROMPTS, SEEDS, (), ())
    assert all(one != other for one, other in zip(pixels(repeated), pixels(plain), strict=True))


def test_what_the_base_edits_stays_in_its_random_arm(sampler: Sampler) -> None:
    guided, plain = sampler(PROMPTS, SEEDS, (StructuredGuidance(),), ()), sampler(PROMPTS, SEEDS, (), ())
    still = sampler(PROMPTS, SEEDS, (RandomDirection((), SEEDS, (StructuredGuidance(),)),), ())
    assert pixels(still) == pixels(guided) != pixels(plain)


def test_an_image_that_is_done_waits_for_the_others_of_its_batch(sampler: Sampler) -> None:
    step = [SimpleNamespace(index=index) for index in (0, 2)]
    lengths = [[0.5, 0.25, 1.0], [0.0, 0.75, 0.0], [0.5, 0.0, 0.125]]
    trace = [
        SimpleNamespace(step=step[number // 2], length=torch.tensor(each, dtype=torch.float64), moved="latents")
        for number, each in enumerate(lengths)
    ]
    repeated = sampler(PROMPTS, SEEDS, (RandomDirection(trace, (1, 2, 3)),), ())
    found = [[(index, round(length, 5)) for index, length, _ in repeated.moves(row)] for row in range(3)]
    assert found == [[(0, 0.5), (2, 0.5)], [(0, 0.25), (0, 0.75)], [(0, 1.0), (2, 0.125)]]
    # What others do is nothing to it: its directions are those it has alone.
    own = [SimpleNamespace(step=each.step, length=each.length[1:2], moved="latents") for each in trace]
    alone = sampler(PROMPTS[1:2], SEEDS[1:2], (RandomDirection(own, (2,)),), ()).images[0]
    assert np.abs(np.asarray(alone, int) - np.asarray(repeated.images[1], int)).max() <= 1


class Kept(RandomDirection):
    """Random directions that can be looked at afterwards: ``moves_BC``, one a step."""

    def plan(self, context: t2ictl.PlanContext) -> t2ictl.Plan:
        self.kept: list[torch.Tensor] = []
        plan = super().plan(context)

        def push(x_BCYX: torch.Tensor, step: Step) -> Sequence[torch.Tensor]:
            assert plan.perturb is not None
            vectors = plan.perturb(x_BCYX, step)
            self.kept.append(torch.stack(list(vectors)).sum(dim=0).flatten(1))
            return vectors

        return replace(plan, perturb=push)


@contextmanager
def moves_by_gradient(pipe: Any) -> Iterator[list[torch.Tensor]]:
    """What the latents of the pass that makes the image have more than those of the pass with a gradient before it."""
    found: list[torch.Tensor] = []
    before: list[torch.Tensor] = []

    def look(_: Any, inputs: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            before.append(inputs[0].detach())
        else:
            found.append((inputs[0][-len(before[-1]) :] - before.pop()).flatten(1))

    handle = pipe.unet.conv_in.register_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def test_directions_are_fresh_and_know_nothing_of_the_gradient(sampler: Sampler) -> None:
    with moves_by_gradient(sampler.pipe) as gradients:
        base = sampler(PROMPTS, SEEDS, (AttentionSegregation(preset="none"),), ())
    found = {"gradient": gradients}
    for name, seeds in (("random", (1, 2, 3)), ("other", (4, 5, 6))):
        directions = Kept(base.trace, seeds)
        sampler(PROMPTS, SEEDS, (directions,), ())
        found[name] = directions.kept
    lengths = torch.stack([entry.length for entry in base.trace])
    for each in found.values():  # as long as those they repeat, so they are what was meant to be looked at
        torch.testing.assert_close(torch.stack(each).norm(dim=-1).float(), lengths, rtol=1e-3, atol=0)
    units = {name: torch.nn.functional.normalize(torch.stack(each).double(), dim=-1) for name, each in found.items()}
    dimensions = units["random"].shape[-1]
    for one, other in (("random", "gradient"), ("random", "other"), ("other", "gradient")):
        cosines = (units[one] * units[other]).sum(-1)
        assert cosines.abs().max() < 5 / dimensions**0.5
    steps = units["random"]
    assert (steps[0] * steps[1]).sum(-1).abs().max() < 5 / dimensions**0.5  # fresh at each step
    assert (steps[0, 0] * steps[0, 1]).sum().abs() < 5 / dimensions**0.5  # and for each image


def test_a_random_direction_is_the_same_in_another_batch(sampler: Sampler) -> None:
    control = AttentionSegregation(preset="none")
    base = sampler(PROMPTS, SEEDS, (control,), ())
    alone = sampler(PROMPTS[1:2], SEEDS[1:2], (control,), ())
    together = sampler(PROMPTS, SEEDS, (random_moves(base, (1, 2, 3)),), ()).images[1]
    apart = sampler(PROMPTS[1:2], SEEDS[1:2], (random_moves(alone, (2,)),), ()).images[0]
    assert np.abs(np.asarray(together, int) - np.asarray(apart, int)).max() <= 1


def test_random_moves_of_text_rows_are_as_long_and_keep_the_merge(sampler: Sampler) -> None:
    control = TokenMerging(merge=True, binding_steps=1, entropy_steps=1, thresholds=(0.0,), window=Window(stop=0.5))
    base = sampler(PROMPTS, SEEDS, (control,), ())
    repeated = sampler(PROMPTS, SEEDS, (RandomDirection(base.trace, (1, 2, 3), (control,)),), ())
    for row in range(len(PROMPTS)):
        wanted, found = base.moves(row), repeated.moves(row)
        assert [(step, moved) for step, _, moved in found] == [(step, moved) for step, _, moved in wanted]
        assert len(wanted) == 4 and {moved for _, _, moved in wanted} == {"tokens"}
        np.testing.assert_allclose([each for _, each, _ in found], [each for _, each, _ in wanted], rtol=1e-5)
        # Two steps, two groups: a target, a look forward and back for each, and one look at the entropy.
        assert (base.extra_forwards(row), base.backwards(row)) == (2 * (2 * 2 + 1), 2 * (2 + 1))
        assert repeated.extra_forwards(row) == repeated.backwards(row) == 0
    merged = sampler(PROMPTS, SEEDS, (TokenMerging(merge=True, binding_steps=0, entropy_steps=0),), ())
    still = sampler(PROMPTS, SEEDS, (RandomDirection((), (1, 2, 3), (control,)),), ())
    assert pixels(still) == pixels(merged) != pixels(repeated)


def test_moves_of_length_zero_leave_the_plain_image(sampler: Sampler) -> None:
    plain = sampler(PROMPTS, SEEDS, (), ())
    base = sampler(PROMPTS, SEEDS, (AttentionSegregation(),), ())
    still = [
        SimpleNamespace(step=entry.step, length=torch.zeros_like(entry.length), moved="latents") for entry in base.trace
    ]
    for trace in (still, []):
        assert pixels(sampler(PROMPTS, SEEDS, (RandomDirection(trace, (1, 2, 3)),), ())) == pixels(plain)


# -- losses on plain images --------------------------------------------------------------------


def test_measuring_changes_no_pixel_and_costs_no_pass(sampler: Sampler) -> None:
    plain = sampler(PROMPTS, SEEDS, (), ())
    controls = (AttentionSegregation(), REFINING)
    measured = sampler(PROMPTS, SEEDS, (), controls)
    assert pixels(measured) == pixels(plain)
    assert measured.passes == plain.passes == 8 and measured.trace == ()
    assert (measured.cost.extra_forwards, measured.cost.backwards) == (0, 0)
    own = [measured.loss((control,), 0) for control in controls]
    assert None not in own and measured.loss(controls, 0) == pytest.approx(sum(each or 0 for each in own))
    assert plain.loss(controls, 0) is None


# -- best of N, with images and verdicts made up -----------------------------------------------

PAIRS = tuple(Pair(item=Item(id=f"id-{name}", category="pair", prompt=name), seed=0) for name in "ab")
CONTROL = AttentionSegregation()
LOSSES = {"a": [0.5, 0.2, 0.2, 0.9], "b": [0.1, float("nan"), 0.3, 0.05]}
TRUE = {"a": [1, 2, 2, 0], "b": [2, 3, 1, 3]}  # number of true outcomes of three, by candidate


def image(prompt: str, candidate: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (ord(prompt), candidate, 0))


class Faked:
    """A sampler whose images say which candidate they are."""

    steps, guidance = 2, 4.0
    arguments: ClassVar[dict[str, object]] = {}

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, prompts: Any, seeds: Any, controls: Any, measure: Any) -> Sample:
        candidate = next(number for number in range(9) if noise_seed(PAIRS[0], number) == seeds[0])
        self.made.append(candidate)
        assert measure in ((), (CONTROL,)) and not controls
        return Sample(
            images=[image(prompt, candidate) for prompt in prompts],
            seeds=tuple(seeds),
            trace=(),
            losses={id(CONTROL): [LOSSES[prompt][candidate] for prompt in prompts]} if measure else {},
            cost=SimpleNamespace(forwards=4 * len(prompts), seconds=1.0, peak_bytes=5),
        )


def fake_judge(image: Image.Image, prompt: str) -> Judgement:
    candidate = image.getpixel((0, 0))[1]  # type: ignore[index]
    count = TRUE[prompt][candidate]
    return Judgement(outcomes={f"is_{number}": number < count for number in range(3)} | {"is_strict": count == 3})


def best(*labels: str) -> tuple[dict[str, list[dict[str, Any]]], Faked]:
    """Rows by arm, two in each."""
    arms = [Arm(label="plain", kind="plain")] if "plain" in labels else []
    for label in labels:
        if label.startswith("best"):
            count, _, base = label.removeprefix("best-of-").partition(":")
            behind = (CONTROL,) if base else ()
            arms.append(Arm(label=label, kind="best", candidates=int(count), base=base or None, controls=behind))
    sampler: Any = Faked()
    run = UnitRun(unit=Unit(number=0, pairs=PAIRS), arms=arms, sampler=sampler, judge=fake_judge)
    return {each.arm.label: [one.row for one in each.images] for each in run.results()}, sampler


def chosen(rows: list[dict[str, Any]]) -> list[int]:
    return [
        next(number for number in range(9) if noise_seed(pair, number) == row["chosen_seed"])
        for pair, row in zip(PAIRS, rows, strict=True)
    ]


def test_best_of_takes_what_was_worked_out_by_hand() -> None:
    rows, sampler = best("plain", "best-of-2", "best-of-4", "best-of-2:c", "best-of-4:c", "best-of-1")
    # a: two candidates with two of three, none strict: the earlier. b: two strict ones: the earlier.
    assert chosen(rows["best-of-4"]) == [1, 1] and chosen(rows["best-of-2"]) == [1, 1]
    assert chosen(rows["best-of-1"]) == [0, 0]
    # a: two equal losses: the earlier. b: the lowest is the last; the one without a number is never taken.
    assert chosen(rows["best-of-4:c"]) == [1, 3] and chosen(rows["best-of-2:c"]) == [1, 0]
    assert [row["loss"] for row in rows["best-of-4:c"]] == [0.2, 0.05]
    assert [row["loss"] for row in rows["best-of-4"]] == [None, None]
    # All candidates count, and each is made once, in whichever arms it is.
    assert [rows[label][0]["forwards"] for label in ("plain", "best-of-2", "best-of-4:c")] == [4, 8, 16]
    assert sampler.made == [0, 1, 2, 3]
    assert rows["plain"][0]["chosen_seed"] is None and rows["plain"][0]["noise_seed"] == noise_seed(PAIRS[0])


def test_strict_comes_before_the_number_of_outcomes() -> None:
    strict = Judgement(outcomes={"a": True, "b": False, "c": False, "is_strict": True})
    many = Judgement(outcomes={"a": True, "b": True, "c": True, "is_strict": False})
    assert choose_by_judge([many, strict]) == 1 and choose_by_judge([many, many]) == 0
    assert choose_by_loss([None, None]) == 0 and choose_by_loss([0.0, None, -1.0]) == 2


def test_a_failed_candidate_fails_the_arms_that_need_it() -> None:
    class Failing(Faked):
        def __call__(self, prompts: Any, seeds: Any, controls: Any, measure: Any) -> Sample:
            if seeds[0] == noise_seed(PAIRS[0], 1):
                raise RuntimeError("out of\nmemory")
            return super().__call__(prompts, seeds, controls, measure)

    arms = [Arm(label="plain", kind="plain"), Arm(label="best-of-2", kind="best", candidates=2)]
    failing: Any = Failing()
    run = UnitRun(unit=Unit(number=0, pairs=PAIRS), arms=arms, sampler=failing, judge=fake_judge)
    plain, two = run.results()
    assert [one.row["status"] for one in plain.images] == ["ok", "ok"]
    assert [one.row["error"] for one in two.images] == ["RuntimeError: out of memory"] * 2
    assert all(one.generation is None for one in two.images)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # no image becomes one of NaN
@pytest.mark.parametrize("endless", [float("inf"), float("nan")])
def test_a_move_without_a_finite_length_is_null_and_fails_only_its_own_repetition(
    sampler: Sampler, endless: float
) -> None:
    step = SimpleNamespace(index=0)
    trace = (SimpleNamespace(step=step, length=torch.tensor([0.5, endless]), moved="latents", terms={}, iteration=0),)

    class Endless(Faked):
        def __call__(self, prompts: Any, seeds: Any, controls: Any, measure: Any) -> Sample:
            random = isinstance(controls[0], RandomDirection)
            made = sampler(prompts, seeds, controls, ()) if random else super().__call__(prompts, seeds, (), ())
            return made if random else replace(made, trace=trace)

    arms = [Arm(label="c", kind="control", controls=(CONTROL,)), Arm(label="random:c", kind="random", base="c")]
    moving: Any = Endless()
    run = UnitRun(unit=Unit(number=0, pairs=PAIRS), arms=arms, sampler=moving, judge=lambda *_: Judgement(outcomes={}))
    base, random = ([one.row for one in each.images] for each in run.results())
    assert [row["lengths"] for row in base] == [[0.5], [None]]
    assert [row["status"] for row in random] == ["ok", "error"] and "no finite length" in random[1]["error"]
    np.testing.assert_allclose(random[0]["lengths"], [0.5], rtol=1e-6)
