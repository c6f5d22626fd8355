"""The change of one import, in a model that learns to continue a wave.

Each training sequence is a sum of two sines with random frequencies and phases; the model
predicts the next sample at every step. One sees the loss of the model with fused_bptt.RNN and
of the same model with torch.nn.RNN fall together to the last printed digit, and the seconds of
both. At the end a model that already exists gets the fused recurrence by replace_rnn.

    python examples/drop_in.py
"""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from fused_bptt import RNN, replace_rnn  # RNN was: from torch.nn import RNN

STEPS, BATCH, HIDDEN = 100, 16, 64
UPDATES = 100


class Forecaster(nn.Module):
    def __init__(self, rnn_class: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = rnn_class(1, HIDDEN, batch_first=True)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, samples: Tensor) -> Tensor:
        """[B, T, 1] to predictions of the sample after each, [B, T, 1]."""
        states, _ = self.rnn(samples)
        return self.readout(states)


def waves(count: int, generator: torch.Generator) -> Tensor:
    """[count, STEPS + 1, 1], periods of 10 to 60 samples."""
    times = torch.arange(STEPS + 1)
    periods = 10 + 50 * torch.rand(count, 2, 1, generator=generator)
    phases = 2 * math.pi * torch.rand(count, 2, 1, generator=generator)
    return torch.sin(2 * math.pi * times / periods + phases).mean(1).unsqueeze(2)


def train(model: Forecaster) -> tuple[list[float], float]:
    """Losses, one for each update, and seconds."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    start = time.perf_counter()
    for _ in range(UPDATES):
        samples = waves(BATCH, generator)
        loss = nn.functional.mse_loss(model(samples[:, :-1]), samples[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)  # so small a model gains nothing from more
    torch.manual_seed(0)
    theirs = Forecaster(nn.RNN)
    torch.manual_seed(0)
    ours = Forecaster(RNN)  # the same seed gives the same weights

    losses_of_theirs, seconds_of_theirs = train(theirs)
    losses_of_ours, seconds_of_ours = train(ours)
    print("update  nn.RNN    fused_bptt.RNN")
    for update in range(0, UPDATES, 20):
        print(f"{update:>6}  {losses_of_theirs[update]:.6f}  {losses_of_ours[update]:.6f}")
    pairs = zip(losses_of_theirs, losses_of_ours, strict=True)
    print(f"last loss: {losses_of_ours[-1]:.6f}")
    print(f"largest difference: {max(abs(a - b) for a, b in pairs):.1e}")
    print(f"seconds: {seconds_of_theirs:.2f} and {seconds_of_ours:.2f}")

    samples = waves(BATCH, torch.Generator().manual_seed(1))
    replaced = copy.deepcopy(theirs)
    replace_rnn(replaced)
    difference = (replaced(samples) - theirs(samples)).abs().max().item()
    print(f"after replace_rnn: {type(replaced.rnn).__module__.partition('.')[0]}.RNN, ", end="")
    print(f"outputs differ by {difference:.1e}")


if __name__ == "__main__":
    main()
