"""What is installed and what really works here: every kernel is run once, none is believed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ictl.settings.files import versions
from t2ictl.shapes.embedded import installed_models

__all__ = ["Finding", "examine"]

EXTRAS = {"app": "streamlit", "bench": "pandas", "ray": "ray", "xformers": "xformers", "spacy": "spacy"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Args:
        topic: ``"package"``, ``"extra"``, ``"device"``, ``"kernel"``, ``"parser"`` or ``"model"``.
        name: what it is.
        works: whether it was seen to work.
        detail: version, device, or the reason why not.
        needed: whether the library cannot do its main work without it.
    """

    topic: str
    name: str
    works: bool
    detail: str
    needed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Examine packages, devices, attention kernels, the prompt parser and the embedded models.

    Returns:
        The findings. An attention kernel counts as working only if it was run once and gave the
        result of the plain one.

    Example:
        >>> all(finding.works for finding in examine() if finding.needed)
        True
    """
    findings = [Finding(topic="package", name=name, works=True, detail=text) for name, text in versions().items()]
    findings += [_extra(extra, package) for extra, package in EXTRAS.items()]
    for device in _devices():
        findings.append(Finding(topic="device", name=device, works=True, detail=_device_name(device), needed=True))
        findings += _kernels(device)
    findings.append(_tried("parser", "grammar", _try_parser))
    findings += [_tried("model", name, partial(_try_model, name)) for name in installed_models()]
    return findings


def _extra(extra: str, package: str) -> Finding:
    try:
        return Finding(topic="extra", name=extra, works=True, detail=f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            topic="extra", name=extra, works=False, detail=f'not installed; pip install "t2ictl[{extra}]" brings it'
        )


def _devices() -> list[str]:
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads" if device == "cpu" else "Apple GPU"


def _kernels(device: str) -> list[Finding]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    backends = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    findings = []
    for backend in backends if device != "cpu" else backends[:2]:
        for dtype in dtypes:
            name = f"{backend.name.lower()} {str(dtype).removeprefix('torch.')} on {device}"
            findings.append(_tried("kernel", name, partial(_run, backend, device, dtype)))
    if device.startswith("cuda"):
        findings.append(_tried("kernel", f"xformers on {device}", partial(_run_xformers, device)))
    return findings


def _inputs(device: str, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(3, 2, 4, 64, 32, generator=generator).to(device, dtype)


def _run(backend: SDPBackend, device: str, dtype: torch.dtype) -> str:
    q_BHQD, k_BHKD, v_BHKD = _inputs(device, dtype)
    with sdpa_kernel(backend):
        result = F.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD)
    return _compared(result, q_BHQD, k_BHKD, v_BHKD)


def _run_xformers(device: str) -> str:
    from xformers.ops import memory_efficient_attention

    q_BHQD, k_BHKD, v_BHKD = _inputs(device, torch.float16)
    swapped = [each.transpose(1, 2).contiguous() for each in (q_BHQD, k_BHKD, v_BHKD)]
    return _compared(memory_efficient_attention(*swapped).transpose(1, 2), q_BHQD, k_BHKD, v_BHKD)


def _compared(result: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    """Compare with the definition in float64."""
    exact = (q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v.double()
    error = float((result.double() - exact).abs().max())
    allowed = 1e-4 if result.dtype == torch.float32 else 3e-2
    if not error <= allowed:
        raise RuntimeError(f"ran, but is off by {error:.1e}")
    return f"ran, off by {error:.0e}"


def _tried(topic: str, name: str, attempt: Callable[[], str]) -> Finding:
    needed = topic in ("parser", "model") or name.startswith("math float32")
    try:
        return Finding(topic=topic, name=name, works=True, detail=attempt(), needed=needed)
    except Exception as error:  # the point of a doctor is to report any failure, not to die of it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Finding(topic=topic, name=name, works=False, detail=reason, needed=needed)


def _try_parser() -> str:
    from t2ictl.prompts.grammar import group

    found = group("a red circle and a blue square")
    if len(found) != 2:
        raise RuntimeError(f"found {len(found)} objects in 'a red circle and a blue square'")
    return "found both objects of 'a red circle and a blue square'"


def _try_model(name: str) -> str:
    from t2ictl.families.loading import load
    from t2ictl.generation import generate

    pipe = load(name, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    image = generate(pipe, "a red circle", seed=0, steps=2).image
    return f"loads and made a {image.width} x {image.height} image"
