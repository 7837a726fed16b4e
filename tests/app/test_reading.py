"""Prompts for chips: words with roles and tokens, as the loaded pipeline itself reads them, from several threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import t2ictl
from t2ictl.app.engine.editor import Editor
from t2ictl.app.engine.reading import KEPT, PromptReader
from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    return PromptReader(model_path())


def test_roles_names_and_tokens(reader: PromptReader) -> None:
    read = reader.read("A red circle, a cat and a cat")
    assert [(word.name, word.role) for word in read.words] == [
        ("a", "word"), ("red", "attribute"), ("circle", "object"), ("a#2", "word"), ("cat", "object"),
        ("and", "word"), ("a#3", "word"), ("cat#2", "object"),
    ]  # fmt: skip
    assert read.objects == (("circle", ("red",)), ("cat", ()), ("cat#2", ()))
    assert read.has("cat#2") and not read.has("cat#3") and not read.has("dog")
    assert [token.kind for token in read.tokens][:2] == ["start", "word"] and read.tokens[-1].kind == "end"


def test_words_are_those_of_the_pipeline(reader: PromptReader) -> None:
    text = "a dotted yellow square and a skateboard"
    prompt = t2ictl.parse(t2ictl.load("shapes", device="cpu"), text)
    assert [word.tokens for word in reader.read(text).words] == [len(span.tokens) for span in prompt.words()]
    by_word = {token.position: token.word for token in reader.read(text).tokens if token.kind == "word"}
    assert by_word == {token: span.text for span in prompt.words() for token in span.tokens}


def test_every_name_is_one_that_the_library_finds(reader: PromptReader) -> None:
    text = "a cat, a Cat and two cats on a cat"
    prompt = t2ictl.parse(t2ictl.load("shapes", device="cpu"), text)
    for word in reader.read(text).words:
        assert prompt.find(word.name).text == word.text


def test_compounds_are_asked_for_by_their_words(reader: PromptReader) -> None:
    read = reader.read("a traffic light and a dog")
    assert dict(read.objects).keys() == {"traffic light", "dog"} and read.has("traffic light")


def test_what_the_limit_cuts_off_is_said(reader: PromptReader) -> None:
    read = reader.read(" ".join(["red"] * 200) + " circle")
    assert read.cut == "red" and not read.words[-1].tokens and not read.has("circle")


@pytest.mark.parametrize("text", ["", "  ", "!!!", "\u202e \x00 x", "<|endoftext|>", "🦊 a fox"])
def test_odd_texts_are_read(reader: PromptReader, text: str) -> None:
    assert reader.read(text).text == text


def test_two_threads_at_once_are_no_error(reader: PromptReader) -> None:
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for number in range(start, start + 40):
                assert reader.read(f"a red circle number {number}").words
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(reader._known) <= KEPT


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="has no tokenizer"):
        PromptReader(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(BadSetting, match="cannot be loaded"):
        PromptReader(tmp_path)


def test_the_editor_reads_with_models_that_are_allowed_only(tmp_path: Path) -> None:
    editor = Editor(folder=tmp_path, work=lambda job: None)
    try:
        assert editor.read("shapes", "a red circle").words
        with pytest.raises(BadSetting, match="no model"):
            editor.read(str(model_path().parent), "a red circle")
    finally:
        editor.close()
