"""Published prompt sets: where their files are in a folder, and what each prompt is about.

Each reader takes the official files or the one-object-a-line form of the same set. Nothing is downloaded and nothing
is part of this package; the license of a set is its authors'.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ictl.benchmarks.suites.published.lines import Line, read_lines, read_objects
from t2ictl.errors import BadSetting

__all__ = ["PublishedPrompt", "PublishedSet", "SETS", "counted", "read_set"]

COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
# Structured Diffusion (ICLR 2023): of its 602 lines the first 446 are the benchmark proper.
CONJUNCTIONS = 446


@dataclass(frozen=True, kw_only=True)
class PublishedPrompt:
    """One prompt of a published set.

    Args:
        id: unique in its set.
        category: what tables have a line for.
        prompt: the text, as published.
        facts: what else the set says: clauses, questions, bindings, the pair it belongs to.
    """

    id: str
    category: str
    prompt: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """How a set is read.

    Args:
        source: who published it, and under which license.
        files: names or folders of which at least one must be there; the first is preferred.
        read: gives the prompts of one of them.
    """

    source: str
    files: tuple[str, ...]
    read: Callable[[Path], Iterator[tuple[Line, PublishedPrompt]]]


Found = Iterator[tuple[Line, PublishedPrompt]]


def _objects(category: str, *, facts: tuple[str, ...] = (), fallback: str = "") -> Callable[[Path], Found]:
    """A reader of one object a line with ``id`` and ``prompt``; the category is a field, or one name for all."""

    def read(path: Path) -> Found:
        fields = {"id": str, "prompt": str} | ({} if fallback else {category: str})
        for line, data in read_objects(path, fields):
            more = {name: data[name] for name in facts if name in data}
            kind = fallback or data[category]
            yield line, PublishedPrompt(id=data["id"], category=kind, prompt=data["prompt"], facts=more)

    return read


def _compbench(split: str) -> Callable[[Path], Found]:
    """``<category>_<split>.txt`` of T2I-CompBench, one prompt a line, or one object a line of all categories."""

    def read(path: Path) -> Found:
        """Read either kind of file."""
        if path.suffix == ".jsonl":
            yield from _objects("category", facts=("tags",))(path)
            return
        category = path.name.removesuffix(f"_{split}.txt")
        for line, text in read_lines(path):
            yield line, PublishedPrompt(id=f"{category}-{line.number:04d}", category=category, prompt=text)

    return read


def _contrast_pairs(path: Path) -> Found:
    """ABC-6K: lines 2k - 1 and 2k are a caption and the same with its attributes swapped."""
    if path.suffix == ".jsonl":
        yield from _objects("", facts=("pair", "variant"), fallback="abc_6k")(path)
        return
    for line, text in read_lines(path):
        pair = {"pair": (line.number + 1) // 2, "variant": "original" if line.number % 2 else "swapped"}
        yield line, PublishedPrompt(id=f"{line.number:05d}", category="abc_6k", prompt=text, facts=pair)


def _conjunctions(path: Path) -> Found:
    """CC-500: the benchmark proper, and further lines of the same file."""
    if path.suffix == ".jsonl":
        yield from _objects("subset")(path)
        return
    for line, text in read_lines(path):
        kind = "conjunction" if line.number <= CONJUNCTIONS else "extra"
        yield line, PublishedPrompt(id=f"{line.number:04d}", category=kind, prompt=text)


def _attend_and_excite(path: Path) -> Found:
    """One JSON object with three lists, as its authors published it."""
    if path.suffix == ".jsonl":
        yield from _objects("category")(path)
        return
    whole = Line(path=path, number=1)
    try:
        lists = json.loads("\n".join(text for _, text in read_lines(path)))
    except ValueError as error:
        raise Line(path=path, number=getattr(error, "lineno", 1)).error(
            f"not JSON ({error}).", "Use the file as published."
        ) from None
    if not isinstance(lists, dict):
        raise whole.error("no object with lists.", "Use the file as published.")
    for category, prompts in lists.items():
        if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
            raise whole.error(f"{category!r} is no list of texts.", "Use the file as published.")
        for number, text in enumerate(prompts):
            yield whole, PublishedPrompt(id=f"{category}-{number:03d}", category=category, prompt=text)


def _geneval(path: Path) -> Found:
    """GenEval's metadata: clauses of what must and must not be there."""
    for line, data in read_objects(path, {"tag": str, "include": list, "prompt": str}):
        for clause in (*data["include"], *data.get("exclude", ())):
            if not isinstance(clause, dict) or not isinstance(clause.get("class"), str) or "count" not in clause:
                raise line.error(f"the clause {clause!r} has no class or count.", "Use the file as published.")
        clauses = {"include": data["include"], "exclude": data.get("exclude", [])}
        name = f"{line.number - 1:05d}"  # the folder that the official evaluator expects
        yield line, PublishedPrompt(id=name, category=data["tag"], prompt=data["prompt"], facts=clauses)


