"""``t2ictl.flow`` whole: on tiny pipelines, on the embedded model, its report and its command."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting, Cancelled, NotRecorded, SpanNotFound
from t2ictl.processors import TokenFlow
from t2ictl.processors.token_flow.analysis.files import items_of
from t2ictl.processors.token_flow.analysis.screen import ENDS, POOLED, screen, screen_tokens
from t2ictl.processors.token_flow.items import Item
from tests.processors.flow_cases import PROMPT, BrightnessJudge, Case
from tests.tiny import sd, sd2, sdxl

families = pytest.mark.parametrize("build", [sd, sd2, sdxl])
SMALL: dict[str, Any] = {"steps": 2, "seeds": 2, "confirm": 2, "batch": 4, "guidance_scale": 3.0}


# -- the screen ---------------------------------------------------------------------------------------------------


@families
def test_screen_equals_its_formula(build: Any) -> None:
    case = Case(build())
    cell = next(c for c in screen(case.make, case.items, case.encode) if (c.target, c.source) == ("square", "circle"))
    full, empty = case.stock(PROMPT).rows[0, 7].double(), case.stock("").rows[0, 7].double()
    hidden = case.encode([PROMPT], seen=[_without(3)] * len(case.prompt.encodings)).embeds[0, 7].double()
    assert cell.total == pytest.approx(float((full - hidden).norm() / (full - empty).norm()), rel=1e-4)
    assert cell.is_possible and cell.direct is not None and cell.direct > 0


def _without(place: int) -> Any:
    from t2ictl.families.text_masking import visible_except

    return visible_except([[place]], 16)


@families
def test_screen_knows_what_a_causal_encoder_makes_impossible(build: Any) -> None:
    case = Case(build())
    cells = {(c.target, c.source): c for c in screen(case.make, case.items, case.encode)}
    assert not cells["circle", "square"].is_possible and cells["circle", "square"].total < 1e-5
    assert cells["square", "circle"].total > 1e-3
    assert cells[ENDS, "square"].is_possible and cells[ENDS, "square"].total > 1e-3
    assert ((POOLED, "circle") in cells) is (build is sdxl)


@families
def test_screen_compares_with_the_swap_at_its_own_places(build: Any) -> None:
    case = Case(build(), items=(Item(words="circle", swap="skateboard"), Item(words="square")))  # two tokens for one
    cells = {(c.target, c.source): c for c in screen(case.make, case.items, case.encode)}
    full, empty = case.stock(PROMPT).rows[0, 7].double(), case.stock("").rows[0, 7].double()
    other = case.stock("a red skateboard and a blue square").rows[0, 8].double()
    wanted = float((full - other).norm() / (full - empty).norm())
    assert cells["square", "circle"].swapped == pytest.approx(wanted, rel=1e-4)
    assert cells["circle", "square"].swapped is None and cells[ENDS, "circle"].swapped is None


class Mixing:
    """An encoder whose rows mix at known rates: what a row reads of each visible row before it."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, texts: Any, first: Any = None, seen: Any = None, depth: float = 1.0) -> Any:
        import torch

        from t2ictl.families.text_states import PromptEmbeds

        words = [text.split() for text in texts]
        rows = torch.zeros(len(texts), 16, 64)
        for number, own in enumerate(words):
            for place, word in enumerate(own, start=1):
                vector = torch.zeros(64)
                vector[sum(map(ord, word)) % 64] = 1.0
                rows[number, place] = vector
        mixed = rows.clone()
        for number in range(len(texts)):
            visible = torch.ones(16, dtype=torch.bool) if seen is None else seen[0][number]
            for place in range(1, 16):
                sees = visible if visible.ndim == 1 else visible[place]
                if place > 3 and sees[3]:
                    mixed[number, place] += self._share * rows[number, 3]
        return PromptEmbeds(embeds=mixed)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8])
def test_screen_recovers_a_known_mixture(share: float) -> None:
    case = Case(sd())
    cells = screen(case.make, case.items, Mixing(share))
    cell = next(c for c in cells if (c.target, c.source) == ("square", "circle"))
    # |h(full) - h(without)| is the share; |h(full) - h('')| the length of the word's vector with the share.
    assert cell.total == pytest.approx(share / (1 + share**2) ** 0.5, abs=1e-6)
    assert cell.direct == pytest.approx(cell.total, abs=1e-6)


def test_screen_of_tokens_says_who_reads_whom() -> None:
    case = Case(sd(), "a big red circle and a square", ("big red circle", "square"))
    tokens = screen_tokens(case.make, case.items[0], case.encode)
    assert [each.token for each in tokens] == [2, 3, 4]
    first, last = tokens[0].on_item, tokens[2].on_item
    assert first is not None and last is not None and first > 1e-3 and last < 1e-5


