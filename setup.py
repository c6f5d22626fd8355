"""Builds `fused_bptt/_C.abi3.so` on PyTorch's stable ABI; everything else is in pyproject.toml."""

import platform

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ISAS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["baseline", "neon"]}.get(
    platform.machine(), ["baseline"]
)
SOURCES = [
    "csrc/library.cpp",
    "csrc/info.cpp",
    "csrc/cpu/register.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/schedule.cpp",
    *(f"csrc/cpu/kernels_{isa}.cpp" for isa in ISAS),
]

extension = CppExtension(
    "fused_bptt._C",
    SOURCES,
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
    ],
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
