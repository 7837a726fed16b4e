"""Published prompt sets: every file that is there, the official formats by hand, and lines that are not right."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from t2ictl.benchmarks.suites.published.sets import COMPBENCH, SETS, read_set
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting
from tests.repository.sources import ROOT

PROMPTS = Path(os.environ.get("T2ICTL_PROMPTS", ROOT / "../shared/data/prompts"))
# From the README of the collection.
COUNTS = {
    "t2i_compbench": 1599,
    "t2i_compbench_train": 5553,
    "abc_6k": 6411,
    "cc_500": 563,
    "attend_and_excite": 276,
    "geneval": 553,
    "dsg_1k": 1060,
    "dpg_bench": 1065,
    "consistory_plus": 1100,
    "object_binding": 100,
    "multi_subject": 50,
    "multi_modifier": 200,
}
PARTS = {
    "t2i_compbench": {name: 199 if name == "shape" else 200 for name in COMPBENCH},
    "attend_and_excite": {"animals": 66, "animals_objects": 144, "objects": 66},
    "cc_500": {"conjunction": 407, "extra": 156},
    "geneval": {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    },
}


@pytest.mark.parametrize("name", SETS)
def test_every_collected_file_is_read_and_counted(name: str) -> None:
    if not PROMPTS.is_dir():
        pytest.skip("prompt files not available")
    folder = PROMPTS / "project_generated" if SETS[name].source.startswith("this project") else PROMPTS
    found = read_set(name, folder)
    assert len(found) == COUNTS[name] and len({each.id for each in found}) == len(found)
    if name in PARTS:
        assert Counter(each.category for each in found) == PARTS[name]


def test_facts_of_the_collected_sets() -> None:
    if not PROMPTS.is_dir():
        pytest.skip("prompt files not available")
    questions = [question for each in read_set("dsg_1k", PROMPTS) for question in each.facts["questions"]]
    assert len(questions) == 8182
    sets = {each.facts["set"] for each in read_set("consistory_plus", PROMPTS)}
    assert len(sets) == 192
    pairs = Counter(each.facts["pair"] for each in read_set("object_binding", PROMPTS / "project_generated"))
    assert set(pairs.values()) == {2} and len(pairs) == 50


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_official_compbench_files_are_all_read(tmp_path: Path) -> None:
    write(tmp_path / "color_val.txt", "a green bench and a blue bowl\r\na red cat\r\n")
    write(tmp_path / "shape_val.txt", "a round cat\n")
    write(tmp_path / "t2i_compbench_val.jsonl", '{"id": "x", "category": "color", "prompt": "y"}')
    found = read_set("t2i_compbench", tmp_path)
    assert [(each.id, each.category, each.prompt) for each in found] == [
        ("color-0001", "color", "a green bench and a blue bowl"),
        ("color-0002", "color", "a red cat"),
        ("shape-0001", "shape", "a round cat"),
    ]


def test_official_pairs_and_conjunctions(tmp_path: Path) -> None:
    write(tmp_path / "ABC-6K.txt", "a blue cat\na red cat\na blue dog\na red dog\n")
    facts = [each.facts for each in read_set("abc_6k", tmp_path)]
    assert [(fact["pair"], fact["variant"]) for fact in facts] == [
        (1, "original"),
        (1, "swapped"),
        (2, "original"),
        (2, "swapped"),
    ]
    write(tmp_path / "CC-500.txt", "a red cat and a blue dog\n" * 447)
    kinds = [each.category for each in read_set("cc_500", tmp_path)]
    assert kinds[445:] == ["conjunction", "extra"]


def test_official_attend_and_excite_list(tmp_path: Path) -> None:
    write(tmp_path / "a.e_prompts.txt", json.dumps({"animals": ["a elephant and a rabbit"], "objects": ["a car"]}))
    found = read_set("attend_and_excite", tmp_path)
    assert [(each.category, each.prompt) for each in found] == [
        ("animals", "a elephant and a rabbit"),
        ("objects", "a car"),
    ]


def test_official_geneval_names_its_folders(tmp_path: Path) -> None:
    clause = {"class": "bench", "count": 1, "color": "red"}
    lines = [{"tag": "colors", "include": [clause], "prompt": "a photo of a red bench"}] * 2
    write(tmp_path / "evaluation_metadata.jsonl", "\n".join(map(json.dumps, lines)))
    found = read_set("geneval", tmp_path)
    assert [each.id for each in found] == ["00000", "00001"] and found[0].facts == {"include": [clause], "exclude": []}


HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)


def test_official_question_table(tmp_path: Path) -> None:
    rows = 'vrd_1,"bench, trees",x,1,0,entity,whole,t,Is there a bench?\n'
    rows += 'vrd_1,"bench, trees",x,2,"1,left",relation,spatial,t,Is it left?\n'  # with a stray word among the parents
    rows += "tifa160_7,a cat,x,1,0,entity,whole,t,Is there a cat?\n"
    write(tmp_path / "dsg-1k-anns.csv", HEADER + rows)
    found = read_set("dsg_1k", tmp_path)
    assert [(each.id, each.category, each.prompt) for each in found] == [
        ("vrd_1", "vrd", "bench, trees"),
        ("tifa160_7", "tifa160", "a cat"),
    ]
    assert found[0].facts["questions"] == [
        [1, [0], "entity", "whole", "Is there a bench?"],
        [2, [1], "relation", "spatial", "Is it left?"],
    ]


def test_official_dense_prompts_are_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "prompts/12.txt", "a long\nprompt\n")
    write(tmp_path / "prompts/3.txt", "another")
    assert {(each.id, each.prompt) for each in read_set("dpg_bench", tmp_path)} == {
        ("12", "a long prompt"),
        ("3", "another"),
    }


@pytest.mark.parametrize(
    ("name", "file", "text", "match"),
    [
        (
            "multi_subject",
            "multi_subject.jsonl",
            '{"id": "a", "prompt": "x"}\n{oops}',
            r"multi_subject.jsonl, line 2: not JSON",
        ),
        ("multi_subject", "multi_subject.jsonl", '\n["x"]', r"line 2: no JSON object"),
        ("multi_subject", "multi_subject.jsonl", '{"id": "a"}', r"line 1: no 'prompt'"),
        ("multi_subject", "multi_subject.jsonl", '{"id": 3, "prompt": "x"}', r"line 1: 'id' is 3, not text"),
        ("multi_subject", "multi_subject.jsonl", '{"id": "a", "prompt": " "}', r"line 1: the prompt is empty"),
        ("multi_subject", "multi_subject.jsonl", '{"id": "a", "prompt": "x"}\n' * 2, r"line 2: the id 'a' comes twice"),
        (
            "geneval",
            "evaluation_metadata.jsonl",
            '{"tag": "t", "include": [{"count": 1}], "prompt": "x"}',
            r"line 1: the clause",
        ),
        ("attend_and_excite", "a.e_prompts.json", '{"animals": [1]}', r"line 1: 'animals' is no list of texts"),
        ("attend_and_excite", "a.e_prompts.json", '{"animals": [', r"a.e_prompts.json, line 1: not JSON"),
        (
            "dsg_1k",
            "dsg_1k.jsonl",
            '{"id": "a", "source": "s", "prompt": "x", "questions": [[1, [7], "a"]]}',
            r"line 1: the question",
        ),
        ("dsg_1k", "dsg-1k-anns.csv", HEADER + "a_1,x,x,one,0,e,w,t,q?\n", r"line 2: the question 'q\?' has no number"),
    ],
)
def test_malformed_lines_are_named_with_file_and_line(
    tmp_path: Path, name: str, file: str, text: str, match: str
) -> None:
    write(tmp_path / file, text)
    with pytest.raises(BadSetting, match=match):
        read_set(name, tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "CC-500.txt").write_bytes(b"a cat\n\xff\n")
    with pytest.raises(BadSetting, match=r"CC-500.txt, line 2: not UTF-8"):
        read_set("cc_500", tmp_path)


def test_unknown_sets_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no set 'oracle'"):
        read_set("oracle", tmp_path)
    with pytest.raises(BadSetting, match="No files of geneval"):
        read_set("geneval", tmp_path)


def test_command_lists_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "cc_500/CC-500.txt", "a red cat and a blue dog\n")
    write(tmp_path / "ABC-6K.txt", "a blue cat\na red cat\n")
    assert main(["bench", "sets", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"abc_6k": {"abc_6k": 2}, "cc_500": {"conjunction": 1}}
    assert main(["bench", "sets", str(tmp_path)]) == 0
    assert "cc_500" in capsys.readouterr().out
    write(tmp_path / "multi_subject.jsonl", "{oops}")
    assert main(["bench", "sets", str(tmp_path)]) == 2
    assert "multi_subject.jsonl, line 1" in capsys.readouterr().err
    assert main(["bench", "sets", str(tmp_path / "nowhere")]) == 2
