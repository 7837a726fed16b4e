"""``t2ictl maps --by depth``: a table of which layers point at words, and no files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import t2ictl
from t2ictl.maps.depth import pointing_by_layer
from tests.tiny import sd
from tests.tiny_transformers import flux

PROMPT = "a red circle and a blue square"
Run = Callable[..., tuple[int, str, str]]
SMALL = ("--steps", "2", "--size", "48x64", "--device", "cpu")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("flux")
    flux().save_pretrained(folder)
    return str(folder)


def table(out: str) -> tuple[str, dict[str, list[str]]]:
    """The first line, and the figures by layer; the second line has their names."""
    first, names, *rows = out.splitlines()
    assert names.split() == ["layer", "depth", "pointing", "overlap", "spread", "attention"]
    return first, {row.split()[0]: row.split()[1:] for row in rows}


def test_a_table_of_all_layers_of_a_transformer(run: Run, transformer: str) -> None:
    status, out, _ = run("maps", PROMPT, "--by", "depth", "--model", transformer, *SMALL, "--images", "2")
    first, rows = table(out)
    assert status == 0 and first == "2 words (circle, square), 2 images"
    blocks = [f"transformer_blocks.{number}" for number in range(3)]
    assert list(rows) == [*blocks, "single_transformer_blocks.0", "single_transformer_blocks.1"]
    assert [float(row[0]) for row in rows.values()] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert all(0 <= float(value) <= 1 for row in rows.values() for value in row)
    assert list(Path().iterdir()) == []  # nothing is written


def test_figures_are_those_of_records_of_the_same_images(run: Run, model: str) -> None:
    arguments = ("--by", "depth", "--model", model, *SMALL, "--seed", "3", "--images", "2", "--layers", "up,down.0.*")
    status, out, _ = run("maps", PROMPT, *arguments, "--json")
    found = json.loads(out)
    assert status == 0 and found["words"] == ["circle", "square"] and found["images"] == 2
    records = []
    for seed in (3, 4):
        recording = t2ictl.Recording(words=("circle", "square"), layers=("up", "down.0.*"), by="layer")
        made = t2ictl.generate(sd(), PROMPT, seed=seed, steps=2, width=48, height=64, record=recording)
        assert made.record is not None
        records.append((made.record, ("circle", "square")))
    expected = pointing_by_layer(records)
    assert [each["layer"] for each in found["layers"]] == [each.layer for each in expected]
    for mine, theirs in zip(found["layers"], expected, strict=True):
        assert mine == pytest.approx(vars(theirs), abs=1e-6)


def test_words_of_ones_own_and_controls(run: Run, model: str) -> None:
    chosen = ("--words", "blue square", "--control", "attention_segregation")
    status, out, _ = run("maps", PROMPT, "--by", "depth", "--model", model, *SMALL, *chosen)
    first, rows = table(out)
    assert status == 0 and first.startswith("1 words (blue square)")
    assert {row[2] for row in rows.values()} == {"-"}  # a single word overlaps with none
    _, plain, _ = run("maps", PROMPT, "--by", "depth", "--model", model, *SMALL, "--words", "blue square")
    assert table(plain)[1] != rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPT, "--by", "layer"), "--by cannot be 'layer'"),
        (("!", "--by", "depth"), "has no objects"),
        ((PROMPT, "--by", "depth", "--words", "dog"), "dog"),
        ((PROMPT, "--by", "depth", "--layers", "sideways"), "sideways"),
        ((PROMPT, "--by", "depth", "--layers", "mid"), "Only one layer was recorded"),
        ((PROMPT, "--by", "depth", "--images", "0"), "images"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, model: str, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("maps", *arguments, "--model", model, *SMALL)
    lines = [line for line in err.splitlines() if line.startswith("t2ictl: ")]
    assert status == 2 and out == "" and len(lines) == 1 and message in lines[0]
