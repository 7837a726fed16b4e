"""Stock attention layers with random weights, what they are given, and our processor at one of them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention
from t2ictl.settings.windows import Step

SIZE = (3, 5)  # not square
ROWS, TOKENS, WIDTH, CONTEXT = 4, 7, 12, 10
LANES = BatchLayout.from_counts(prompts=2, images_per_prompt=1, guided=True)
STEP = Step(index=2, total=9, timestep=500.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "cross": {"cross_attention_dim": CONTEXT},
    "self": {},
    "cross, biased, in at 3": {"cross_attention_dim": CONTEXT, "bias": True, "heads": 3},
    "norm_cross": {"cross_attention_dim": CONTEXT, "cross_attention_norm": "layer_norm"},
    "group_norm": {"norm_num_groups": 4},
    "group_norm, cross": {"norm_num_groups": 4, "cross_attention_dim": CONTEXT},
    "residual and rescale": {"residual_connection": True, "rescale_output_factor": 1.7},
    "upcast": {"cross_attention_dim": CONTEXT, "upcast_attention": True},
}


def layer(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Attention:
    """A stock attention layer with every weight random, norms included."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = Attention(query_dim=WIDTH, dim_head=4, **({"heads": 2} | options))
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.6)
    return made.to(dtype).eval()


def given(kind: str, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, SIZE[0] * SIZE[1], WIDTH, generator=source, dtype=torch.float64)
    context = torch.randn(ROWS, TOKENS, CONTEXT, generator=source, dtype=torch.float64)
    return hidden.to(dtype), context.to(dtype) if kind == "cross" else None


def address_of(kind: Any = "cross", heads: int = 2, factor: int = 1) -> Layer:
    return Layer(address=f"up.0.0.0.{kind}", module="m", kind=kind, block="up", stride=factor, order=0, heads=heads)


def installed(attn: Attention, previous: Any, *, taps: Any = (), edits: Any = (), **now: Any) -> ControlledAttention:
    """Our processor at a layer, with a pass in progress."""
    active_pass, here = ActivePass(), address_of("cross" if attn.is_cross_attention else "self", attn.heads)
    own = {here.address: list(edits)} if edits else {}
    active_pass.begin(DenoiserPass(batch=LANES, latent_size=SIZE, step=STEP, taps=taps, edits=own, **now))
    return ControlledAttention(here, previous, active_pass)


def masks() -> dict[str, Tensor | None]:
    one = torch.zeros(ROWS, 1, TOKENS, dtype=torch.float64)
    one[:, :, -2:] = -10000.0
    every = torch.randn(ROWS * 2, SIZE[0] * SIZE[1], TOKENS, generator=torch.Generator().manual_seed(3)).double()
    return {"none": None, "keys": one, "every head and place": every}


class Spy(AttnProcessor2_0):
    """A stock processor that keeps its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.got.append((args, kwargs))
        return super().__call__(*args, **kwargs)


class Listener:
    """A tap that keeps what it hears."""

    def __init__(
        self, layers: tuple[str, ...] = ("up.0.0.0.cross", "up.0.0.0.self"), rows: slice = slice(None)
    ) -> None:
        self.layers, self.rows = frozenset(layers), rows
        self.heard: list[tuple[AttentionCall, Tensor]] = []

    def take(self, call: AttentionCall, map_BQK: Tensor) -> None:
        self.heard.append((call, map_BQK))
