"""A small hand-written vocabulary, tokenizers on it, prompts parsed with them; and where published prompts lie."""

from __future__ import annotations

import builtins
import os
import sys
import types
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, PreTrainedTokenizer

from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.tokens import Encoding
from tests.repository.sources import ROOT

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


# "giraffe" is gir|affe, "dogs" is dog|s; "'s" is one token also where it opens a quotation; "!!" is one token.
MERGES = """a n|an d</w>|r e|re d</w>|c a|ca t</w>|d o|do g</w>|do g|dog s</w>|g i|gi r|a f|af f|aff e</w>|' s</w>
! !</w>|o n|on e</w>""".replace("\n", "|").split("|")


def vocabulary() -> dict[str, int]:
    """All bytes, alone and at the end of a word, and the merges."""
    letters = sorted(ByteLevel.alphabet())
    names = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(merge.split()) for merge in MERGES),
        BOS,
        EOS,
    ]
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def clip(max_length: int = 77, pad: str = EOS, names: tuple[str, ...] = ()) -> CLIPTokenizer:
    """A fast CLIP tokenizer; ``names`` are added as placeholder tokens."""
    merges = [tuple(merge.split()) for merge in MERGES if merge != "dog s</w>"]
    made = CLIPTokenizer(vocab=vocabulary(), merges=merges, pad_token=pad, model_max_length=max_length)
    made.add_tokens(list(names))
    return made


class SlowClip(PreTrainedTokenizer):
    """The same tokens from a tokenizer that does not report offsets."""

    def __init__(self, spoil: str = "", **settings: Any) -> None:
        self.fast, self.spoil = clip(), spoil
        super().__init__(bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=EOS, model_max_length=77, **settings)

    @property
    def vocab_size(self) -> int:
        return len(self.fast)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.fast.get_vocab())

    def _tokenize(self, text: str, **settings: Any) -> list[str]:
        return list(self.fast.tokenize(text.replace(self.spoil, "?") if self.spoil else text))

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.fast.convert_tokens_to_ids(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.fast.convert_ids_to_tokens(index))

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [self.bos_token_id, *ids, self.eos_token_id]

    def get_special_tokens_mask(self, ids: list[int], *rest: Any, **settings: Any) -> list[int]:
        return (
            [int(index in (self.bos_token_id, self.eos_token_id)) for index in ids]
            if settings.get("already_has_special_tokens")
            else [1, *[0] * len(ids), 1]
        )


TOKENIZER = clip()
LONG = clip(max_length=2000)


def parse(text: str, *tokenizers: Any, **settings: Any) -> Prompt:
    return Prompt.parse(text, tokenizers or (TOKENIZER,), **settings)


def items(encoding: Encoding) -> list[int]:
    return [position for position, role in enumerate(encoding.roles) if role == "item"]


def plain(text: str) -> str:
    """What tokenizing keeps of a text: no case, no white space, accents composed."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


LETTERS = st.characters(
    categories=["Ll", "Lu"], max_codepoint=0x24F, exclude_characters="\u0130\u0131"
)  # Turkish i: upper case does not lead back
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=8)


# -- published prompts, where their files are ---------------------------------------------------------------------

PROMPTS = Path(os.environ.get("T2ICTL_PROMPTS", ROOT / "../shared/data/prompts"))
REFERENCES = Path(__file__).parent / "data"


def needs_prompts(folder: str) -> pytest.MarkDecorator:
    """A mark for tests that read the prompts of ``folder``."""
    return pytest.mark.skipif(not (PROMPTS / folder).is_dir(), reason="prompt files not available")


def without_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the import of spaCy fail, as where it is not installed."""
    real = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "spacy":
            raise ModuleNotFoundError("No module named 'spacy'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)


def spacy_token(text: str, idx: int, pos: str, dep: str, children: Sequence[Any] = (), **more: Any) -> Any:
    """A stand-in with the attributes of a spaCy token; ``more`` may name ``conjuncts`` and ``head``."""
    made = types.SimpleNamespace(text=text, idx=idx, pos_=pos, dep_=dep, lemma_=text.lower(), children=children)
    made.lefts = [child for child in children if child.idx < idx]
    made.rights = [child for child in children if child.idx > idx]
    made.conjuncts, made.head = more.get("conjuncts", []), more.get("head", made)
    return made


def spacy_finds(monkeypatch: pytest.MonkeyPatch, *roots: Any) -> None:
    """Let spaCy answer every text with noun chunks of these roots."""
    chunks = [types.SimpleNamespace(root=root) for root in roots]
    fake = types.ModuleType("spacy")
    fake.load = lambda name: lambda shown: types.SimpleNamespace(noun_chunks=chunks)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", fake)
