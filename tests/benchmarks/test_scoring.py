"""Learned metrics: their protocols by hand, the real classes of transformers at a toy size, cache and comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from t2ictl.benchmarks.scoring.base import Score
from t2ictl.benchmarks.scoring.metrics import BlipVqa, blip_question, open_metric
from t2ictl.benchmarks.scoring.run import score_run, score_table
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting, MissingExtra
from t2ictl.prompts.noun_phrases import noun_phrases
from tests.benchmarks.scoring_cases import PROMPT, WORDS
from tests.evaluation.judge_cases import drawings, heard

# -- BLIP-VQA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "question"),
    [
        ("a green bench", "a green bench?"),
        ('The "Red" hat.', "the red hat?"),
        ("A cat!", "a cat?"),
        ("a (small) dog: #1", "a small dog 1?"),
        ("the dog's bowl", "the dog's bowl?"),
        ("word " * 60, " ".join(["word"] * 50)),
    ],
)
def test_questions_are_prepared_as_blip_does(chunk: str, question: str) -> None:
    assert blip_question(chunk) == question


def test_score_is_the_product_of_rounded_answers(blip: Path) -> None:
    metric = BlipVqa(str(blip), chunks="grammar")
    score = metric(drawings(1)[0], PROMPT)
    assert list(score.parts) == ["a red circle", "a blue square"]
    first, second = score.parts.values()
    assert all(0 < each < 1 and each == round(each, 4) for each in (first, second)) and first != second
    assert score.value == pytest.approx(first * second, abs=1e-12)
    assert metric.name == f"blip_vqa[np8,grammar,{blip.name}]" and metric.facts["parser"]


def test_chunks_that_name_no_object_and_those_after_the_eighth_are_left_out(blip: Path) -> None:
    metric = BlipVqa(str(blip), chunks="grammar")
    things = "a cat, a dog, a red circle, a blue square, a bowl, a frog, a lion, a car, a bench, a hat".split(", ")
    prompt = f"The side of {things[0]} and the right of {', '.join(things[1:])}, the left"
    assert {"The side", "the right", "the left", *things} <= {each.text for each in noun_phrases(prompt)}
    assert metric.chunks(prompt) == things[:8]
    assert BlipVqa(str(blip), chunks="grammar").chunks(prompt) == things[:8]


def test_first_tokens_are_enc_and_dec(blip: Path) -> None:
    """The trap: transformers leaves [CLS] where the original has [ENC]."""
    metric: Any = BlipVqa(str(blip), chunks="grammar")
    seen: dict[str, Tensor] = {}
    for name in ("text_encoder", "text_decoder"):
        getattr(metric._model, name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.update({name: kwargs["input_ids"]}), with_kwargs=True
        )
    metric._answer(metric._image(drawings(1)[0]), "a red circle?")
    start = len(WORDS)  # [DEC]; [ENC] is the next entry
    words = [WORDS.index(word) for word in ("a", "red", "circle", "?", "[SEP]")]
    assert seen["text_encoder"].tolist() == [[start + 1, *words]] and seen["text_decoder"].tolist() == [[start]]


def test_answers_are_those_of_the_model_by_hand(blip: Path) -> None:
    metric, image = BlipVqa(str(blip), chunks="grammar"), drawings(1)[0]
    model = transformers.BlipForQuestionAnswering.from_pretrained(blip)
    square = np.asarray(image.resize((480, 480), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC))
    mean, spread = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor((square / 255 - mean) / spread).permute(2, 0, 1)[None].float()
    ids = torch.tensor([[len(WORDS) + 1, *(WORDS.index(word) for word in ("a", "red", "circle", "?", "[SEP]"))]])
    with torch.no_grad():
        states = model.vision_model(pixel_values=pixels)[0]
        asked = model.text_encoder(input_ids=ids, encoder_hidden_states=states)[0]
        logits = model.text_decoder(
            input_ids=torch.tensor([[len(WORDS)]]), encoder_hidden_states=asked
        ).logits[0, -1]  # fmt: skip
    shares = logits.softmax(dim=-1)
    wanted = float(shares[5] / (shares[5] + shares[6]))
    assert metric(image, "a red circle").parts["a red circle"] == pytest.approx(wanted, abs=2e-3)
    assert abs(wanted - 0.5) > 0.01


def test_papers_chunks_need_spacy_and_say_so(blip: Path) -> None:
    try:
        metric = BlipVqa(str(blip))
    except MissingExtra as error:
        assert "t2ictl[spacy]" in str(error)
    else:
        assert metric.chunks("a red circle and the side of a cat") == ["a red circle", "a cat"]


# -- the others -------------------------------------------------------------------------------------------------------


def test_clip_cosine_is_not_scaled(clip: Path) -> None:
    image = drawings(1)[0]
    model, processor = transformers.CLIPModel.from_pretrained(clip), transformers.CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=[PROMPT], images=image, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model(**inputs)
    wanted = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds).item()
    metric = open_metric(f"clip_cosine:{clip}")
    assert metric(image, PROMPT).value == pytest.approx(wanted, abs=1e-5) and metric.name == f"clip_cosine[{clip.name}]"


def test_vqascore_asks_the_papers_question(vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, asked = open_metric(f"vqascore:{vlm}"), heard(monkeypatch)
    assert 0 <= metric(drawings(1)[0], "a cat").value <= 1
    (text,) = asked
    assert 'Does this figure show "a cat"? Please Answer yes or no.' in text.splitlines()


@pytest.mark.parametrize("name", ["oracle:x", "clip_cosine", "clip_cosine/grammar:x", "blip_vqa/guess:x", "vqascore:"])
def test_unknown_metrics_are_refused(name: str) -> None:
    with pytest.raises(BadSetting):
        open_metric(name)


# -- a run ------------------------------------------------------------------------------------------------------------


class Counting:
    """A metric that says how red an image is, and counts how often it was asked."""

    def __init__(self, name: str = "red[mean]") -> None:
        self.name, self.facts, self.calls = name, {"band": 0}, 0

    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image."""
        self.calls += 1
        return Score(value=float(np.asarray(image.convert("RGB"))[..., 0].mean() / 255))


