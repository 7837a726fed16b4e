from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from t2ictl.benchmarks.train_shapes import evaluate, maps
from t2ictl.shapes import judge, model_path
from tests.shapes.scenes import picture_of, scene_of

PROMPT = "a red circle and a blue square"


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert evaluate.wilson(hits, total) == pytest.approx((low, high), abs=1e-4)
    assert evaluate.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_summary_counts_outcomes_and_failures() -> None:
    drawn = [("a red circle", "a blue square"), ("a blue circle", "a red square"), ("a red circle",)]
    row = evaluate.summarize("pair", [judge(picture_of(*phrases), PROMPT) for phrases in drawn])
    assert row["n"] == 3
    assert row["strict"]["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert row["has_all"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["failures"] == {"swap": 1, "missing": 1}
    assert row["semantic_share_of_failures"] == 1
    assert "swap 1" in evaluate.show(row)


def test_trials_never_repeat_a_prompt_with_a_seed() -> None:
    trials = evaluate.trials("single", "tune", 30, 2)
    assert len({(item.prompt, seed) for item, seed in trials}) == 30
    assert len({seed for _, seed in trials}) == 30


def test_command_prints_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--prompts", "2", "--steps", "2", "--kinds", "pair", "--keep", str(tmp_path / "pictures")]
    assert evaluate.main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert "| pair | 2 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))["n"] == 2
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_word_maps_are_scored_against_the_drawn_object() -> None:
    scene = scene_of("a red circle", "a blue square")
    cells = [maps.object_cells(scene, index, 16) for index in range(2)]
    assert cells[0][4, 4] and cells[1][11, 11]
    assert not (cells[0] & cells[1]).any()
    assert maps.score_map(cells[0].astype(float), cells[0]) == (True, 1.0)
    assert maps.score_map(cells[1].astype(float), cells[0]) == (False, 0.0)


def test_words_of_the_packaged_model_look_at_their_objects() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(model_path()))
    rows = maps.measure_maps(pipe, 15, 500, 0)
    assert {side for side, _ in rows} == {16, 8}
    pointing, overlap, total = rows[16, "noun"]
    assert total == 30
    assert pointing > 0.7
    assert overlap > 0.5
