"""Faults planted into the CUDA kernels, each of which the emulation must catch.

A fault is a change of the text of csrc/cuda, made in a copy. It is caught by a wrong result (NaN
from poisoned memory is one), by a rule that the emulation checks, by a hang, or by ThreadSanitizer.
What stays uncaught shows a hole in the emulation or its cases.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_emulation import ROOT, SANITIZER, build, run

# Exit codes of a program of cases.
CAUGHT_BY = {1: "results", 3: "a rule of the emulation", 4: "a hang", 66: "ThreadSanitizer"}


@dataclass(frozen=True)
class Fault:
    """Replaces `old`, found once in `file`, by `new`; `program` must then fail."""

    name: str
    file: str
    old: str
    new: str
    program: str
    sanitized: bool = False
    arguments: tuple[str, ...] = ()


HANGS = ("10",)  # seconds; the programs take less than one
LEAKY_HANGS = ("20",)  # small_leaky takes three
LATE = ("late", "10")

FAULTS = (
    # One CTA, and what all exchanges share.
    Fault(
        "no barrier between product and epilogue",
        "recurrence.cuh",
        "      sync_block();\n      const int32_t sent",
        "      const int32_t sent",
        "small_cta",
        sanitized=True,
    ),
    Fault(
        "no barrier after the carry is written",
        "exchange_cta.cuh",
        "publish(int64_t) { sync_block(); }",
        "publish(int64_t) {}",
        "small_cta",
        sanitized=True,
    ),
    Fault(
        "the splits of k are not summed",
        "recurrence.cuh",
        "split = 1; split < splits",
        "split = 1; split < 1",
        "small_cta",
    ),
    Fault(
        "the padding of the carry is not cleared",
        "exchange_cta.cuh",
        "    clear_padding<Product>(team_, carry_);\n",
        "",
        "small_cta",
    ),
    Fault(
        "a row of the initial state is left out",
        "exchange.cuh",
        "at.row < rows; at.advance()",
        "at.row < rows - 1; at.advance()",
        "small_cta",
    ),
    Fault(
        "rows that join have no initial state",
        "recurrence.cuh",
        "      if (n + j < p_.H) word.value[j] =",
        "      if (steps && n + j < p_.H) word.value[j] =",
        "small_cta",
    ),
    Fault(
        "the adjoint reads W as it is",
        "product.cuh",
        "receive(p.adjoint ? p.weight.column : p.weight.row)",
        "receive(p.weight.row)",
        "small_cta",
    ),
    Fault(
        "the last state of a row that ends is not stored",
        "recurrence.cuh",
        "steps && b >= r.next;",
        "steps && b > r.next;",
        "small_cta",
    ),
    Fault(
        "a tile's lower rows are read twice",
        "product_mma.cuh",
        "row + lane / 4 + (word % 2) * 8",
        "row + lane / 4",
        "small_cta",
    ),
    Fault(
        "the rest of W is read one fragment early",
        "product.cuh",
        "((j - kRegistersOfK) * kRowTiles + i)",
        "((j - 1 - kRegistersOfK) * kRowTiles + i)",
        "small_cta",
    ),
    Fault(
        "a second batch tile begins at row 1",
        "team.cuh",
        "static_cast<int64_t>(team % tiles) * plan.batch_tile",
        "static_cast<int64_t>(team % tiles)",
        "small_cta",
    ),
    Fault(
        "the carry that is loaded ahead is that of the fragment before",
        "product.cuh",
        "at_most(j + kAhead, end - 1)",
        "at_most(j + kAhead - 1, end - 1)",
        "small_cta",
    ),
    # Cuts.
    Fault(
        "a walk up is cut one boundary late",
        "recurrence.cuh",
        "team_.time(i) + (team_.down ? 0 : 1)",
        "team_.time(i)",
        "small_cta",
    ),
    Fault(
        "the replacement is forgotten at boundary 0",
        "exchange.cuh",
        "cut ? p.cuts.replacement : p.initial",
        "cut ? State{} : p.initial",
        "small_cta",
    ),
    Fault(
        "boundary 0 is not cut",
        "exchange.cuh",
        "!team.down && team.cut_at(0, b)",
        "false",
        "small_grid",
    ),
    Fault(
        "a walk down is cut where it begins",
        "exchange.cuh",
        "!team.down && team.cut_at(0, b)",
        "team.cut_at(0, b)",
        "small_launches",
    ),
    Fault(
        "the last state of an adjoint is not cut off",
        "recurrence.cuh",
        "ends && team_.down && team_.cut_at(0, b)",
        "false",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "the mask of a row is that of the tile's first",
        "team.cuh",
        "ptx::unforeseen(first_row + b) * c.row",
        "ptx::unforeseen(first_row) * c.row",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "the mask of a group is that of the first",
        "team.cuh",
        "ptx::unforeseen(group) * c.group",
        "0",
        "small_launches",
    ),
    Fault(
        "a window cuts with the replacement",
        "recurrence.cuh",
        "masked ? p_.cuts.replacement : State{}, word",
        "p_.cuts.replacement, word",
        "small_grid",
    ),
    Fault(
        "no product is taken of a replacement alone",
        "team.cuh",
        "(problem.initial.data || problem.cuts.replacement.data)",
        "problem.initial.data",
        "small_cta",
    ),
    Fault(
        "the slope of sigmoid is that of tanh",
        "activation.cuh",
        "multiply_add(-f, f, f)",
        "multiply_add(-f, f, Sum{1})",
        "small_launches",
    ),
    # Clusters.
    Fault(
        "nobody waits for the pushes",
        "exchange_cluster.cuh",
        "      ptx::mbarrier_wait_parity(barriers_ + i % 2, "
        "static_cast<uint32_t>((i - 1) / 2 % 2));\n",
        "",
        "small_cluster",
        arguments=LATE,
    ),
    Fault(
        "the phase is never flipped",
        "exchange_cluster.cuh",
        "static_cast<uint32_t>((i - 1) / 2 % 2)",
        "0u",
        "small_cluster",
        arguments=LATE,
    ),
    Fault(
        "the carry has one buffer",
        "exchange_cluster.cuh",
        "buffer_bytes_(static_cast<int32_t>(carry_buffer_bytes(team.plan)))",
        "buffer_bytes_(0)",
        "small_cluster",
        sanitized=True,
    ),
    Fault(
        "the pushes go to the CTA itself",
        "exchange_cluster.cuh",
        "ptx::mapa(to, peer), word, ptx::mapa(barrier, peer)",
        "ptx::mapa(to, static_cast<uint32_t>(team_.rank)), word, "
        "ptx::mapa(barrier, static_cast<uint32_t>(team_.rank))",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "one peer is told through the barrier of another",
        "exchange_cluster.cuh",
        "word, ptx::mapa(barrier, peer)",
        "word, ptx::mapa(barrier, 0)",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "one peer is left out",
        "exchange_cluster.cuh",
        "sent < peers",
        "sent + 1 < peers",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "the second carry is not armed",
        "exchange_cluster.cuh",
        "      arm(2);\n",
        "",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "a barrier expects the bytes of the step before",
        "exchange_cluster.cuh",
        "team_.carried(team_.rows(i - 1), team_.rows(i))",
        "team_.carried(team_.rows(i - 2), team_.rows(i - 1))",
        "small_cluster",
        arguments=HANGS,
    ),
    Fault(
        "the sums are overwritten while they are read",
        "exchange_cluster.cuh",
        "publish(int64_t) { sync_block(); }",
        "publish(int64_t) {}",
        "small_cluster",
        sanitized=True,
    ),
    Fault(
        "a carry is sent that nobody multiplies",
        "recurrence.cuh",
        "      const int32_t sent = team_.multiplies(i + 1) ? team_.carried(rows, next) : 0;",
        "      const int32_t sent = rows;",
        "small_cluster",
        arguments=HANGS,
    ),
    # The grid.
    Fault(
        "nobody waits for the flags",
        "exchange_grid.cuh",
        "ptx::ld_acquire_gpu(flags_ + peer) < static_cast<uint64_t>(i)",
        "false",
        "small_grid",
        sanitized=True,
    ),
    Fault(
        "a flag is waited for one step too few",
        "exchange_grid.cuh",
        "ptx::ld_acquire_gpu(flags_ + peer) < static_cast<uint64_t>(i)",
        "ptx::ld_acquire_gpu(flags_ + peer) + 1 < static_cast<uint64_t>(i)",
        "small_grid",
        sanitized=True,
    ),
    Fault(
        "the flag is raised before the slice is written",
        "exchange_grid.cuh",
        "    sync_block();\n    if (thread_index() == 0) ptx::st_release_gpu",
        "    if (thread_index() == 0) ptx::st_release_gpu",
        "small_grid",
        sanitized=True,
    ),
    Fault(
        "teams share their flags",
        "exchange_grid.cuh",
        " + team.index * team.plan.ctas",
        "",
        "small_grid",
        sanitized=True,
    ),
    Fault(
        "a part of the carry is overwritten while it is read",
        "global_carry.cuh",
        "      if (from > 0) sync_block();  // the part before has been read\n",
        "",
        "small_grid",
        sanitized=True,
    ),
    Fault(
        "a later part of the carry begins its sums anew",
        "exchange_grid.cuh",
        "first == 0, team_.plan.residence",
        "true, team_.plan.residence",
        "small_grid",
    ),
    # A launch for each step.
    Fault(
        "the carry in global memory has one buffer",
        "global_carry.cuh",
        "static_cast<int64_t>(team_.index) + i % 2",
        "static_cast<int64_t>(team_.index)",
        "small_launches",
        sanitized=True,
    ),
    Fault(
        "no barrier between the product and the epilogue of a launch",
        "recurrence.cuh",
        "    sync_block();\n    const int32_t sent",
        "    const int32_t sent",
        "small_launches",
        sanitized=True,
    ),
    Fault(
        "the product after the last step is not launched",
        "kernel_args.h",
        "(problem.adjoint || plan.step == Step::leaky ? 1 : 0)",
        "(plan.step == Step::leaky ? 1 : 0)",
        "small_launches",
    ),
    Fault(
        "a fragment of W takes the place of the one before",
        "product_streamed.cuh",
        "load(from + a + kUnderWay, a)",
        "load(from + a + kUnderWay - 1, a)",
        "small_launches",
    ),
    Fault(
        "the last fragment of a part is left out",
        "product_streamed.cuh",
        "if (from + a >= end) break;",
        "if (from + a + 1 >= end) break;",
        "small_launches",
    ),
    Fault(
        "every row is multiplied with the first one's carry",
        "product_streamed.cuh",
        "carry + c * Ops::kColumns * p_.carry_row_bytes_",
        "carry",
        "small_launches",
    ),
    Fault(
        "every CTA of a launch has the rows of W of the first",
        "recurrence.cuh",
        "block_index() / teams);\n  const Product product(args, team);\n"
        "  Walk<Product, ExchangeLaunches, primitive",
        "0);\n  const Product product(args, team);\n  Walk<Product, ExchangeLaunches, primitive",
        "small_launches",
    ),
    Fault(
        "a clip holds nothing",
        "recurrence.cuh",
        "x > most ? most : x < -most ? -most : x;",
        "x;",
        "small_launches",
    ),
    Fault(
        "a clip holds from above alone",
        "recurrence.cuh",
        "x < -most ? -most : x;",
        "x;",
        "small_launches",
    ),
    Fault(
        "a row that is shorter than the limit is made as long",
        "norm_step.cuh",
        "share > 1 ? 1 : share",
        "share",
        "small_launches",
    ),
    Fault(
        "half of a row's squares are left out",
        "norm_step.cuh",
        "half = kRowThreads / 2;",
        "half = kRowThreads / 4;",
        "small_launches",
    ),
    Fault(
        "squares are added before they are all there",
        "norm_step.cuh",
        "      sync_block();\n      if (thread_index() < half)",
        "      if (thread_index() < half)",
        "small_launches",
        sanitized=True,
    ),
    Fault(
        "sums are stored before they are all there",
        "norm_step.cuh",
        "split_stride);\n  sync_block();\n",
        "split_stride);\n",
        "small_launches",
        sanitized=True,
    ),
    Fault(
        "a clipped row is not cut",
        "norm_step.cuh",
        "if (!cut) word",
        "word",
        "small_launches",
    ),
    # A leak, in every exchange.
    Fault(
        "the launch before the first step takes the place of the last",
        "kernel_args.h",
        "(problem.adjoint || plan.step == Step::leaky ? 1 : 0)",
        "(problem.adjoint ? 1 : 0)",
        "small_leaky",
    ),
    Fault(
        "no barrier between the product and the epilogue with a leak",
        "leaky_walk.cuh",
        "    sync_block();\n    const int64_t boundary",
        "    const int64_t boundary",
        "small_leaky",
        sanitized=True,
    ),
    Fault(
        "a step with a leak multiplies the carry of the step before",
        "leaky_walk.cuh",
        "exchange_.multiply(i, carried",
        "exchange_.multiply(i - 1, carried",
        "small_leaky",
        arguments=LEAKY_HANGS,
    ),
    Fault(
        "rows that begin later with a leak send nothing",
        "leaky_walk.cuh",
        "team_.carried(rows, next), boundary",
        "at_most(rows, next), boundary",
        "small_leaky",
        arguments=LEAKY_HANGS,
    ),
    Fault(
        "rows that begin later with a leak keep nothing",
        "leaky_walk.cuh",
        "steps ? State{} : p_.initial",
        "State{}",
        "small_leaky",
    ),
    Fault(
        "teams share what their units keep",
        "leaky_walk.cuh",
        "(static_cast<int64_t>(team_.index) * plan.batch_tile + b)",
        "static_cast<int64_t>(b)",
        "small_leaky",
    ),
    Fault(
        "the initial voltage is sent for its rate",
        "leaky_walk.cuh",
        "operand = p_.primitive == Primitive::leaky_voltage ? activate(p_.phi, kept) : kept;",
        "operand = kept;",
        "small_leaky",
    ),
    Fault(
        "the voltage is sent for its rate",
        "leaky_walk.cuh",
        "return {z, rate, rate};",
        "return {z, rate, z};",
        "small_leaky",
    ),
    Fault(
        "an adjoint keeps the state as it is",
        "leaky_walk.cuh",
        "kept = p_.adjoint ? widen(word.keep[j]) * made.state : made.state;",
        "kept = made.state;",
        "small_leaky",
    ),
    Fault(
        "an adjoint keeps twice",
        "leaky_walk.cuh",
        "p_.adjoint ? past + drive : multiply_add(keep, past, drive)",
        "multiply_add(keep, past, drive)",
        "small_leaky",
    ),
    Fault(
        "d multiplies on the same side in the adjoint",
        "leaky_walk.cuh",
        "(p_.primitive == Primitive::outer) != p_.adjoint",
        "p_.primitive == Primitive::outer",
        "small_leaky",
    ),
    Fault(
        "a cut leaves what a unit keeps",
        "leaky_walk.cuh",
        "        kept = widen(number_of<Product>(team_, state, b, n + j));\n",
        "        if (!steps) kept = widen(number_of<Product>(team_, state, b, n + j));\n",
        "small_leaky",
    ),
    Fault(
        "a window cuts nothing with a leak",
        "leaky_walk.cuh",
        "!steps || masked || r.cut",
        "!steps || masked",
        "small_leaky",
    ),
    Fault(
        "a walk down with a leak is cut where it begins",
        "leaky_walk.cuh",
        "(steps || !team_.down) && team_.cut_at",
        "(i > 0 || !team_.down) && team_.cut_at",
        "small_leaky",
    ),
    Fault(
        "a walk that goes on forgets what units keep beyond its registers",
        "leaky_walk.cuh",
        "        if (at.row < r.next) remember(at.row, unit_of(at), words[m]);\n",
        "        if (!kGoesOn && at.row < r.next) remember(at.row, unit_of(at), words[m]);\n",
        "small_leaky",
    ),
    Fault(
        "the numbers that are fetched ahead are those of the step itself",
        "leaky_walk.cuh",
        "fetch(team_.time(i + 1), at.row",
        "fetch(team_.time(i > 0 ? i : 1), at.row",
        "small_leaky",
    ),
    Fault(
        "a row that begins is not fetched ahead",
        "leaky_walk.cuh",
        "if (at.row < r.next) fetch",
        "if (at.row < at_most(r.rows, r.next)) fetch",
        "small_leaky",
    ),
    Fault(
        "a cluster does not wait for a carry of no rows",
        "leaky_walk.cuh",
        "kGoesOn ? team_.multiplies(i) : carried > 0",
        "carried > 0",
        "small_leaky",
        arguments=LEAKY_HANGS,
    ),
    Fault(
        "the last round of a walk with a leak is left out",
        "leaky_walk.cuh",
        "return i > 0 && i <= steps;",
        "return i > 0 && i < steps;",
        "small_leaky",
        arguments=LEAKY_HANGS,
    ),
    Fault(
        "a walk with a leak does not tell that it has sent",
        "leaky_walk.cuh",
        "      exchange_.publish(i + 1);\n",
        "",
        "small_leaky",
        sanitized=True,
        arguments=LEAKY_HANGS,
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    (sources / "cuda").mkdir(parents=True)
    shutil.copy(ROOT / "csrc" / "problem.h", sources)
    for file in (ROOT / "csrc" / "cuda").glob("*.cuh"):
        shutil.copy(file, sources / "cuda")
    shutil.copy(ROOT / "csrc" / "cuda" / "kernel_args.h", sources / "cuda")
    patched = sources / "cuda" / fault.file
    text = patched.read_text()
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} of {fault.old!r}"
    patched.write_text(text.replace(fault.old, fault.new))
    # Without the sanitizer compiling is what takes the time.
    flags = (SANITIZER,) if fault.sanitized else ("-O0", "-g0")
    binary = build(fault.program, tmp_path, *flags, sources=sources)
    result = run(binary, "first", *fault.arguments)
    assert result.returncode in CAUGHT_BY, (
        f"not caught: exit code {result.returncode}\n{result.stdout[-1000:]}{result.stderr[-1000:]}"
    )
