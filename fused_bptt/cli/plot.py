"""The picture of a run: both loss curves, and the throughput beside them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fused_bptt.cli.machine import where
from fused_bptt.cli.record import NAMES, Run

#: Orange and blue of Okabe and Ito's palette, told apart by every kind of colour vision, and by
#: lightness in print.
_COLOURS = ("#E69F00", "#0072B2")


def draw(run: Run, path: Path) -> None:
    """Draw ``run`` into a PNG."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    losses, throughput = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_losses(losses, run)
    _draw_throughput(throughput, run)
    for axes in (losses, throughput):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_size(12)
        axes.title.set_weight("bold")
    figure.suptitle(_title(run), fontsize=10, color="0.35")
    figure.savefig(path)


def _title(run: Run) -> str:
    recipe = run.recipe
    return (
        f"{run.task.title}, T = {run.task.T}, H = {recipe.hidden}, B = {recipe.batch_size}, "
        f"{recipe.nonlinearity}, {recipe.dtype_name}, {where(run.machine, recipe.device)}"
    )


def _draw_losses(axes: Axes, run: Run) -> None:
    """nn.RNN as a wide band, ours as a thin line with dots inside it."""
    epochs = [epoch.number for epoch in run.epochs]
    theirs, ours = ([epoch.losses[module] for epoch in run.epochs] for module in (0, 1))
    axes.plot(epochs, theirs, color=_COLOURS[0], linewidth=9, solid_capstyle="round", alpha=0.8)
    axes.plot(epochs, ours, color=_COLOURS[1], linewidth=1.6, marker="o", markersize=4)
    axes.legend(axes.lines, NAMES, frameon=False, fontsize=11, handlelength=2.5, labelspacing=0.8)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("training loss (log scale)")
    finite = [loss for loss in theirs + ours if math.isfinite(loss) and loss > 0]
    if finite:
        axes.set_yscale("log")
        axes.set_ylim(min(finite) / 1.3, max(finite) * 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.set_title("Loss of both modules")
    apart = run.furthest_apart.loss_difference
    said = f"largest difference: {apart:.1e}" if run.finite else "the loss is not finite"
    axes.text(0.03, 0.05, said, transform=axes.transAxes, fontsize=11)


def _draw_throughput(axes: Axes, run: Run) -> None:
    """A bar a module for the whole run, and a dot for each epoch."""
    means = [run.task.training_size * len(run.epochs) / seconds for seconds in run.seconds]
    axes.bar([0, 1], means, color=_COLOURS, width=0.6)
    for module in (0, 1):
        values = run.throughput(module)
        spread = [module + 0.16 * math.sin(2.4 * index) for index in range(len(values))]
        axes.scatter(spread, values, s=9, color="0.15", alpha=0.55, linewidths=0, zorder=3)
    labels = [f"{name}\n{mean:,.0f} / s" for name, mean in zip(NAMES, means, strict=True)]
    axes.set_xticks([0, 1], labels)
    axes.set_ylabel("sequences per second, training")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelsize=12, length=0)
    axes.set_title(f"{run.ratio:.1f} times the throughput")
    if len(run.epochs) > 1:
        low, _, high = statistics.quantiles([epoch.ratio for epoch in run.epochs])
        axes.set_xlabel(
            f"dots: single epochs\nthe middle half of their ratios: {low:.1f} to {high:.1f}",
            fontsize=9,
            color="0.35",
        )