# -- the verb -----------------------------------------------------------------------------------------------------


@families
def test_flow_runs_on_every_family(build: Any, tmp_path: Path) -> None:
    pipe = build()
    processors = dict(pipe.unet.attn_processors)
    items = [Item(words="circle", swap="ring"), Item(words="square", senses={"circle": "heart"})]
    operators = ("clean_pad", "encoder_mask", "drop")
    result = t2ictl.flow(pipe, PROMPT, items, judge=BrightnessJudge(), operators=operators, **SMALL)
    assert result.scores is not None and set(result.scores.questions) == {"circle", "square", "heart"}
    assert {cell.text for cell in result.tokens} == {"circle", "square"}
    assert set(result.tokens[0].necessity) == set(operators)
    assert {(c.target, c.source, c.form) for c in result.leaks} == {
        ("circle", "square", "presence"),
        ("square", "circle", "presence"),
        ("square", "circle", "sense"),
    }
    assert result.leak("square", "circle").form == "sense" and result.leak("square", "circle").total is not None
    assert all(values.shape == (2, 3) for values in result.scores.by_condition.values())
    assert result.record.map("circle").max() > 0
    json.dumps(result.to_dict(), allow_nan=False)
    page = result.save(tmp_path / "report")
    assert page.is_file() and json.loads((tmp_path / "report/report.json").read_text())["schema"] == 1
    assert all(pipe.unet.attn_processors[name] is each for name, each in processors.items())


def test_depths_are_conditions_of_their_own() -> None:
    result = t2ictl.flow(sd(), PROMPT, judge=BrightnessJudge(), depths=(0.0, 1.0), **SMALL)
    assert result.scores is not None
    by_condition = result.scores.by_condition
    assert (by_condition["depth:1.00"] == by_condition["full"]).all()
    assert (by_condition["depth:0.00"] != by_condition["full"]).any()
    with pytest.raises(BadSetting, match="shares of the encoder's layers"):
        t2ictl.flow(sd(), PROMPT, depths=(2.0,), **SMALL)


def test_an_encoder_that_reads_both_ways_has_no_impossible_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2ictl.families.stable_diffusion import StableDiffusionAdapter

    monkeypatch.setattr(StableDiffusionAdapter, "text_is_causal", False)
    result = t2ictl.flow(sd(), PROMPT, judge=BrightnessJudge(), **SMALL)
    assert all(cell.is_possible for cell in result.screen) and all(cell.is_possible for cell in result.leaks)


def test_without_a_judge_there_are_screen_and_maps_only(tmp_path: Path) -> None:
    result = t2ictl.flow(sd(), PROMPT, **SMALL)
    assert [item.words for item in result.items] == ["circle", "square"]
    assert result.screen and result.record.steps == 2 and not result.leaks and result.scores is None
    assert result.fix is None
    with pytest.raises(NotRecorded, match="No leak of 'circle' into 'square' was measured"):
        result.leak("square", "circle")
    assert "Nothing was judged" in result.save(tmp_path / "r").read_text(encoding="utf-8")


def test_an_analysis_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> bool:
        return False

    wanted: dict[str, Any] = {"judge": BrightnessJudge(), "folder": tmp_path / "cells", **SMALL}
    with pytest.raises(Cancelled):
        t2ictl.flow(sd(), PROMPT, on_batch=stop, **wanted)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    result = t2ictl.flow(sd(), PROMPT, **wanted)
    fresh = t2ictl.flow(sd(), PROMPT, **{**wanted, "folder": None})
    assert result.reused >= 4 and fresh.reused == 0 and result.scores is not None and fresh.scores is not None
    assert result.scores.to_dict() == fresh.scores.to_dict()


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"items": ["heart"]}, SpanNotFound, "heart"),
        ({"judge": "oracle"}, BadSetting, "no judge 'oracle'"),
        ({"judge": "shapes", "items": ["cat"], "prompt": "a cat"}, BadSetting, "does not know 'cat'"),
        ({"operators": ("guess",)}, BadSetting, "clean_pad"),
        ({"seeds": 0}, BadSetting, "seeds=0"),
        ({"steps": 0}, BadSetting, "steps"),
    ],
)
def test_bad_input_is_refused_before_any_image(settings: Any, error: type[Exception], match: str) -> None:
    pipe = sd()
    pipe.unet.forward = None  # it must not be called
    wanted = {**SMALL, **settings}
    with pytest.raises(error, match=match):
        t2ictl.flow(pipe, wanted.pop("prompt", PROMPT), **wanted)


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_judge_that_gives_no_probabilities_is_refused(value: float) -> None:
    class Wrong(BrightnessJudge):
        """Says anything."""

        def __call__(self, images: Any, things: Any) -> Any:
            return super().__call__(images, things) * 0 + value

    with pytest.raises(BadSetting, match="gives probabilities"):
        t2ictl.flow(sd(), PROMPT, judge=Wrong(), **SMALL)


