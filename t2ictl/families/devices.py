"""Devices and precisions that users name, checked before anything is loaded."""

from __future__ import annotations

import torch

from t2ictl.errors import BadSetting, shown

__all__ = ["DTYPES", "check_device", "check_dtype"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_device(device: str | torch.device | None) -> str:
    """Check that a device is there, by putting a number on it.

    Args:
        device: as torch names it; None for CUDA where there is one, else the CPU.

    Returns:
        Its name.

    Raises:
        BadSetting: if torch knows no such device, or it is not there.

    Example:
        >>> check_device("cpu")
        'cpu'
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise BadSetting(f"There is no device {shown(device)}.", "Use cpu, cuda, cuda:1, ...") from None
    try:
        is_there = place.type != "meta" and float(torch.ones(1, device=place).cpu()) == 1.0
    except Exception:  # each kind of device fails in a way of its own
        is_there = False
    if not is_there:
        raise BadSetting(f"The device {str(device)!r} is not there.", "`t2ictl doctor` lists the devices; use cpu.")
    return str(place)


def check_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a precision of weights.

    Args:
        dtype: of torch, or its name.

    Returns:
        The precision.

    Raises:
        BadSetting: if no model runs with it.

    Example:
        >>> check_dtype("float16")
        torch.float16
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise BadSetting(f"There is no precision {shown(dtype)}.", f"Use one of {', '.join(DTYPES)}.")
