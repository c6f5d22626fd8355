"""What the two modules are trained on: sequential digits, and the adding problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_bptt.cli.errors import UserError

PIXELS = 64

Nonlinearity = Literal["tanh", "relu"]

#: Initial weights under which h lasts over many steps, where PyTorch's own forget. Orthogonal:
#: W_hh is, and keeps the norm of h. Memory: half of the units keep their state (W_hh is the
#: identity there, after Le, Jaitly and Hinton 2015), the others see little but a strong input.
Start = Literal["orthogonal", "memory"]


@dataclass(frozen=True)
class Defaults:
    """Options of a task where the command line does not give them."""

    T: int
    hidden: int
    batch_size: int
    nonlinearity: Nonlinearity
    epochs: int
    lr: float
    #: Factor on lr for W_hh, which acts T times where every other weight acts once; see
    #: ``recurrent_lr_at``.
    recurrent_lr: float
    #: Largest norm of the gradient of all parameters together; None where it needs no limit.
    clip: float | None
    start: Start

    def recurrent_lr_at(self, T: int) -> float:
        """The factor on lr for W_hh at T steps: less where T is longer than usual.

        Small enough, two runs that differ by rounding stay together to the end of training.
        """
        return self.recurrent_lr * min(1.0, self.T / T)


DEFAULTS = {
    "digits": Defaults(
        T=PIXELS,
        hidden=64,
        batch_size=8,
        nonlinearity="tanh",
        epochs=30,
        lr=2e-3,
        recurrent_lr=0.1,
        clip=None,
        start="orthogonal",
    ),
    "adding": Defaults(
        T=50,
        hidden=64,
        batch_size=16,
        nonlinearity="tanh",
        epochs=30,
        lr=1e-3,
        recurrent_lr=0.03,
        clip=1.0,
        start="memory",
    ),
}


@dataclass(frozen=True)
class Sequences:
    """N sequences of equal length with their targets."""

    inputs: Tensor  # [T, N, I]
    targets: Tensor  # [N]

    @property
    def count(self) -> int:
        """N."""
        return self.inputs.shape[1]

    def shuffled(self, generator: torch.Generator) -> Sequences:
        """The same sequences in a random order."""
        order = torch.randperm(self.count, generator=generator)
        return Sequences(self.inputs[:, order], self.targets[order])

    def batches(self, size: int, device: torch.device, dtype: torch.dtype) -> list[Sequences]:
        """Consecutive batches, contiguous on ``device``; the last may be smaller."""
        return list(self._batches(size, device, dtype))

    def _batches(self, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Sequences]:
        for start in range(0, self.count, size):
            inputs = self.inputs[:, start : start + size]
            targets = self.targets[start : start + size]
            target_dtype = dtype if targets.is_floating_point() else targets.dtype
            yield Sequences(inputs.to(device, dtype).contiguous(), targets.to(device, target_dtype))


class Task(ABC):
    """Data, loss and score; the model reads the answer off the last hidden state."""

    name: str
    title: str
    score_name: str
    #: Part of a sentence on the data.
    description: str
    T: int
    input_size: int
    output_size: int
    test: Sequences
    training_size: int

    @abstractmethod
    def training_epoch(self) -> Sequences:
        """The training sequences of the next epoch, in the order to be used."""

    @abstractmethod
    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of output [B, O] against targets [B]."""

    @abstractmethod
    def score(self, output: Tensor, targets: Tensor) -> float:
        """Score of output [N, O] against targets [N], in the unit of ``score_name``."""

    @abstractmethod
    def format_score(self, score: float) -> str:
        """The score as at most eight characters."""


