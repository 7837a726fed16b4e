"""Folders of models that are not only weights: nothing in them is imported, run or unpickled before it was looked at.

The hostile folders hold markers that write a file when they are imported or unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ictl.errors import BadSetting
from t2ictl.families.folders import check_index, check_model
from t2ictl.families.loading import load
from tests.tiny import sd

MARKER = "a_module_beside_the_user"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    sd().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "models" / "mine"))


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A module that any import by its name runs; whether it was."""
    mark = tmp_path / "ran"
    (tmp_path / f"{MARKER}.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark.exists
    sys.modules.pop(MARKER, None)


def edit(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **values}))


def refused(folder: Path, *words: str) -> None:
    """Loading it is refused by one line that names the folder and the words."""
    with pytest.raises(BadSetting) as caught:
        load(str(folder), device="cpu")
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and caught.value.remedy, text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "part",
    [[MARKER, "Part"], ["this", "Part"], ["antigravity", "fly"], ["os", "Path"], ["diffusers", "utils"],
     ["transformers", "pipeline"], ["diffusers.utils", "Part"], ["transformers_modules.x", "Part"],
     ["stable_diffusion", "Part"], [MARKER], [MARKER, "Part", "more"], ["diffusers", 3], ["t2ictl", "Control"]],
)  # fmt: skip
@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_classes_of_other_libraries_are_not_imported(folder: Path, ran: Any, name: str, part: list[Any]) -> None:
    sys.modules.pop("this", None)
    edit(folder / "model_index.json", **{name: part})
    refused(folder, repr(name), "model_index" if len(part) != 2 else str(part[0]))
    assert not ran() and "this" not in sys.modules and "antigravity" not in sys.modules


@pytest.mark.parametrize("kind", [["pipeline", "Mine"], "utils", "os.path", "", 3, None, "Nowhere"])
def test_a_pipeline_that_is_not_of_diffusers_is_refused(folder: Path, kind: Any) -> None:
    edit(folder / "model_index.json", _class_name=kind)
    refused(folder)


def test_a_safety_checker_is_of_diffusers(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert "safety_checker" in check_index(
        {**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}, "mine"
    )


@pytest.mark.parametrize("place", ["unet/model.py", "pipeline.py", "deep/er/code.py"])
def test_code_in_the_folder_is_refused(folder: Path, tmp_path: Path, place: str) -> None:
    code = folder / place
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(folder, place, "run_model_code=True")
    assert not (tmp_path / "ran").exists()
    assert load(folder, device="cpu", run_model_code=True).unet is not None


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_code_that_a_configuration_names_is_refused(folder: Path, part: str) -> None:
    edit(folder / part / "config.json", auto_map={"AutoModel": "code.Model"})
    refused(folder, part, "auto_map")


class Opens:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_pickles_are_said_and_do_not_run(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load(folder, device="cpu").unet.state_dict()
    weights.unlink()
    torch.save(state, weights.with_suffix(".bin"))
    assert check_model(folder) == ["unet"]
    with pytest.warns(UserWarning, match="pickled weights .unet"):
        pipe = load(folder, device="cpu")
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    torch.save({"a": Opens(tmp_path / "ran")}, weights.with_suffix(".bin"))
    with pytest.warns(UserWarning, match="pickled"):
        refused(folder, "unet")
    assert not (tmp_path / "ran").exists()


def test_safetensors_come_before_pickles(folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"a": Opens(tmp_path / "ran")}, folder / "unet" / "diffusion_pytorch_model.bin")
    assert check_model(folder) == [] and load(folder, device="cpu").unet is not None
    assert not (tmp_path / "ran").exists() and not [each for each in recwarn if "pickled" in str(each.message)]


def damages() -> dict[str, tuple[Callable[[Path], Any], str]]:
    """How a folder may be bad, and the part that the message names."""
    weights = "unet/diffusion_pytorch_model.safetensors"
    return {
        "no index": (lambda at: (at / "model_index.json").unlink(), "model_index.json"),
        "no JSON": (lambda at: (at / "model_index.json").write_text("{"), "model_index.json"),
        "a list": (lambda at: (at / "model_index.json").write_text("[]"), "model_index.json"),
        "deep": (lambda at: (at / "model_index.json").write_text("[" * 10**5), "model_index.json"),
        "no text": (lambda at: (at / "model_index.json").write_bytes(b"\xff\xfe"), "model_index.json"),
        "huge": (lambda at: (at / "model_index.json").write_text(" " * (9 << 20)), "model_index.json"),
        "no part": (lambda at: shutil.rmtree(at / "vae"), "vae"),
        "no weights": (lambda at: (at / weights).unlink(), "unet"),
        "cut weights": (lambda at: os.truncate(at / weights, 5000), weights),
        "pointer": (lambda at: (at / weights).write_text("version https://git-lfs"), weights),
        "no config": (lambda at: (at / "unet/config.json").unlink(), "unet"),
        "config": (lambda at: (at / "unet/config.json").write_text("nonsense"), "unet/config.json"),
        "too wide": (lambda at: edit(at / "text_encoder/config.json", hidden_size=10**9), "text_encoder"),
        "wrong type": (lambda at: edit(at / "vae/config.json", block_out_channels="x"), "vae"),
        "other shape": (lambda at: edit(at / "unet/config.json", cross_attention_dim=24), "unet"),
        "odd scheduler": (lambda at: edit(at / "scheduler/scheduler_config.json", num_train_timesteps=-4), "scheduler"),
        "no tokenizer": (lambda at: [each.unlink() for each in (at / "tokenizer").iterdir()], "tokenizer"),
        "no vocabulary": (
            lambda at: [each.unlink() for each in (at / "tokenizer").iterdir() if "config" not in each.name],
            "token",
        ),
    }


@pytest.mark.parametrize("name", damages())
def test_a_bad_folder_is_named_with_its_part(folder: Path, name: str) -> None:
    damage, part = damages()[name]
    damage(folder)
    refused(folder, part)


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(folder / "vae", outside)
    (folder / "vae").symlink_to(outside)
    models = folder.parent
    with pytest.raises(BadSetting, match="link 'vae'"):
        check_model(folder, within=models)
    assert check_model(folder, within=tmp_path) == [] and check_model(folder) == []
    (folder / "vae").unlink()
    shutil.move(outside, folder / "vae")
    assert check_model(folder, within=models) == []
    (folder / "notes").symlink_to(folder / "notes")
    with pytest.raises(BadSetting, match="link 'notes'"):
        check_model(folder, within=models)
    (folder / "notes").unlink()
    inside = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.move(inside, tmp_path / "weights")
    inside.symlink_to(tmp_path / "weights")
    with pytest.raises(BadSetting, match="leads out"):
        check_model(folder, within=models)
