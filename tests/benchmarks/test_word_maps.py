"""The study of word maps: readings against explicit softmaxes, and attention that points, or that does not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from t2ictl import Recording, controlled, parse
from t2ictl.benchmarks.studies.word_maps import generated, joint, maps, scoring, unet
from t2ictl.benchmarks.studies.word_maps.forced import BOTH, MEAN, Key, listen, score_forced
from t2ictl.benchmarks.studies.word_maps.readings import READINGS, JointCall, KernelListener, read_maps, read_mass
from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path
from t2ictl.shapes.captions import expectation_of
from t2ictl.shapes.sampling import sample_scene
from t2ictl.shapes.world import Scene
from tests.shapes.scenes import scene_of
from tests.stand_ins import clip_pipe, joint_pipe

PLACES, TEXT, HEADS, WIDTH = 6, 5, 3, 4
TOKENS = range(PLACES, PLACES + TEXT)
PROMPT = "a red circle and a dotted blue triangle"


def _drawn(count: int = 2) -> list[Scene]:
    generator = np.random.default_rng(0)
    return [sample_scene(2, generator, split="tune", marked_share=0) for _ in range(count)]


def test_maps_are_scored_against_the_drawn_object() -> None:
    scene = scene_of("a red circle", "a blue square")
    cells = [scoring.object_cells(scene, index, 16) for index in range(2)]
    assert cells[0][4, 4] and cells[1][11, 11]
    assert not (cells[0] & cells[1]).any()
    assert scoring.score_map(cells[0].astype(float), cells[0]) == (True, True, 1.0)
    assert scoring.score_map(cells[1].astype(float), cells[0]) == (False, False, 0.0)
    assert scoring.shown([]) == ("-", "-")


def test_words_of_the_packaged_model_point_at_their_objects() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(model_path()))
    rows = unet.measure_maps(pipe, 2, 15, 500, 0)
    assert {side for side, _ in rows} == {16, 8}
    pointing, _, overlap, total = rows[16, "noun"]
    assert total == 30
    assert pointing > 0.7
    assert overlap > 0.5


@pytest.mark.parametrize("scale", [None, 0.3])
def test_readings_against_explicit_softmaxes(scale: float | None) -> None:
    """One head, one place and one word after the other."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, HEADS, PLACES + TEXT, WIDTH, generator=generator) for _ in range(3))
    words = torch.tensor([[False, True, True, False, False], [False, True, False, True, True]])
    heard: list[JointCall] = []
    with KernelListener(PLACES + TEXT, heard.append):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    found = read_maps(heard[0], PLACES, words)
    assert list(found) == list(READINGS)

    factor = WIDTH**-0.5 if scale is None else scale
    power = [
        [[[math.exp(factor * float(a @ b)) for b in k[i, h]] for a in q[i, h]] for h in range(HEADS)] for i in (0, 1)
    ]
    for i in (0, 1):
        own = [PLACES + t for t in range(TEXT) if words[i, t]]
        for x in range(PLACES):
            alike = {t: math.exp(sum(float(out[i, h, x] @ out[i, h, t]) for h in range(HEADS))) for t in TOKENS}
            for t in TOKENS:
                row, column = [power[i][h][x] for h in range(HEADS)], [power[i][h][t] for h in range(HEADS)]
                expected = {
                    "text": sum(each[t] / sum(each[PLACES:]) for each in row) / HEADS,
                    "words": sum(each[t] / sum(each[o] for o in own) for each in row) / HEADS if t in own else 0.0,
                    "all_keys": sum(each[t] / sum(each) for each in row) / HEADS,
                    "text_to_image": sum(each[x] / sum(each[:PLACES]) for each in column) / HEADS,
                    "output_space": alike[t] / sum(alike.values()),
                    "output_words": alike[t] / sum(alike[o] for o in own) if t in own else 0.0,
                }
                assert {name: float(found[name][i, x, t - PLACES]) for name in READINGS} == pytest.approx(
                    expected, rel=1e-4
                )
    torch.testing.assert_close(read_mass(heard[0], PLACES), found["all_keys"].sum(-1).mean(-1))


def test_only_calls_of_the_whole_sequence_are_heard() -> None:
    heard: list[JointCall] = []
    long, short = torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 3, 2)
    with KernelListener(5, heard.append):
        F.scaled_dot_product_attention(query=long, key=long, value=long + 1)
        F.scaled_dot_product_attention(short, short, short)
        F.scaled_dot_product_attention(long, short, short)
    assert [call.out_BHLD.mean() for call in heard] == [1.0]


