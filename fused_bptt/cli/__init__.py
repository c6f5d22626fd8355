"""The ``fused-bptt`` command.

A subcommand is a module of this package with ``add_parser(subparsers)``, which declares its
options, and ``run(options) -> exit code``. To add one, write the module and name it in
``SUBCOMMANDS``. What a user got wrong is raised as ``UserError`` and becomes one sentence on
stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import fused_bptt
from fused_bptt.cli import bench, explain, info, report, train
from fused_bptt.cli.errors import UserError

SUBCOMMANDS = (train, explain, bench, report, info)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the usage of every option first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (options: `{self.prog} --help`)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``fused-bptt`` with all its subcommands."""
    parser = _Parser(
        prog="fused-bptt",
        description="A drop-in torch.nn.RNN with hand-written backpropagation through time.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {fused_bptt.__version__}")
    subparsers = parser.add_subparsers(metavar="command", dest="command", required=True)
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fused-bptt`` with ``arguments`` (default: those of the process); the exit code."""
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except UserError as error:
        print(f"fused-bptt {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fused-bptt {options.command}: interrupted.", file=sys.stderr)
        return 130
