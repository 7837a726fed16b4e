"""Prompts inside instructions and templates: SANA's and Qwen-Image's rows, and characters led back to the prompt."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline, SanaPipeline

from t2ictl.errors import UnsupportedPipeline
from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.readings import Reading, template_around, trimmed
from t2ictl.prompts.tokens import Encoding, encode
from tests.prompts.tokenizer_cases import INSTRUCTION, gemma, prompts, qwen

# -- SANA --------------------------------------------------------------------------------------------------------------

LENGTH = 24  # SANA's own is 300


def sana(text: str, tokenizer: Any, instruction: str = INSTRUCTION, length: int = LENGTH) -> Encoding:
    """What the pipeline's text encoder reads, as an adapter of SANA would say it."""
    reading = Reading(
        prefix=instruction,
        clean=lambda one: one.lower().strip(),
        rows=lambda _: [0, *range(-length + 1, 0)],
    )
    pad_to = len(tokenizer.encode(instruction)) + length - 2
    return encode(text, tokenizer, pad_to, reading=reading)


def row_of_pipeline(text: str, tokenizer: Any, instruction: str = INSTRUCTION, length: int = LENGTH) -> list[int]:
    """The ids behind the rows that the stock pipeline hands its transformer: its encoder is one that echoes them."""
    pipe = types.SimpleNamespace(tokenizer=tokenizer, text_encoder=_Echo(), transformer=None, _execution_device="cpu")
    for name in ("_get_gemma_prompt_embeds", "_text_preprocessing"):
        setattr(pipe, name, types.MethodType(getattr(SanaPipeline, name), pipe))
    own = {"max_sequence_length": length, "complex_human_instruction": instruction.split("\n")}
    before = tokenizer.padding_side
    rows_BTC = SanaPipeline.encode_prompt(pipe, text, False, device="cpu", **own)[0]
    tokenizer.padding_side = before  # the pipeline leaves it on the right
    return [int(each) for each in rows_BTC[0, :, 0]]


class _Echo:
    dtype = torch.float32

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (input_ids[..., None].float(),)


@pytest.mark.parametrize("text", ["a red cat", "  Red Cat", "zebra", "", "{what} {}", "user prompt: a red cat", "\n a"])
def test_row_of_sana_is_the_pipelines_own(text: str) -> None:
    tokenizer = gemma(max_length=8192)
    encoding = sana(text, tokenizer)
    assert list(encoding.ids) == row_of_pipeline(text, tokenizer)
    assert tokenizer.padding_side == "left"


def test_rows_of_sana_are_the_pipelines_own_for_any_prompt() -> None:
    tokenizer = gemma(max_length=8192)
    for text in prompts(500, seed=3):
        assert list(sana(text, tokenizer).ids) == row_of_pipeline(text, tokenizer)


@pytest.mark.parametrize(
    ("text", "roles", "first"),
    [
        ("Cat red", ("start", "item", "item", "pad"), 1),  # "▁cat" has taken the blank at the end of the instruction
        ("xcat", ("start", "template", "item", "item", "pad"), 2),  # x has not: the blank stands alone
    ],
)
def test_first_word_of_sana_stands_at_1_or_2(text: str, roles: tuple[str, ...], first: int) -> None:
    encoding = sana(text, gemma(max_length=8192))
    assert encoding.roles[: len(roles)] == roles and len(encoding.ids) == LENGTH
    assert encoding.begin == first
    assert Prompt.from_encodings(text, [encoding]).words()[0].tokens[0] == first


def test_prompt_of_sana_that_begins_with_a_blank_keeps_its_characters() -> None:
    text = "  A Red\ncat "
    prompt = Prompt.from_encodings(text, [sana(text, gemma(max_length=8192))])
    # ... ▁a ▁red <0x0A> cat
    assert [(span.text, span.start, span.tokens) for span in prompt.words()] == [
        ("A", 2, (1,)),
        ("Red", 4, (2,)),
        ("cat", 8, (4,)),
    ]


def test_prompt_of_sana_that_the_instruction_holds_is_found_at_its_own_place() -> None:
    text = "a red cat"
    assert text in INSTRUCTION
    prompt = Prompt.from_encodings(text, [sana(text, gemma(max_length=8192))])
    assert prompt.find("a red cat").tokens == (1, 2, 3)
    assert prompt.find("cat").tokens == (3,)


def test_prompt_of_sana_that_is_too_long_is_cut_where_the_row_ends() -> None:
    text = " a red cat" * 5
    encoding = sana(text, gemma(max_length=8192), length=10)
    # 0 is the start; nine tokens of words follow
    assert encoding.roles == ("start", *["item"] * 9)
    assert encoding.end == 10 and encoding.truncated_at == 31 and text[31:].startswith("a red cat")
    assert list(encoding.ids) == row_of_pipeline(text, gemma(max_length=8192), length=10)


