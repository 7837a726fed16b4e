"""From rows to tables: hand-worked values, a loop over images, invariances, and refusals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from t2ictl.benchmarks.results.compare import compare
from t2ictl.benchmarks.results.statistics.comparison import Comparison, compare_run
from t2ictl.benchmarks.results.statistics.reading import check_rows
from t2ictl.benchmarks.results.tables import tables_of, to_csv, to_json
from t2ictl.errors import BadSetting
from tests.benchmarks.run_folders import PLAN, TINY, drawn_rows, rows_of, write_run


def _compared(rows: pd.DataFrame, plan: dict[str, Any] | None = None, **options: Any) -> Comparison:
    return compare_run(check_rows(rows, {**PLAN, **(plan or {})}), **{"resamples": 999, **options})


def _row(frame: pd.DataFrame, **keys: str) -> pd.Series:
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    (index,) = frame.index
    return frame.loc[index]


def test_shares_and_differences_worked_by_hand() -> None:
    """Plain: pair (0.5 + 0) / 2, triple 1. Segregation: pair (1 + 0.5) / 2, triple 0.5. Macro: both 0.625."""
    found = _compared(rows_of(TINY))
    for arm, shares in {"plain": (0.25, 1.0, 0.625), "segregation": (0.75, 0.5, 0.625)}.items():
        for category, share in zip(("pair", "triple", "macro"), shares, strict=True):
            assert _row(found.shares, arm=arm, category=category)["estimate"] == share
    expected = {"pair": (0.5, 2, 0, 4), "triple": (-0.5, 0, 1, 2), "macro": (0.0, 2, 1, 6)}
    for category, values in expected.items():
        row = _row(found.differences, category=category)
        assert (row["estimate"], row["fixed"], row["broke"], row["images"]) == values
    # Two prompts of +0.5: two of four signs are as far from 0. Three tests, so Holm makes 1 of all.
    assert _row(found.differences, category="pair")["p"] == pytest.approx(0.5, abs=0.02)
    assert (found.differences["p_holm"] == 1).all()


def test_costs_worked_by_hand() -> None:
    found = _compared(rows_of(TINY))
    row = _row(found.costs, arm="segregation", category="pair")
    assert (row["forwards"], row["backwards"], row["ratio"]) == (20, 5, 1.25)
    assert _row(found.costs, arm="plain", category="macro")["ratio"] == 1


def test_failure_kinds_are_counted() -> None:
    found = _compared(rows_of(TINY)).failures.set_index("arm")
    assert found.loc["plain"].to_dict() == {"images": 6, "right": 3, "missing": 3}
    assert found.loc["segregation"].to_dict() == {"images": 6, "right": 4, "missing": 2}


def test_estimates_against_a_loop_over_images() -> None:
    rows = drawn_rows()
    found = _compared(rows, against=("plain", "random"))
    value = {(r.arm, r.prompt_id, r.seed): r for r in rows.itertuples()}
    for row in found.differences.to_dict("records"):
        means: dict[str, list[float]] = {"pair": [], "triple": []}
        fixed = broke = 0
        for category in means:
            for number in range(30):
                prompt = f"{category}-{number}"
                changes = [
                    int(getattr(value[row["arm"], prompt, seed], row["outcome"]))
                    - int(getattr(value[row["against"], prompt, seed], row["outcome"]))
                    for seed in range(2)
                ]
                means[category].append(sum(changes) / 2)
                if row["category"] in (category, "macro"):
                    fixed, broke = fixed + changes.count(1), broke + changes.count(-1)
        used = ("pair", "triple") if row["category"] == "macro" else (row["category"],)
        expected = sum(sum(means[category]) / 30 for category in used) / len(used)
        assert row["estimate"] == pytest.approx(expected)
        assert (row["fixed"], row["broke"]) == (fixed, broke)
        assert row["low"] <= row["estimate"] <= row["high"]


def test_prompts_count_alike_however_many_images_they_have() -> None:
    """1, 1, 1, 1 and 0: the mean over prompts is 0.5, that over images 0.8."""
    values = {("pair", "a"): {"plain": [1] * 4, "x": [0] * 4}, ("pair", "b"): {"plain": [0], "x": [0]}}
    found = _compared(rows_of(values), {"seeds": 1})
    assert _row(found.shares, arm="plain")["estimate"] == 0.5
    assert _row(found.differences)["estimate"] == -0.5


def test_an_arm_against_itself_has_no_difference() -> None:
    rows = drawn_rows(arms={"plain": 0.5})
    found = _compared(pd.concat([rows, rows.assign(arm="copy")])).differences
    assert (found["estimate"] == 0).all() and (found["p"] == 1).all() and (found["p_holm"] == 1).all()
    assert (found[["fixed", "broke"]] == 0).all(axis=None)
    assert (found["low"] < 0).all() and (found["high"] > 0).all()


def test_figures_are_the_same_to_the_last_bit_in_any_order_of_rows_and_arms() -> None:
    rows = drawn_rows()
    first = to_json(_compared(rows, {"arms": list(rows["arm"].unique())}, against=("plain", "random")))
    shuffled = rows.sample(frac=1, random_state=1)
    again = to_json(_compared(shuffled, {"arms": list(rows["arm"].unique())}, against=("plain", "random")))
    assert first == again
    turned = _compared(rows, {"arms": list(rows["arm"].unique())[::-1]}, against=("plain", "random")).differences
    keys = ["arm", "against", "category", "outcome"]
    same = _compared(rows, against=("plain", "random")).differences.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(turned.sort_values(keys, ignore_index=True), same, rtol=1e-12)


def test_seed_and_number_of_resamples_are_what_decides() -> None:
    rows = drawn_rows()
    first, other = (_compared(rows, seed=seed).differences for seed in (0, 1))
    assert not first["low"].equals(other["low"])
    assert first["estimate"].equals(other["estimate"])
    assert (first["low"] - other["low"]).abs().max() < 0.03


def test_images_that_say_the_same_twice_are_no_evidence() -> None:
    rows = drawn_rows()
    twice = pd.concat([rows, rows.assign(seed=rows["seed"] + 100)])
    columns = ["estimate", "low", "high", "p", "p_holm"]
    first, second = (_compared(each, {"seeds": 1}).differences for each in (rows, twice))
    pd.testing.assert_frame_equal(first[columns], second[columns])
    assert (second["fixed"] == 2 * first["fixed"]).all()
    shares = [_compared(each, {"seeds": 1}).shares[["estimate", "low", "high"]] for each in (rows, twice)]
    pd.testing.assert_frame_equal(*shares)


def test_changing_what_is_compared_with_changes_the_sign() -> None:
    rows = drawn_rows(arms={"plain": 0.4, "x": 0.6})
    there = _compared(rows).differences
    back = _compared(rows, against=("x",)).differences
    assert there["estimate"].tolist() == (-back["estimate"]).tolist()
    assert there["low"].to_numpy() == pytest.approx(-back["high"].to_numpy())
    assert there["p"].tolist() == back["p"].tolist()
    assert there["fixed"].tolist() == back["broke"].tolist()


def test_random_is_each_arms_own() -> None:
    rows = drawn_rows(arms={"plain": 0.4, "x": 0.6, "y": 0.5, "random:y": 0.4, "random:x": 0.4})
    found = _compared(rows, against=("random",)).differences
    assert set(zip(found["arm"], found["against"], strict=True)) == {("x", "random:x"), ("y", "random:y")}


def test_holm_runs_over_the_whole_table() -> None:
    found = _compared(drawn_rows(), against=("plain", "random"))
    p, adjusted = (found.differences[name].to_numpy() for name in ("p", "p_holm"))
    assert found.header["tests"] == len(p) == (3 + 1) * 2 * 3
    order, largest = np.argsort(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1, p[index] * (len(p) - place)))
        assert adjusted[index] == pytest.approx(largest)
    assert 1 / (found.header["flips"] + 1) * len(p) <= 0.01


def test_one_category_has_no_macro_row() -> None:
    rows = drawn_rows()
    found = _compared(rows[rows["category"] == "pair"])
    assert set(found.shares["category"]) == {"pair"} == set(found.differences["category"])


def test_outcome_that_does_not_apply_to_a_category_is_left_out_there() -> None:
    rows = drawn_rows().assign(is_related=lambda frame: frame["has_all"].astype(object))
    rows.loc[rows["category"] == "pair", "is_related"] = None
    found = _compared(rows)
    related = found.differences[found.differences["outcome"] == "is_related"].set_index(["arm", "category"])
    assert "pair" not in related.index.get_level_values("category")
    for arm in ("segregation", "best-of-2"):
        assert related.loc[(arm, "macro"), "estimate"] == related.loc[(arm, "triple"), "estimate"]
        assert related.loc[(arm, "macro"), "p"] == related.loc[(arm, "triple"), "p"]


def test_missing_results_are_refused_and_counted() -> None:
    rows = drawn_rows().astype({"has_all": object, "is_strict": object})
    rows.loc[3, "status"] = "error"
    rows.loc[3, ["has_all", "is_strict"]] = None
    rows.loc[5, "is_strict"] = None
    rows = rows.drop(index=[7, 8])
    with pytest.raises(BadSetting, match=r"4 of 480 results are missing: 2 not made, 1 failed, 1 without an outcome"):
        _compared(rows)
    found = _compared(rows, allow_missing=True)
    for table in tables_of(found):
        assert table.header.startswith("INCOMPLETE RUN: not a result (4 of 480")
    assert found.header["images"] == 477


def test_missing_seeds_prompts_and_arms_are_seen_by_the_plan() -> None:
    rows = drawn_rows()
    for plan, missing in (
        ({"seeds": 3}, 60 * 4),
        ({"seeds": [0, 1, 2]}, 60 * 4),
        ({"arms": ["plain", "never made"]}, 120),
        ({"prompts": 31, "kinds": ["pair", "triple"]}, 2 * 2 * 4),
        ({"prompts": {"pair": 30, "triple": 32}}, 2 * 2 * 4),
        ({"items": [{"id": f"{i}", "category": "pair"} for i in range(33)], "limited": True}, 3 * 2 * 4),
    ):
        with pytest.raises(BadSetting, match=f"{missing} of {480 + missing} results are missing: {missing} not made"):
            _compared(rows, plan)
    _compared(rows, {"prompts": 31, "kinds": ["pair", "triple"], "limited": True})


def test_limited_run_is_marked_on_every_table_and_in_every_format() -> None:
    found = _compared(rows_of(TINY), {"limited": True})
    for table in tables_of(found):
        assert table.header.startswith("LIMITED RUN: not a result | ")
        assert "LIMITED RUN" in table.to_text() and "LIMITED RUN" in table.to_markdown()
    assert '"limited": true' in to_json(found)
    assert "True" in to_csv(found).splitlines()[1]


def test_every_table_says_what_produced_it() -> None:
    tables = tables_of(_compared(drawn_rows(), against=("plain", "random"), seed=7))
    assert [table.title.split()[0] for table in tables] == ["Shares", "Differences", "Differences", "Failure"]
    for table in tables:
        for part in (
            "instrument 0123456789ab",
            "commit 1a2b3c4",
            "split report",
            "steps 20",
            "seeds 2",
            "n = 60 prompts",
        ):
            assert part in table.header
    assert "999 resamples, seed 7" in tables[1].header and "Holm over 24 tests" in tables[1].header
    assert "Oracle, chosen by the judge that reports: best-of-2." in tables[0].notes


def test_long_hashes_are_cut_and_changed_files_stay_visible() -> None:
    plan = {"commit": "0123456789abcdef0123456789abcdef01234567-dirty", "arms": {"segregation": {}, "plain": {}}}
    assert "commit 0123456789ab-dirty | " in tables_of(_compared(rows_of(TINY), plan))[0].header


def test_fallback_intervals_are_named_in_the_cells() -> None:
    values = {("pair", f"p{i}"): {"plain": [1, 1], "x": [1, 0] if i < 3 else [1, 1]} for i in range(40)}
    text = "\n".join(table.to_text() for table in tables_of(_compared(rows_of(values, ["is_strict", "has_all"]))))
    assert "] t " in text and "100.0 [90.7, 100.0] =" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ("nobody",)}, "There is no arm 'nobody'. Use one of plain, segregation, or random."),
        ({"against": ("random",)}, "No arm can be compared with 'random'. The run has plain, segregation."),
        ({"outcomes": ("is_pretty",)}, "There is no outcome is_pretty. Use some of: is_strict."),
        ({"resamples": 10}, "Use at least 999"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        _compared(rows_of(TINY), **options)
    assert message in str(caught.value)


def test_arms_without_a_common_image_are_refused() -> None:
    rows = rows_of(TINY)
    apart = rows[(rows["arm"] == "plain") == (rows["seed"] == 0)]
    with pytest.raises(BadSetting, match="no image in common"):
        _compared(apart, allow_missing=True)


def test_bad_rows_are_refused() -> None:
    rows = rows_of(TINY)
    for bad, message in (
        (rows.drop(columns="seed"), "no column seed"),
        (rows.iloc[:0], "no rows"),
        (pd.concat([rows, rows.iloc[:2]]), "2 images come twice, first plain, prompt pair-0, seed 0"),
        (rows.assign(category=[f"c{i}" for i in range(len(rows))]), "A prompt is in two categories"),
        (rows.drop(columns="is_strict"), "no outcomes"),
    ):
        with pytest.raises(BadSetting, match=message):
            _compared(bad)


def test_folders_are_read_and_joined(tmp_path: Path) -> None:
    rows = drawn_rows()
    whole = write_run(tmp_path / "whole", rows)
    parts = [
        write_run(tmp_path / name, rows[rows["arm"].isin(arms)])
        for name, arms in (("a", ["plain", "segregation"]), ("b", ["random:segregation", "best-of-2"]))
    ]
    assert to_json(compare(whole, resamples=999)) == to_json(compare(parts, resamples=999))


@pytest.mark.parametrize("key", ["instrument", "commit", "split", "steps", "versions", "limited", "guidance"])
def test_folders_of_different_plans_are_refused(tmp_path: Path, key: str) -> None:
    rows = rows_of(TINY)
    one = write_run(tmp_path / "one", rows[rows["arm"] == "plain"])
    two = write_run(tmp_path / "two", rows[rows["arm"] != "plain"], **{key: "another"})
    with pytest.raises(BadSetting, match=f"differ in '{key}'"):
        compare([one, two])


def test_folders_that_are_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"has no results\.parquet"):
        compare(tmp_path)
    with pytest.raises(BadSetting, match="No run folder"):
        compare([])
    folder = write_run(tmp_path / "run", rows_of(TINY))
    (folder / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadSetting, match="cannot be read"):
        compare(folder)


def test_no_figure_is_lost_in_json_and_csv() -> None:
    found = _compared(drawn_rows())
    lines = to_csv(found).splitlines()
    kinds = found.failures.shape[1] - 2
    assert len(lines) == 1 + len(found.shares) + len(found.costs) + len(found.differences) + len(found.failures) * kinds
    assert not any(math.isnan(value) for value in found.differences["p_holm"])
    labels = list(itertools.product(("plain", "segregation"), ("pair", "triple", "macro")))
    assert all(any(line.startswith(f"share,{arm},{category},") for line in lines) for arm, category in labels)
