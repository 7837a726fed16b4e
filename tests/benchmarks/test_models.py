"""Several models side by side: rank correlations with a known answer, tables and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from t2ictl.benchmarks.results.models import compare_models
from t2ictl.benchmarks.results.side_by_side import page
from t2ictl.benchmarks.results.statistics.ranking import rank_correlation, rank_methods
from t2ictl.benchmarks.results.statistics.reading import Run, check_rows
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from tests.benchmarks.run_folders import PLAN, rows_of, write_run

ARMS = ("a", "b", "c", "d", "e")


def _rows(shares: Mapping[str, float], seed: int = 0, prompts: int = 60) -> pd.DataFrame:
    """Two categories, two images a prompt; outcomes of a model are drawn apart from those of another."""
    generator = np.random.default_rng(seed)
    return rows_of(
        {
            (category, f"{category}-{number}"): {
                arm: (generator.random(2) < share).astype(int).tolist() for arm, share in shares.items()
            }
            for category in ("pair", "triple")
            for number in range(prompts)
        }
    )


def _run(shares: Mapping[str, float], seed: int = 0, prompts: int = 60) -> Run:
    return check_rows(_rows(shares, seed, prompts), {**PLAN, "arms": list(shares)})


def _spread(*arms: str, step: float = 0.2) -> dict[str, float]:
    """Shares that rise from one method to the next."""
    return {"plain": 0.3, **{arm: 0.1 + step * place for place, arm in enumerate(arms)}, "best-of-2": 0.9}


def _macro(one: Run, other: Run, **options: Any) -> pd.Series:
    found = rank_methods({"one": one, "other": other}, resamples=999, **options)
    return found[found["category"] == "macro"].iloc[0]


def test_rank_correlation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 5, (20, 6)).astype(float), generator.normal(size=(20, 6))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlation(one, other) == pytest.approx(expected)
    assert np.isnan(rank_correlation(np.ones((1, 3)), other[:1, :3])).all()


def test_the_same_ranking_carries_over_whatever_the_level() -> None:
    row = _macro(_run(_spread(*ARMS), 0), _run(_spread(*ARMS, step=0.15), 1))
    assert (row["methods"], row["estimate"]) == (5, 1.0)
    assert row["low"] >= 0.9 and row["high"] == 1.0


def test_a_reversed_ranking_is_seen() -> None:
    row = _macro(_run(_spread(*ARMS), 0), _run(_spread(*reversed(ARMS)), 1))
    assert row["estimate"] == -1.0 and row["high"] <= -0.9


def test_a_known_exchange_has_its_known_correlation() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)): the first and the last of five change places, so d is 4 and 4."""
    row = _macro(_run(_spread(*ARMS), 0), _run(_spread("e", "b", "c", "d", "a"), 1))
    assert row["estimate"] == pytest.approx(1 - 6 * 32 / (5 * 24))
    assert row["low"] <= row["estimate"] <= row["high"]


def test_methods_that_differ_by_chance_alone_have_a_wide_interval() -> None:
    """Five equal methods on two models: about 19 of 20 intervals hold 0, and none is narrow."""
    equal = dict.fromkeys(("plain", *ARMS), 0.5)
    rows = [_macro(_run(equal, 2 * seed), _run(equal, 2 * seed + 1)) for seed in range(20)]
    assert sum(row["low"] <= 0 <= row["high"] for row in rows) >= 17
    assert min(row["high"] - row["low"] for row in rows) > 0.5


def test_whole_prompts_are_resampled() -> None:
    """The same images twice are no evidence."""
    one, other = _rows(_spread(*ARMS, step=0.03), 0), _rows(_spread(*ARMS, step=0.03), 1)
    runs = [check_rows(each, PLAN) for each in (one, other)]
    twice = [check_rows(pd.concat([each, each.assign(seed=each["seed"] + 9)]), PLAN) for each in (one, other)]
    pd.testing.assert_series_equal(_macro(*runs), _macro(*twice))


def test_a_prompt_that_decides_in_both_models_is_drawn_in_both() -> None:
    """A model and its copy agree in every resample, which they would not with draws of their own."""
    run = _run(_spread(*ARMS, step=0.01), 3)
    row = _macro(run, run)
    assert (row["estimate"], row["low"], row["high"]) == (1.0, 1.0, 1.0)


