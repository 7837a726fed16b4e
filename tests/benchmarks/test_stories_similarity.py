"""Likeness of subjects by an image model: cuts by hand, stories of known features, and the real classes, tiny."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl import Region, Scene, Subject
from t2ictl.benchmarks.studies.stories.similarity import Likeness, cut_out, embedder, likenesses, main, summary
from t2ictl.errors import BadSetting

LEFT, RIGHT = {"word": "x", "box": [0, 0, 0.5, 1]}, {"word": "x", "box": [0.5, 0, 1, 1]}


def by_color(images: Sequence[Image.Image]) -> Tensor:
    """Mean color as a unit vector."""
    means = [np.asarray(image, float).reshape(-1, 3).mean(axis=0) for image in images]
    return torch.nn.functional.normalize(torch.tensor(np.stack(means)), dim=-1)


def drawing(left: str, right: str = "white") -> Image.Image:
    image = Image.new("RGB", (8, 8), right)
    image.paste(Image.new("RGB", (4, 8), left), (0, 0))
    return image


def write(folder: Path, scenes: list[Image.Image], places: dict[str, Any]) -> Path:
    """A story of a red cat and a blue dog."""
    folder.mkdir()
    images = {"portrait-1": drawing("red"), "portrait-2": drawing("blue")}
    images |= {f"scene-{number}": each for number, each in enumerate(scenes, start=1)}
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    data = {
        "story": {"subjects": [{"name": "cat"}, {"name": "dog"}], "scenes": [{}] * len(scenes)},
        "subjects_by_scene": [["cat", "dog"]] * len(scenes),
        "places": {"portrait-1": {"cat": LEFT}, "portrait-2": {"dog": LEFT}, **places},
    }
    (folder / "story.json").write_text(json.dumps(data))
    return folder


def test_a_cut_is_the_box_of_the_region_and_gray_outside() -> None:
    mask = ((0, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 0), (0, 0, 0, 0))
    cut = np.asarray(cut_out(Image.new("RGB", (4, 4), "red"), Region(word="cat", mask=mask)))
    red, gray = [255, 0, 0], [128, 128, 128]
    assert cut.tolist() == [[red, gray], [red, red]]


def test_own_other_swap_and_miss_of_a_known_story(tmp_path: Path) -> None:
    scenes = [drawing("red", "blue"), drawing("blue", "red"), drawing("red", "green")]
    both = {"cat": LEFT, "dog": RIGHT}
    folder = write(tmp_path / "a", scenes, {"scene-1": both, "scene-2": both, "scene-3": {"cat": LEFT}})
    found = likenesses(folder, by_color)
    assert [(each.scene, each.subject) for each in found] == [
        (number, name) for number in (1, 2, 3) for name in ("cat", "dog")
    ]
    assert [round(each.own, 6) for each in found] == [1, 1, 0, 0, 1, 0]
    assert [each.swapped for each in found] == [False, False, True, True, False, False]
    assert [each.missing for each in found] == [False] * 5 + [True]
    means = summary([found])
    assert [round(means[name][0], 6) for name in ("identity", "swap", "missing")] == [0.5, 0.333333, 0.166667]
    assert math.isnan(means["identity"][1])


def test_means_over_stories_have_intervals() -> None:
    stories = [[Likeness(scene=1, subject="cat", own=own, other=None, missing=False)] for own in (0.2, 0.4, 0.6, 0.8)]
    mean, low, high = summary(stories)["identity"]
    assert mean == pytest.approx(0.5)
    half = 3.1824 * np.std([0.2, 0.4, 0.6, 0.8], ddof=1) / 2  # so few stories get Student's interval
    assert low == pytest.approx(0.5 - half, abs=1e-3) and high == pytest.approx(0.5 + half, abs=1e-3)


def test_what_is_no_story_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="holds no story"):
        likenesses(tmp_path, by_color)
    folder = write(tmp_path / "a", [drawing("red")], {"portrait-1": {}})
    with pytest.raises(BadSetting, match="where 'cat' is in its portrait"):
        likenesses(folder, by_color)
    with pytest.raises(BadSetting, match="cannot be loaded"):
        embedder(str(tmp_path / "nowhere"))


def tiny_model(kind: str, folder: Path) -> str:
    """A random model of the real class, with its image processor."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "dinov2":
            Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
            BitImageProcessorPil(**crop).save_pretrained(folder)
        else:
            config = CLIPVisionConfig(**sizes, intermediate_size=32, projection_dim=8)
            CLIPVisionModelWithProjection(config).save_pretrained(folder)
            CLIPImageProcessorPil(**crop).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_models_of_transformers_on_a_story_of_the_pipeline(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    box = {"circle": (0, 0, 0.5, 1), "star": (0.5, 0, 1, 1)}
    cast = [Subject(name=name, prompt=f"a {name}", box=(0, 0, 1, 1)) for name in box]
    told = t2ictl.story(pipe, cast, [Scene(prompt="a circle and a star", boxes=box)], steps=2)
    told.save(tmp_path / "story")
    model = tiny_model(kind, tmp_path / "model")
    embed = embedder(model)
    vectors_BD = embed([drawing("red"), drawing("blue"), drawing("red")])
    assert torch.allclose(vectors_BD.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.equal(vectors_BD[0], vectors_BD[2]) and not torch.allclose(vectors_BD[0], vectors_BD[1], atol=1e-3)
    assert main([str(tmp_path / "story"), "--model", model, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (rows,) = printed["stories"].values()
    assert [row["subject"] for row in rows] == ["circle", "star"]
    by_hand = embed([cut_out(told.scenes[0], Region(word="circle", box=box["circle"])), told.portraits["circle"]])
    assert rows[0]["own"] == pytest.approx(float(by_hand[0] @ by_hand[1]), abs=1e-5)
    assert main([str(tmp_path / "story"), "--model", model]) == 0
    assert "identity" in capsys.readouterr().out
