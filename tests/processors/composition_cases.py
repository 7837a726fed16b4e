"""The published table of pairs, read from its page."""

from __future__ import annotations

import re

from tests.repository.sources import ROOT

WORKS, ONE_STEP = "works", "one step"
SIGNS = {"✓": WORKS, "✓ step": ONE_STEP}


def page_table(name: str = "composition.md") -> str:
    """The table of a page with the reasons below it, as it stands there."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return page.partition("<!-- table -->")[2].partition("<!-- end of table -->")[0].strip()


def published_pairs() -> dict[tuple[str, str], str]:
    """What the page tells of each pair, by the names of row and column: that it works, or why it is refused."""
    head, _, *lines = page_table().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", "\n".join(lines), re.MULTILINE))
    names = [name.strip().replace(" ", "_") for name in head.strip("|").split("|")[1:]]
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        name, *cells = (cell.strip().strip("*").replace("*", "") for cell in row.strip("|").split("|"))
        for column, cell in zip(names, cells, strict=True):
            found[name.replace(" ", "_"), column] = SIGNS.get(cell) or reasons[cell.removeprefix("– ")]
    return found