def _question_graph(path: Path) -> Found:
    """DSG-1k: yes-or-no questions with parents; a question counts only if its parents are answered with yes."""
    if path.suffix == ".jsonl":
        for line, data in read_objects(path, {"id": str, "source": str, "prompt": str, "questions": list}):
            yield line, _graph(line, data["id"], data["source"], data["prompt"], data["questions"])
        return
    for line, rows in _by_item(path):
        first, questions = rows[0], [_question(line, row) for row in rows]
        source = first["item_id"].rpartition("_")[0]
        yield line, _graph(line, first["item_id"], source, first["text"], questions)


def _by_item(path: Path) -> Iterator[tuple[Line, list[dict[str, str]]]]:
    """Rows of the official table that belong to one prompt."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        table = csv.DictReader(handle)
        rows: list[dict[str, str]] = []
        begun = 2
        for row in table:
            if rows and row["item_id"] != rows[0]["item_id"]:
                yield Line(path=path, number=begun), rows
                rows, begun = [], table.line_num
            rows.append(row)
        if rows:
            yield Line(path=path, number=begun), rows


def _question(line: Line, row: dict[str, str]) -> list[Any]:
    # One published row has a stray word among its parents; numbers only are meant.
    parents = [int(part) for part in "".join(c if c.isdigit() else " " for c in row["dependency"]).split()]
    if not row["proposition_id"].isdigit() or not parents:
        raise line.error(
            f"the question {row.get('question_natural_language')!r} has no number or parents.",
            "Use the file as published.",
        )
    kinds = row["category_broad"], row["category_detailed"]
    return [int(row["proposition_id"]), parents, *kinds, row["question_natural_language"]]


def _graph(line: Line, name: str, source: str, prompt: str, questions: list[Any]) -> PublishedPrompt:
    # Some published questions name a parent that is not there; they are kept as they are.
    for question in questions:
        if not isinstance(question, list) or len(question) != 5 or not isinstance(question[0], int):
            raise line.error(f"the question {question!r} is none.", "Use the file as published.")
    return PublishedPrompt(id=name, category=source, prompt=prompt, facts={"questions": questions})


def _dense(path: Path) -> Found:
    """DPG-Bench: a folder of text files, one a prompt, or one object a line."""
    if path.is_dir():
        for each in sorted(path.glob("*.txt")):
            text = " ".join(text for _, text in read_lines(each))
            yield Line(path=each, number=1), PublishedPrompt(id=each.stem, category="dpg_bench", prompt=text)
        return
    yield from _objects("", fallback="dpg_bench")(path)


def _stories(path: Path) -> Found:
    """ConsiStory+: sets of frames of one subject; each frame is a prompt, and says to which set it belongs."""
    fields = {"id": str, "domain": str, "style": str, "subject": str, "concept_token": str, "settings": list}
    for line, data in read_objects(path, fields):
        for number, setting in enumerate(data["settings"]):
            facts = {"set": data["id"], "frame": number, "subject": data["subject"], "token": data["concept_token"]}
            yield (
                line,
                PublishedPrompt(
                    id=f"{data['id']}/{number:02d}",
                    category=data["domain"],
                    prompt=f"{data['style']} {data['subject']}, {setting}",
                    facts=facts,
                ),
            )


SETS: dict[str, PublishedSet] = {
    "t2i_compbench": PublishedSet(
        source="T2I-CompBench (NeurIPS 2023) and ++, MIT",
        files=(*(f"{category}_val.txt" for category in COMPBENCH), "t2i_compbench_val.jsonl"),
        read=_compbench("val"),
    ),
    "t2i_compbench_train": PublishedSet(
        source="T2I-CompBench, its training prompts, for tuning; MIT",
        files=(*(f"{category}_train.txt" for category in COMPBENCH), "t2i_compbench_train.jsonl"),
        read=_compbench("train"),
    ),
    "abc_6k": PublishedSet(
        source="Structured Diffusion (ICLR 2023), MIT; captions of COCO",
        files=("ABC-6K.txt", "abc_6k.jsonl"),
        read=_contrast_pairs,
    ),
    "cc_500": PublishedSet(
        source="Structured Diffusion (ICLR 2023), MIT", files=("CC-500.txt", "cc_500.jsonl"), read=_conjunctions
    ),
    "attend_and_excite": PublishedSet(
        source="Attend-and-Excite (SIGGRAPH 2023), MIT",
        files=("a.e_prompts.json", "a.e_prompts.txt", "attend_and_excite.jsonl"),
        read=_attend_and_excite,
    ),
    "geneval": PublishedSet(source="GenEval (NeurIPS 2023), MIT", files=("evaluation_metadata.jsonl",), read=_geneval),
    "dsg_1k": PublishedSet(
        source="DSG (ICLR 2024), Apache-2.0; texts of ten sources",
        files=("dsg-1k-anns.csv", "dsg_1k.jsonl"),
        read=_question_graph,
    ),
    "dpg_bench": PublishedSet(source="ELLA, Apache-2.0", files=("prompts", "dpg_bench_prompts.jsonl"), read=_dense),
    "consistory_plus": PublishedSet(
        source="1Prompt1Story (ICLR 2025), MIT", files=("consistory_plus.jsonl",), read=_stories
    ),
    "object_binding": PublishedSet(
        source="this project, CC0-1.0",
        files=("object_binding.jsonl",),
        read=_objects("kind", facts=("bindings", "pair", "variant")),
    ),
    "multi_subject": PublishedSet(
        source="this project, CC0-1.0",
        files=("multi_subject.jsonl",),
        read=_objects("", facts=("bindings", "n_entities"), fallback="multi_subject"),
    ),
    "multi_modifier": PublishedSet(
        source="this project, CC0-1.0",
        files=("multi_modifier.jsonl",),
        read=_objects("", facts=("bindings", "n_phrases", "n_modifiers"), fallback="multi_modifier"),
    ),
}


def read_set(name: str, folder: Path) -> tuple[PublishedPrompt, ...]:
    """Read a published set.

    Of several forms of the same prompts the official one is taken; several files of one form, one a category, are all
    read.

    Args:
        name: a key of :data:`SETS`.
        folder: where its files are, or a folder that holds one of the set's name.

    Returns:
        All prompts, in the order of the files.

    Raises:
        BadSetting: for an unknown set, a folder without its files, a malformed line (named with its file), an empty
            prompt, or an id that comes twice.
    """
    if name not in SETS:
        raise BadSetting(f"There is no set {name!r}.", f"Sets: {', '.join(SETS)}.")
    chosen, there = SETS[name], _files(name, folder)
    if not there:
        wanted = " or ".join(chosen.files[-2:])
        raise BadSetting(f"No files of {name} in {str(folder)!r}.", f"It needs {wanted}, there or in a folder {name}.")
    first = there[0]
    same = [path for path in there if path.parent == first.parent and path.suffix == first.suffix]
    paths = same if first.suffix == ".txt" and len(chosen.files) > 3 else [first]
    found: dict[str, PublishedPrompt] = {}
    for path in paths:
        for line, prompt in chosen.read(path):
            if not prompt.prompt.strip():
                raise line.error("the prompt is empty.", "Put the line right, or take it out.")
            if prompt.id in found:
                raise line.error(f"the id {prompt.id!r} comes twice.", "Give every prompt an id of its own.")
            found[prompt.id] = prompt
    return tuple(found.values())


def _files(name: str, folder: Path) -> list[Path]:
    """The files of a set that are there: in a folder of its name, or in the folder itself."""
    return [path for home in (folder / name, folder) for each in SETS[name].files if (path := home / each).exists()]


def counted(folder: Path) -> dict[str, dict[str, int]]:
    """Read all sets whose files are in a folder, and count their prompts.

    Args:
        folder: where the files are.

    Returns:
        By set, how many prompts each category has.

    Raises:
        BadSetting: if there is none, or a line is malformed.
    """
    found = {name: Counter(each.category for each in read_set(name, folder)) for name in SETS if _files(name, folder)}
    if not found:
        raise BadSetting(f"No published prompt files in {str(folder)!r}.", f"Sets: {', '.join(SETS)}.")
    return {name: dict(counts) for name, counts in sorted(found.items())}
