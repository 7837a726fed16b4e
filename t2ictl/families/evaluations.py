"""How often a pipeline evaluates its denoiser before the scheduler steps: a session moves latents once a step."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from t2ictl.errors import UnsupportedPipeline

__all__ = ["evaluates_once", "several_evaluations"]


def evaluates_once(pipe: Any) -> bool:
    """Read from the source of a pipeline whether its loop evaluates ``self.unet`` once in each round.

    Self-attention guidance evaluates it twice, a panorama once for each of its views. Branches of one condition count
    once, and an inner loop counts as several.

    Args:
        pipe: any pipeline.

    Returns:
        False if there are several; True also where the source cannot be read, or has no such call.

    Example:
        >>> from diffusers import StableDiffusionPipeline
        >>> evaluates_once(StableDiffusionPipeline.__new__(StableDiffusionPipeline))
        True
    """
    for cls in type(pipe).__mro__:
        if (own := vars(cls).get("__call__")) is not None and (found := _most_in_a_round(inspect.unwrap(own))):
            return found == 1
    return True


def several_evaluations(pipe: Any) -> UnsupportedPipeline:
    """Make the error for a pipeline that evaluates its denoiser several times in a step.

    Args:
        pipe: the pipeline.

    Returns:
        The error, to be raised.
    """
    return UnsupportedPipeline(
        f"{type(pipe).__name__} evaluates its denoiser several times in one step (self-attention guidance, panoramas, "
        "attend-and-excite of its own), and the scheduler steps from one sample.",
        "Call the plain pipeline of the family with the same parts.",
    )


@functools.cache
def _most_in_a_round(function: Any) -> int:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return 0
    loops = [node for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While))]
    inner = {other for loop in loops for node in loop.body for other in ast.walk(node)}
    return max((_count(loop.body) for loop in loops if loop not in inner), default=0)


def _count(statements: Sequence[ast.stmt]) -> int:
    """Evaluations on the longest way through some statements."""
    total = 0
    for each in statements:
        if isinstance(each, ast.If):
            total += max(_count(each.body), _count(each.orelse))
        elif isinstance(each, (ast.For, ast.While)):
            total += 2 * _count(each.body)
        elif isinstance(each, ast.With):
            total += _count(each.body)
        elif isinstance(each, ast.Try):
            total += _count(each.body) + max((_count(other.body) for other in each.handlers), default=0)
        else:
            total += sum(_is_evaluation(node) for node in ast.walk(each))
    return total


def _is_evaluation(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "self.unet"
