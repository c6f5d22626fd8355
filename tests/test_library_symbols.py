"""The compiled library asks for PyTorch's stable C interface alone, and for nothing of CPython."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import fused_bptt

LIBRARY = Path(fused_bptt.__file__).with_name("_C.abi3.so")
# at::, c10:: and torch:: in the mangling of the Itanium ABI: a length, the name, the next length.
TORCH_CPP = re.compile(r"^_Z.*(?<!\d)(2at|3c10|5torch)\d")


@pytest.fixture(scope="module")
def undefined() -> set[str]:
    with LIBRARY.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        return {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}


def test_the_table_was_read(undefined: set[str]) -> None:
    assert any(name.startswith("aoti_torch_") for name in undefined)


def test_no_cpp_symbol_of_torch(undefined: set[str]) -> None:
    assert not {name for name in undefined if TORCH_CPP.match(name)}


@pytest.mark.parametrize(
    "name",
    [
        "_ZN2at5emptyEN3c108ArrayRefIlEE",
        "_ZNK2at10TensorBase4sizeEl",
        "_ZN3c106detail14torchCheckFailEPKcS2_jS2_",
        "_ZTIN3c105ErrorE",
        "_ZN5torch7LibraryD1Ev",
        "_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev",
    ],
)
def test_one_would_be_seen(name: str) -> None:
    assert TORCH_CPP.match(name)


def test_no_symbol_of_cpython(undefined: set[str]) -> None:
    assert not {name for name in undefined if re.match(r"_?Py[A-Z_]", name)}


def test_libraries_that_it_needs() -> None:
    """Neither libpython nor anything of CUDA, which a machine without a GPU does not have."""
    with LIBRARY.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    assert needed
    assert not {name for name in needed if re.match(r"lib(python|cuda|cudart|c10_cuda|nv)", name)}


def test_no_path_of_the_machine_that_built_it() -> None:
    with LIBRARY.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        paths = [
            getattr(tag, "runpath", None) or getattr(tag, "rpath", None)
            for tag in dynamic.iter_tags()
            if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")
        ]
    assert all(part.startswith("$ORIGIN") for path in paths for part in path.split(":") if part)
