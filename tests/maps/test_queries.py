"""Questions to attention maps of words, on a record with known values."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import t2ictl
from t2ictl import AttentionRecord, Recording
from t2ictl.errors import BadSetting, NotRecorded
from t2ictl.families import find_adapter
from t2ictl.processors import TokenMerging
from tests.tiny import sd

PROMPT = "a cat and a dog"  # start a cat and a dog: 0 to 5


def record(steps: int = 2, images: int = 1) -> AttentionRecord:
    """The cat is at the upper left, the dog in the last column of a map of 2 x 4; the second step is turned over."""
    maps_SBTYX = torch.full((steps, images, 5, 2, 4), 0.01)
    maps_SBTYX[0, :, 1, 0, 0] = 0.8
    maps_SBTYX[0, :, 4, :, 3] = 0.4
    for step in range(1, steps):
        maps_SBTYX[step, :, 1, 1, 0] = 0.8
    prompt = find_adapter(sd()).parse((PROMPT,))
    return AttentionRecord(
        prompts=(prompt,) * images, columns=(1, 2, 3, 4, 5), heads={"up": 4}, maps={"up": maps_SBTYX}, steps=steps
    )


def by_size(steps: int = 3) -> AttentionRecord:
    """Maps of unlike sizes, as ``Recording(by="size")`` leaves them."""
    source = torch.Generator().manual_seed(0)
    sizes = {"down@2": (2, 4), "up@1": (4, 8)}
    maps = {name: torch.rand(steps, 1, 5, *size, generator=source) / 5 for name, size in sizes.items()}
    return AttentionRecord(
        prompts=record().prompts, columns=(1, 2, 3, 4, 5), heads={"down@2": 2, "up@1": 6}, maps=maps, steps=steps
    )


def test_pointing_ranks_words_by_attention() -> None:
    found = record(1).at(0.1, 0.2, words=("dog", "cat"))
    assert [each.word for each in found] == ["cat", "dog"]
    assert found[0].attention == pytest.approx(0.8) and found[1].attention == pytest.approx(0.01)
    assert found[0].lift == pytest.approx(0.8 / ((0.8 + 7 * 0.01) / 8), rel=1e-5)
    assert record(1).at(0.99, 0.5, words=("dog", "cat"))[0].word == "dog"
    assert {each.word for each in record(1).at(0.5, 0.5)} == {"a", "cat", "and", "a#2", "dog"}


def test_edges_belong_to_the_image_and_no_further() -> None:
    assert record(1).at(1.0, 1.0)[0].word == "dog"
    for x, y in ((-0.01, 0.5), (0.5, 1.01), (float("nan"), 0.5)):
        with pytest.raises(BadSetting, match="outside"):
            record(1).at(x, y)


def test_a_step_and_a_block_can_be_asked_for() -> None:
    assert record().at(0.1, 0.9, words=("cat", "dog"), step=1, block="up")[0].attention == pytest.approx(0.8)
    with pytest.raises(NotRecorded):
        record().at(0.1, 0.9, block="down")


def test_masks() -> None:
    cat = record(1).mask("cat")
    assert cat.tolist() == [[True, False, False, False], [False] * 4]
    assert record(1).mask("dog", 0.5).tolist() == [[False, False, False, True]] * 2
    for wrong in (0.0, 1.0, "best"):
        with pytest.raises(BadSetting, match="threshold"):
            record(1).mask("cat", wrong)


def test_segments_weigh_words_by_their_means_and_know_nobody() -> None:
    found = record(1).segment(("cat", "dog"), background=1.0)
    assert found.tolist() == [[0, -1, -1, 1], [-1, -1, -1, 1]]
    assert set(record(1).segment(("cat", "dog")).flatten().tolist()) == {0, 1}
    with pytest.raises(BadSetting, match="No words"):
        record(1).segment(())


def test_overlap_by_hand() -> None:
    # b has half of its attention where a has all; c has none, which counts as evenly spread.
    maps_SBTYX = torch.zeros(1, 1, 5, 2, 2)
    maps_SBTYX[0, 0, 1] = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    maps_SBTYX[0, 0, 2] = torch.tensor([[0.1, 0.1], [0.0, 0.0]])
    made = AttentionRecord(
        prompts=record().prompts, columns=(1, 2, 3, 4, 5), heads={"up": 1}, maps={"up": maps_SBTYX}, steps=1
    )
    overlap_NN = made.overlap(("cat", "and", "dog"))
    torch.testing.assert_close(overlap_NN, torch.tensor([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]))
    assert made.overlap().shape == (5, 5)


def test_a_step_costs_a_step_and_has_the_same_bits() -> None:
    made = by_size()
    taken: list[int] = []

    class Spied(torch.Tensor):
        """Notes how many steps are read of it."""

        def __getitem__(self, key: object) -> torch.Tensor:
            found = self.as_subclass(torch.Tensor)[key]  # type: ignore[index]
            taken.append(len(found))
            return found

    for step in (0, 1, 2, -1):
        whole = [made.maps[name][:, 0, [1]].mean(dim=1) for name in made.maps]
        grown = torch.nn.functional.interpolate(whole[0][None], size=(4, 8), mode="bilinear", align_corners=False)[0]
        assert torch.equal(made.map("cat", step=step), torch.stack([grown * 0.25, whole[1] * 0.75]).sum(0)[step])
    made.maps = {name: maps.as_subclass(Spied) for name, maps in made.maps.items()}
    made.map("cat", step=1)
    assert taken == [1, 1]


@pytest.mark.parametrize("recording", [{"by": "size"}, {"by": "size", "per_step": False}, {"per_step": False}, {}])
def test_every_question_has_an_answer_however_maps_were_recorded(recording: dict[str, object]) -> None:
    settings = Recording(layers=("cross",), **recording)  # type: ignore[arg-type]
    made = t2ictl.generate(sd(), PROMPT, seed=1, steps=3, record=settings).record
    assert made is not None and made.single_steps == (3 if recording.get("per_step", True) else 0)
    assert (len({maps.shape[-2:] for maps in made.maps.values()}) > 1) == ("by" in recording)
    for block in (None, *made.maps):
        assert len(made.at(0.3, 0.6, block=block)) == 5
        assert made.mask("cat", block=block).any() and not made.mask("cat", block=block).all()
        assert set(made.segment(("cat", "dog"), block=block).flatten().tolist()) <= {0, 1}
        assert torch.allclose(made.overlap(block=block).diagonal(), torch.ones(5))
        assert made.plot("cat", block=block).size == (256, 256)
    data = made.to_dict()
    assert data["blocks"] == ["all", *made.maps] and data["steps"] == made.single_steps
    assert "cat" in repr(made) and made._repr_png_() and made._repr_html_()


@pytest.mark.parametrize("prompt", ["!", ["!", PROMPT]])
def test_a_prompt_without_words_has_no_maps_and_says_so(prompt: str | list[str]) -> None:
    made = t2ictl.generate(sd(), prompt, seed=1, steps=1, record=True).record
    assert made is not None and made.names() == [] and made.at(0.5, 0.5) == () and made.overlap().shape == (0, 0)
    assert "images=" in repr(made) and made._repr_html_()
    with pytest.raises(NotRecorded, match="No word"):
        made.to_dict()


def test_a_call_that_broke_off_before_its_first_step_recorded_nothing() -> None:
    made = AttentionRecord(prompts=record().prompts, columns=(1, 2, 3, 4, 5), heads={"up": 4})
    assert made.single_steps == 0 and made._repr_png_() is None and "steps=0" in repr(made) and made._repr_html_()
    for ask in (made.to_dict, lambda: made.map("cat"), lambda: made.at(0, 0), lambda: made.map("cat", step=0)):
        with pytest.raises(NotRecorded):
            ask()


def test_an_image_that_is_not_there_is_an_error_for_every_question() -> None:
    for ask in (record().names, record().merged, record().overlap, record().to_dict):
        for wrong in (1, -1):
            with pytest.raises(NotRecorded, match="no image"):
                ask(image=wrong)


def test_a_plot_is_the_map_alone_or_over_its_image() -> None:
    alone = record(1).plot("cat")
    assert alone.size == (256, 128) and alone.getpixel((0, 0)) != alone.getpixel((255, 127))
    over = record(1).plot("cat", Image.new("RGB", (64, 32), "white"))
    assert over.size == (64, 32) and over.tobytes() != alone.resize((64, 32)).tobytes()
    weak, strong = (record(1).plot(word, top=0.8).convert("L").getextrema()[1] for word in ("dog", "cat"))
    assert weak < strong  # type: ignore[operator]
    assert record(1).plot("dog").convert("L").getextrema()[1] >= strong  # type: ignore[operator]


def test_a_record_tells_in_one_line_what_it_holds() -> None:
    assert repr(record()) == (
        "AttentionRecord(words=['a', 'cat', 'and', 'a#2', 'dog'], blocks={'up': '2 x 4'}, steps=2, images=1)"
    )
    mean = record()
    mean.steps = 9
    assert "steps=9 (their mean), images=1" in repr(mean)


def test_a_notebook_shows_a_row_of_heat_maps_for_each_image() -> None:
    pixels = [Image.open(io.BytesIO(record(images=images)._repr_png_() or b"")) for images in (1, 2)]
    assert [image.size for image in pixels] == [(5 * 268 - 12, 156), (5 * 268 - 12, 156 * 2 + 12)]
    page = record(images=2)._repr_html_()
    assert page.count("<img") == 10 and page.count("data:image/webp;base64,") == 10 and "dog (max" in page


def test_prompts_are_escaped_in_a_notebook() -> None:
    made = t2ictl.generate(sd(), "a <b>cat</b>", seed=1, steps=1, record=True).record
    assert made is not None and "<b>" not in made._repr_html_()


def test_merged_words_are_listed_with_their_phrase() -> None:
    control = TokenMerging(merge=True, entropy_steps=0)
    made = t2ictl.generate(sd(), "a red circle and a blue skateboard", [control], seed=1, steps=1, record=True).record
    assert made is not None and made.merged()["red"] == "red circle" and "and" not in made.merged()
    with pytest.warns(UserWarning, match="merged into"):
        assert made.to_dict()["merged"] == made.merged()
