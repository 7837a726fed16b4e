"""Latents move wherever the scheduler listens, nowhere else, and downhill."""

from __future__ import annotations

import pytest
import torch

from tests.session.session_cases import Case, matrix, outcome


@pytest.mark.parametrize("case", matrix(), ids=str)
def test_each_move_reaches_the_next_latent(case: Case) -> None:
    found = outcome(case)
    kept = [number for number, each in enumerate(found.evaluations) if each.listens]
    assert len(kept) >= 2
    assert [number for number, each in enumerate(found.evaluations) if each.moved] == kept
    assert min(found.evaluations[number].effect for number in kept) > 0.05
    # What the denoiser saw, in every row, is what the scheduler goes on from.
    assert max(each.mismatch for each in found.evaluations) < 1e-4
    # Neither moved nor paid for where the scheduler throws the sample away.
    assert found.moves == kept
    assert found.extra_forwards == len(kept) * found.images


def test_schedulers_that_discard_are_in_the_matrix() -> None:
    silent = {case.scheduler for case in matrix() if any(not each.listens for each in outcome(case).evaluations)}
    assert silent == {"heun", "kdpm2", "pndm"}


def test_moves_go_downhill() -> None:
    before = torch.cat([each for case in matrix() for each in outcome(case).before])
    after = torch.cat([each for case in matrix() for each in outcome(case).after])
    assert len(before) > 500
    assert float((after < before).float().mean()) >= 0.95
