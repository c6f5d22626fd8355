"""Trains both modules epoch by epoch, with progress bars and the table as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from fused_bptt.cli import table
from fused_bptt.cli.learner import Learner, Recipe, twins
from fused_bptt.cli.record import Epoch
from fused_bptt.cli.tasks import Task

#: Test sequences in one call, at least: testing has no backward, so memory is no concern.
_TEST_BATCH = 100


def train(task: Task, recipe: Recipe, console: Console) -> list[Epoch]:
    """Train ``nn.RNN`` and ``fused_bptt.RNN`` on the same batches, taking turns by the epoch.

    Only the training loop is timed: not the making of batches, nor testing, nor drawing.
    """
    learners = twins(task, recipe)
    test = task.test.batches(max(recipe.batch_size, _TEST_BATCH), recipe.device, recipe.dtype)
    for learner in learners:
        learner.warm_up(test[0])
    history: list[Epoch] = []
    console.print(table.header(task.score_name), no_wrap=True, highlight=False)
    with _bars(console, learners, recipe.steps(task.training_size)) as advance:
        for number in range(1, recipe.epochs + 1):
            batches = task.training_epoch().batches(recipe.batch_size, recipe.device, recipe.dtype)
            outcome: dict[str, tuple[float, float, float]] = {}
            # Who goes first changes by the epoch, so that neither always finds the machine
            # as the other left it.
            for learner in learners if number % 2 else reversed(learners):
                loss, seconds = learner.train(batches, advance[learner.name])
                outcome[learner.name] = (loss, learner.test(test), seconds)
            pairs = zip(*(outcome[learner.name] for learner in learners), strict=True)
            losses, scores, taken = (cast(tuple[float, float], pair) for pair in pairs)
            history.append(Epoch(number, losses, scores, taken))
            console.print(table.row(history[-1], task), no_wrap=True, highlight=False)
    return history


@contextmanager
def _bars(
    console: Console, learners: tuple[Learner, Learner], steps: int
) -> Iterator[dict[str, Callable[[int], None]]]:
    """A bar for each module; gives, by name, what moves it on by a number of batches.

    Drawn only where the output is a terminal, and only when moved: a thread that draws would
    take its time from the training loop.
    """
    progress = Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=34),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield {
            learner.name: partial(_advance, progress, progress.add_task(learner.name, total=steps))
            for learner in learners
        }


def _advance(progress: Progress, bar: TaskID, batches: int) -> None:
    progress.update(bar, advance=batches, refresh=True)
