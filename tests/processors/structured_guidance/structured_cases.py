"""What the tests of structured guidance share: phrases with their places, and attention written out as loops.

Positions are written out; the toy tokenizer has one token for each word of these prompts. Nothing here is computed by
the library: contexts come from the text encoders themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

import t2ictl
from t2ictl.processors import StructuredGuidance
from tests.tiny import generator, run

PROMPT = "photo of a red circle and a blue square"  # start photo of a red circle and a blue square end: 0 to 10
NESTED = "photo of a cat with a hat and a dog"  # start photo of a cat with a hat and a dog end: 0 to 11
NONE = "a bird"
PROMPTS = [PROMPT, NONE, NESTED]
PHRASES = (("a red circle", "a blue square"), (), ("a cat with a hat", "a cat", "a hat", "a dog"))
NEGATIVES = ["picture of a blue square and a red circle", NONE, "picture of a dog and a cat with a hat"]

SubjectRegions = Mapping[str, tuple[int, ...]]
Encode = Callable[[Any, str, int], Tensor]
# Where each phrase stands; alone it stands from 1 on. None stands first: its rows would be the prompt's own, since the
# encoders read from left to right.
PLACES: dict[str, SubjectRegions] = {
    PROMPT: {"a red circle": (3, 4, 5), "a blue square": (7, 8, 9)},
    NESTED: {"a cat with a hat": (3, 4, 5, 6, 7), "a cat": (3, 4), "a hat": (6, 7), "a dog": (9, 10)},
    NEGATIVES[0]: {"a blue square": (3, 4, 5), "a red circle": (7, 8, 9)},
    NEGATIVES[2]: {"a dog": (3, 4), "a cat": (6, 7), "a hat": (9, 10)},  # found, and the lowest
}
# What a phrase counts at each of its positions: of the two at a cat or a hat the wide one is on level 1.
SHARES: dict[str, dict[str, tuple[float, ...]]] = {
    "token": {
        "a red circle": (1 / 2,) * 3,
        "a blue square": (1 / 2,) * 3,
        "a cat with a hat": (1 / 3, 1 / 3, 1 / 2, 1 / 3, 1 / 3),
        "a cat": (1 / 3,) * 2,
        "a hat": (1 / 3,) * 2,
        "a dog": (1 / 2,) * 2,
    },
    "depth": {  # weights 1/2 and 1: a sum of 1 + 3/2 where both are, of 1 + 1/2 at "with"
        "a red circle": (1 / 2,) * 3,
        "a blue square": (1 / 2,) * 3,
        "a cat with a hat": (1 / 5, 1 / 5, 1 / 3, 1 / 5, 1 / 5),
        "a cat": (2 / 5,) * 2,
        "a hat": (2 / 5,) * 2,
        "a dog": (1 / 2,) * 2,
    },
}


def encoded(pipe: Any, text: str, first: int = 1, *, skip: int = 0) -> Tensor:
    """Rows of one text whose first word is read at a position, by the text encoders themselves."""
    pairs, rows = [(pipe.tokenizer, pipe.text_encoder)], []
    if hasattr(pipe, "tokenizer_2"):
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids = tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            places = torch.tensor([[0, *(min(15, place + first) for place in range(15))]])
            made = encoder(ids, position_ids=places, output_hidden_states=True)
        rows.append(made.hidden_states[-2 - skip] if len(pairs) == 2 else made[0])
    return torch.cat(rows, dim=-1)[0]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What attention is to be at one row: weighted maps of some keys, times weighted values of some contexts.

    Args:
        row: the text states by which the row is known.
        keys: weight of each map, and the context of its keys.
        values: weight of each value, one for each position, and its context.
    """

    row: Tensor
    keys: Sequence[tuple[float, Tensor]]
    values: Sequence[tuple[Tensor, Tensor]]


def replaced(row: Tensor, own: Tensor, positions: Sequence[int]) -> Tensor:
    """The prompt's rows with those of one phrase, which alone stands from 1 on."""
    made = row.clone()
    for number, position in enumerate(positions):
        made[position] = own[1 + number]
    return made


