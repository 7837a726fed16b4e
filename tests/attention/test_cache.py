"""One result is kept, for one tensor as it was and one key."""

from __future__ import annotations

import torch

from t2ictl.attention.cache import TensorCache


def test_a_result_is_kept_for_one_tensor_as_it_was_and_one_key() -> None:
    made: list[None] = []
    latest = TensorCache()

    def make() -> int:
        made.append(None)
        return len(made)

    first, second = torch.zeros(2), torch.zeros(2)
    asked = [(first, "a"), (first, "a"), (first, "b"), (first, "a"), (second, "a"), (second, "a"), (first, "a")]
    assert [latest(each, key, make) for each, key in asked] == [1, 1, 2, 3, 4, 4, 5]
    first.add_(1)
    assert [latest(first, "a", make), latest(first, "a", make)] == [6, 6]
    wanting = torch.zeros(2, requires_grad=True)
    assert [latest(wanting, "a", make), latest(wanting, "a", make), latest(first, "a", make)] == [7, 8, 6]
    with torch.inference_mode():
        uncounted = torch.zeros(2)
        assert [latest(uncounted, "a", make), latest(uncounted, "a", make)] == [9, 10]  # what is written is not seen
