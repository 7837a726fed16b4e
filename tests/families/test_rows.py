"""Rows by content: which rows of a batch hold the prompt is known by what was encoded, in any order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.rows import KnownRows, layout_by_content

IMAGES = BatchLayout.from_counts(prompts=2, images_per_prompt=2, guided=False)


def drawn(seed: int, rows: int = 4, length: int = 3, width: int = 5) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


COND, UNCOND, OTHER = drawn(0), drawn(1), drawn(2)
KNOWN = KnownRows(cond=(COND,), uncond=(UNCOND,))


def roles(known: KnownRows, *texts: Tensor, uncond_first: bool = True, images: BatchLayout = IMAGES) -> Any:
    found = layout_by_content(known, texts, images, uncond_first=uncond_first)
    return None if found is None else [row.role for row in found.rows]


@pytest.mark.parametrize("uncond_first", [True, False])
def test_the_order_of_the_rows_is_that_of_their_content(uncond_first: bool) -> None:
    both = torch.cat([UNCOND, COND])
    assert roles(KNOWN, both, uncond_first=uncond_first) == ["uncond"] * 4 + ["cond"] * 4
    assert roles(KNOWN, both.roll(4, 0), uncond_first=uncond_first) == ["cond"] * 4 + ["uncond"] * 4


@pytest.mark.parametrize("uncond_first", [True, False])
def test_a_call_of_one_role(uncond_first: bool) -> None:
    assert roles(KNOWN, COND, uncond_first=uncond_first) == ["cond"] * 4
    assert roles(KNOWN, UNCOND, uncond_first=uncond_first) == ["uncond"] * 4


def test_each_row_has_the_image_and_prompt_of_its_place() -> None:
    found = layout_by_content(KNOWN, [torch.cat([COND, UNCOND])], IMAGES, uncond_first=True)
    assert found is not None
    assert [(row.image, row.prompt) for row in found.rows] == [(0, 0), (1, 0), (2, 1), (3, 1)] * 2
    assert found.indices("cond") == (0, 1, 2, 3) and found.images == 4


@pytest.mark.parametrize("given", [IMAGES, BatchLayout.from_counts(prompts=2, images_per_prompt=2, guided=True)])
def test_only_the_conditional_rows_of_what_is_expected_count(given: BatchLayout) -> None:
    assert roles(KNOWN, torch.cat([UNCOND, COND]), images=given) == ["uncond"] * 4 + ["cond"] * 4


def test_a_single_image() -> None:
    known = KnownRows(cond=(COND[:1],), uncond=(UNCOND[:1],))
    one = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=False)
    assert roles(known, torch.cat([COND[:1], UNCOND[:1]]), images=one) == ["cond", "uncond"]
    assert roles(known, UNCOND[:1], images=one) == ["uncond"]


@pytest.mark.parametrize(("uncond_first", "order"), [(True, ["uncond", "cond"]), (False, ["cond", "uncond"])])
def test_where_prompt_and_negative_prompt_are_the_same_the_family_says_which_is_first(
    uncond_first: bool, order: list[str]
) -> None:
    known = KnownRows(cond=(COND,), uncond=(COND.clone(),))
    expected = [role for role in order for _ in range(4)]
    assert roles(known, torch.cat([COND, COND]), uncond_first=uncond_first) == expected
    # In a call of its own it is the prompt: who looks for it there finds it, and its maps are the same.
    assert roles(known, COND, uncond_first=uncond_first) == ["cond"] * 4


def test_where_nobody_has_seen_negative_rows_only_prompts_are_known() -> None:
    known = KnownRows(cond=(COND,))
    assert roles(known, COND) == ["cond"] * 4
    assert roles(known, torch.cat([UNCOND, COND])) is None and roles(known, UNCOND) is None


def test_all_arguments_that_hold_text_count() -> None:
    first, second = drawn(3, length=2), drawn(4, length=7, width=4)
    negative = drawn(5, length=7, width=4)
    known = KnownRows(cond=(COND, second), uncond=(COND, negative))  # told apart by the second alone
    both = torch.cat([negative, second])
    assert roles(known, torch.cat([COND, COND]), both) == ["uncond"] * 4 + ["cond"] * 4
    assert roles(known, COND, second) == ["cond"] * 4 and roles(known, COND, negative) == ["uncond"] * 4
    assert roles(known, first, second) is None  # of another length
    assert roles(known, COND) is None  # an argument is missing
    assert roles(known, torch.cat([COND, COND]), torch.cat([second, OTHER[:, :1, :4].expand(4, 7, 4)])) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_that_a_pipeline_has_cast_are_still_known(dtype: torch.dtype) -> None:
    """Text encoders in half precision beside a transformer in float32, as SANA has them."""
    half = KnownRows(cond=(COND.to(dtype),), uncond=(UNCOND.to(dtype),))
    assert roles(half, torch.cat([UNCOND.to(dtype), COND.to(dtype)]).float()) == ["uncond"] * 4 + ["cond"] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_that_a_pipeline_has_rounded_are_still_known(dtype: torch.dtype) -> None:
    """Text encoders in float32 beside a transformer in half precision."""
    rounded = torch.cat([UNCOND, COND]).to(dtype)
    assert roles(KNOWN, rounded) == ["uncond"] * 4 + ["cond"] * 4


@pytest.mark.parametrize(
    "texts",
    [
        OTHER,
        torch.cat([OTHER, COND]),
        torch.cat([COND, OTHER]),
        COND.flip(0),  # rows of other images
        COND[:3],
        torch.cat([UNCOND, COND])[:5],
        COND[:0],
        COND[:, :2],
        COND[..., :4],
    ],
    ids=lambda each: str(tuple(each.shape)),
)
def test_rows_of_nobody(texts: Tensor) -> None:
    assert roles(KNOWN, texts) is None


@pytest.mark.parametrize("texts", [torch.cat([COND, COND]), torch.cat([UNCOND, COND, COND])], ids=["cond", "both"])
def test_rows_of_one_role_twice_are_refused(texts: Tensor) -> None:
    """As pipelines with perturbed-attention guidance lay them out."""
    with pytest.raises(UnsupportedPipeline, match="call the plain pipeline"):
        roles(KNOWN, texts)


# -- masks ------------------------------------------------------------------------------------------------------------

SHORT, LONG = torch.tensor([1, 0, 0]), torch.tensor([1, 1, 0])


@pytest.mark.parametrize(
    ("order", "is_mixed"),
    [
        ((SHORT, SHORT, LONG, LONG), False),
        ((SHORT, LONG, SHORT, LONG), True),  # some pipelines repeat them so, beside rows of the first, then the second
        ((SHORT, SHORT, SHORT, SHORT), False),
        ((SHORT, SHORT, LONG, SHORT), True),
        ((SHORT, LONG), False),  # of prompts alone: nobody knows how it is repeated
    ],
)
def test_images_of_one_prompt_have_one_mask(order: tuple[Tensor, ...], is_mixed: bool) -> None:
    mask_BT, good_BT = torch.stack(order), torch.stack([SHORT] * 4)
    for masks in ((mask_BT,), (good_BT, mask_BT), (None, mask_BT, good_BT)):
        assert KnownRows(cond=(COND,), masks=masks).mixes_masks(IMAGES) == is_mixed
    assert not KnownRows(cond=(COND,)).mixes_masks(IMAGES)
    assert not KnownRows(cond=(COND,), masks=(None, good_BT)).mixes_masks(IMAGES)
