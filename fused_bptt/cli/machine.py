"""What a run depends on besides its options: versions, CPU, threads, GPU."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import fused_bptt
from fused_bptt import _ops
from fused_bptt.cli.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Versions and hardware, as text that can go into a table or into JSON."""

    fused_bptt: str
    torch: str
    python: str
    cpu: str
    isas_compiled: list[str]
    isas_supported: list[str]
    isa_in_use: str
    threads: int
    cuda_archs_compiled: list[str]
    torch_cuda: str | None
    gpus: list[str]


def look() -> Machine:
    """Describe this machine and this process as they are now.

    Raises:
        UserError: ``FUSED_BPTT_CPU`` asks for what this machine does not have.
    """
    try:
        isa = _ops.cpu_isa()
    except RuntimeError as error:
        raise UserError(str(error).splitlines()[0]) from None
    return Machine(
        fused_bptt=fused_bptt.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        cpu=_cpu_model(),
        isas_compiled=_ops.compiled_isas(),
        isas_supported=_ops.cpu_isas(),
        isa_in_use=isa,
        threads=torch.get_num_threads(),
        cuda_archs_compiled=_ops.cuda_archs(),
        torch_cuda=torch.version.cuda,
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
    )


def where(here: Machine, device: torch.device) -> str:
    """What a run on ``device`` uses of the machine."""
    if device.type == "cuda":
        return here.gpus[device.index or 0]
    return f"CPU ({here.isa_in_use}), {here.threads} thread" + "s" * (here.threads > 1)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory / 2**30
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {memory:.0f} GiB)"
