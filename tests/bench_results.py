"""Made-up results of `fused-bptt bench`, for the tests of what is computed and drawn from them."""

from __future__ import annotations

from typing import Any

OURS, THEIRS = "fused_bptt.RNN", "nn.RNN"
RATES = {"multiply_add_gflops": 100.0, "sgemm_gflops": 90.0}


def block(
    B: int = 1, H: int = 16, threads: int = 1, *, T: int = 100, layers: int = 1, **seconds: Any
) -> dict[str, Any]:
    """A block; `ours`, `theirs` and `jax` are samples by round, or a reason for no samples."""
    names = {"ours": OURS, "theirs": THEIRS}
    rivals = {}
    for name, found in seconds.items():
        timed = isinstance(found, list)
        outcome = {"error": 1e-7, "seconds": found} if timed else {"wrong": found}
        rivals[names.get(name, name)] = outcome
    return {
        "cell": {"B": B, "H": H, "T": T, "I": min(H, 64), "layers": layers, "dtype": "float32"},
        "threads": threads,
        "affinity": [0],
        "mode": "forward_backward",
        "rivals": rivals,
        "roofline_seconds": 0.5e-3,
        "elsewhere": 0.0,
        "attempts": 1,
        "probes": {"before": RATES, "after": RATES},
    }


def results(*blocks: dict[str, Any]) -> dict[str, Any]:
    """A whole file."""
    return {
        "schema": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "machine": {
            "cpu": "A CPU & more",
            "cores": 2,
            "caches": {"L1": "32K"},
            "flags": ["avx2"],
            "hypervisor": False,
        },
        "software": {"commit": "abc", "modified": False},
        "method": {"rounds": 3, "turn_seconds": 0.02, "sample": "median"},
        "rivals": {
            OURS: {"version": "1.0", "settings": {"1": "eager"}},
            THEIRS: {"version": "2.0", "settings": {"1": "eager"}},
            "jax": {"version": "3.0", "settings": {"1": "jit"}},
            "xma": {"settings": {}, "missing": "has kernels for a GPU alone"},
        },
        "blocks": list(blocks),
        "memory": [
            {
                "rival": rival,
                "threads": 1,
                "cell": {"B": 32, "H": 256, "T": 1000, "I": 64, "layers": 1, "dtype": "float32"},
                "extra_bytes": extra,
                "needed_bytes": {"u_h_q": 90_000_000, "gradients": 10_000_000},
            }
            for rival, extra in ((OURS, 300_000_000), (THEIRS, 150_000_000))
        ],
    }


#: The ratios by round of the first are 4, 6 and 2: their median is not the ratio of the medians.
MADE_UP = results(
    block(1, 16, ours=[1e-3, 1e-3, 4e-3], theirs=[4e-3, 6e-3, 8e-3], jax="grad x: error 1.0e+00"),
    block(8, 1024, ours=[1e-3] * 3, theirs=[123e-3] * 3, jax=[0.5e-3] * 3),
)
