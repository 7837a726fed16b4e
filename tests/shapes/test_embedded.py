"""The embedded models: which are there, how each is loaded, named, measured and identified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.families import find_adapter
from t2ictl.families.loading import load, model_name
from t2ictl.processors import AttendAndExcite, AttentionSegregation, LinguisticBinding, MapAlignment
from t2ictl.shapes import MODELS, installed_models, instrument, instrument_id, model_path
from t2ictl.shapes.embedded import embedded_name, measured_as

PROMPT = "a striped red circle and a dotted blue triangle"
LATER = [name for name in MODELS if name != "shapes"]


@pytest.mark.parametrize("name", installed_models())
def test_what_is_installed_is_recorded_and_of_its_class(name: str) -> None:
    instrument.check_instrument(model=name)
    index = json.loads((model_path(name) / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == MODELS[name].pipeline


@pytest.mark.parametrize("name", installed_models())
def test_folders_are_small_and_name_no_machine(name: str) -> None:
    files = [path for path in model_path(name).rglob("*") if path.is_file()]
    assert all(path.suffix in {".json", ".txt", ".safetensors"} for path in files)
    assert not any("_name_or_path" in path.read_text("utf-8") for path in files if path.suffix == ".json")
    pipe = load(name, device="cpu")
    wanted = {"max_sequence_length": 24} if MODELS[name].pipeline == "StableDiffusion3Pipeline" else {}
    assert find_adapter(pipe).own_arguments == wanted


@pytest.mark.usefixtures("only_shapes")
@pytest.mark.parametrize("name", LATER)
def test_a_model_that_is_not_there_is_named_with_those_that_are(name: str, tmp_path: Path) -> None:
    assert installed_models() == ("shapes",)
    for refused in (model_path, load, instrument_id):
        with pytest.raises(BadSetting, match=f"weights of the embedded model '{name}' are not.*are there: shapes") as e:
            refused(name)
        assert "\n" not in str(e.value)
    assert instrument.main(["--model", name]) == 1
    shutil.copytree(model_path(), tmp_path / name)
    assert type(load(tmp_path / name, device="cpu")).__name__ == "StableDiffusionPipeline"  # a folder is a folder


@pytest.mark.parametrize("name", ["shape", "", "shapes/", "models/shapes-dit", None])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(BadSetting, match="no embedded model.*are there: shapes"):
        model_path(name)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", MODELS)
def test_each_is_found_under_its_name_again(name: str) -> None:
    pipe = load(name, device="cpu")
    assert type(pipe).__name__ == MODELS[name].pipeline and model_name(pipe) == name
    assert embedded_name(model_path(name)) == name and installed_models() == tuple(MODELS)


@pytest.mark.usefixtures("stand_ins")
def test_a_folder_is_measured_as_the_model_of_its_class(tmp_path: Path) -> None:
    assert measured_as(model_path("shapes-dit")) is MODELS["shapes-dit"] is measured_as("shapes-dit")
    assert measured_as(tmp_path) is measured_as(model_path()) is MODELS["shapes"]
    (tmp_path / "model_index.json").write_text("[1]")
    assert measured_as(str(tmp_path)) is MODELS["shapes"]


@pytest.mark.usefixtures("stand_ins")
def test_models_have_world_and_judge_in_common_and_weights_of_their_own(tmp_path: Path) -> None:
    found = {name: instrument.instrument_hashes(name) for name in MODELS}
    assert len({each["weights"] for each in found.values()}) == len(MODELS)
    assert len({(each["world"], each["judge"]) for each in found.values()}) == 1
    lines = {name: instrument_id(name) for name in MODELS}
    assert lines["shapes"] == instrument_id()
    assert lines["shapes-dit"].startswith(f"shapes-dit {instrument.VERSIONS['shapes-dit']} (world ")
    assert found["shapes-dit"]["weights"][:8] in lines["shapes-dit"]
    same = instrument_id(model_path("shapes-dit"))
    assert same == lines["shapes-dit"].replace(" 1 (", ", no version (")
    assert instrument_id(None) == f"{instrument_id().partition(', weights')[0]})"


@pytest.mark.usefixtures("stand_ins")
def test_each_model_has_versions_of_its_own_in_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "instrument.json"
    instrument.record(path)
    shapes = json.loads(path.read_text())
    with pytest.raises(BadSetting, match="Version 1 of the instrument of shapes-dit.*--model shapes-dit --record"):
        instrument.check_instrument(path, "shapes-dit")
    instrument.record(path, "shapes-dit")
    instrument.record(path, "shapes-dit")
    instrument.check_instrument(path, "shapes-dit")
    entries = json.loads(path.read_text())
    assert entries == shapes | {"shapes-dit 1": instrument.instrument_hashes("shapes-dit")}
    entries["shapes-dit 1"]["weights"] = "0" * 64
    path.write_text(json.dumps(entries))
    instrument.check_instrument(path)
    with pytest.raises(BadSetting, match="The weights of the instrument of shapes-dit changed.*its entry in VERSIONS"):
        instrument.check_instrument(path, "shapes-dit")
    instrument.main(["--model", "shapes-clip"])
    assert capsys.readouterr().out.startswith(instrument_id("shapes-clip"))


@pytest.mark.usefixtures("stand_ins")
def test_the_transformer_gets_short_rows_and_says_so(tmp_path: Path) -> None:
    pipe = load("shapes-dit", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    made = t2ictl.generate(pipe, PROMPT, seed=1, steps=2, guidance_scale=3.0)
    assert made.image.size == (64, 64) and made.settings["arguments"] == {"max_sequence_length": 24}
    again = t2ictl.replay(pipe, made.save(tmp_path / "made.png"))
    assert np.array_equal(np.asarray(again.image), np.asarray(made.image))
    asked = {"max_sequence_length": 40, "steps": 2, "guidance_scale": 3.0}
    assert t2ictl.generate(pipe, PROMPT, **asked).settings["arguments"] == {"max_sequence_length": 40}


@pytest.mark.usefixtures("stand_ins")
def test_controls_that_read_maps_act_on_the_transformer() -> None:
    pipe = load("shapes-dit", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    controls = (AttentionSegregation(), AttendAndExcite(refinement=None), LinguisticBinding(), MapAlignment())
    asked = {"seed": 1, "steps": 3, "guidance_scale": 3.0}
    plain = np.asarray(t2ictl.generate(pipe, PROMPT, **asked).image)
    for control in controls:
        made = t2ictl.generate(pipe, PROMPT, control, **asked)
        assert made.trace and not np.array_equal(np.asarray(made.image), plain)


@pytest.mark.usefixtures("stand_ins")
def test_words_are_found_in_the_rows_of_every_encoder() -> None:
    clip, dit = (t2ictl.parse(load(name, device="cpu"), PROMPT) for name in ("shapes-clip", "shapes-dit"))
    assert clip.find("circle").tokens == (4,) and clip.find("triangle").tokens == (10, 11)
    assert dit.find("circle").tokens == (4, 27) and dit.find("triangle").tokens == (10, 11, 33, 34)
    assert [each.noun.text for each in dit.objects()] == ["circle", "triangle"]
