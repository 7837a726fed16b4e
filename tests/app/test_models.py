"""Models of the editor: what is offered, what is refused, and that one goes before the next comes."""

from __future__ import annotations

import gc
import json
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import t2ictl
from t2ictl.app.engine.models import LOOK_AGAIN, ModelManager, find_models
from t2ictl.app.settings import Recipe
from t2ictl.app.settings.draft import Draft
from t2ictl.errors import BadSetting
from t2ictl.shapes import installed_models
from tests.tiny import sd

EMBEDDED = {f"{name} (embedded)" for name in installed_models()}


def folder(path: Path, content: Any) -> Path:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "models"
    folder(top / "sd", {"_class_name": "StableDiffusionPipeline"})
    folder(top / "deep" / "er" / "xl", {"_class_name": "StableDiffusionXLPipeline"})
    folder(top / "deep" / "er" / "too" / "deep", {"_class_name": "StableDiffusionPipeline"})
    folder(top / "flux", {"_class_name": "FluxPipeline"})
    folder(top / "broken", "{")
    folder(top / "odd", [1])
    folder(top / "nested", "[" * 100_000)
    folder(tmp_path / "outside", {"_class_name": "StableDiffusionPipeline"})
    (top / "link").symlink_to(tmp_path / "outside")
    return top


def test_folders_are_listed_with_their_family_or_the_reason_against_them(root: Path) -> None:
    found = {model.name: model for model in find_models([root])}
    assert set(found) == EMBEDDED | {"sd", "deep/er/xl", "flux", "broken", "odd", "nested"}
    assert found["sd"].family.startswith("Stable Diffusion 1") and not found["sd"].why_not
    assert found["deep/er/xl"].family == "Stable Diffusion XL"
    assert "FluxPipeline is not supported" in found["flux"].why_not
    assert all(found[name].why_not for name in ("broken", "odd", "nested"))


@pytest.mark.usefixtures("only_shapes")
def test_embedded_models_that_are_not_there_are_not_listed() -> None:
    assert [model.source for model in find_models([])] == ["shapes"]
    with pytest.raises(BadSetting, match="no model 'shapes-clip'"):
        ModelManager().check("shapes-clip")


@pytest.mark.usefixtures("stand_ins")
def test_embedded_models_come_first_and_a_transformer_is_not_used_yet() -> None:
    found = find_models([])
    assert [model.name for model in found] == ["shapes (embedded)", "shapes-clip (embedded)", "shapes-dit (embedded)"]
    assert [model.why_not for model in found] == ["", "", "StableDiffusion3Pipeline is not supported yet."]
    manager = ModelManager(device="cpu")
    assert manager.use("shapes-clip").text_encoder.config.num_hidden_layers == 4 and manager.loaded == "shapes-clip"
    with pytest.raises(BadSetting, match="'shapes-dit .embedded.' cannot be used: StableDiffusion3Pipeline"):
        manager.use("shapes-dit")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("model", "taken"), [("shapes-clip", "shapes-clip"), ("shapes-dit", "shapes")])
def test_settings_of_an_image_choose_its_model_where_it_can_be_used(model: str, taken: str) -> None:
    draft, editor = Draft(), SimpleNamespace(found=lambda: find_models([]))
    draft.take(Recipe(request=t2ictl.Request(prompt="a red circle"), controls=(), model=model), editor)
    assert draft.model == taken and draft.prompt == "a red circle"


def test_folders_are_looked_through_again_after_a_while_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    manager = ModelManager([root])
    before = {model.name for model in manager.models()}
    folder(root / "new", {"_class_name": "StableDiffusionPipeline"})
    assert {model.name for model in manager.models()} == before
    now[0] += LOOK_AGAIN + 0.1
    assert {model.name for model in manager.models()} == before | {"new"}


def test_paths_outside_of_the_allowed_folders_are_refused(root: Path) -> None:
    manager = ModelManager([root])
    for source in (str(root.parent / "outside"), str(root / "link"), str(root / "sd" / ".." / "sd"), "owner/name", ""):
        with pytest.raises(BadSetting, match="no model"):
            manager.check(source)
    with pytest.raises(BadSetting, match="cannot be used: FluxPipeline"):
        manager.use(str((root / "flux").resolve()))
    assert manager.check(str((root / "sd").resolve())).name == "sd" and manager.loaded is None


def test_the_old_model_is_gone_before_the_new_one_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models" / "tiny"
    sd().save_pretrained(place)
    manager = ModelManager([tmp_path / "models"], device="cpu")
    first = manager.use("shapes")
    assert manager.use("shapes") is first
    gone = weakref.ref(first)
    del first
    load, alive = t2ictl.load, []

    def look(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        alive.append(gone() is not None)
        return load(*args, **kwargs)

    monkeypatch.setattr(t2ictl, "load", look)
    assert type(manager.use(str(place.resolve()))).__name__ == "StableDiffusionPipeline"
    assert alive == [False] and manager.loaded == str(place.resolve())
    manager.unload()
    assert manager.loaded is None


def test_a_model_that_does_not_load_leaves_none(root: Path) -> None:
    manager = ModelManager([root], device="cpu")
    manager.use("shapes")
    with pytest.raises(Exception, match=r".+"):
        manager.use(str((root / "sd").resolve()))  # an index, and nothing that it names
    assert manager.loaded is None
    assert manager.use("shapes") is not None