@pytest.mark.parametrize("kind", joint.RECORDED)
def test_a_forced_pass_says_what_a_session_records(kind: Any) -> None:
    pipe = joint_pipe()
    x_BCYX = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    heard = listen(pipe, [PROMPT], x_BCYX, 1.0)
    with controlled(pipe, [], record=Recording(layers=("joint",), by="layer", kind=kind)) as session:
        pipe(PROMPT, latents=x_BCYX, num_inference_steps=1, guidance_scale=1.0, max_sequence_length=24)
    for word in ("circle", "triangle", "dotted"):
        segments = parse(pipe, PROMPT).find(word).by_segment
        assert [len(tokens) for tokens in segments] == ([1, 1] if word == "circle" else [2, 2])
        for block, name in enumerate(session.record.maps):
            map_Q = torch.stack([heard.maps[kind][block, 0][:, list(own)].mean(1) for own in segments]).mean(0)
            torch.testing.assert_close(session.record.map(word, block=name).flatten(), map_Q, atol=1e-6, rtol=1e-4)


def _drawn_attention(pipe: Any, scenes: list[Scene], wrong: tuple[tuple[int, ...], ...]) -> Any:
    """A forward pass in whose attention places inside an object and the words of that object have one direction.

    Args:
        pipe: whose prompts are read.
        scenes: what is drawn.
        wrong: by block, the segments in which words have the direction of the other object.
    """

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any) -> None:
        for others in wrong:
            x_B1LD = torch.zeros(len(scenes), 1, 64 + encoder_hidden_states.shape[1], 4)
            for row, scene in enumerate(scenes):
                asked = parse(pipe, expectation_of(scene).prompt)
                for index, item in enumerate(scene.objects):
                    cells_YX = torch.tensor(scoring.object_cells(scene, index, 8))
                    x_B1LD[row, 0, :64][cells_YX.flatten(), index] = 4.0
                    for word in (item.look.shape, item.look.color):
                        for segment, tokens in enumerate(asked.find(word).by_segment):
                            x_B1LD[row, 0, [64 + token for token in tokens], index ^ (segment in others)] = 4.0
            F.scaled_dot_product_attention(x_B1LD, x_B1LD, x_B1LD)

    return forward


def _pointing(scores: Any, **wanted: str) -> dict[str, list[bool]]:
    """By reading, whether nouns and colors of some blocks and segments point."""
    key = {"block": MEAN, "segment": BOTH} | wanted
    return {
        reading: [
            score[0]
            for word in joint.WORDS
            for score in scores.words[Key(0.6, reading, key["block"], key["segment"], word)]
        ]
        for reading in READINGS
    }


def test_attention_that_points_is_scored_as_pointing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, scenes = joint_pipe(), _drawn(3)
    monkeypatch.setattr(pipe.transformer, "forward", _drawn_attention(pipe, scenes, ((),)))
    scores = score_forced(pipe, scenes, [0.6], seed=0)
    for reading, points in _pointing(scores).items():
        assert points == [True] * 12, reading
        assert all(score[2] == 1.0 for score in scores.words[Key(0.6, reading, MEAN, BOTH, "noun")]), reading
    assert 0.03 < np.mean(scores.chance) < 0.2


def test_each_block_and_segment_has_its_own_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first block words of T5 are those of the other object, in the second those of CLIP."""
    pipe, scenes = joint_pipe(), _drawn(3)
    monkeypatch.setattr(pipe.transformer, "forward", _drawn_attention(pipe, scenes, ((1,), (0,), (0, 1))))
    scores = score_forced(pipe, scenes, [0.6], seed=0)
    for block, segment, is_right in (
        ("0", "CLIP", True),
        ("0", "T5", False),
        ("1", "CLIP", False),
        ("1", "T5", True),
        ("2", "CLIP", False),
        ("2", "T5", False),
        ("2", BOTH, False),
    ):
        for reading, points in _pointing(scores, block=block, segment=segment).items():
            assert points == [is_right] * 12, (reading, block, segment)
    blocks = {key.block for key in scores.words}
    assert blocks == {"0", "1", "2", "0 to 1", MEAN}


@pytest.mark.parametrize(
    ("build", "lines"),
    [
        (
            joint_pipe,
            ("| (a') over words alone | CLIP | noun | 4 |", "| (b) over all keys | 1 | color | 4 |", "| block 0 |"),
        ),
        (clip_pipe, ("| 2 | 16x16 | noun | 4 |", "| generated | word | n |")),
    ],
)
def test_the_command_prints_tables(
    build: Any, lines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = build()
    monkeypatch.setattr(generated, "STEPS", 2)
    monkeypatch.setattr(maps, "open_model", lambda name: pipe)
    kept = dict(pipe.unet.attn_processors) if hasattr(pipe, "unet") else None
    assert maps.main(["--scenes", "2", "--noise", "0.8", "0.4"]) == 0
    if kept:
        pipe.unet.set_attn_processor(kept)
    output = capsys.readouterr().out
    assert all(line in output for line in lines)


def test_other_pipelines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "open_model", lambda name: SimpleNamespace())
    with pytest.raises(BadSetting, match="is not measured here"):
        maps.main([])
