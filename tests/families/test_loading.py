"""Loading: the embedded model, a folder, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from t2ictl.errors import BadSetting
from t2ictl.families.loading import load, model_name
from tests.tiny import sd


def test_the_embedded_model_is_a_stock_pipeline() -> None:
    pipe = load("shapes", device="cpu")
    assert type(pipe) is StableDiffusionPipeline
    assert model_name(pipe) == "shapes"
    assert pipe.unet.dtype == torch.float32


def test_a_folder_loads_in_the_precision_asked_for(tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "mine")
    pipe = load(str(tmp_path / "mine"), dtype=torch.bfloat16, device="cpu")
    assert pipe.unet.dtype == torch.bfloat16
    assert model_name(pipe) == "mine"  # not the place on this machine


def test_a_pipeline_built_by_hand_has_no_name() -> None:
    assert model_name(sd()) == ""


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(BadSetting, match="no model"):
        load(name)


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="model_index.json"):
        load(str(tmp_path))


def test_a_hub_id_that_cannot_be_had_is_one_clear_line() -> None:
    with pytest.raises(BadSetting, match="could not be loaded from the hub") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)
