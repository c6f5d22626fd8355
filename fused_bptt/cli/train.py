"""``fused-bptt train``: nn.RNN and fused_bptt.RNN side by side on one task."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fused_bptt.cli import machine, options, tasks
from fused_bptt.cli.errors import UserError, require
from fused_bptt.cli.learner import Recipe
from fused_bptt.cli.record import Run

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PICTURE = "loss_and_throughput.png"
RECORD = "run.json"


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = subparsers.add_parser(
        "train",
        help="train nn.RNN and fused_bptt.RNN side by side",
        description="Train nn.RNN and fused_bptt.RNN from the same initial weights on the same "
        "batches, and print by epoch the loss, the score on test data and the seconds of both. "
        f"Writes a picture ({PICTURE}) and a record ({RECORD}).",
    )

    def by_task(name: str) -> str:
        values = {task: getattr(tasks.DEFAULTS[task], name) for task in tasks.TASKS}
        if len(set(values.values())) == 1:
            return f"(default: {values['digits']})"
        return f"(default: {', '.join(f'{value} for {task}' for task, value in values.items())})"

    parser.add_argument(
        "--task",
        choices=tuple(tasks.TASKS),
        default="digits",
        help="digits: scikit-learn's handwritten digits of 8 x 8, read pixel by pixel; adding: "
        "the sum of the two marked numbers among T (default: %(default)s)",
    )
    parser.add_argument(
        "--T",
        type=options.positive_int,
        metavar="STEPS",
        help="steps of a sequence; for digits it must divide 64, 64/T pixels are read at a time "
        f"{by_task('T')}",
    )
    parser.add_argument(
        "--hidden",
        type=options.positive_int,
        metavar="H",
        help=f"hidden units {by_task('hidden')}",
    )
    parser.add_argument(
        "--batch-size",
        type=options.positive_int,
        metavar="B",
        help=f"sequences per optimiser step {by_task('batch_size')}",
    )
    parser.add_argument(
        "--nonlinearity",
        choices=("tanh", "relu"),
        help=f"of the recurrence {by_task('nonlinearity')}",
    )
    parser.add_argument(
        "--epochs",
        type=options.positive_int,
        metavar="N",
        help=f"passes over the training sequences {by_task('epochs')}",
    )
    parser.add_argument(
        "--lr",
        type=options.positive_float,
        metavar="RATE",
        help=f"peak learning rate of Adam {by_task('lr')}",
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(options.DTYPES),
        default="float32",
        help="of the weights and of the data (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=options.positive_int,
        metavar="N",
        default=1,
        help="CPU threads of both modules (default: %(default)s; nn.RNN gains little from more "
        "unless hidden units or batch are many)",
    )
    parser.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        metavar="N",
        help="of the data, its order and the initial weights (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the picture and the record go (default: out/TASK)",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Train, print, write; 0.

    Raises:
        UserError: the options cannot be done; says why.
    """
    threads_before = torch.get_num_threads()
    try:
        _run(given)
    except (MemoryError, torch.OutOfMemoryError):
        raise UserError(_too_large(given)) from None
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(_too_large(given)) from None
    finally:
        torch.set_num_threads(threads_before)
    return 0


def _run(given: argparse.Namespace) -> None:
    require("matplotlib", "rich", "sklearn")
    from rich.console import Console

    from fused_bptt.cli import plot, side_by_side, table

    defaults = tasks.DEFAULTS[given.task]
    device = options.device(given.device)
    torch.set_num_threads(given.threads)
    here = machine.look()
    folder = given.output or Path("out") / given.task
    _make(folder)

    task = tasks.TASKS[given.task](given.T or defaults.T, given.seed)
    recipe = Recipe(
        hidden=given.hidden or defaults.hidden,
        batch_size=given.batch_size or defaults.batch_size,
        nonlinearity=given.nonlinearity or defaults.nonlinearity,
        epochs=given.epochs or defaults.epochs,
        lr=given.lr or defaults.lr,
        recurrent_lr=defaults.recurrent_lr_at(task.T),
        clip=defaults.clip,
        start=defaults.start,
        device=device,
        dtype=options.DTYPES[given.dtype],
        seed=given.seed,
    )
    console = Console()
    console.print(table.introduction(task, recipe, here), highlight=False, soft_wrap=True)
    done = Run(task, recipe, here, side_by_side.train(task, recipe, console))
    console.print(table.closing(done), highlight=False, soft_wrap=True)
    done.write_json(folder / RECORD)
    plot.draw(done, folder / PICTURE)
    console.print(f"Picture: {folder / PICTURE}", highlight=False, soft_wrap=True)
    console.print(f"Record:  {folder / RECORD}", highlight=False, soft_wrap=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: no such folder can be made ({error}).") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {folder}: no permission to write there.")


def _too_large(given: argparse.Namespace) -> str:
    return (
        f"not enough memory on {given.device} for these sizes; a smaller --batch-size, --hidden "
        "or --T needs less."
    )
