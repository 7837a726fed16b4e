"""Loading: the embedded model, a folder, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

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


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may not be asked."""
    for name in ("from_pretrained", "load_config", "download"):
        monkeypatch.setattr(DiffusionPipeline, name, lambda *_, **__: pytest.fail("the hub was asked"))


@pytest.mark.parametrize(
    "name", ["models/foo.safetensors", "models/foo.ckpt", "owner/model.bin", "/x/y.safetensors", Path("owner/name"),
             "~/model", "owner/na me", "owner/..", "../model", "a\\b", "owner/name\0", "", "owner/" + "x" * 200],
)  # fmt: skip
def test_a_path_is_never_asked_of_the_hub(no_hub: None, name: Any) -> None:
    with pytest.raises(BadSetting):
        load(name, device="cpu")


@pytest.mark.parametrize(
    ("key", "cls"),
    [("cond_stage_model.x", StableDiffusionPipeline), ("conditioner.embedders.1.x", StableDiffusionXLPipeline)],
)
def test_a_file_of_weights_is_loaded_as_what_it_holds(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, cls: Any
) -> None:
    path, asked = tmp_path / "model.safetensors", dict[str, Any]()
    save_file({key: torch.zeros(2)}, path)

    def single(given: str, **options: Any) -> Any:
        asked.update(options, path=given)
        return sd()

    monkeypatch.setattr(cls, "from_single_file", single)
    assert load(str(path), dtype="float16", device="cpu").unet is not None
    assert asked["path"] == str(path) and asked["dtype"] == torch.float16


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64])
def test_a_damaged_file_of_weights_is_named(no_hub: None, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadSetting, match="model.safetensors"):
        load(path, device="cpu")


@pytest.mark.parametrize(
    "device", ["mps", "nonsense", "meta", "cuda:77", "cpu:x", "", 3.5, "cuda:99999999999999999999"]
)
def test_a_device_that_is_not_there_is_named(device: Any) -> None:
    with pytest.raises(BadSetting, match="device"):
        load("shapes", device=device)


@pytest.mark.parametrize("dtype", [torch.int8, "int4", "half", None, 16])
def test_a_precision_that_no_model_has_is_named(dtype: Any) -> None:
    with pytest.raises(BadSetting, match="precision"):
        load("shapes", device="cpu", dtype=dtype)


@pytest.mark.parametrize("name", [None, 3, b"shapes", ["shapes"]])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(BadSetting):
        load(name, device="cpu")
