"""A memory task in a vectorised toy environment, with episodes that end inside the sequences.

In each of many environments a cue, left or right, is shown at the first step of an episode; some
steps later a signal asks for it. Episodes have random lengths and follow one another, so a training
sequence of T steps holds several, and the state has to be reset between them. One call with `reset`
does that. One sees the share of right answers rise, beside the same training with a loop written in
Python, from the same weights and on the same data, and the seconds of both.

    python examples/memory_resets.py [--updates 150] [--out out/memory_resets]

writes learning.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor, nn

from fused_bptt import RNN

mpl.use("Agg")
import matplotlib.pyplot as plt

STEPS, ENVIRONMENTS, HIDDEN = 128, 64, 64
SHORTEST, LONGEST = 8, 20

Run = Callable[[RNN, Tensor, Tensor], Tensor]


def episodes(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations [T, B, 3] (left, right, asked); reset, asked, the right answer, each [T, B]."""
    left = torch.zeros(ENVIRONMENTS, dtype=torch.long)  # steps that are left of the episode
    cue = torch.zeros(ENVIRONMENTS, dtype=torch.long)
    observations = torch.zeros(STEPS, ENVIRONMENTS, 3)
    reset = torch.zeros(STEPS, ENVIRONMENTS, dtype=torch.bool)
    asked, answers = reset.clone(), torch.zeros(STEPS, ENVIRONMENTS, dtype=torch.long)
    for t in range(STEPS):
        begins = left == 0
        lengths = torch.randint(SHORTEST, LONGEST + 1, left.shape, generator=generator)
        cues = torch.randint(2, cue.shape, generator=generator)
        left, cue = torch.where(begins, lengths, left) - 1, torch.where(begins, cues, cue)
        reset[t], asked[t], answers[t] = begins, left == 0, cue
        observations[t, :, :2] = nn.functional.one_hot(cue, 2) * begins.unsqueeze(1)
        observations[t, :, 2] = asked[t]
    return observations, reset, asked, answers


def fused(rnn: RNN, x: Tensor, reset: Tensor) -> Tensor:
    return rnn(x, reset=reset)[0]


def written(rnn: RNN, x: Tensor, reset: Tensor) -> Tensor:
    """The loop that one writes without `reset`."""
    h, outputs = x.new_zeros(x.size(1), HIDDEN), []
    linear = nn.functional.linear
    for x_t, reset_t in zip(x, reset, strict=True):
        h = h * (~reset_t).unsqueeze(1)
        u = linear(x_t, rnn.weight_ih_l0, rnn.bias_ih_l0)
        h = torch.tanh(u + linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0))
        outputs.append(h)
    return torch.stack(outputs)


def train(run: Run, updates: int) -> tuple[list[float], float]:
    """The share of right answers at each update, and the seconds of all forward and backward."""
    torch.manual_seed(0)
    rnn, readout = RNN(3, HIDDEN), nn.Linear(HIDDEN, 2)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    shares, seconds = [], 0.0
    for _ in range(updates):
        x, reset, asked, answers = episodes(generator)
        start = time.perf_counter()
        logits = readout(run(rnn, x, reset))[asked]
        loss = nn.functional.cross_entropy(logits, answers[asked])
        optimizer.zero_grad()
        loss.backward()
        seconds += time.perf_counter() - start
        nn.utils.clip_grad_norm_(rnn.parameters(), 1.0)
        optimizer.step()
        shares.append((logits.argmax(1) == answers[asked]).float().mean().item())
    return shares, seconds


def draw(results: dict[str, tuple[list[float], float]], path: Path) -> None:
    figure, (learning, times) = plt.subplots(1, 2, figsize=(9, 3.5), width_ratios=(2, 1))
    for (name, (shares, _)), style in zip(results.items(), ("-", "--"), strict=True):
        learning.plot(shares, style, label=name)
    learning.set(xlabel="update", ylabel="share of right answers", ylim=(0.4, 1.02))
    learning.legend(loc="lower right")
    bars = times.bar(list(results), [1e3 * s / len(a) for a, s in results.values()])
    times.bar_label(bars, fmt="%.1f")
    times.set(ylabel="ms per forward and backward")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("out/memory_resets"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {"reset": train(fused, given.updates), "written loop": train(written, given.updates)}
    for name, (shares, seconds) in results.items():
        print(f"{name}: first {shares[0]:.2f}, last {shares[-1]:.2f} right, {seconds:.2f} s")
    pairs = zip(results["reset"][0][:5], results["written loop"][0][:5], strict=True)
    print(f"largest difference in the first updates: {max(abs(a - b) for a, b in pairs):.4f}")
    given.out.mkdir(parents=True, exist_ok=True)
    draw(results, given.out / "learning.png")
    print(f"written: {given.out / 'learning.png'}")


if __name__ == "__main__":
    main()
