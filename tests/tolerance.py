"""How close is close: the only source of tolerances. Nothing here is loosened by hand.

Two computations of the same sum in another order differ by rounding alone. The tolerances say how
much rounding that is, and never more:

- float64 against float64: 1e-12 of the largest value. The cases are well scaled (weights drawn
  within H^-1/2, some tens of steps), so rounding is amplified by little: 4500 ulp is room enough.
- any type against the truth (the same case in float64): our error is not larger than the rival's
  error in that type, but for a floor of a few ulp of the largest value, since two roundings of one
  number may fall on either side of it.
- exact: the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT64_RELATIVE = 1e-12
FLOOR_ULPS = 4

# The kernels' own tanh, in units of the last place of the exact value.
TANH_ULPS = {torch.float32: 1.5, torch.float64: 2.0}
# Their sigmoid and softplus, of either type.
ACTIVATION_ULPS = 2.5

Named = dict[str, Tensor]


def _scale(truth: Tensor) -> float:
    return truth.abs().max().item() if truth.numel() else 0.0


def _error(actual: Tensor, truth: Tensor) -> float:
    return _scale(actual.to(torch.float64) - truth)


def _check_kind(name: str, actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape, (
        f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    )
    assert actual.dtype == expected.dtype, f"{name}: expected {expected.dtype}, got {actual.dtype}"


def assert_close(actual: Named, expected: Named) -> None:
    """Float64 against float64."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == torch.float64, f"{name} is {value.dtype}"
        _check_kind(name, actual[name], value)
        error, scale = _error(actual[name], value), _scale(value)
        assert error <= FLOAT64_RELATIVE * scale, (
            f"{name}: expected at most {FLOAT64_RELATIVE:g} of {scale:g}, got {error:g}"
        )


def assert_no_worse(
    actual: Named, rival: Named, truth: Named, computed_in: torch.dtype | None = None
) -> None:
    """The error of `actual` against float64 is at most the rival's, but for the floor.

    The floor is made of ulp of the type that a value has, or was computed in.
    """
    assert actual.keys() == rival.keys() == truth.keys()
    for name, value in truth.items():
        _check_kind(name, actual[name], rival[name])
        floor = FLOOR_ULPS * torch.finfo(computed_in or actual[name].dtype).eps * _scale(value)
        allowed = _error(rival[name], value) + floor
        error = _error(actual[name], value)
        assert error <= allowed, (
            f"{name}: expected an error of at most {allowed:g} "
            f"(floor {floor:g}) of {_scale(value):g}, got {error:g}"
        )


def assert_exact(actual: Named, expected: Named) -> None:
    """The same bits; NaN where NaN is expected."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        _check_kind(name, actual[name], value)
        same = (actual[name] == value) | (actual[name].isnan() & value.isnan())
        assert same.all(), (
            f"{name}: {int((~same).sum())} of {same.numel()} elements differ, first at "
            f"{(~same).nonzero()[0].tolist()}: expected {value[~same][0].item()!r}, "
            f"got {actual[name][~same][0].item()!r}"
        )


def assert_same_nonfinite(actual: Named, expected: Named) -> None:
    """NaN, +inf and -inf in the same places, and float64-close values in all others."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        _check_kind(name, actual[name], value)
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            differs = kind(actual[name]) != kind(value)
            assert not differs.any(), (
                f"{name}: {kind.__name__} differs at {differs.nonzero()[0].tolist()}: "
                f"expected {value[differs][0].item()!r}, got {actual[name][differs][0].item()!r}"
            )
        finite = value.isfinite()
        assert_close({name: actual[name][finite]}, {name: value[finite]})