# -- Qwen-Image --------------------------------------------------------------------------------------------------------

TEMPLATE = '<|im_start|>system\nDescribe {{it}}, "a cat":<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n'
TEMPLATE += "<|im_start|>assistant\n"


def qwen_image(text: str, tokenizer: Any, tail: int = 120) -> tuple[Encoding, int]:
    """What the pipeline's text encoder reads, and how many positions of the template it drops."""
    prefix, suffix = template_around(TEMPLATE.format("\x00"), "\x00")
    dropped = len(tokenizer(prefix)["input_ids"])
    reading = Reading(prefix=prefix, suffix=suffix, rows=lambda length: range(dropped, length))
    return encode(text, tokenizer, dropped + tail, reading=reading), dropped


class _EchoStates:
    dtype = torch.float32

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return types.SimpleNamespace(hidden_states=[input_ids[..., None].float()])


def qwen_rows(text: str, tokenizer: Any, dropped: int, limit: int) -> list[int]:
    """The ids behind the rows of the stock pipeline, without its padding."""
    pipe = types.SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=_EchoStates(),
        _execution_device="cpu",
        prompt_template_encode=TEMPLATE,
        prompt_template_encode_start_idx=dropped,
        tokenizer_max_length=limit,
    )
    for name in ("_extract_masked_hidden", "_get_qwen_prompt_embeds"):
        setattr(pipe, name, types.MethodType(getattr(QwenImagePipeline, name), pipe))
    rows_BTC, _ = pipe._get_qwen_prompt_embeds(text, device="cpu")
    return [int(each) for each in rows_BTC[0, :, 0]]


def test_rows_of_qwen_image_are_the_pipelines_own_for_any_prompt() -> None:
    tokenizer = qwen(max_length=1000)
    for text in prompts(500, seed=4):
        encoding, dropped = qwen_image(text, tokenizer)
        own = qwen_rows(text, tokenizer, dropped, limit=120)
        kept = [index for index, role in zip(encoding.ids, encoding.roles, strict=True) if role != "pad"]
        assert kept == own


def test_template_with_braces_and_a_prompt_with_braces() -> None:
    text = " {} {it} cat"
    encoding, _ = qwen_image(text, qwen(max_length=1000))
    prompt = Prompt.from_encodings(text, [encoding])
    # Ġ { } Ġ { i t } Ġcat <|im_end|> ...
    assert encoding.roles[:9] == ("item",) * 9 and encoding.roles[9] == "template"
    assert prompt.find("it").tokens == (5, 6) and prompt.find("cat").tokens == (8,)
    assert (encoding.begin, encoding.end) == (0, 9)


@pytest.mark.parametrize("text", ["assistant", "user", "a", "it", "\n"])
def test_prompt_that_the_template_holds_as_well(text: str) -> None:
    encoding, _ = qwen_image(text, qwen(max_length=1000))
    length = len(qwen()(text)["input_ids"])
    assert [place for place, role in enumerate(encoding.roles) if role == "item"] == list(range(length))


def test_template_around_takes_the_last_place() -> None:
    rendered = "say cat\n<user>cat<end>"
    assert template_around(rendered, "cat") == ("say cat\n<user>", "<end>")
    with pytest.raises(UnsupportedPipeline, match="does not repeat the prompt ' cat'"):
        template_around("<user>cat<end>", " cat")


# -- characters --------------------------------------------------------------------------------------------------------


def origins(text: str, own: str) -> list[str | None]:
    """What each character of a tidied prompt stands for."""
    framed = Reading(prefix="[", suffix="]", clean=lambda _: own).frame(text)
    assert framed.text == f"[{own}]"
    found = [framed.origin((place, place + 1)) for place in range(1, len(own) + 1)]
    return [None if each is None else text[slice(*each)] for each in found]


