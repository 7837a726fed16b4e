"""Rows of a batch lie as stock pipelines lay them."""

from __future__ import annotations

import pytest

from t2ictl.attention.batch import BatchLayout
from t2ictl.errors import UnsupportedPipeline


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_lanes_lie_as_stock_pipelines_lay_them(guided: bool, prompts: int, images: int) -> None:
    batch = BatchLayout.from_counts(prompts=prompts, images_per_prompt=images, guided=guided)
    given_images = prompts * images
    assert len(batch) == given_images * (1 + guided) and batch.images == given_images
    assert batch.indices("cond") == tuple(range(len(batch)))[-given_images:]
    assert batch.indices("uncond") == (tuple(range(given_images)) if guided else ())
    own = batch.only("cond")
    assert [row.prompt for row in own.rows] == [p for p in range(prompts) for _ in range(images)]
    assert [row.image for row in own.rows] == list(range(given_images))
    assert own.indices("cond") == tuple(range(given_images)) and own.indices("uncond") == ()
    batch.check_rows(len(batch))
    for wrong in (len(batch) + given_images, 0):
        with pytest.raises(UnsupportedPipeline, match=f"got {wrong} rows where {len(batch)}"):
            batch.check_rows(wrong)