def test_fix_is_the_control_that_was_confirmed() -> None:
    from dataclasses import replace

    from t2ictl.processors.token_flow.analysis.repair import Candidate, RepairOutcome

    outcome = RepairOutcome(
        target="square",
        source="circle",
        form="sense",
        accepted=True,
        reason="",
        chosen=Candidate(how="pairwise", strength=0.5, special="masked"),
    )
    result = replace(t2ictl.flow(sd(), PROMPT, **SMALL), repairs=(outcome,))
    assert result.fix == TokenFlow(
        items=("square",), sources=("circle",), how="pairwise", strength=0.5, special="masked", pooled="masked"
    )


# -- the report ---------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Counts elements and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Count."""
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        """Collect."""
        self.words.append(data)


def read(page: Path) -> tuple[Elements, str]:
    parsed, text = Elements(), page.read_text(encoding="utf-8")
    parsed.feed(text)
    return parsed, text


def test_report_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    items = [Item(words="circle"), Item(words="square", senses={"circle": "heart"})]
    parsed, text = read(t2ictl.flow(sd(), PROMPT, items, judge=BrightnessJudge(), **SMALL).save(tmp_path / "r"))
    assert parsed.addresses and all(each.startswith("data:image/webp;base64,") for each in parsed.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert parsed.tags["canvas"] == 1 and parsed.tags["script"] == 1
    assert [word for word in parsed.words if word.strip() == "impossible"]


def test_hostile_prompts_are_shown_and_not_run(tmp_path: Path) -> None:
    prompt = 'a cat </script><script>alert(1)</script> & <img src="http://x.y/z"> and a dog'
    result = t2ictl.flow(sd(max_length=77), prompt, ["cat"], judge=BrightnessJudge(), **SMALL)
    parsed, text = read(result.save(tmp_path / "r"))
    assert parsed.tags["script"] == 1 and "<script>alert" not in text
    assert all(each.startswith("data:") for each in parsed.addresses)
    assert any("<script>alert(1)</script>" in word for word in parsed.words)


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = "--model shapes --device cpu --steps 2 --seeds 2 --confirm 0 --guidance-scale 3".split()


def test_command_writes_report_and_twin_and_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["flow", "a red circle and a blue square", "--items", "circle,square", *QUICK, "--out", "out"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["out/report.html", "out/report.json"] and Path("out/report.html").is_file()
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] > 0 and printed["settings"]["judge"] == "shapes"
    twin = json.loads(Path("out/report.json").read_text())
    assert twin["scores"] == printed["scores"] and twin["settings"]["request"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--items", "heart"), "heart"),
        (("--items", "circle", "--sense", "circle=x"), "ITEM:OTHER=SEEN"),
        (("--items", "circle", "--swap", "square=star"), "is of no item"),
        (("--judge", "clip:nowhere"), "cannot be loaded"),
        (("--judge", "shapes:x"), "cannot be opened"),
        (("--operator", "guess"), "clean_pad"),
        (("--size", "big"), "WIDTHxHEIGHT"),
        (("--out", "nowhere/out"), "does not exist"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], match: str
) -> None:
    assert main(["flow", "a red circle and a blue square", *QUICK, *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t2ictl:")]
    assert len(error) == 1 and match in error[0]
    assert not Path("flow/report.html").exists()


def test_items_of_the_command_line() -> None:
    found = items_of("bat, ball", ["bat:ball=baseball bat"], ["ball=book"])
    assert found == (Item(words="bat", senses={"ball": "baseball bat"}), Item(words="ball", swap="book"))
    assert items_of("", [], []) == ()


def test_seeds_that_confirm_have_chosen_nothing() -> None:
    from t2ictl.generation import Request
    from t2ictl.processors.token_flow.analysis.scoring import Scoring

    result = t2ictl.flow(sd(), PROMPT, seed=7, **SMALL)
    assert result.seeds == (7, 8) and result.confirmed == (9, 10)
    request = Request(prompt=PROMPT, steps=2)
    items = ["circle", "square"]
    both = Scoring(sd(), request, items, BrightnessJudge(), seeds=(7, 8), confirm=(9, 10))
    later = Scoring(sd(), request, items, BrightnessJudge(), seeds=(9, 10))
    whole = both.conditions.whole()
    confirmed, alone = both.score([whole], True).of("full", "circle"), later.score([whole]).of("full", "circle")
    assert (confirmed == alone).all() and (confirmed != both.score([whole]).of("full", "circle")).any()