@pytest.mark.parametrize(
    ("text", "own", "wanted"),
    [
        ("A Cat", "a cat", ["A", None, "C", "a", "t"]),
        ("  Cat ", "cat", ["C", "a", "t"]),
        (" \u0130s", "i\u0307s", ["\u0130", "\u0130", "s"]),  # one capital becomes two characters
        ("cat &amp; dog", "cat & dog", ["c", "a", "t", None, "&", None, "d", "o", "g"]),
        ("cat\u2026", "cat...", ["c", "a", "t", "\u2026", "\u2026", "\u2026"]),
        ("e\u0301t", "\u00e9t", ["e\u0301", "t"]),
        ("a_cat", "a cat", ["a", None, "c", "a", "t"]),
        ("\uff21\uff22", "ab", ["\uff21", "\uff22"]),  # replaced one for one
        ("cat", "a cat", [None, None, "c", "a", "t"]),
        ("cat http://x.y dog", "cat dog", ["c", "a", "t", None, "d", "o", "g"]),
        ("a\nb", "a.b", ["a", None, "b"]),  # a mark in the place of white space
        ("i\u0307s", "\u0130s", ["i\u0307", "s"]),
        ("cat", "", []),
        ("", "cat", [None, None, None]),
    ],
)
def test_characters_lead_back_to_the_prompt(text: str, own: str, wanted: Sequence[str | None]) -> None:
    assert origins(text, own) == wanted


def test_what_a_pipeline_keeps_leads_back_to_itself_in_any_prompt() -> None:
    for text in prompts(300, seed=5):
        framed = Reading(clean=lambda one: re.sub(r"[,.!(){}]|cat", "", one).lower()).frame(text)
        kept = [at for at, char in enumerate(framed.text) if not char.isspace()]
        places = [place for at in kept if (place := framed.origin((at, at + 1))) is not None]
        assert [text[slice(*place)].lower() for place in places] == [framed.text[at] for at in kept]
        assert places == sorted(set(places))  # each of its own, in order


def test_tokens_of_an_invented_word_answer_to_no_word() -> None:
    text = "red cat"
    reading = Reading(clean=lambda one: f"a photo: {one}")
    encoding = encode(text, qwen(), 20, reading=reading)
    invented = len(qwen()("a photo:")["input_ids"])
    assert encoding.offsets[:invented] == (None,) * invented and set(encoding.roles[:invented]) == {"item"}
    prompt = Prompt.from_encodings(text, [encoding])
    assert [span.tokens for span in prompt.words()] == [(invented,), (invented + 1,)]


def test_token_across_the_end_of_the_instruction_is_the_words() -> None:
    encoding = encode("red cat", qwen(), 8, reading=Reading(prefix="a,"))
    # a ,red Ġcat: one token for the last mark of the instruction and the first word
    assert encoding.roles[:3] == ("template", "item", "item")
    assert encoding.offsets[:3] == (None, (0, 3), (4, 7)) and encoding.begin == 1


def test_token_across_an_empty_prompt_belongs_to_the_template() -> None:
    encoding = encode("", qwen(), 4, reading=Reading(prefix="a,", suffix="red"))
    assert encoding.roles == ("template", "template", "pad", "pad") and (encoding.begin, encoding.end) == (2, 2)


def test_blanks_belong_to_the_text_in_which_they_stand() -> None:
    encoding = encode("a \n", qwen(), 8, reading=Reading(prefix="a\n", suffix="\na"))
    # a \n | a _ \n | \n a
    assert encoding.roles == ("template", "template", "item", "item", "item", "template", "template", "pad")
    assert encoding.offsets[2:5] == ((0, 1), None, None)


def test_only_the_suffix_is_cut() -> None:
    encoding = encode("a cat", qwen(), 3, reading=Reading(suffix=" red red"))
    assert encoding.roles == ("item", "item", "template") and encoding.truncated_at is None and encoding.end == 2


def test_words_in_dropped_rows_have_no_tokens() -> None:
    encoding = encode("a red cat", qwen(), 6, reading=Reading(rows=lambda length: range(1, length - 1)))
    assert encoding.offsets[:2] == ((2, 5), (6, 9)) and len(encoding.ids) == 4
    assert encoding.tokens_at(0, 1) == () and encoding.truncated_at is None
    ends = encode("a red cat", qwen(), 6, reading=Reading(rows=lambda length: range(2)))
    assert ends.tokens_at(6, 9) == () and ends.truncated_at == 6
    tail = encode("a red cat", qwen(), 4, reading=Reading(suffix=" red", rows=lambda _: [0, 1, 3]))
    assert tail.roles == ("item", "item", "template") and tail.truncated_at == 6


@pytest.mark.parametrize("row", [6, -7])
def test_rows_outside_of_the_tokenizers_are_refused(row: int) -> None:
    with pytest.raises(UnsupportedPipeline, match=f"position {row} of a tokenizer's row of 6"):
        encode("a red cat", qwen(), 6, reading=Reading(rows=lambda _: [0, row]))


def test_white_space_is_trimmed_as_tokenizers_see_it() -> None:
    text = " \u00a0a b\n\x1c "
    assert trimmed(text, (0, 7)) == (2, 7) and text[2:7] == "a b\n\x1c"
    assert trimmed(text, (0, 2)) is None and trimmed(text, (3, 3)) is None
