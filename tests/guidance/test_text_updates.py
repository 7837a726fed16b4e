"""What moves text rows: the inner loop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective, EmbedStep
from t2ictl.guidance.text_updates import perturb_embeds, update_embeds
from t2ictl.settings.windows import Step, Window

FIRST = Step(index=0, total=11, timestep=900.0)


def test_a_raw_step_is_the_gradient_times_the_length() -> None:
    rule, embeds_BTC = EmbedStep(scale=3.0, final_scale=0.0, mode="raw"), torch.randn(2, 3, 4)
    gradient_BKC, mask_BK = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [False, True, True]])
    step = Step(index=5, total=11, timestep=1.0)  # half of the way: 3 (1 - 5/10)
    moved_BKC = rule.move(embeds_BTC, gradient_BKC, mask_BK, step, strength=0.5)
    torch.testing.assert_close(moved_BKC, -0.75 * gradient_BKC * mask_BK[..., None])


def test_a_normalized_step_moves_each_row_by_a_share_of_its_length() -> None:
    rule = EmbedStep(scale=0.1, final_scale=0.5)
    embeds_BTC = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]]])
    gradient_BKC = torch.tensor([[[0.0, 1e-30], [-7.0, 0.0], [0.0, 0.0]]])
    step = Step(index=10, total=11, timestep=1.0)  # 0.05 of each length at the last step
    moved_BKC = rule.move(embeds_BTC, gradient_BKC, torch.ones(1, 3, dtype=torch.bool), step)
    torch.testing.assert_close(moved_BKC, torch.tensor([[[0.0, -0.25], [0.1, 0.0], [0.0, 0.0]]]))


def objective(evaluate: Any, most: int | tuple[int, ...] = 3, rule: EmbedStep | None = None) -> EmbedObjective:
    mask_BK = torch.tensor([[True, False], [True, True], [True, True]])
    return EmbedObjective(
        name="mine",
        layers=(),
        evaluate=evaluate,
        movable=mask_BK,
        max_updates_B=torch.tensor(most).expand(3),
        window=Window(),
        step_size=rule or EmbedStep(scale=0.25, mode="raw"),
    )


def bowl(done: Any) -> Any:
    """Loss: half the square of the rows; three images."""

    def evaluate(passes: Any, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        loss_B = 0.5 * embeds_BTC.square().sum(dim=(1, 2))
        one_B = torch.ones(3)
        return EmbedLosses(
            terms={"bowl": loss_B}, done=done(loss_B.detach()), forwards=one_B, backwards=2 * one_B, rows=len(one_B)
        )

    return evaluate


def test_each_image_moves_until_it_is_good_enough_and_its_other_rows_never() -> None:
    start_BKC = torch.tensor([[[4.0], [1.0]], [[4.0], [4.0]], [[0.5], [0.5]]])
    found = update_embeds(start_BKC, objective(bowl(lambda loss_B: loss_B < 5)), None, FIRST, torch.float32)  # type: ignore[arg-type]
    # Three quarters are left after a step. Losses: 8.5, 5, 3.03 / 16, 9, 5.06 / 0.25.
    expected = torch.tensor([[[2.25], [1.0]], [[1.6875], [1.6875]], [[0.5], [0.5]]])
    torch.testing.assert_close(found.rows, expected)
    lengths = torch.stack([each.length for each in found.trace])
    torch.testing.assert_close(
        lengths, torch.tensor([[1.0, 2**0.5, 0.0], [0.75, 0.75 * 2**0.5, 0.0], [0.0, 0.5625 * 2**0.5, 0.0]])
    )
    assert [each.forwards.tolist() for each in found.trace] == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]  # type: ignore[union-attr]
    assert [each.backwards.tolist() for each in found.trace] == [[2, 2, 0], [2, 2, 0], [0, 2, 0]]  # type: ignore[union-attr]
    assert all(each.moved == "tokens" and "mine.bowl" in each.terms for each in found.trace)
    assert torch.equal(start_BKC, torch.tensor([[[4.0], [1.0]], [[4.0], [4.0]], [[0.5], [0.5]]]))


def test_each_image_has_its_own_most_updates() -> None:
    start_BKC, never = torch.ones(3, 2, 1), lambda loss_B: loss_B < 0
    found = update_embeds(start_BKC, objective(bowl(never), most=(2, 0, 3)), None, FIRST, torch.float32)  # type: ignore[arg-type]
    expected = torch.tensor([[[0.75**2], [1.0]], [[1.0], [1.0]], [[0.75**3], [0.75**3]]])
    torch.testing.assert_close(found.rows, expected)
    assert [each.forwards.tolist() for each in found.trace] == [[1, 0, 1], [1, 0, 1], [0, 0, 1]]  # type: ignore[union-attr]


def test_nothing_moves_where_all_is_good_enough() -> None:
    start_BKC = torch.ones(3, 2, 1)
    found = update_embeds(start_BKC, objective(bowl(lambda loss_B: loss_B < 5)), None, FIRST, torch.float32)  # type: ignore[arg-type]
    assert torch.equal(found.rows, start_BKC) and len(found.trace) == 1
    assert not found.trace[0].length.any() and not found.trace[0].skipped.any()


def test_only_an_image_whose_loss_is_not_finite_stays() -> None:
    def evaluate(passes: Any, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        loss_B = embeds_BTC.sum(dim=(1, 2)) * torch.tensor([1.0, float("nan"), 1.0])
        no_B = torch.zeros(3, dtype=torch.bool)
        return EmbedLosses(terms={"sum": loss_B}, done=no_B, forwards=torch.ones(3), backwards=torch.ones(3), rows=3)

    start_BKC = torch.ones(3, 2, 1)
    found = update_embeds(start_BKC, objective(evaluate, most=2), None, FIRST, torch.float32)  # type: ignore[arg-type]
    assert found.rows[:, :, 0].tolist() == [[0.5, 1.0], [1.0, 1.0], [0.5, 0.5]]
    assert [each.skipped.tolist() for each in found.trace] == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize("kind", ["loss alone", "too large"])
def test_an_image_whose_loss_or_rows_cannot_be_held_stays(kind: str) -> None:
    def evaluate(passes: Any, embeds_BTC: Tensor, step: Step) -> EmbedLosses:
        factor_B = torch.tensor([1.0, 1e6 if kind == "too large" else 1.0, 1.0])
        loss_B = embeds_BTC.sum(dim=(1, 2)) * factor_B + (
            torch.tensor([0.0, torch.nan, 0.0]) if kind != "too large" else 0
        )
        no_B = torch.zeros(3, dtype=torch.bool)
        return EmbedLosses(terms={"sum": loss_B}, done=no_B, forwards=torch.ones(3), backwards=torch.ones(3), rows=3)

    start_BKC = torch.ones(3, 2, 1)
    found = update_embeds(start_BKC, objective(evaluate, most=1), None, FIRST, torch.float16)  # type: ignore[arg-type]
    assert [each.skipped.tolist() for each in found.trace] == [[False, True, False]]
    assert torch.equal(found.rows[1], start_BKC[1]) and torch.isfinite(found.rows.half()).all()


def test_pushes_that_half_precision_cannot_hold_are_left_out() -> None:
    moves = torch.ones(2, 2, 2)
    moves[1] = 7e4
    found = perturb_embeds(torch.zeros(2, 2, 2), [moves, torch.ones(2, 2, 2)], FIRST, torch.float16)
    assert [each.skipped.tolist() for each in found.trace] == [[False, True], [False, False]]
    assert found.rows[:, 0, 0].tolist() == [2.0, 1.0]


def test_pushes_add_up_and_are_traced_as_tokens() -> None:
    embeds_BTC = torch.zeros(2, 2, 2)
    found = perturb_embeds(embeds_BTC, [torch.ones(2, 2, 2), torch.full((2, 2, 2), 0.5)], FIRST)
    assert torch.equal(found.rows, torch.full((2, 2, 2), 1.5))
    assert [each.length.tolist() for each in found.trace] == [[2.0, 2.0], [1.0, 1.0]]
    assert all(each.moved == "tokens" for each in found.trace)
