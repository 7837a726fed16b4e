"""Pages that need nothing else: what is filled in, and what comes out of the maps again."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError

import t2ictl
from t2ictl import AttentionRecord, Prompt, Recording
from t2ictl.maps.ops import resize_maps
from t2ictl.maps.pages import render
from tests.tiny import sd, sdxl


def unpacked(data: dict[str, Any]) -> np.ndarray:
    """The maps in the data again: word, block, step, row, column."""
    values = np.frombuffer(base64.b64decode(data["maps"]), dtype="<u2").astype(float) / 65535 * data["scale"]
    return values.reshape(len(data["words"]), len(data["blocks"]), data["steps"] + 1, *data["size"])


def recorded(build: Any = sd, record: bool | Recording = True, **request: Any) -> AttentionRecord:
    result = t2ictl.generate(build(), "a cat and a dog", steps=3, record=record, **request)
    assert result.record is not None
    return result.record


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("size", [{}, {"width": 64, "height": 96}])
def test_maps_in_the_page_are_those_of_the_record(build: Any, size: dict[str, int]) -> None:
    record = recorded(build, **size)
    data = record.to_dict(("cat", "dog"))
    maps = unpacked(data)
    means = np.array(data["means"]).reshape(maps.shape[:3])
    assert data["words"] == ["cat", "dog"] and data["steps"] == 3 and data["blocks"][0] == "all"
    assert data["recorded_sizes"] == [data["size"]] * len(data["blocks"]) and data["merged"] == {}
    for number, block in enumerate([None, *record.maps]):
        for step in (None, 0, 2):
            at = 0 if step is None else step + 1
            wanted, found = record.map("dog", block=block, step=step).numpy(), maps[1, number, at]
            assert np.abs(found - wanted).max() <= data["scale"] / 65535
            # What a page ranks by at a position is what the record answers.
            cell = found[int(0.7 * data["size"][0]), int(0.4 * data["size"][1])]
            (ranked,) = record.at(0.4, 0.7, words=("dog",), block=block, step=step)
            assert cell == pytest.approx(ranked.attention, abs=data["scale"] / 65535)
            assert cell / means[1, number, at] == pytest.approx(ranked.lift, rel=1e-3)
    assert data["top"] == pytest.approx(max(float(record.map(word).max()) for word in ("cat", "dog")))
    json.dumps(data)


def test_maps_without_steps_have_their_mean() -> None:
    assert recorded(record=Recording(per_step=False)).to_dict()["steps"] == 0


@pytest.mark.parametrize("per_step", [True, False])
def test_maps_of_unlike_sizes_are_brought_to_the_largest_and_it_is_said(per_step: bool) -> None:
    record = recorded(record=Recording(by="size", layers=("down.*", "up.*"), per_step=per_step))
    own = {name: list(maps.shape[-2:]) for name, maps in record.maps.items()}
    data = record.to_dict(("cat", "dog"))
    assert data["size"] == max(own.values()) and len({tuple(size) for size in own.values()}) > 1
    assert dict(zip(data["blocks"], data["recorded_sizes"], strict=True)) == {"all": data["size"], **own}
    maps = unpacked(data)
    for number, block in enumerate([None, *record.maps]):
        wanted = resize_maps(record.map("dog", block=block)[None, None], tuple(data["size"]))[0, 0]
        assert np.abs(maps[1, number, 0] - wanted.numpy()).max() <= data["scale"] / 65535


def test_every_map_is_read_once_however_many_steps_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    record, find = recorded(), Prompt.find
    cells = sum(maps[:, 0, 0].numel() for maps in record.maps.values())
    asked: list[str] = []
    read: list[int] = []

    def counted(prompt: Prompt, word: str) -> Any:
        asked.append(word)
        return find(prompt, word)

    class Counted(torch.Tensor):
        """Counts the cells that are taken out of it."""

        def __getitem__(self, key: Any) -> torch.Tensor:
            found = self.as_subclass(torch.Tensor)[key]
            read.append(found.numel())
            return found

    monkeypatch.setattr(Prompt, "find", counted)
    record.maps = {name: maps.as_subclass(Counted) for name, maps in record.maps.items()}
    record.to_dict(("cat", "dog"))
    assert sum(read) == 2 * cells and len(asked) == 4  # each word for its map, and for its phrase


def test_text_is_escaped_and_nothing_is_forgotten() -> None:
    given = {"maps": recorded().to_dict(), "image": "</script><b>", "settings": "{}"}
    page = render("maps.html.j2", prompt="<b>&", **given)
    assert "&lt;b&gt;&amp;" in page and page.count("</script>") == 1 and "<b>" not in page
    with pytest.raises(UndefinedError):
        render("maps.html.j2", **given)


def test_a_page_says_which_layers_were_enlarged() -> None:
    record = recorded(record=Recording(by="size", layers=("down.*", "up.*")))
    page = render("maps.html.j2", prompt="", maps=record.to_dict(), image="", settings="")
    assert f"all ({record.to_dict()['size'][0]} × " in page and page.count("enlarged)") == sum(
        list(maps.shape[-2:]) != record.to_dict()["size"] for maps in record.maps.values()
    )
