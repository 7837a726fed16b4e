"""Text-text similarity of captions, on the real classes at a toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from t2ictl.benchmarks.scoring.captions import CaptionCosine
from t2ictl.benchmarks.scoring.metrics import open_metric
from t2ictl.errors import BadSetting
from tests.benchmarks.scoring_cases import PROMPT, WORDS
from tests.evaluation.judge_cases import VISION, drawings


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> CaptionCosine:
    folder = tmp_path_factory.mktemp("captioner")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokens = transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": len(WORDS), "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    text = {**sizes, "vocab_size": len(WORDS) + 2, "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = transformers.BlipConfig(text_config={**text, **ids}, vision_config=VISION, projection_dim=16)
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=size), tokens).save_pretrained(folder)
    found = open_metric(f"caption_cosine:{folder},{clip}")
    assert isinstance(found, CaptionCosine)
    return found


def test_captions_are_the_same_each_time(metric: CaptionCosine) -> None:
    first, other = drawings(2)
    assert metric.caption(first) == metric.caption(first)
    assert set(metric.caption(other).split()) <= set(WORDS)


def test_score_is_the_cosine_of_the_two_texts(metric: CaptionCosine, monkeypatch: pytest.MonkeyPatch) -> None:
    given_image = drawings(1)[0]
    monkeypatch.setattr(metric, "caption", lambda image: "a blue square")
    features = []
    for text in ("a blue square", PROMPT):
        with torch.no_grad():
            made = metric._clip.get_text_features(**metric._read(text=[text], return_tensors="pt"))
        features.append((made if isinstance(made, torch.Tensor) else made.pooler_output)[0])
    expected = float(features[0] @ features[1] / features[0].norm() / features[1].norm())
    assert metric(given_image, PROMPT).value == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(metric, "caption", lambda image: PROMPT)
    assert metric(given_image, PROMPT).value == pytest.approx(1.0, abs=1e-5)


def test_both_models_are_needed(clip: Path) -> None:
    with pytest.raises(BadSetting, match="caption_cosine needs two models. Write caption_cosine:BLIP,CLIP"):
        open_metric(f"caption_cosine:{clip}")
