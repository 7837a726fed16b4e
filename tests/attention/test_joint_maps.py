"""Maps of joint attention: against loops over numbers, against the kernel itself, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2ictl.attention.checks import checked_places
from t2ictl.attention.joint_maps import (
    all_key_attention,
    output_space_map,
    self_attention_map,
    text_attention,
    text_mass,
    text_to_image_attention,
)
from t2ictl.errors import BadSetting, ShapeMismatch
from tests.attention.joint_cases import (
    BUDGETS,
    HEADS,
    IMAGE,
    LENGTH,
    MASKS,
    ROWS,
    TEXT,
    WIDTH,
    WORDS,
    drawn,
    keys,
    mask_of,
    queries,
    summed,
    weights_by_loops,
)

HALVES = (torch.float16, torch.bfloat16)
SCATTERED = torch.tensor([9, 0, 4])


def close(found: Tensor, expected: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=within, check_dtype=False)


@pytest.mark.parametrize("kind", MASKS)
def test_text_attention_is_a_softmax_over_text(kind: str) -> None:
    q, k, mask = queries(), keys(count=TEXT), mask_of(kind, TEXT)
    expected = summed(weights_by_loops(q, k, mask))
    close(text_attention(q, k, mask), expected)
    is_told = kind not in ("none", "one number")  # the same number on all logits changes nothing
    assert bool((expected - summed(weights_by_loops(q, k, None))).abs().amax() > 0.1) == is_told


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("text", [WORDS, slice(-3, None), slice(1, 9, 3), SCATTERED, SCATTERED.int()], ids=str)
def test_all_key_attention_and_its_mass(kind: str, text: Any) -> None:
    q, k, mask = queries(), keys(), mask_of(kind, LENGTH)
    every = weights_by_loops(q, k, mask)
    close(all_key_attention(q, k, text, mask), summed(every, text))
    close(text_mass(q, k, text, mask), summed(every, text).sum(dim=-1))


@pytest.mark.parametrize("kind", MASKS)
def test_text_to_image_attention_is_a_softmax_over_the_image(kind: str) -> None:
    q, k, mask = queries(count=TEXT), keys(count=IMAGE), mask_of(kind, IMAGE, queries=TEXT)
    found = text_to_image_attention(q, k, mask)
    assert found.shape == (ROWS, IMAGE, TEXT)
    close(found, summed(weights_by_loops(q, k, mask)).transpose(1, 2))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("places", [None, torch.tensor([5]), torch.tensor([6, 0, 3, 0])], ids=str)
def test_self_attention_map_of_some_places(kind: str, places: Tensor | None) -> None:
    q, k, mask = queries(), keys(count=IMAGE), mask_of(kind, IMAGE)
    every = summed(weights_by_loops(q, k, mask))
    close(self_attention_map(q, k, mask, places=places), every if places is None else every[:, places])


def test_output_space_map_by_loops() -> None:
    image, text = drawn(ROWS, HEADS, IMAGE, WIDTH, seed=6), drawn(ROWS, HEADS, TEXT, WIDTH, seed=7)
    expected = torch.zeros(ROWS, IMAGE, TEXT, dtype=torch.float64)
    for b in range(ROWS):
        for i in range(IMAGE):
            powers = []
            for j in range(TEXT):
                pairs = [(h, d) for h in range(HEADS) for d in range(WIDTH)]
                powers.append(math.exp(sum(float(image[b, h, i, d] * text[b, h, j, d]) for h, d in pairs)))
            for j in range(TEXT):
                expected[b, i, j] = HEADS * powers[j] / sum(powers)
    close(output_space_map(image, text), expected)


def test_values_by_hand() -> None:
    """One head of width 1, so that the logit of a key is the key itself; keys are logarithms of small numbers."""
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([1.0, 3, 4, 8]).log().view(1, 1, 4, 1)  # two of text, two of the image
    close(text_attention(q, k[:, :, :2])[0, 0], torch.tensor([1 / 4, 3 / 4]), 1e-6)
    close(all_key_attention(q, k, slice(0, 2))[0, 0], torch.tensor([1 / 16, 3 / 16]), 1e-6)
    close(text_mass(q, k, slice(0, 2))[0], torch.tensor([4 / 16]), 1e-6)
    close(self_attention_map(q, k[:, :, 2:])[0, 0], torch.tensor([4 / 12, 8 / 12]), 1e-6)
    close(text_to_image_attention(q, k[:, :, 2:])[0, :, 0], torch.tensor([4 / 12, 8 / 12]), 1e-6)
    close(output_space_map(q, k[:, :, :2])[0, 0], torch.tensor([1 / 4, 3 / 4]), 1e-6)
    halved = torch.tensor([0.0, -math.log(2), 0, -math.log(4)])  # 1, 3/2, 4, 2
    close(all_key_attention(q, k, slice(0, 2), halved)[0, 0], torch.tensor([2 / 17, 3 / 17]), 1e-6)
    hidden = torch.tensor([True, True, True, False])  # 1, 3, 4
    close(all_key_attention(q, k, slice(0, 2), hidden)[0, 0], torch.tensor([1 / 8, 3 / 8]), 1e-6)
    close(text_mass(q, k, slice(0, 2), hidden)[0], torch.tensor([1 / 2]), 1e-6)
    close(text_attention(q, k[:, :, :2], scale=2.0)[0, 0], torch.tensor([1 / 10, 9 / 10]), 1e-6)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("shared", [HEADS, 2, 1])
def test_all_keys_is_what_the_kernel_does(kind: str, scale: float | None, shared: int) -> None:
    """With the unit matrix as values the result of the kernel is its weights."""
    q, k, mask = queries(), keys(heads=shared), mask_of(kind, LENGTH)
    unit = torch.eye(LENGTH, dtype=torch.float64).expand(ROWS, shared, LENGTH, LENGTH)
    given = None if mask is None else mask.expand(ROWS, HEADS, IMAGE, LENGTH)  # it takes none of one dimension
    given = given.double() if given is not None and given.is_floating_point() else given
    weights = F.scaled_dot_product_attention(q, k, unit, attn_mask=given, scale=scale, enable_gqa=True)
    close(all_key_attention(q, k, WORDS, mask, scale), summed(weights, WORDS))
    close(text_mass(q, k, WORDS, mask, scale), summed(weights, WORDS).sum(dim=-1))
    close(self_attention_map(q, k, mask, scale), summed(weights))


@pytest.mark.parametrize("shared", [1, 2, HEADS])
def test_heads_that_share_keys(shared: int) -> None:
    q, text, image = queries(), keys(count=TEXT, heads=shared), keys(count=IMAGE, heads=shared)
    both = torch.cat([text, image], dim=2)
    close(text_attention(q, text), summed(weights_by_loops(q, text, None)))
    close(all_key_attention(q, both, WORDS), summed(weights_by_loops(q, both, None), WORDS))
    close(text_mass(q, both, WORDS), summed(weights_by_loops(q, both, None), WORDS).sum(dim=-1))
    close(text_to_image_attention(q, image), summed(weights_by_loops(q, image, None)).transpose(1, 2))
    close(self_attention_map(q, image), summed(weights_by_loops(q, image, None)))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "kind", ["none", "one query reads nothing", "additive", "additive, by row", "boolean, by query"]
)
@pytest.mark.parametrize("shared", [2, HEADS])
def test_blocks_change_nothing(budget: int, kind: str, shared: int) -> None:
    q, k, mask = queries(), keys(heads=shared), mask_of(kind, LENGTH)
    close(text_attention(q, k, mask, budget=budget), summed(weights_by_loops(q, k, mask)))
    close(all_key_attention(q, k, WORDS, mask, budget=budget), summed(weights_by_loops(q, k, mask), WORDS))
    close(text_mass(q, k, WORDS, mask, budget=budget), text_mass(q, k, WORDS, mask))
    close(self_attention_map(q, k, mask, budget=budget), self_attention_map(q, k, mask))
    close(output_space_map(q, keys(), budget=budget), output_space_map(q, keys()))


@pytest.mark.parametrize("budget", BUDGETS)
def test_blocks_of_two_heads_and_two_queries_have_their_own_masks(budget: int) -> None:
    q, k, mask = queries(count=2, heads=2), keys(heads=2), drawn(ROWS, 2, 2, LENGTH, seed=3)
    close(text_attention(q, k, mask, budget=budget), summed(weights_by_loops(q, k, mask)))
    one = torch.tensor([1])
    close(self_attention_map(q, k, mask, places=one), summed(weights_by_loops(q, k, mask))[:, one])


def test_no_queries_have_no_map() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert self_attention_map(queries(), keys(), places=none).shape == (ROWS, 0, LENGTH)
    assert all_key_attention(queries(count=0), keys(), WORDS).shape == (ROWS, 0, TEXT)
    assert all_key_attention(queries(), keys(), none).shape == (ROWS, IMAGE, 0)
    assert not text_mass(queries(), keys(), none).any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_half_precision_gives_maps_in_float32(dtype: torch.dtype, kind: str) -> None:
    """As exact as if the rounded inputs had been given in float32."""
    q, k, mask = queries(dtype), keys(dtype), mask_of(kind, LENGTH)
    mask = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
    own = None if mask is None else mask[..., WORDS]
    image = None if mask is None else mask[..., TEXT:]
    found = {
        "text": (text_attention(q, k[:, :, WORDS], own), summed(weights_by_loops(q, k[:, :, WORDS], own))),
        "all": (all_key_attention(q, k, WORDS, mask), summed(weights_by_loops(q, k, mask), WORDS)),
        "mass": (text_mass(q, k, WORDS, mask), summed(weights_by_loops(q, k, mask), WORDS).sum(dim=-1)),
        "self": (self_attention_map(q, k[:, :, TEXT:], image), summed(weights_by_loops(q, k[:, :, TEXT:], image))),
        "output": (output_space_map(q, k), output_space_map(q.double(), k.double())),
    }
    for map_BQK, expected in found.values():
        assert map_BQK.dtype == torch.float32
        close(map_BQK, expected, 4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_and_float64_keep_their_precision(dtype: torch.dtype) -> None:
    q, k = queries(dtype), keys(dtype)
    made = [text_attention(q, k), all_key_attention(q, k, WORDS), text_mass(q, k, WORDS), self_attention_map(q, k)]
    assert {each.dtype for each in made} == {dtype}


def test_large_logits_stay_finite_and_masked_ones_count_for_nothing() -> None:
    q, k = 200 * queries(torch.float32), 200 * keys(torch.float32)
    for kind in ("none", "boolean", "additive, by row"):
        mask = mask_of(kind, LENGTH)
        every, some = all_key_attention(q, k, slice(0, LENGTH), mask), text_attention(q, k, mask)
        for map_BQK in (every, some):
            torch.testing.assert_close(map_BQK.sum(dim=-1), torch.full((ROWS, IMAGE), float(HEADS)))
    lowest = torch.zeros(LENGTH).index_fill(0, torch.arange(4), torch.finfo(torch.float32).min)
    assert not all_key_attention(queries(torch.float32), keys(torch.float32), slice(0, 4), lowest).any()


def test_a_query_that_reads_nothing_has_no_map() -> None:
    q, k = queries(), keys()
    mask = torch.ones(ROWS, 1, IMAGE, LENGTH, dtype=torch.bool)
    mask[0, :, 2] = False
    for each in (mask, torch.zeros(mask.shape).masked_fill(~mask, -math.inf)):
        for made in (
            text_attention(q, k, each),
            all_key_attention(q, k, WORDS, each),
            text_mass(q, k, WORDS, each).unsqueeze(-1),
            text_to_image_attention(q, k, each).transpose(1, 2),
            self_attention_map(q, k, each, places=torch.tensor([0, 1, 2])),
        ):
            assert torch.isfinite(made).all() and not made[0, 2].any() and (made[0, :2].sum(dim=-1) > 0).all()


def test_numbers_that_are_none_are_not_hidden() -> None:
    q, mask = queries(), mask_of("boolean", LENGTH)
    q[0, 1, 2, 0] = math.nan
    for made in (text_attention(q, keys(), mask), all_key_attention(q, keys(), WORDS, mask)):
        assert made[0, 2].isnan().any() and torch.isfinite(made[1]).all()


def test_text_attention_is_the_share_of_all_keys_without_the_rest() -> None:
    """In each head; so with one head also in the map."""
    q, k = queries(heads=1), keys(heads=1)
    all_keys, mass = all_key_attention(q, k, WORDS), text_mass(q, k, WORDS)
    close(text_attention(q, k[:, :, WORDS]), all_keys / mass.unsqueeze(-1))
    close(mass + text_mass(q, k, slice(TEXT, LENGTH)), torch.ones_like(mass))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_round_the_products(dtype: torch.dtype) -> None:
    q, k = queries(dtype), keys(dtype)

    def made() -> list[Tensor]:
        maps = [text_attention(q, k), all_key_attention(q, k, WORDS), text_mass(q, k, WORDS), output_space_map(q, k)]
        maps += [text_to_image_attention(q, k), self_attention_map(q, k)]
        return maps

    plain = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (q @ k.mT).dtype == torch.bfloat16 or dtype == torch.float64
        for one, other in zip(made(), plain, strict=True):
            assert torch.equal(one, other)


def test_shapes_without_numbers() -> None:
    """On the meta device, where the cost of passes is counted."""
    q, k = queries().to("meta"), keys().to("meta")
    assert all_key_attention(q, k, SCATTERED, budget=1).shape == (ROWS, IMAGE, 3)
    assert text_mass(q, k, WORDS).shape == (ROWS, IMAGE)
    assert self_attention_map(q, k, places=SCATTERED[1:]).shape == (ROWS, 2, LENGTH)
    assert checked_places("text", SCATTERED, k).device == k.device  # positions follow the sequence


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: text_attention(queries()[0], keys()), ShapeMismatch, "no attention"),
        (lambda: text_attention(queries(), keys()[..., :2]), ShapeMismatch, "no attention"),
        (lambda: text_attention(queries(), keys()[:1]), ShapeMismatch, "no attention"),
        (lambda: text_attention(queries(), keys(count=0)), ShapeMismatch, "no attention"),
        (lambda: text_attention(queries(), keys(heads=3)), ShapeMismatch, "heads"),
        (lambda: text_attention(queries(), keys(), mask_of("boolean", TEXT)), ShapeMismatch, "broadcast"),
        (lambda: text_attention(queries(), keys(), torch.zeros(1, 1, 1, 1, 1)), ShapeMismatch, "broadcast"),
        (lambda: text_attention(queries(), keys(), torch.ones(LENGTH).long()), BadSetting, "int64"),
        (lambda: text_attention(queries(), keys(), budget=0), BadSetting, "budget"),
        (lambda: all_key_attention(queries(), keys(), slice(0, LENGTH + 1)), ShapeMismatch, "text"),
        (lambda: all_key_attention(queries(), keys(), slice(LENGTH + 1, None)), ShapeMismatch, "text"),
        (lambda: all_key_attention(queries(), keys(), slice(5, 0, -1)), ShapeMismatch, "text"),
        (lambda: all_key_attention(queries(), keys(), torch.tensor([LENGTH])), ShapeMismatch, "text"),
        (lambda: all_key_attention(queries(), keys(), torch.tensor([-1])), ShapeMismatch, "text"),
        (lambda: text_mass(queries(), keys(), torch.tensor([[0]])), ShapeMismatch, "text"),
        (lambda: text_mass(queries(), keys(), torch.tensor([True] * LENGTH)), BadSetting, "nonzero"),
        (lambda: text_to_image_attention(queries(), keys(), torch.zeros(1, 3, 1, 1)), ShapeMismatch, "broadcast"),
        (lambda: output_space_map(queries(), keys(heads=2)), ShapeMismatch, "heads"),
        (lambda: self_attention_map(queries(), keys(), places=torch.tensor([IMAGE])), ShapeMismatch, "places"),
        (lambda: self_attention_map(queries(), keys(), places=torch.tensor([0.5])), BadSetting, "places"),
    ],
)
def test_what_does_not_belong_together_is_refused(call: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        call()