def test_only_methods_of_both_models_are_ranked() -> None:
    shares = _spread(*ARMS)
    more = shares | {"random:a": 0.9, "f": 0.95}
    assert _macro(_run(more, 0), _run(shares, 1))["methods"] == 5
    few = _macro(_run({"plain": 0.5, "a": 0.6, "b": 0.7}, 0), _run(shares, 1))
    assert few["methods"] == 2 and np.isnan(few["estimate"])


def _folders(tmp_path: Path, **models: Mapping[str, float]) -> list[Path]:
    names = {name: name.replace("_", "-") for name in models}
    return [
        write_run(tmp_path / name, _rows(shares, number), model=f"folder/{names[name]}")
        for number, (name, shares) in enumerate(models.items())
    ]


def test_the_page_has_a_column_a_model_and_a_row_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _folders(tmp_path, shapes=_spread(*ARMS), shapes_dit=_spread("a", "b", "c"))
    out = tmp_path / "page.md"
    options = ["--resamples", "999", "--out", str(out)]
    assert main(["bench", "models", *map(str, folders), *options]) == 0
    text = out.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    assert text.startswith("- **shapes**: `instrument 0123456789ab")
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    cells = {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines[:8]}
    assert cells["arm"] == ["shapes", "shapes-dit"]
    assert list(cells) == ["arm", "plain", *ARMS, "best-of-2 (oracle)"]
    assert cells["e"][1] == "-" and cells["e"][0].startswith("+")
    assert cells["a"][0].startswith("-") and not cells["plain"][0].startswith("+")
    for title in ("mean of the categories", "points, pair", "points, triple", "Does the ranking"):
        assert title in text
    assert "| shapes, shapes-dit | 3" in text


def test_differences_are_those_of_compare(tmp_path: Path) -> None:
    from t2ictl.benchmarks.results.compare import compare

    folders = _folders(tmp_path, shapes=_spread(*ARMS), other=_spread(*ARMS, step=0.1))
    found = compare_models(folders, resamples=999)
    for folder, name in zip(folders, ("shapes", "other"), strict=True):
        own = found.differences[found.differences["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, compare(folder, outcomes=["is_strict"], resamples=999).differences)


def test_json_has_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _folders(tmp_path, shapes=_spread(*ARMS), other=_spread(*ARMS))
    assert main(["bench", "models", *map(str, folders), "--resamples", "999", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["estimate"] for row in data["ranking"]] == [1.0] * 3
    assert set(data["headers"]) == {"shapes", "other"}


def test_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, _rows(_spread(*ARMS), 0), model="shapes") for name in ("x", "y")]
    assert list(compare_models(folders, resamples=999).headers) == ["shapes (x)", "shapes (y)"]
    with pytest.raises(BadSetting, match="Give each run once"):
        compare_models([folders[0], folders[0]])


def test_what_is_no_result_is_marked(tmp_path: Path) -> None:
    folders = _folders(tmp_path, shapes=_spread(*ARMS), other=_spread(*ARMS))
    write_run(folders[1], _rows(_spread(*ARMS), 1), model="other", limited=True)
    text = page(compare_models(folders, resamples=999))
    assert text.count("LIMITED RUN: not a result") == 1 + 3 + 1
    write_run(folders[0], _rows(_spread(*ARMS), 0).iloc[1:], model="shapes")
    with pytest.raises(BadSetting, match="results are missing"):
        compare_models(folders)
    assert "INCOMPLETE RUN" in page(compare_models(folders, resamples=999, allow_missing=True))


def test_other_prompts_and_lone_runs_are_refused(tmp_path: Path) -> None:
    folders = _folders(tmp_path, shapes=_spread(*ARMS))
    with pytest.raises(BadSetting, match="two models or more"):
        compare_models(folders)
    other = write_run(tmp_path / "other", _rows(_spread(*ARMS), prompts=40), model="other")
    with pytest.raises(BadSetting, match="not run on the same prompts"):
        compare_models([*folders, other])
    unknown = write_run(tmp_path / "unknown", _rows({"a": 0.5}), model="unknown")
    with pytest.raises(BadSetting, match="There is no arm 'plain'"):
        compare_models([*folders, unknown])
