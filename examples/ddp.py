"""Data parallel training on several processes: DDP or FSDP2, gloo on CPUs or NCCL on GPUs.

Every process takes its share of each batch; the gradients are averaged. One sees that the losses
and the final weights are those of one process that takes whole batches, with gradients
accumulated over two parts of a batch, and synchronised only with the last one (no_sync).

    torchrun --nproc-per-node 2 examples/ddp.py --strategy ddp
    torchrun --nproc-per-node 2 examples/ddp.py --strategy fsdp --backend nccl
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fused_bptt import RNN

STEPS, BATCH, PARTS, UPDATES = 30, 16, 2, 5


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN(1, 32, num_layers=2)
        self.readout = nn.Linear(32, 1)

    def forward(self, samples: Tensor) -> Tensor:
        """[T + 1, B, 1] to the mean squared error of predicting each sample from those before."""
        states, _ = self.rnn(samples[:-1])
        return nn.functional.mse_loss(self.readout(states), samples[1:])


def parallel(model: Forecaster, strategy: str) -> nn.Module:
    """The model as one of the processes holds it."""
    if strategy == "ddp":
        return DistributedDataParallel(model)
    fully_shard(model.rnn)
    return fully_shard(model)


def without_sync(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Gradients stay with their process until the last part of a batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def train(model: nn.Module, rank: int, size: int, device: torch.device) -> list[float]:
    """Mean loss of each update, over all processes."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(UPDATES):
        walks = torch.randn(STEPS + 1, BATCH, 1, generator=generator).cumsum(0) / STEPS**0.5
        mine = walks[:, rank::size].to(device)
        total = torch.zeros((), device=device)
        for part, chunk in enumerate(mine.chunk(PARTS, dim=1)):
            with without_sync(model, last=part == PARTS - 1):
                loss = model(chunk) / PARTS
                loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        if size > 1:
            dist.all_reduce(total)
        losses.append(total.item() / size)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    dist.init_process_group(options.backend)
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    alone = Forecaster().to(device)
    torch.manual_seed(0)
    model = Forecaster().to(device)
    losses = train(parallel(model, options.strategy), rank, size, device)
    losses_alone = train(alone, 0, 1, device)
    weights = [
        value.full_tensor() if isinstance(value, DTensor) else value for value in model.parameters()
    ]
    pairs = zip(weights, alone.parameters(), strict=True)
    difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    if rank == 0:
        print(f"{options.strategy} on {size} processes ({options.backend})")
        print("update  together  alone")
        for update, (ours, theirs) in enumerate(zip(losses, losses_alone, strict=True)):
            print(f"{update:>6}  {ours:.6f}  {theirs:.6f}")
        print(f"weights differ by {difference:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Not through the interpreter's end: with torch 2.13, threads of gloo that are on their way out
    # abort one run in ten there, after all is done.
    sys.stdout.flush()
    os._exit(0)
