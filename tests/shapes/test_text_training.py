from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ictl.benchmarks.shapes.train.data import training_scene
from t2ictl.benchmarks.shapes.train.loop import Deadline
from t2ictl.benchmarks.shapes.train.record import read_recipe_of
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.text import rounds
from t2ictl.benchmarks.shapes.train.text.__main__ import main
from t2ictl.benchmarks.shapes.train.text.contrastive import Contrastive, batch_of
from t2ictl.benchmarks.shapes.train.text.export import export_part
from t2ictl.benchmarks.shapes.train.text.settings import CLIP, CLIP_2, T5
from t2ictl.benchmarks.shapes.train.text.spans import Spans, padding_change
from t2ictl.benchmarks.shapes.train.text.tokenizer import build_t5_tokenizer
from t2ictl.benchmarks.shapes.train.text.towers import Towers
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting

TINY = {"steps": 20, "held_out": 16, "checkpoint_every": 5, "evaluate_every": 10}
TINY_CLIP = dataclasses.replace(CLIP, width=16, layers=1, heads=2, channels=(8, 8), batch=12, **TINY)
TINY_T5 = dataclasses.replace(
    T5, width=16, layers=1, decoder_layers=1, heads=2, head_width=8, hidden=16, tokens=96, lengths=(24, 48, 64),
    length_shares=(0.5, 0.3, 0.2), **TINY,
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> DrawnScenes:
    scenes = tuple(training_scene(Recipe(), index) for index in range(48))
    return DrawnScenes(scenes=scenes, latents=torch.randn(48, 4, 16, 16, generator=torch.Generator().manual_seed(0)))


def _trainee(recipe: Any, drawn: DrawnScenes) -> Any:
    if recipe.part == "t5":
        return Spans(recipe, build_t5_tokenizer(), drawn)
    return Contrastive(recipe, build_tokenizer(Recipe()), drawn)


@pytest.mark.parametrize("recipe", [TINY_CLIP, TINY_T5], ids=["clip", "t5"])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    recipe: Any, drawn: DrawnScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is measured between updates draws from a stream of its own and takes most of the time.
    for stage in (Contrastive, Spans):
        monkeypatch.setattr(stage, "measure", lambda self: {})
    (tmp_path / "straight").mkdir()
    assert rounds.train(recipe, _trainee(recipe, drawn), tmp_path / "straight", Deadline(minutes=None))
    folder = tmp_path / "stopped"
    folder.mkdir()
    trainee = _trainee(recipe, drawn)
    for step in range(7):
        rounds.update(trainee, step, recipe.rate * (step + 1) / recipe.warmup)
    rounds.save(trainee, 7, rounds.checkpoint_of(recipe, folder))
    assert not rounds.train(recipe, _trainee(recipe, drawn), folder, Deadline(minutes=-1))
    assert rounds.train(recipe, _trainee(recipe, drawn), folder, Deadline(minutes=None))
    one, other = (
        torch.load(rounds.checkpoint_of(recipe, tmp_path / name), weights_only=True) for name in ("straight", "stopped")
    )
    assert one["step"] == other["step"] == 20
    assert all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())


def test_pairs_are_whole_and_leave_out_what_is_held_out(drawn: DrawnScenes) -> None:
    tokenizer = build_tokenizer(Recipe())
    for step in range(5):
        tokens, latents = batch_of(TINY_CLIP, tokenizer, drawn, step)
        assert len(tokens) == len(latents) == 12
        assert all(len(row) <= 24 and row[-1] == tokenizer.eos_token_id for row in tokens)
        used = [bool((drawn.latents[-16:].float() == latent).flatten(1).all(1).any()) for latent in latents]
        assert not any(used)


def test_rows_of_different_lengths_are_encoded_as_if_alone(drawn: DrawnScenes) -> None:
    tokenizer = build_tokenizer(Recipe())
    towers = Towers(TINY_CLIP, tokenizer).eval()
    rows = tokenizer(["a red star and a blue ring", "a ring", "a small dotted green circle"]).input_ids
    together = towers.encode_text(rows, tokenizer.pad_token_id)
    alone = torch.cat([towers.encode_text([row], tokenizer.pad_token_id) for row in rows])
    torch.testing.assert_close(together, alone)


def test_export_names_folders_as_a_pipeline_does(drawn: DrawnScenes, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

    recipes = TINY_CLIP, dataclasses.replace(TINY_CLIP, part="clip-2"), TINY_T5
    for recipe in recipes:
        trainee = _trainee(recipe, drawn)
        rounds.save(trainee, 0, rounds.checkpoint_of(recipe, tmp_path / recipe.part))
        export_part(recipe, tmp_path / recipe.part, tmp_path / "model")
        # Again, over what is there.
        export_part(recipe, tmp_path / recipe.part, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {f"{kind}{suffix}" for kind in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3")}
    classes = {"": CLIPTextModelWithProjection, "_2": CLIPTextModelWithProjection, "_3": T5EncoderModel}
    for suffix, kind in classes.items():
        model: Any = kind.from_pretrained(tmp_path / "model" / f"text_encoder{suffix}").eval()
        assert model.dtype == torch.float32
        assert all(torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model" / f"tokenizer{suffix}")
        assert tokenizer.model_max_length == 24
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize("triangle")) != [tokenizer.unk_token_id]
        config = (tmp_path / "model" / f"text_encoder{suffix}" / "config.json").read_text(encoding="utf-8")
        assert str(tmp_path) not in config
        assert "dtype" not in json.loads(config)


def test_the_exported_t5_is_the_trained_one(drawn: DrawnScenes, tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    trainee = _trainee(TINY_T5, drawn)
    rounds.save(trainee, 0, rounds.checkpoint_of(TINY_T5, tmp_path))
    export_part(TINY_T5, tmp_path, tmp_path / "model")
    encoder: Any = T5EncoderModel.from_pretrained(tmp_path / "model" / "text_encoder_3").eval()
    ids = torch.tensor([[3, 4, 5, 1, 0, 0]])
    with torch.no_grad():
        ours = trainee.model.eval().encoder(ids)[0]
        torch.testing.assert_close(encoder(ids)[0], ours, rtol=0.05, atol=0.05)
    assert padding_change(build_t5_tokenizer(), encoder, ["a red star"], (24, 24)) == 0
    assert padding_change(build_t5_tokenizer(), encoder, ["a red star"], (24, 64)) > 0


def test_widths_fit_one_row_of_a_pipeline() -> None:
    assert T5.width == CLIP.width + CLIP_2.width


def test_only_the_number_of_updates_may_change(tmp_path: Path) -> None:
    for recipe in (TINY_CLIP, dataclasses.replace(TINY_CLIP, steps=30)):
        assert read_recipe_of(type(recipe), tmp_path, dataclasses.asdict(recipe), ("steps",)) == recipe
    for change in ({"batch": 13}, {"channels": (8, 16)}):
        with pytest.raises(BadSetting, match=next(iter(change))):
            read_recipe_of(type(TINY_CLIP), tmp_path, {**dataclasses.asdict(TINY_CLIP), **change}, ("steps",))


def test_nothing_is_exported_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    out, scenes, target = (str(tmp_path / name) for name in ("run", "scenes", "model"))
    with pytest.raises(BadSetting, match="checkpoint"):
        main(["--part", "clip", "--out", out, "--scenes", scenes, "--minutes", "0", "--export", target])
