"""A run on record: what each epoch gave, what follows from it, and its JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from fused_bptt.cli.learner import WARM_UP, Recipe
from fused_bptt.cli.machine import Machine
from fused_bptt.cli.tasks import Task

#: The order of every pair below.
NAMES = ("nn.RNN", "fused_bptt.RNN")


@dataclass(frozen=True)
class Epoch:
    """One epoch of both modules; each pair in the order of ``NAMES``."""

    number: int  # from 1
    losses: tuple[float, float]  # mean over the epoch's sequences
    scores: tuple[float, float]  # on the test sequences
    seconds: tuple[float, float]  # in the training loop

    @property
    def ratio(self) -> float:
        """Times that fused_bptt.RNN was faster."""
        return self.seconds[0] / self.seconds[1]

    @property
    def loss_difference(self) -> float:
        """Absolute difference of the two losses."""
        return abs(self.losses[0] - self.losses[1])


@dataclass(frozen=True)
class Run:
    """A finished run."""

    task: Task
    recipe: Recipe
    machine: Machine
    epochs: list[Epoch]

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of the training loop over all epochs."""
        return (
            sum(epoch.seconds[0] for epoch in self.epochs),
            sum(epoch.seconds[1] for epoch in self.epochs),
        )

    @property
    def ratio(self) -> float:
        """Times that fused_bptt.RNN was faster over all epochs."""
        return self.seconds[0] / self.seconds[1]

    @property
    def finite(self) -> bool:
        """Whether every loss is finite."""
        return all(math.isfinite(loss) for epoch in self.epochs for loss in epoch.losses)

    @property
    def furthest_apart(self) -> Epoch:
        """The epoch in which the two losses differ most."""
        return max(self.epochs, key=lambda epoch: epoch.loss_difference)

    def throughput(self, module: int) -> list[float]:
        """Sequences per second in each epoch of the module with this index."""
        return [self.task.training_size / epoch.seconds[module] for epoch in self.epochs]

    def write_json(self, path: Path) -> None:
        """Write everything to ``path``; numbers that are not finite become null."""
        score = self.task.score_name.replace(" ", "_")
        document = {
            "machine": asdict(self.machine),
            "settings": self._settings(),
            "epochs": [
                {
                    "epoch": epoch.number,
                    "loss": _by_name(epoch.losses),
                    score: _by_name(epoch.scores),
                    "seconds": _by_name(epoch.seconds),
                    "ratio": epoch.ratio,
                }
                for epoch in self.epochs
            ],
            "summary": {
                "seconds": _by_name(self.seconds),
                "ratio": self.ratio,
                "largest_loss_difference": _or_null(self.furthest_apart.loss_difference),
            },
        }
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def _settings(self) -> dict[str, int | float | str | None]:
        recipe = self.recipe
        return {
            "task": self.task.name,
            "T": self.task.T,
            "input_size": self.task.input_size,
            "hidden": recipe.hidden,
            "batch_size": recipe.batch_size,
            "nonlinearity": recipe.nonlinearity,
            "epochs": recipe.epochs,
            "sequences_per_epoch": self.task.training_size,
            "device": str(recipe.device),
            "dtype": recipe.dtype_name,
            "seed": recipe.seed,
            "optimizer": "Adam",
            "lr": recipe.lr,
            "lr_of_W_hh": recipe.lr * recipe.recurrent_lr,
            "lr_warm_up": WARM_UP,
            "gradient_norm_clip": recipe.clip,
            "initial_weights": recipe.start,
        }


def _by_name(pair: tuple[float, float]) -> dict[str, float | None]:
    return {name: _or_null(value) for name, value in zip(NAMES, pair, strict=True)}


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
