"""Types of command-line options, shared by the subcommands."""

from __future__ import annotations

import argparse
import math

import torch

from fused_bptt import _ops
from fused_bptt.cli.errors import UserError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, at_least=1)


def seed(text: str) -> int:
    """A whole number that every random generator takes: 0 to 2³² - 1."""
    value = _whole(text, at_least=0)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is more than 2**32 - 1")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def finite(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def device(text: str) -> torch.device:
    """The device that ``text`` names, once it is known that the engine can run on it.

    Raises:
        UserError: there is no such device, or this build has no kernels for it.
    """
    try:
        found = torch.device(text)
    except RuntimeError:
        raise UserError(f"--device {text}: not a device; cpu, cuda or cuda:N is.") from None
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise UserError(f"--device {text}: the engine runs on cpu and on cuda.")
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch sees no CUDA device on this machine.")
    count = torch.cuda.device_count()
    if found.index is not None and found.index >= count:
        raise UserError(f"--device {text}: the CUDA devices here are 0 to {count - 1}.")
    if not _ops.cuda_archs():
        raise UserError(f"--device {text}: this build of fused-bptt has no CUDA kernels.")
    return found


def _whole(text: str, at_least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if value < at_least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {at_least}")
    return value
