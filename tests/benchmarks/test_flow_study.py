"""The study of token flow: its prompts, the planted leak, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.benchmarks.studies.token_flow import encoders, run
from t2ictl.benchmarks.studies.token_flow.cases import PARTS, Part, cases
from t2ictl.benchmarks.studies.token_flow.planted import planted_leak
from t2ictl.benchmarks.studies.token_flow.table import print_tables, read_part
from t2ictl.errors import BadSetting
from t2ictl.processors import TokenFlow
from t2ictl.shapes.captions import expect
from tests.stand_ins import clip_pipe, joint_pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return t2ictl.load("shapes", device="cpu")


@pytest.mark.parametrize("part", PARTS)
def test_prompts_are_of_the_split_and_their_items_are_in_them(part: Part) -> None:
    for split in ("tune", "report"):
        found = cases(part, split, 120)  # type: ignore[arg-type]
        assert len({case.prompt for case in found}) == len(found) >= 25
        for case in found:
            expect(case.prompt)
            assert all(item.words in case.prompt for item in case.items)
            assert part != "planted" or case.note == "after"


@pytest.mark.parametrize("part", PARTS)
def test_tuning_and_report_prompts_are_apart(part: Part) -> None:
    tune, report = ({case.prompt for case in cases(part, split, 200)} for split in ("tune", "report"))  # type: ignore[arg-type]
    assert not tune & report


def test_senses_are_what_the_prompt_does_not_say() -> None:
    for case in cases("pairs", "report", 40):
        shown = {f"{each.color} {each.shape}" for each in expect(case.prompt).objects}
        for item in case.items:
            (sense,) = item.senses.values()
            assert sense not in shown and sense.split()[1] == item.words.split()[1]
            assert item.swap not in shown and item.swap.split()[0] not in case.prompt


def row(pipe: Any, prompt: str) -> torch.Tensor:
    states: torch.Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()[0]
    return states


@pytest.mark.parametrize(
    ("prompt", "meant", "place"),
    [
        ("a red circle and a bolt", "a red circle and a star", 6),
        ("a red triangle and a bolt", "a red triangle and a cross", 7),
        ("a ring and a blue bolt", "a ring and a blue star", 6),
    ],
)
def test_planted_sense_is_that_of_the_earlier_neighbor(pipe: Any, prompt: str, meant: str, place: int) -> None:
    plain = row(pipe, prompt)
    with planted_leak(pipe, 1.0):
        planted = row(pipe, prompt)
    with planted_leak(pipe, 0.5):
        half = row(pipe, prompt)
    assert torch.equal(planted[place], row(pipe, meant)[place])
    torch.testing.assert_close(half[place], (planted[place] + plain[place]) / 2)
    others = [each for each in range(24) if each != place]
    assert torch.equal(planted[others], plain[others]) and torch.equal(row(pipe, prompt), plain)


@pytest.mark.parametrize("prompt", ["a bolt and a red circle", "a bolt", "a red star and a bolt", "a circle"])
def test_nothing_is_planted_where_no_earlier_word_chooses(pipe: Any, prompt: str) -> None:
    plain = row(pipe, prompt)
    with planted_leak(pipe, 1.0):
        assert torch.equal(row(pipe, prompt), plain)


@pytest.mark.parametrize("how", ["masked", "pairwise"])
def test_clean_rows_are_free_of_what_was_planted(pipe: Any, how: str) -> None:
    settings: dict[str, Any] = {"items": ("bolt",), "how": how}
    wanted = TokenFlow.embeds(pipe, ["a red circle and a bolt"], **settings)["prompt_embeds"]
    with planted_leak(pipe, 1.0):
        found = TokenFlow.embeds(pipe, ["a red circle and a bolt"], **settings)["prompt_embeds"]
    torch.testing.assert_close(found[0, 6], wanted[0, 6], rtol=0, atol=1e-6)


def test_two_shards_are_the_whole_and_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "STEPS", 2)
    options = ["--prompts", "2", "--seeds", "2", "--confirm", "2"]
    for shard in ("1/2", "2/2"):
        assert run.main(["--out", str(tmp_path / "two"), "--shard", shard, *options]) == 0
    assert run.main(["--out", str(tmp_path / "one"), *options]) == 0
    for part in PARTS:
        one, shared = read_part(tmp_path / "one", part)
        two, _ = read_part(tmp_path / "two", part)
        assert len(one) == 2 and len(shared["seeds"]) == 2
        assert sorted(map(str, one)) == sorted(map(str, two))
    print_tables(tmp_path / "one")
    said = capsys.readouterr().out
    assert all(f"### {part}: 2 tune prompts" in said for part in PARTS) and "nan" not in said


def test_missing_and_unlike_shards_are_refused(tmp_path: Path) -> None:
    content = {"split": "tune", "seeds": [1], "confirm": [], "rows": []}
    (tmp_path / "round.1-of-2.json").write_text(json.dumps(content))
    with pytest.raises(BadSetting, match="1 of 2 shards"):
        read_part(tmp_path, "round")
    (tmp_path / "round.2-of-2.json").write_text(json.dumps({**content, "seeds": [2]}))
    with pytest.raises(BadSetting, match="different settings"):
        read_part(tmp_path, "round")
    with pytest.raises(BadSetting, match="shard"):
        run.main(["--out", str(tmp_path), "--shard", "3/2"])


def leaking_rows() -> list[dict[str, Any]]:
    """Twenty prompts with known shares: a leak of half by rows, and the rest on other ways."""
    rows = []
    for number in range(20):
        seen = {"full": 1.0, "cut": 0.5, "swap": 0.0, "keep target": 0.0, "iso target": 0.0, "keep source": 0.0}
        seen |= {"iso source": 0.0, "repair masked": 0.25, "repair pairwise": 0.5, "repair alone": 1.0}
        p = {name: [[1, 1, float(seed < 4 * share)] for seed in range(4)] for name, share in seen.items()}
        screen = {"is_possible": True, "total": number / 20, "swapped": 0.5}
        rows.append(
            {
                "prompt": str(number),
                "note": "after",
                "questions": ["bolt", "ring", "star"],
                "asked": ["bolt", "ring"],
                "seen": ["star", None],
                "p": p,
                "screen": screen,
            }
        )
    return rows


def test_table_of_leaks_has_the_known_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"split": "report", "seeds": [0, 1, 2, 3], "confirm": [], "rows": leaking_rows()}
    (tmp_path / "bolt.1-of-1.json").write_text(json.dumps(content))
    print_tables(tmp_path)
    said = capsys.readouterr().out
    line = next(each for each in said.splitlines() if each.startswith("| after the source"))
    values = [cell.strip().split(" ")[0] for cell in line.strip("|").split("|")]
    assert values[1:] == ["20", "100.0", "50.0", "+50.0", "0.0", "+100.0"]
    masked = next(each for each in said.splitlines() if each.startswith("| masked"))
    values = [cell.strip().split(" ")[0] for cell in masked.strip("|").split("|")]
    assert values == ["masked", "25.0", "+75.0", "100.0", "+0.0"]


def test_another_model_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = {"folder": clip_pipe()}
    monkeypatch.setattr(run, "open_model", lambda name: pipes[name])
    monkeypatch.setattr(run, "STEPS", 1)
    options = ["--out", str(tmp_path), "--model", "folder", "--part", "planted", "--prompts", "1", "--seeds", "1"]
    assert run.main([*options, "--confirm", "1"]) == 0
    rows, _ = read_part(tmp_path, "planted")
    assert set(rows[0]["p"]) == {"full", "cut"}


def test_the_words_of_each_text_encoder_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoders, "open_model", lambda name: joint_pipe())
    assert encoders.main(["--prompts", "1"]) == 0
    text = capsys.readouterr().out
    clip, t5 = text.split("### ")[1:]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in clip.splitlines() if line.startswith("| ")]
    for number, (role, *cells) in enumerate(lines[1 : 1 + len(encoders.ROLES)]):
        assert role == encoders.ROLES[number] and cells[number] == ""
        assert set(cells[number + 1 :]) <= {"-"} and "-" not in cells[:number]
    assert t5.startswith("text_encoder_3: moved (directly), 1 pairs")
    assert "-" not in t5.partition("| encoder |")[0].replace("|---", "")
    assert "| text_encoder + text_encoder_2 | first | - | - | - | - |" in text
    assert "| text_encoder_3 | first | 0." in text
