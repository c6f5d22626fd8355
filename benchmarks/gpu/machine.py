"""What a GPU's figures depend on: device, driver, clocks, versions, PyTorch's switches."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import time
from typing import Any

import torch

_QUERIES = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
    "mig.mode.current",
)


def why_no_gpu() -> str:
    """A sentence; "" where there is a GPU."""
    if torch.version.cuda is None:
        return f"No GPU can be used here: torch {torch.__version__} was built without CUDA."
    if not torch.cuda.is_available():
        return "No GPU is here: torch sees no CUDA device."
    return ""


def look() -> dict[str, Any]:
    """As JSON."""
    found: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "nvcc": _nvcc(),
        "no_gpu": why_no_gpu(),
        "packages": {name: _version(name) for name in ("jax", "flashrnn", "pytest", "hypothesis")},
    }
    if found["no_gpu"]:
        return found
    properties = torch.cuda.get_device_properties(0)
    found["gpu"] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
    }
    found["cudnn"] = torch.backends.cudnn.version()
    found["nvidia_smi"] = clocks()
    return found


def clocks() -> dict[str, str]:
    """What nvidia-smi says of the first GPU now; nothing where it is not there."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    query = [smi, f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    values = done.stdout.strip().split(", ")
    return dict(zip(_QUERIES, values, strict=True)) if len(values) == len(_QUERIES) else {}


def switches() -> dict[str, Any]:
    """PyTorch's switches that change what a rival computes."""
    return {
        "cudnn.rnn.fp32_precision": torch.backends.cudnn.rnn.fp32_precision,
        "cuda.matmul.fp32_precision": torch.backends.cuda.matmul.fp32_precision,
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
    }


def words(here: dict[str, Any]) -> str:
    """One line."""
    software = f"torch {here['torch']}, nvcc {here['nvcc'] or 'none'}"
    if here["no_gpu"]:
        return f"{here['no_gpu']} ({software})"
    gpu, smi = here["gpu"], here["nvidia_smi"]
    return (
        f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')}, {gpu['sms']} SMs), driver "
        f"{smi.get('driver_version', 'unknown')}, SM clock {smi.get('clocks.sm', '?')} of "
        f"{smi.get('clocks.max.sm', '?')}, cuDNN {here['cudnn']}, {software}"
    )


def _nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
