"""``fused-bptt info --shape``: how CUDA would compute a shape, and what else was weighed."""

from __future__ import annotations

import argparse
import math

import torch

from fused_bptt import _ops
from fused_bptt.cli.errors import UserError

#: What the options are when a shape is given without them.
DEFAULT_DTYPE = "float32"
LIMITS_WITHOUT_A_GPU = "h200"

_DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MATHS = {
    "float64": ("fp64",),
    "float32": ("fp32", "tf32x3", "tf32"),
    "bfloat16": ("bf16",),
    "float16": ("fp16",),
}
_STEPS = ("plain", "leaky", "clipped", "norm-clipped")
_EXCHANGES = {
    "cta": "one CTA, no exchange",
    "cluster": "a cluster of {ctas} CTAs, which push through distributed shared memory",
    "grid": "{ctas} CTAs anywhere on the device, which exchange through L2",
    "launches": "a launch for each step, of {ctas} CTAs a batch tile",
}
_RESIDENCES = {
    "registers": "in registers",
    "shared": "in registers and shared memory",
    "global": "in registers, the rest streamed from global memory at every step",
}
_STREAMED = "streamed from global memory at every step, once for each batch tile"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``info`` that ask for a plan."""
    group = parser.add_argument_group("how CUDA would compute one layer (no GPU is needed)")
    group.add_argument(
        "--shape",
        type=shape,
        metavar="T,B,I,H",
        help="of the input: steps, rows, input, hidden (default: no plan)",
    )
    group.add_argument(
        "--dtype",
        type=dtype,
        metavar="NAME",
        help=f"float64, float32, bfloat16 or float16, or fp64, fp32, bf16, fp16 "
        f"(default: {DEFAULT_DTYPE})",
    )
    group.add_argument(
        "--math",
        choices=sorted({name for names in _MATHS.values() for name in names}),
        help="one way to multiply (default: the cheapest that torch's switches allow)",
    )
    group.add_argument(
        "--device-limits",
        metavar="NAME",
        help=f"{', '.join(_ops.named_limits())}, or cuda:N (default: the GPU here, else "
        f"{LIMITS_WITHOUT_A_GPU})",
    )
    group.add_argument(
        "--step",
        choices=_STEPS,
        help="leaky: LeakyRNN, zoneout, recurrent_dropout; clipped, norm-clipped: the "
        "backward walk of clip_state_grad, by value or by norm (default: plain)",
    )


def shape(text: str) -> tuple[int, int, int, int]:
    """Four whole numbers, none negative."""
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not T,B,I,H: four whole numbers")
    T, B, I, H = (int(word) for word in words)  # noqa: E741
    if max(T, B, I, H) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} has a number of 2**31 or more")
    return T, B, I, H


def dtype(text: str) -> str:
    """A dtype's name as torch has it."""
    name = _DTYPES.get(text, text)
    if name not in _MATHS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not float64, float32, bfloat16 or float16 (or fp64, fp32, bf16, fp16)"
        )
    return name


def lines(options: argparse.Namespace) -> list[str]:
    """The plan of ``options.shape``, in lines.

    Raises:
        UserError: the options do not go together, or name a device that is not known.
    """
    T, B, I, H = options.shape  # noqa: E741
    name = options.dtype or DEFAULT_DTYPE
    if options.math and options.math not in _MATHS[name]:
        raise UserError(
            f"--math {options.math}: {name} is multiplied by {' or '.join(_MATHS[name])}."
        )
    products, how = options.math or name, "--math"
    if products == "float32":
        precision = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
        products += " tf32" if precision == "tf32" else ""
        how = f"torch.backends.cudnn.rnn.fp32_precision is {precision!r}"
    limits, whose = _limits(options.device_limits)
    step = options.step or "plain"
    text = _ops.explain_plan(B, 1, H, products, limits, step)
    rows = [_parse(line) for line in text.splitlines()]
    device = rows[0]
    found = [
        f"layer             T={T} B={B} I={I} H={H}, {name}"
        + (f" ({how})" if name == "float32" else "")
        + (f", {step}" if options.step else ""),
        f"limits            {whose}: sm_{device['capability']}, {device['sms']} SMs, "
        f"{int(device['shared_of_block']) // 1024} KiB of shared memory a CTA",
    ]
    chosen = next((row for row in rows if row["verdict"] == "chosen"), None)
    found += (
        ["plan              none: every way is refused"]
        if chosen is None
        else _plan(chosen, T, int(device["sms"]), step)
    )
    found += ["", f"{'weighed':<18}{'exchange':<10}{'W':<11}µs a step"]
    for row in rows:
        if row["verdict"] in ("priced", "refused"):
            found.append(
                f"  {row['math']:<16}{row['exchange']:<10}{row['residence']:<11}{_why(row, chosen)}"
            )
    return found


def _plan(row: dict[str, str], T: int, sms: int, kind: str) -> list[str]:
    teams, resident = int(row["teams"]), int(row["resident"])
    launches = row["exchange"] == "launches"
    waves = math.ceil(teams * int(row["ctas"]) / sms if launches else teams / resident)
    at_once = "all at once" if waves == 1 else f"in {waves} waves"
    step = float(row["step_us"])
    return [
        f"plan              {row['math']}; {_EXCHANGES[row['exchange']].format(**row)}"
        + ("; and one that clips, of a CTA for each row" if kind == "norm-clipped" else ""),
        f"  W               {_STREAMED if launches else _RESIDENCES[row['residence']]}",
        f"  batch           {teams} x {row['batch_tile']} rows, {at_once}"
        + ("" if launches else f" (the device has room for {resident})"),
        f"  CTA             {row['units']} units, {row['threads']} threads, "
        f"k split {row['k_splits']} ways, {int(row['shared_bytes']) / 1024:.0f} KiB shared memory",
        f"  predicted       {step:.2f} µs a step, {step * T / 1000:.2f} ms for the walk "
        "(a model, not a measurement)",
    ]


def _why(row: dict[str, str], chosen: dict[str, str] | None) -> str:
    if row["verdict"] == "refused":
        return f"refused: {row['why']}"
    same = chosen is not None and all(
        row[key] == chosen[key] for key in ("math", "exchange", "residence")
    )
    with_ctas = "" if row["ctas"] == "1" else f" with {row['ctas']} CTAs"
    return f"{float(row['step_us']):.2f}{with_ctas}{', chosen' if same else ''}"


def _limits(name: str | None) -> tuple[str, str]:
    """For the operator, and in words."""
    if name is None:
        if torch.cuda.is_available() and _ops.cuda_archs():
            return _ops.cuda_limits(0), "cuda:0"
        return LIMITS_WITHOUT_A_GPU, f"{LIMITS_WITHOUT_A_GPU} (no GPU here)"
    if name in _ops.named_limits():
        return name, name
    if name.startswith("cuda:") and name[5:].isdecimal():
        if int(name[5:]) < torch.cuda.device_count() and _ops.cuda_archs():
            return _ops.cuda_limits(int(name[5:])), name
        raise UserError(f"--device-limits {name}: there is no such CUDA device, or no CUDA build.")
    known = ", ".join(_ops.named_limits())
    raise UserError(f"--device-limits {name}: not one of {known}, cuda:N.")


def _parse(line: str) -> dict[str, str]:
    """`verdict name=value ... why=the rest of the line`."""
    head, _, why = line.partition(" why=")
    verdict, *words = head.split()
    return {
        "verdict": verdict,
        **dict(word.split("=", 1) for word in words),
        **({"why": why} if why else {}),
    }