class Digits(Task):
    """The UCI handwritten digits that scikit-learn ships, read pixel by pixel."""

    name = "digits"
    title = "Sequential digits"
    score_name = "test accuracy"
    output_size = 10

    def __init__(self, T: int, seed: int) -> None:
        """Load and split the images: 1,437 for training, 360 for testing.

        Args:
            T: steps a digit is read in, 64 / T pixels a step.
            seed: of the split and of the order of each epoch.

        Raises:
            UserError: T does not divide the 64 pixels.
        """
        if PIXELS % T:
            raise UserError(
                f"--T {T}: a digit has {PIXELS} pixels and an equal share of them is read at "
                "each step, so T must be 1, 2, 4, 8, 16, 32 or 64."
            )
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

        data = load_digits()
        pixels = torch.from_numpy(data.data)  # [N, 64], 0 to 16
        pixels = (pixels - pixels.mean()) / pixels.std()
        labels = torch.from_numpy(data.target).long()
        train, test = train_test_split(
            range(len(labels)), test_size=0.2, random_state=seed, stratify=data.target
        )
        self.T, self.input_size = T, PIXELS // T
        inputs = pixels.reshape(len(labels), self.T, self.input_size).transpose(0, 1)
        self._train = Sequences(inputs[:, train], labels[train])
        self.test = Sequences(inputs[:, test], labels[test])
        self.training_size = self._train.count
        self._generator = torch.Generator().manual_seed(seed)
        pixel = "pixel" if self.input_size == 1 else "pixels"
        self.description = (
            f"{self.training_size:,} training and {self.test.count:,} test "
            f"images of 8 x 8, read {self.input_size} {pixel} a step (T = {T})"
        )

    def training_epoch(self) -> Sequences:
        """All training images in a new random order."""
        return self._train.shuffled(self._generator)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits [B, 10], in nats."""
        return F.cross_entropy(output, targets)

    def score(self, output: Tensor, targets: Tensor) -> float:
        """Fraction of images whose largest logit is the right one."""
        return (output.argmax(1) == targets).double().mean().item()

    def format_score(self, score: float) -> str:
        """In percent."""
        return f"{100 * score:.1f} %"


class Adding(Task):
    """The adding problem: the sum of the two marked numbers among T."""

    name = "adding"
    title = "Adding problem"
    score_name = "test MSE"
    input_size = 2
    output_size = 1
    training_size = 2000
    _test_size = 1000

    def __init__(self, T: int, seed: int) -> None:
        """Generate the test sequences; those of training are new in each epoch.

        Args:
            T: steps; one number and one mark are read at each.
            seed: of all that is generated.

        Raises:
            UserError: T leaves no room for two marks.
        """
        if T < 2:
            raise UserError(f"--T {T}: the adding problem marks two steps, so T must be 2 or more.")
        self.T = T
        self._generator = torch.Generator().manual_seed(seed)
        self.test = self._sequences(self._test_size)
        self.description = (
            f"{self.training_size:,} new sequences an epoch and "
            f"{self.test.count:,} for testing, T = {T}; a constant answer has MSE 0.167"
        )

    def training_epoch(self) -> Sequences:
        """New sequences."""
        return self._sequences(self.training_size)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of output [B, 1]."""
        return F.mse_loss(output.squeeze(1), targets)

    def score(self, output: Tensor, targets: Tensor) -> float:
        """Mean squared error."""
        return self.loss(output, targets).item()

    def format_score(self, score: float) -> str:
        """With five decimals."""
        return f"{score:.5f}" if score < 100 else f"{score:.1e}"

    def _sequences(self, count: int) -> Sequences:
        """One mark falls in the first half of the steps, one in the second.

        Numbers are uniform in (-½, ½) and the target is their sum: the usual problem, shifted
        by its mean so that neither the input nor the answer has a bias to be learnt first.
        """
        numbers = torch.rand(self.T, count, generator=self._generator) - 0.5
        half = self.T // 2
        first = torch.randint(0, half, (count,), generator=self._generator)
        second = torch.randint(half, self.T, (count,), generator=self._generator)
        marks = torch.zeros(self.T, count)
        each = torch.arange(count)
        marks[first, each] = 1
        marks[second, each] = 1
        return Sequences(torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0))


TASKS: dict[str, type[Digits] | type[Adding]] = {"digits": Digits, "adding": Adding}
