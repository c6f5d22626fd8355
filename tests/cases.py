"""Named cases: every shape and option that the tests (and the benchmarks) speak of."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


@dataclass(frozen=True)
class Case:
    """One module and one batch of input for it. Lengths make the batch a PackedSequence."""

    name: str
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 6
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    batched: bool = True
    hx: bool = True
    lengths: tuple[int, ...] | None = None
    # Biases of alternate sign and this size, and recurrent weights made smaller, keep relu away
    # from its kink: there, in few bits, two right computations choose different slopes.
    gap: float = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of nn.RNN."""
        names = (
            "num_layers",
            "nonlinearity",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
        )
        return {
            "input_size": self.I,
            "hidden_size": self.H,
            **{name: getattr(self, name) for name in names},
        }

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def generator(self) -> torch.Generator:
        """The same numbers for the same name, today and tomorrow."""
        return torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

    def module(self, kind: type[nn.RNNBase] = nn.RNN, dtype: torch.dtype = torch.float64) -> Any:
        """An instance of `kind` with this case's weights, drawn as nn.RNN draws them."""
        module = kind(**self.options)  # type: ignore[arg-type]
        generator, bound = self.generator(), self.H**-0.5
        with torch.no_grad():
            for parameter in module.parameters():
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_((2 * drawn - 1) * bound)
            if self.gap:
                for name, parameter in module.named_parameters():
                    if name.startswith("bias_ih"):
                        parameter[::2] += self.gap
                        parameter[1::2] -= self.gap
                    elif name.startswith("weight_hh"):
                        parameter *= 0.3
        return module.to(dtype)

    def inputs(
        self, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor | PackedSequence, Tensor | None]:
        """Input and hx; both are leaves that require their gradients."""
        generator = self.generator()
        generator.manual_seed(generator.initial_seed() + 1)

        def leaf(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(dtype).requires_grad_()

        if not self.batched:
            shape: tuple[int, ...] = (self.T, self.I)
        elif self.batch_first:
            shape = (self.B, self.T, self.I)
        else:
            shape = (self.T, self.B, self.I)
        x = leaf(*shape)
        rows = (self.B,) if self.batched else ()
        hx = leaf(self.num_layers * self.directions, *rows, self.H) if self.hx else None
        if self.lengths is None:
            return x, hx
        packed = pack_padded_sequence(
            x, torch.tensor(self.lengths), batch_first=self.batch_first, enforce_sorted=False
        )
        return packed._replace(data=packed.data.detach().requires_grad_()), hx


def variants(base: Case, **choices: tuple[Any, ...]) -> Iterator[Case]:
    """The product of `choices` over `base`, each case named by what it chose."""
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        yield replace(base, name=f"{base.name}[{name}]", **chosen)


# Register tiles are 1, 3, 4, 6, 8, 9, 12 or 14 rows of 1, 2, 3, 4 or 8 vectors of 4, 8 or 16 floats
# (half as many doubles). Each size is one of these products, a neighbour of one, 1, or a prime.
H_SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97)
H_SIZES += (127, 128, 129)
B_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 23, 28, 29)

# Every H meets a few B, and every B meets a few H, without the whole product.
SIZES = tuple(
    Case(f"B{B}-H{H}", T=4, B=B, I=3, H=H)
    for B, H in sorted(
        {(B_SIZES[(3 * i + k) % len(B_SIZES)], H) for i, H in enumerate(H_SIZES) for k in (0, 7)}
        | {(B, H) for B in B_SIZES for H in (17, 65)}
    )
)

# Enough work for more than one thread, by rows and by columns.
WIDE = (
    Case("wide-rows", T=30, B=67, I=5, H=61),
    Case("wide-columns", T=60, B=2, I=5, H=331),
    Case("wide-bidirectional", T=20, B=19, I=5, H=131, bidirectional=True, num_layers=2),
)

OPTIONS = tuple(
    variants(
        Case("options", T=5, B=3, I=4, H=7),
        nonlinearity=("tanh", "relu"),
        num_layers=(1, 2, 3),
        bidirectional=(False, True),
        bias=(True, False),
        batch_first=(False, True),
        hx=(True, False),
    )
)

UNBATCHED = tuple(
    variants(
        Case("unbatched", T=5, I=4, H=7, batched=False),
        batch_first=(False, True),
        num_layers=(1, 2),
        bidirectional=(False, True),
        hx=(True, False),
    )
)

LENGTHS = {
    "equal": (4, 4, 4),
    "sorted": (6, 4, 3, 1),
    "unsorted": (2, 6, 1, 4, 4),
    "ones": (1, 1, 1),
    "one-row": (5,),
    "one-long": (1, 1, 9, 1),
    "tiles": (3, 1, 7, 7, 2, 5, 7, 4, 1, 6, 3, 2, 7, 5, 7, 1),
}

PACKED = tuple(
    case
    for name, lengths in LENGTHS.items()
    for case in variants(
        Case(f"packed-{name}", T=max(lengths), B=len(lengths), I=3, H=17, lengths=lengths),
        num_layers=(1, 2),
        bidirectional=(False, True),
        hx=(True, False),
    )
) + tuple(
    variants(
        Case("packed-options", T=6, B=5, I=3, H=5, lengths=LENGTHS["unsorted"]),
        nonlinearity=("tanh", "relu"),
        bias=(True, False),
        batch_first=(False, True),
        bidirectional=(False, True),
    )
)


def ids(cases: tuple[Case, ...]) -> list[str]:
    """The names, for pytest."""
    return [case.name for case in cases]