def run_of(folder: Path, values: dict[tuple[str, str, int], float]) -> Path:
    """A finished run with images of known redness: by arm, prompt and seed."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for (arm, prompt, seed), value in values.items():
        name = f"images/{arm}-{prompt}-{seed}.png"
        Image.new("RGB", (4, 4), (round(255 * value), 0, 0)).save(folder / name)
        more = {"status": "ok", "image": name, "sha256": f"{round(255 * value)}", "prompt": prompt}
        rows.append({"arm": arm, "category": "color", "prompt_id": prompt, "seed": seed, **more})
    pd.DataFrame(rows).to_parquet(folder / "results.parquet")
    return folder


# Two of the eight images are those of the other arm, for the same prompt.
VALUES = {
    (arm, prompt, seed): round(51 * level) / 255
    for arm, levels in {"plain": (0, 1, 2, 3), "moved": (1, 2, 3, 4)}.items()
    for (prompt, seed), level in zip([("a", 0), ("a", 1), ("b", 0), ("b", 1)], levels, strict=True)
}


def test_every_image_is_scored_once_and_kept(tmp_path: Path) -> None:
    run, metric = run_of(tmp_path / "run", VALUES), Counting()
    first = score_run(run, metric)
    assert metric.calls == 6 and first["score"].tolist() == pytest.approx(list(VALUES.values()))
    again = Counting()
    assert score_run(run, again)["score"].tolist() == first["score"].tolist() and again.calls == 0
    other = Counting("red[other]")
    score_run(run, other)
    assert other.calls == 6  # another metric has a cache of its own


def test_a_killed_scoring_goes_on(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", VALUES)

    class Stopping(Counting):
        """Gives up at the fifth image."""

        def __call__(self, image: Image.Image, prompt: str) -> Score:
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().__call__(image, prompt)

    with pytest.raises(KeyboardInterrupt):
        score_run(run, Stopping())
    file = next((run / "scores").glob("*.jsonl"))
    file.write_bytes(file.read_bytes() + b'{"key": "half')  # what a kill in the middle of a line leaves
    metric = Counting()
    assert score_run(run, metric)["score"].tolist() == pytest.approx(list(VALUES.values())) and metric.calls == 2
    assert len(file.read_text().splitlines()) == 6


def test_equal_images_of_a_prompt_are_scored_once(tmp_path: Path) -> None:
    values = {("plain", "a", 0): 0.2, ("moved", "a", 0): 0.2, ("moved", "b", 0): 0.2, ("plain", "b", 0): 0.4}
    metric = Counting()
    score_run(run_of(tmp_path / "run", values), metric)
    assert metric.calls == 3


def test_comparison_has_the_known_values(tmp_path: Path) -> None:
    table = score_table(score_run(run_of(tmp_path / "run", VALUES), Counting()), "plain")
    plain, moved = table
    assert (plain["arm"], plain["prompts"], plain["pictures"]) == ("plain", 2, 4)
    assert plain["mean"] == pytest.approx(0.3) and moved["mean"] == pytest.approx(0.5)
    assert moved["difference"] == pytest.approx(0.2) and "difference" not in plain
    low, high = moved["between"]
    assert low <= 0.2 <= high
    with pytest.raises(BadSetting, match="no arm 'nobody'"):
        score_table(score_run(tmp_path / "run", Counting()), "nobody")


def test_runs_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="Finish the run"):
        score_run(tmp_path, Counting())
    run = run_of(tmp_path / "run", VALUES)
    (run / "images/plain-a-0.png").unlink()
    with pytest.raises(BadSetting, match="is not there"):
        score_run(run, Counting())
    rows = pd.read_parquet(run / "results.parquet")
    rows.loc[0, "status"] = "error"
    rows.to_parquet(run / "results.parquet")
    with pytest.raises(BadSetting, match="1 images of the run failed"):
        score_run(run, Counting())


def test_missing_pairs_are_not_averaged_away(tmp_path: Path) -> None:
    values = {key: value for key, value in VALUES.items() if key != ("moved", "b", 1)}
    with pytest.raises(BadSetting, match="no image for prompts of 'color'"):
        score_table(score_run(run_of(tmp_path / "run", values), Counting()), "plain")


def test_command_prints_table_and_json(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", VALUES)
    assert main(["bench", "score", str(run), "--metric", f"clip_cosine:{clip}"]) == 0
    assert f"clip_cosine[{clip.name}]" in capsys.readouterr().out
    assert main(["bench", "score", str(run), "--metric", f"clip_cosine:{clip}", "--against", "moved", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["metric"] == f"clip_cosine[{clip.name}]" and [row["arm"] for row in data["table"]] == ["moved", "plain"]
    assert main(["bench", "score", str(run), "--metric", "oracle:x"]) == 2
    assert main(["bench", "score", str(run), "--metric", "clip_cosine:nowhere"]) == 2


def test_macro_counts_every_category_the_same(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", VALUES)
    scores = score_run(run, Counting())
    more = scores.assign(category="shape", prompt_id="c-" + scores["prompt_id"], score=scores["score"] * 0.5)
    table = score_table(pd.concat([scores, more]), "plain")
    by_key = {(entry["category"], entry["arm"]): entry for entry in table}
    parts = [by_key[category, "moved"] for category in ("color", "shape")]
    macro = by_key["macro", "moved"]
    assert macro["prompts"] == 4 and macro["pictures"] == 8
    assert macro["mean"] == pytest.approx((parts[0]["mean"] + parts[1]["mean"]) / 2)
    assert macro["difference"] == pytest.approx(0.75 * parts[0]["difference"])
    below = sum((part["mean"] - part["interval"][0]) ** 2 for part in parts) ** 0.5 / 2
    assert macro["mean"] - macro["interval"][0] == pytest.approx(below)
    assert "macro" not in {entry["category"] for entry in score_table(scores, "plain")}


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(device: str, clip: Path) -> None:
    with pytest.raises(BadSetting, match=f"cannot be put on '{device}'"):
        open_metric(f"clip_cosine:{clip}", device)
