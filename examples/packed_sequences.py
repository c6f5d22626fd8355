"""Sequences of unequal length: packed, never padded in the recurrence.

The task is to tell whether a run of coin tosses shows more heads than tails; runs have 5 to 60
tosses. A bidirectional RNN reads them as a PackedSequence in the order they come
(enforce_sorted=False), and h_n holds the state at each run's own end. One sees the accuracy
rise, and that a run's answer is the same whether it is packed with fifteen others or read alone.

    python examples/packed_sequences.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from fused_bptt import RNN

UPDATES, BATCH, HIDDEN = 200, 16, 32


class Majority(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN(1, HIDDEN, bidirectional=True)
        self.readout = nn.Linear(2 * HIDDEN, 1)

    def forward(self, runs: list[Tensor]) -> Tensor:
        """Runs [length, 1] of any lengths to logits [len(runs)]."""
        _, last = self.rnn(pack_sequence(runs, enforce_sorted=False))  # [2, B, H]
        return self.readout(torch.cat([last[0], last[1]], dim=1)).squeeze(1)


def tosses(count: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Runs of an odd number of tosses, each +1 or -1, and 1 where heads lead."""
    lengths = 2 * torch.randint(2, 30, (count,), generator=generator) + 1
    runs = [
        2.0 * torch.randint(0, 2, (int(length), 1), generator=generator) - 1 for length in lengths
    ]
    return runs, torch.stack([(run.sum() > 0).float() for run in runs])


def main() -> None:
    torch.set_num_threads(1)  # so small a model gains nothing from more
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Majority()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for update in range(UPDATES + 1):
        if update % 50 == 0:
            runs, heads_lead = tosses(500, generator)
            with torch.no_grad():
                right = ((model(runs) > 0) == (heads_lead > 0)).float().mean().item()
            print(f"update {update:>3}: {right:.1%} of 500 new runs right")
        runs, heads_lead = tosses(BATCH, generator)
        loss = nn.functional.binary_cross_entropy_with_logits(model(runs), heads_lead)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    with torch.no_grad():
        together = model(runs)
        alone = torch.cat([model([run]) for run in runs])
    lengths = [len(run) for run in runs]
    print(f"lengths in the last batch: {lengths}")
    print(f"packed together or alone: {(together - alone).abs().max().item():.1e} apart")


if __name__ == "__main__":
    main()
