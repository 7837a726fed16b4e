"""ImageCache of conditions: paired noise, batches, and an analysis that goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2ictl.errors import Cancelled
from t2ictl.generation import Request
from t2ictl.processors.token_flow.analysis.images import Cell, ImageCache, fingerprint
from tests.processors.token_flow.flow_cases import PROMPT, Case
from tests.tiny import scheduler, sd, sdxl

REQUEST = Request(prompt=PROMPT, steps=3, guidance_scale=3.0)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def cells_of(case: Case, seeds: tuple[int, ...] = (0, 1)) -> list[Cell]:
    make = case.make
    conditions = (make.whole(), make.keep("keep:circle", (3,)), make.remove("drop:circle", (3,), "drop"))
    return [Cell(condition=each.name, row=case.row(each), seed=seed) for each in conditions for seed in seeds]


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_batches_equal_single_images_also_with_noise_at_every_step(build: Any, name: str) -> None:
    case = Case(build())
    case.pipe.scheduler = scheduler(name)
    cells = cells_of(case)
    together = ImageCache(case.pipe, PROMPT, REQUEST, batch=4).of(cells)
    for cell, image in zip(cells, together, strict=True):
        alone = ImageCache(case.pipe, PROMPT, REQUEST, batch=1).of([cell])[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1, cell.condition


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_the_whole_prompt_gives_the_stock_image(name: str) -> None:
    case = Case(sd())
    case.pipe.scheduler = scheduler(name)
    stock = case.pipe(**{**REQUEST.arguments(), "generator": torch.Generator().manual_seed(5)}).images[0]
    made = ImageCache(case.pipe, PROMPT, REQUEST, batch=1).of(
        [Cell(condition="x", row=case.row(case.make.whole()), seed=5)]
    )
    assert np.array_equal(pixels(made[0]), pixels(stock))


def test_conditions_of_a_seed_begin_with_the_same_noise_and_seeds_do_not() -> None:
    case = Case(sd())
    row = case.row(case.make.whole())
    one, again, other = ImageCache(case.pipe, PROMPT, REQUEST, batch=3).of(
        [
            Cell(condition="a", row=row, seed=0),
            Cell(condition="b", row=row, seed=0),
            Cell(condition="a", row=row, seed=1),
        ]
    )
    assert np.array_equal(pixels(one), pixels(again)) and not np.array_equal(pixels(one), pixels(other))


def test_equal_rows_are_made_once() -> None:
    case = Case(sd())
    row = case.row(case.make.whole())
    images = ImageCache(case.pipe, PROMPT, REQUEST, batch=1)
    images.of([Cell(condition=name, row=row, seed=0) for name in "abc"])
    assert images.cost.forwards == 2 * REQUEST.steps


def test_a_stopped_run_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    case = Case(sd())
    cells = cells_of(case)
    stopping = ImageCache(
        case.pipe, PROMPT, REQUEST, folder=tmp_path / "cells", batch=2, on_batch=lambda done, _: done < 4
    )
    with pytest.raises(Cancelled, match="Stopped after 4 of 6"):
        stopping.of(cells)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    going_on = ImageCache(case.pipe, PROMPT, REQUEST, folder=tmp_path / "cells", batch=2)
    images = going_on.of(cells)
    assert going_on.reused == 4 and going_on.cost.forwards == 2 * 2 * REQUEST.steps
    whole = ImageCache(case.pipe, PROMPT, REQUEST, batch=2).of(cells)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(images, whole, strict=True))


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    case = Case(sd())
    cells = cells_of(case)[:1]
    ImageCache(case.pipe, PROMPT, REQUEST, folder=tmp_path, batch=1).of(cells)
    file = next(tmp_path.iterdir())
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    again = ImageCache(case.pipe, PROMPT, REQUEST, folder=tmp_path, batch=1)
    again.of(cells)
    assert again.reused == 0 and file.read_bytes() == good


def test_images_are_told_apart_by_all_that_makes_them() -> None:
    case = Case(sd())
    cell = cells_of(case)[0]
    dropped = replace(cell, row=replace(cell.row, unseen=(3,)))
    keys = {ImageCache(case.pipe, PROMPT, REQUEST).key(each) for each in (cell, dropped, replace(cell, seed=9))}
    for request in (replace(REQUEST, steps=4), replace(REQUEST, negative_prompt="x"), replace(REQUEST, width=32)):
        keys.add(ImageCache(case.pipe, PROMPT, request).key(cell))
    case.pipe.scheduler = scheduler("euler")
    keys.add(ImageCache(case.pipe, PROMPT, REQUEST).key(cell))
    with torch.no_grad():
        next(case.pipe.unet.parameters()).add_(0.1)
    keys.add(ImageCache(case.pipe, PROMPT, REQUEST).key(cell))
    assert len(keys) == 8
    # ... and not by the condition's name or by how they are batched.
    renamed = ImageCache(case.pipe, PROMPT, REQUEST, batch=2).key(replace(cell, condition="other"))
    assert renamed == ImageCache(case.pipe, PROMPT, REQUEST).key(cell)


def test_the_pipeline_is_left_as_it_was() -> None:
    case = Case(sd())
    del case.pipe._progress_bar_config
    processors = dict(case.pipe.unet.attn_processors)
    ImageCache(case.pipe, PROMPT, REQUEST, batch=2).of(cells_of(case)[:1])
    assert "_progress_bar_config" not in vars(case.pipe)
    assert all(case.pipe.unet.attn_processors[name] is each for name, each in processors.items())
    case.pipe.set_progress_bar_config(desc="mine")
    ImageCache(case.pipe, PROMPT, REQUEST, batch=2).of(cells_of(case)[:1])
    assert vars(case.pipe)["_progress_bar_config"] == {"desc": "mine"}


def test_an_adapter_that_is_set_to_another_strength_is_another_model() -> None:
    pipe = sd()
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="mine")
    before = fingerprint(pipe)
    pipe.set_adapters("mine", 0.5)
    assert fingerprint(pipe) != before and json.dumps(before)
