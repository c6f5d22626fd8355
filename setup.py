"""Builds `fused_bptt/_C.abi3.so` on PyTorch's stable ABI; everything else is in pyproject.toml.

CUDA kernels are compiled where there is nvcc. FUSED_BPTT_CUDA_ARCHS names the architectures,
`native` or `none`; MAX_JOBS says how many files are compiled at once.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

sys.path.insert(0, str(Path(__file__).parent))  # a build in isolation has it not on its path
import build_cuda

ISAS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["baseline", "neon"]}.get(
    platform.machine(), ["baseline"]
)
SOURCES = [
    "csrc/library.cpp",
    "csrc/info.cpp",
    "csrc/monitor.cpp",
    "csrc/cpu/register.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/schedule.cpp",
    *(f"csrc/cpu/kernels_{isa}.cpp" for isa in ISAS),
    # The plan is for machines without a GPU, too.
    "csrc/cuda/plan.cpp",
    "csrc/cuda/limits.cpp",
    "csrc/cuda/explain.cpp",
]

NVCC = build_cuda.find_nvcc()
ARCHS = build_cuda.archs() if NVCC else ()

extension = CppExtension(
    "fused_bptt._C",
    SOURCES + (["csrc/cuda/register.cpp"] if ARCHS else []),
    py_limited_api=True,
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        # The kernels say themselves where they fuse a multiply and an add; the compiler choosing
        # case by case would make a sum's bits depend on the tile that it is computed in.
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Wno-maybe-uninitialized",  # GCC's own AVX-512 headers
        "-DTORCH_TARGET_VERSION=0x020a000000000000",  # runs with torch >= 2.10
        f'-DFUSED_BPTT_CUDA_ARCHS="{" ".join(ARCHS)}"',
    ],
)


class Build(BuildExtension):
    """Compiles the CUDA sources beside the others, and links their objects."""

    def build_extension(self, ext):
        if ARCHS:
            print(f"fused-bptt: CUDA kernels for {' '.join(ARCHS)}, by {NVCC}", flush=True)
            objects = build_cuda.compile_all(NVCC, ARCHS)
            ext.extra_objects = [str(compiled.object) for compiled in objects]
            ext.extra_link_args = [
                f"-L{build_cuda.library_folder(NVCC)}",
                "-lcudart_static",
                # Torch may bring a CUDA runtime of another version: each binds to its own.
                "-Wl,--exclude-libs,libcudart_static.a",
                *("-lrt", "-ldl", "-lpthread"),
            ]
        else:
            asked = f"FUSED_BPTT_CUDA_ARCHS is {os.environ.get('FUSED_BPTT_CUDA_ARCHS')}"
            print(f"fused-bptt: CPU only: {asked if NVCC else 'no nvcc was found'}", flush=True)
        super().build_extension(ext)


setup(
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
