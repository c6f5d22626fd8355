"""``fused-bptt info``: what is installed, what it was built for, and what is in use."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fused_bptt.cli import machine, plan
from fused_bptt.cli.errors import UserError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = subparsers.add_parser(
        "info",
        help="versions, instruction sets, CUDA architectures, GPU; plans for CUDA",
        description="Print versions, the instruction sets and CUDA architectures that this "
        "build contains, the ones in use, and the GPU if there is one. With --shape: how CUDA "
        "would compute that shape, what else was weighed, and why it was not chosen.",
    )
    plan.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one fact a line; 0."""
    if options.shape:
        print("\n".join(plan.lines(options)))
        return 0
    if options.dtype or options.math or options.device_limits or options.step:
        raise UserError("--dtype, --math, --device-limits and --step go with --shape T,B,I,H.")
    here = machine.look()
    facts = {
        "fused-bptt": here.fused_bptt,
        "torch": here.torch,
        "Python": here.python,
        "CPU": here.cpu,
        "instruction sets": f"{' '.join(here.isas_compiled)} (compiled in)",
        "  of this machine": " ".join(here.isas_supported),
        "  in use": here.isa_in_use,
        "threads": str(here.threads),
        "CUDA kernels": " ".join(here.cuda_archs_compiled) or "none (a build for the CPU alone)",
        "GPU": "; ".join(here.gpus) or _why_no_gpu(here),
    }
    for name, fact in facts.items():
        print(f"{name:<18}{fact}")
    return 0


def _why_no_gpu(here: machine.Machine) -> str:
    if here.torch_cuda is None:
        return "none (this torch was built without CUDA)"
    return "none (torch sees no CUDA device)"