def recipe(
    pipe: Any,
    prompt: str,
    *,
    strength: float = 1.0,
    mode: str = "values",
    weighting: str = "official",
    conjunction: str = "aligned",
    aliasing: bool = False,
    positions: str = "own",
    row: Tensor | None = None,
    places: SubjectRegions | None = None,
    encode: Encode = encoded,
) -> Recipe:
    """The recipe for the rows of one prompt, by the formulas of the paper and of the strength."""
    row, places, s = encode(pipe, prompt, 1) if row is None else row, places or PLACES[prompt], strength
    own = {name: encode(pipe, name, at[0] if positions == "prompt" else 1) for name, at in places.items()}
    ones, others = torch.ones(len(row)).to(row), [replaced(row, own[name], at) for name, at in places.items()]
    share = 1 / (len(others) + 1)
    if mode == "keys":
        everything = row
        for name, at in sorted(places.items(), key=lambda each: -len(each[1])):  # the shortest phrase last
            everything = replaced(everything, own[name], at)
        first = everything if aliasing else row
        keys = [(1 - s, row), (s * share, first), *((s * share, each) for each in others)]
        values = [(ones, row)] if conjunction == "paper" else [((1 - s) * ones, row), (s * ones, everything)]
        return Recipe(row=row, keys=keys, values=values)
    if weighting == "official":
        means = [((1 - s + s * share) * ones, row), *((s * share * ones, each) for each in others)]
        return Recipe(row=row, keys=[(1.0, row)], values=means)
    shares = []
    for name, at in places.items():
        shares.append(torch.zeros_like(ones))
        shares[-1][list(at)] = torch.tensor(SHARES[weighting][name]).to(ones)
    rest = 1 - s * torch.stack(shares).sum(dim=0)
    values = [(rest, row), *((s * amount, each) for amount, each in zip(shares, others, strict=True))]
    return Recipe(row=row, keys=[(1.0, row)], values=values)


def recipes(pipe: Any, prompts: Sequence[str] = tuple(PROMPTS), **settings: Any) -> list[Recipe]:
    return [recipe(pipe, each, **settings) for each in prompts if each in PLACES]


class Loop:
    """An attention processor that attends once for every pair of keys and values of a row that it knows."""

    def __init__(self, known: Sequence[Recipe]) -> None:
        self.known = known

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        bias = attn.prepare_attention_mask(attention_mask, encoder_hidden_states.shape[1], len(hidden_states))
        masks = [None] * len(hidden_states) if bias is None else bias.unflatten(0, (len(hidden_states), -1))
        made = [
            self._row(attn, hidden, context, mask)
            for hidden, context, mask in zip(hidden_states, encoder_hidden_states, masks, strict=True)
        ]
        return attn.to_out[0](torch.stack(made))

    def _row(self, attn: Any, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        ones = torch.ones(len(context)).to(context)
        plain = Recipe(row=context, keys=[(1.0, context)], values=[(ones, context)])
        found = next((each for each in self.known if (each.row - context).abs().max() < 1e-3), plain)
        queries, parts = attn.to_q(hidden).chunk(attn.heads, dim=-1), []
        for head, query in enumerate(queries):
            total = torch.zeros_like(query)
            for share, keys in found.keys:
                scores = attn.scale * query @ attn.to_k(keys).chunk(attn.heads, dim=-1)[head].mT
                weights = (scores if mask is None else scores + mask[head]).softmax(dim=-1)
                for amount, values in found.values:
                    total = total + share * weights @ (
                        amount[:, None] * attn.to_v(values).chunk(attn.heads, dim=-1)[head]
                    )
            parts.append(total)
        return torch.cat(parts, dim=-1)


def put(pipe: Any, processor: Any) -> None:
    """Give every cross-attention this processor."""
    current = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({name: processor if "attn2" in name else each for name, each in current.items()})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of a cross-attention layer."""

    name: str
    attn: Any
    hidden: Tensor
    context: Tensor
    mask: Tensor | None
    out: Tensor

    def by(self, processor: Any) -> Tensor:
        """What a processor makes of the same call."""
        with torch.no_grad():
            made: Tensor = processor(
                self.attn, self.hidden, encoder_hidden_states=self.context, attention_mask=self.mask
            )
        return made

    @functools.cached_property
    def plain(self) -> Tensor:
        return self.by(AttnProcessor2_0())


@contextmanager
def layers(pipe: Any) -> Iterator[list[Layer]]:
    """All calls of cross-attention layers outside passes with a gradient."""
    heard, handles = [], []
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):

            def note(attn: Any, args: Any, kwargs: Any, out: Tensor, name: str = name) -> None:
                if not out.requires_grad:
                    context, mask = kwargs["encoder_hidden_states"].clone(), kwargs.get("attention_mask")
                    heard.append(Layer(name=name, attn=attn, hidden=args[0], context=context, mask=mask, out=out))

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    yield heard
    for handle in handles:
        handle.remove()


def heard_in(pipe: Any, prompts: Any, settings: Mapping[str, Any], *others: Any, **call: Any) -> list[Layer]:
    """All layers of a run in a session."""
    controls = [*others, StructuredGuidance(**{"phrases": PHRASES} | dict(settings))]
    with layers(pipe) as heard, t2ictl.controlled(pipe, controls):
        run(pipe, prompts, **{"steps": 1} | call)
    return heard


def controlled_run(pipe: Any, prompts: Any, settings: Mapping[str, Any], *others: Any, **call: Any) -> Tensor:
    with t2ictl.controlled(pipe, [*others, StructuredGuidance(**{"phrases": PHRASES} | dict(settings))]):
        return run(pipe, prompts, **{"steps": 2} | call)


def noise(rows: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=generator(seed), dtype=torch.float64).to(dtype)
