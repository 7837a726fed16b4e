"""The report of an analysis: one file, and nothing that a prompt could run in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import t2ictl
from t2ictl.processors.token_flow.items import Item
from tests.processors.token_flow.flow_cases import PROMPT, SMALL, BrightnessJudge
from tests.tiny import sd


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
