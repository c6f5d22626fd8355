"""What computational neuroscience asks of W_hh, for ``torch.nn.utils.parametrize``.

A parametrization takes the place of a parameter: what is learned is something else, of which the
weights are made whenever they are used::

    from torch.nn.utils import parametrize

    rnn = RNN(input_size=3, hidden_size=100)
    parametrize.register_parametrization(rnn, "weight_hh_l0", Dale(dale_signs(100)))

``weight_hh[i][j]`` leads from unit j, which sends, to unit i, which receives. Several can be
registered one after the other; each acts on what the one before it made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dale_signs(hidden_size: int, excitatory: float = 0.8) -> Tensor:
    """Signs [H] for :class:`Dale`: +1 for the first units, -1 for the rest.

    Args:
        hidden_size: H.
        excitatory: the share of units that excite, in [0, 1]. Default 0.8, as in cortex.

    Raises:
        ValueError: ``excitatory`` is not in [0, 1].
    """
    if not 0 <= excitatory <= 1:
        raise ValueError(f"excitatory: expected a share in [0, 1], got {excitatory}")
    signs = torch.ones(hidden_size)
    signs[round(hidden_size * excitatory) :] = -1
    return signs


class Dale(nn.Module):
    """Dale's law: all weights that one unit sends have its sign. W = |V| diag(signs), V is learned.

    As in Song, Yang & Wang, "Training Excitatory-Inhibitory Recurrent Neural Networks for Cognitive
    Tasks", 2016, with the magnitude where they rectify: a weight that has come to zero can leave
    it.

    Args:
        signs: [H], +1 for a unit that excites, -1 for one that inhibits.

    Raises:
        ValueError: ``signs`` is no vector of +1 and -1.
    """

    signs: Tensor

    def __init__(self, signs: Tensor) -> None:
        """Keeps ``signs`` as a buffer."""
        super().__init__()
        if signs.dim() != 1 or not bool((signs.abs() == 1).all()):
            raise ValueError(f"signs: expected a vector [H] of +1 and -1, got {signs}")
        self.register_buffer("signs", signs)

    def forward(self, weight: Tensor) -> Tensor:
        """V [H, H] to W."""
        return weight.abs() * self.signs.to(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """W to V; of a weight of the wrong sign the magnitude is kept."""
        return weight


class Sparse(nn.Module):
    """Connections that are not there: W = mask ⊙ V, V is learned.

    Args:
        mask: what V is multiplied by entry by entry, [H, H]; 0 where there is no connection.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """Keeps ``mask`` as a buffer."""
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """V [H, H] to W."""
        return weight * self.mask.to(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """W to V."""
        return weight


class LowRank(nn.Module):
    """W = M Nᵀ / H with M and N [H, rank], which are learned.

    As in Mastrogiuseppe & Ostojic, "Linking Connectivity, Dynamics, and Computations in Low-Rank
    Recurrent Neural Networks", 2018. They are the parameters ``original0`` and ``original1`` of
    ``rnn.parametrizations.weight_hh_l0``; at first, M Nᵀ / H is the matrix of this rank that is
    nearest to the weights that were there.

    Args:
        rank: number of columns of M and N.

    Raises:
        ValueError: ``rank`` is less than 1.
    """

    def __init__(self, rank: int) -> None:
        """Checks ``rank``."""
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.rank = rank

    def forward(self, m: Tensor, n: Tensor) -> Tensor:
        """M and N [H, rank] to W [H, H]."""
        return m @ n.mT / m.size(0)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """W to M and N, by its largest singular values."""
        u, s, vh = torch.linalg.svd(weight)
        root = (s[: self.rank] * weight.size(0)).sqrt()
        return (u[:, : self.rank] * root).contiguous(), (vh[: self.rank].mT * root).contiguous()


class InitialState(nn.Module):
    """A learned h_0, the same for every sequence: ``rnn(x, initial_state(B))``.

    Args:
        num_states: number of layers times directions.
        hidden_size: H.

    Attributes:
        state: the parameter, [num_states, H]; zero at first.
    """

    def __init__(self, num_states: int, hidden_size: int) -> None:
        """Makes the parameter."""
        super().__init__()
        self.state = nn.Parameter(torch.zeros(num_states, hidden_size))

    def forward(self, batch: int) -> Tensor:
        """h_0 for ``batch`` rows, [num_states, batch, H]."""
        return self.state.unsqueeze(1).expand(-1, batch, -1)
