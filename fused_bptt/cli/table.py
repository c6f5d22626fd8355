"""What a run prints: an introduction, the table a row at a time, and what it comes to."""

from __future__ import annotations

import math

from rich.text import Text

from fused_bptt.cli.learner import WARM_UP, Recipe
from fused_bptt.cli.machine import Machine, where
from fused_bptt.cli.record import Epoch, Run
from fused_bptt.cli.tasks import Task

_GROUP = 18

#: A difference of the losses above this is more than float32 gives by itself.
_ROUNDING = 1e-3

_STARTS = {
    "orthogonal": "W_hh orthogonal",
    "memory": "W_hh the identity for half of the units and nearly 0 for the others",
}


def introduction(task: Task, recipe: Recipe, here: Machine) -> str:
    """What is trained on what and how, and on which machine."""
    layer = f"RNN({task.input_size}, {recipe.hidden}, {recipe.nonlinearity})"
    clip = "" if recipe.clip is None else f"; gradient norm clipped at {recipe.clip:g}"
    return (
        f"{task.title}: {task.description}.\n"
        f"{layer}, and Linear({recipe.hidden}, {task.output_size}) on its last state; "
        f"{recipe.dtype_name}, batches of {recipe.batch_size}, {recipe.epochs} epochs.\n"
        f"Both modules start from the same weights ({_STARTS[recipe.start]}; biases 0)\n"
        f"and see the same batches; Adam with lr {recipe.lr:g}, of W_hh "
        f"{recipe.lr * recipe.recurrent_lr:g}, {WARM_UP:.0%} warm-up, then a cosine to 0{clip}.\n"
        f"{where(here, recipe.device)}, torch {here.torch}.\n"
    )


def header(score_name: str) -> Text:
    """Two lines: what is in the columns, and whose it is."""
    groups = "".join(f"{name:^{_GROUP}}  " for name in ("training loss", score_name, "seconds"))
    pair = f"{'nn.RNN':>8}  {'fused':>8}  "
    text = Text(f"epoch  {groups}\n       {3 * pair}ratio", style="bold")
    return Text("\n").join([text, Text("-" * 72, style="dim")])


def row(epoch: Epoch, task: Task) -> Text:
    """One line."""
    losses = [f"{_short(loss):>8}" for loss in epoch.losses]
    scores = [f"{task.format_score(score):>8}" for score in epoch.scores]
    seconds = [f"{second:>8.3f}" for second in epoch.seconds]
    return Text(f"{epoch.number:>5}  {'  '.join(losses + scores + seconds)}  ").append(
        f"{epoch.ratio:>5.1f}", style="bold green" if epoch.ratio > 1 else "bold red"
    )


def closing(run: Run) -> Text:
    """What the table comes to: time, ratio, score, and the largest difference of the losses."""
    theirs, ours = run.seconds
    task = run.task
    first, second = (task.format_score(score) for score in run.epochs[-1].scores)
    text = Text("\nTraining took ")
    text.append(f"{theirs:.2f} s with nn.RNN and {ours:.2f} s with fused_bptt.RNN: ")
    if run.ratio >= 1:
        text.append(f"{run.ratio:.1f} times faster.\n", style="bold green")
    else:
        text.append(f"{1 / run.ratio:.1f} times slower.\n", style="bold red")
    text.append(f"Final {task.score_name}: {first} and {second}. ")
    worst = run.furthest_apart
    if run.finite:
        text.append(
            f"Largest difference between the two losses: {worst.loss_difference:.1e} "
            f"(epoch {worst.number})."
        )
        if worst.loss_difference > _ROUNDING:
            text.append(
                "\nRounding alone starts smaller: --dtype float64, where it starts smaller still, "
                "tells whether training amplified it."
            )
    else:
        lost = next(e.number for e in run.epochs if not all(map(math.isfinite, e.losses)))
        text.append(
            f"The loss is not finite from epoch {lost} on: try a smaller --lr.", style="bold red"
        )
    return text


def _short(loss: float) -> str:
    """Five decimals, or as many digits as fit into eight characters."""
    return f"{loss:.5f}" if abs(loss) < 100 else f"{loss:.1e}"
