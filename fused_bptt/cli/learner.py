"""A model with its optimiser, trained an epoch at a time under a stopwatch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fused_bptt
from fused_bptt.cli.tasks import Nonlinearity, Sequences, Start, Task

#: Share of the steps in which the learning rate rises; it then falls to 0 as a cosine.
WARM_UP = 0.1
#: Stretches of an epoch after which the stopwatch rests and progress is shown.
STRETCHES = 10


@dataclass(frozen=True)
class Recipe:
    """How both modules are set up and trained."""

    hidden: int
    batch_size: int
    nonlinearity: Nonlinearity
    epochs: int
    lr: float
    recurrent_lr: float  # factor on lr for W_hh
    clip: float | None  # largest norm of the gradient
    start: Start
    device: torch.device
    dtype: torch.dtype
    seed: int

    @property
    def dtype_name(self) -> str:
        """Without the leading ``torch.``."""
        return str(self.dtype).removeprefix("torch.")

    def steps(self, sequences: int) -> int:
        """Optimiser steps of all epochs, at so many training sequences."""
        return self.epochs * math.ceil(sequences / self.batch_size)


def lr_factor(step: int, steps: int) -> float:
    """Factor on the learning rate in one of so many steps: linear warm-up, then a cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Model(nn.Module):
    """One recurrent layer, and a linear readout of its last state."""

    def __init__(self, rnn: nn.RNNBase, output_size: int) -> None:
        """Put a readout of ``output_size`` numbers on ``rnn``."""
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(rnn.hidden_size, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [T, B, I] to outputs [B, O], at least float32 so that the loss is."""
        _, last = self.rnn(inputs)
        output: Tensor = self.readout(last[-1])
        return output.to(torch.promote_types(output.dtype, torch.float32))


class Learner:
    """One of the two modules, in training."""

    def __init__(self, name: str, model: Model, task: Task, recipe: Recipe) -> None:
        """Give ``model`` an optimiser of its own."""
        self.name = name
        self._model = model
        self._task = task
        self._device = recipe.device
        self._clip = recipe.clip
        self._parameters = list(model.parameters())
        recurrent = model.rnn.get_parameter("weight_hh_l0")
        others = [parameter for parameter in self._parameters if parameter is not recurrent]
        # fused: one pass over all parameters, so that the optimiser hides as little as
        # possible of what is compared.
        self._optimizer = torch.optim.Adam(
            [
                {"params": others, "full_lr": recipe.lr},
                {"params": [recurrent], "full_lr": recipe.lr * recipe.recurrent_lr},
            ],
            fused=True,
        )
        self._step = 0
        self._steps = recipe.steps(task.training_size)

    def warm_up(self, batch: Sequences) -> None:
        """Run a step on a copy, for what the first call of anything pays once."""
        model = copy.deepcopy(self._model)
        self._task.loss(model(batch.inputs), batch.targets).backward()  # type: ignore[no-untyped-call]

    def train(
        self, batches: list[Sequences], progress: Callable[[int], None]
    ) -> tuple[float, float]:
        """Train on ``batches`` once.

        Args:
            batches: of the epoch.
            progress: called with the number of batches done since the last call, while the
                stopwatch rests.

        Returns:
            Mean loss over the sequences of the epoch, and seconds that the training loop took.
        """
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        seconds = 0.0
        stretch = math.ceil(len(batches) / STRETCHES)
        for first in range(0, len(batches), stretch):
            some = batches[first : first + stretch]
            self._synchronize()
            start = time.perf_counter()
            for batch in some:
                total += self._train_step(batch) * batch.count
            self._synchronize()
            seconds += time.perf_counter() - start
            progress(len(some))
        return total.item() / sum(batch.count for batch in batches), seconds

    def test(self, batches: list[Sequences]) -> float:
        """The task's score over all ``batches``."""
        with torch.no_grad():
            outputs = torch.cat([self._model(batch.inputs) for batch in batches])
        return self._task.score(outputs, torch.cat([batch.targets for batch in batches]))

    def _train_step(self, batch: Sequences) -> Tensor:
        factor = lr_factor(self._step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["full_lr"]
        self._step += 1
        loss = self._task.loss(self._model(batch.inputs), batch.targets)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        return loss.detach()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def twins(task: Task, recipe: Recipe) -> tuple[Learner, Learner]:
    """``nn.RNN`` and ``fused_bptt.RNN`` with the same initial weights."""
    torch.manual_seed(recipe.seed)
    theirs = Model(
        nn.RNN(task.input_size, recipe.hidden, nonlinearity=recipe.nonlinearity), task.output_size
    )
    _set_start(theirs.rnn, recipe.start)
    ours = Model(
        fused_bptt.RNN(task.input_size, recipe.hidden, nonlinearity=recipe.nonlinearity),
        task.output_size,
    )
    ours.load_state_dict(theirs.state_dict())
    return (
        Learner("nn.RNN", theirs.to(recipe.device, recipe.dtype), task, recipe),
        Learner("fused_bptt.RNN", ours.to(recipe.device, recipe.dtype), task, recipe),
    )


@torch.no_grad()
def _set_start(rnn: nn.RNNBase, start: Start) -> None:
    weight_ih = rnn.get_parameter("weight_ih_l0")  # [H, I]
    weight_hh = rnn.get_parameter("weight_hh_l0")  # [H, H]
    if start == "orthogonal":
        nn.init.orthogonal_(weight_hh)
    else:
        keep = (rnn.hidden_size + 1) // 2
        nn.init.uniform_(weight_ih, -2, 2)
        weight_hh.mul_(0.1).fill_diagonal_(0)
        weight_hh.diagonal()[:keep] = 1
    nn.init.zeros_(rnn.get_parameter("bias_ih_l0"))
    nn.init.zeros_(rnn.get_parameter("bias_hh_l0"))
