"""Labels of subjects, and positions resampled between places."""

from __future__ import annotations

import pytest
import torch

from t2ictl.processors.isolation_reposition.groups import resampled_positions, subject_labels


def test_labels_are_disjoint_and_small_subjects_keep_four_cells() -> None:
    coverage = torch.zeros(3, 6, 6)
    coverage[0, :4, :4] = 1.0
    coverage[1, 2:, 2:] = 0.9  # overlaps the first, which covers more there
    coverage[2, 5, 0], coverage[2, 4:, :2] = 0.2, 0.2  # too thin to win a cell
    labels = subject_labels(coverage)
    assert (labels == 1).sum() == 16 and (labels == 2).sum() == 12
    assert sorted((labels == 3).nonzero().tolist()) == [[4, 0], [4, 1], [5, 0], [5, 1]]
    assert subject_labels(torch.zeros(2, 3, 3)).sum() == 0  # who is not there gets no cell
    assert subject_labels(torch.zeros(0, 3, 3)).shape == (3, 3)


@pytest.mark.parametrize(
    ("target", "reference"), [((3, 5), (3, 5)), ((6, 2), (3, 4)), ((2, 3), (5, 6)), ((1, 1), (4, 4))]
)
def test_resampling_is_nearest_and_does_not_care_where_the_target_stands(
    target: tuple[int, int], reference: tuple[int, int]
) -> None:
    source = torch.zeros(8, 9, dtype=torch.bool)
    source[1 : 1 + reference[0], 2 : 2 + reference[1]] = True
    found = []
    for top, left in ((0, 0), (2, 3)):
        place = torch.zeros(8, 9, dtype=torch.bool)
        place[top : top + target[0], left : left + target[1]] = True
        found.append(resampled_positions(place, source))
    pixels = torch.arange(72.0).view(1, 1, 8, 9)[..., 1 : 1 + reference[0], 2 : 2 + reference[1]]
    expected = torch.nn.functional.interpolate(pixels, size=target, mode="nearest-exact").long().flatten()
    assert torch.equal(found[0], expected) and torch.equal(found[1], found[0])


def test_resampling_takes_nothing_outside_the_mask_and_fits_with_one_scale() -> None:
    source = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert resampled_positions(torch.ones(2, 2, dtype=torch.bool), source).tolist() == [0, 4, 5]
    wide = torch.ones(2, 4, dtype=torch.bool)
    assert resampled_positions(wide, source).tolist() == [0, 0, 4, 4, 5, 5]
    assert resampled_positions(wide, source, "fit").tolist() == [0, 4, 5]
    assert not len(resampled_positions(torch.zeros(2, 2, dtype=torch.bool), source))
