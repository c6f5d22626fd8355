"""``fused-bptt bench``: time this package against whatever else is installed, into a JSON file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fused_bptt.bench import cells
from fused_bptt.bench.cells import Cell, Preset
from fused_bptt.cli import options as types
from fused_bptt.cli.errors import UserError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console
    from rich.progress import Progress

    from fused_bptt.bench.against import Names
    from fused_bptt.bench.session import Entrant, Plan, Watcher


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = subparsers.add_parser(
        "bench",
        help="time it against other implementations on this machine",
        description="Time fused_bptt.RNN against every other implementation of the recurrence that "
        "is installed, interleaved, each checked against float64 before. The machine's other work "
        "should rest meanwhile. `fused-bptt report FILE` draws what it writes.",
    )
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument(
        "--quick",
        dest="preset",
        action="store_const",
        const="quick",
        default="quick",
        help="a few shapes, in less than two minutes on two cores (default: this one)",
    )
    preset.add_argument(
        "--full",
        dest="preset",
        action="store_const",
        const="full",
        help="the grid over batch and hidden size, the growth with T, B, H and layers, and memory "
        "(default: --quick)",
    )
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        metavar="BxH",
        help="instead of the preset's: batch x hidden size, with xT and xL for steps and layers, "
        "as in 8x64 or 1x16xT1000xL2 (default: the preset's)",
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=cells.DTYPES, default=[cells.FLOAT32], metavar="DTYPE",
        help=f"of {', '.join(cells.DTYPES)} (default: {cells.FLOAT32})",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=types.positive_int, nargs="+", metavar="N",
        help="thread counts, each with a core of its own (default: all cores; 1 too for --full)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="what to measure on (default: cpu; for cuda it names the command to use in a clone)",
    )  # fmt: skip
    parser.add_argument(
        "--rivals",
        nargs="+",
        metavar="NAME",
        help="who takes part (default: all that are installed)",
    )
    parser.add_argument(
        "--rounds", type=types.positive_int, help="turns of each rival (default: the preset's)"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="leave peak memory out (default: measured)"
    )
    parser.add_argument(
        "--minutes", type=types.positive_float, metavar="M",
        help="stop after so long; what was measured is kept, as with Ctrl-C (default: when done)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an earlier run kept (default: anew)"
    )
    parser.add_argument(
        "--against", metavar="GIT_REV",
        help="in a clone: build that revision and this one, and say what became slower "
        "(default: compare with rivals)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), metavar="PATH",
        help="a .json file, or a folder for one named after the machine (default: out/bench)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _shape(text: str) -> Cell:
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> int:
    """Measure; 0 when done, 1 where a revision is slower than --against, 130 when interrupted."""
    if options.device == "cuda":
        raise UserError(
            "--device cuda: on a GPU the grid is measured by `make gpu PARTS=install,timing` in a "
            "clone: nn.RNN on cuDNN, eager and as a CUDA graph, FlashRNN, XMA, torch.compile, JAX."
        )
    try:
        from rich.console import Console
    except ImportError as error:
        raise UserError(f"this needs `pip install fused-bptt[cli]` ({error}).") from None
    from fused_bptt.bench import against, session, summary
    from fused_bptt.bench.processes import EndedError, TimeUpError

    console = Console(stderr=True)
    if options.against is not None:
        plan, names = _plan_against(options, console)
    else:
        plan, names = _plan(options), None
    with _bar(console) as bar:
        try:
            measured = session.Session(plan, watcher(bar))
            measured.run()
        except (session.ResumeError, ValueError) as error:
            raise UserError(str(error)) from None
        except EndedError as error:
            raise UserError(f"{error} What was measured is in {plan.unfinished}.") from None
        except (KeyboardInterrupt, TimeUpError) as stop:
            bar.stop()
            console.print(f"Kept in {plan.unfinished}; --resume goes on from there.")
            return 130 if isinstance(stop, KeyboardInterrupt) else 0
    if names is not None:
        print("\n".join([*against.lines(measured.results, names), f"results: {plan.path}"]))
        return int(any(c.verdict == "slower" for c in against.changes(measured.results, names)))
    print("\n".join(summary.lines(measured.results)))
    print(f"results: {plan.path}\nreport:  fused-bptt report {plan.path}")
    return 0


def preset(options: argparse.Namespace) -> Preset:
    """The shapes and rounds that the options ask for."""
    from dataclasses import replace

    found = cells.PRESETS[options.preset]
    if options.shapes:
        found = found.of_shapes(options.shapes)
    if options.rounds:
        found = replace(found, rounds=options.rounds)
    return found.of_dtypes(options.dtypes)


def threads(options: argparse.Namespace) -> list[int]:
    """The thread counts, ascending."""
    import os

    from fused_bptt.bench.isolation import choose_cpus

    most = len(os.sched_getaffinity(0))
    while True:  # hardware threads of one core count once
        try:
            choose_cpus(most)
        except ValueError:
            most -= 1
        else:
            break
    counts = sorted(set(options.threads or ([1, most] if options.preset == "full" else [most])))
    if counts[-1] > most:
        raise UserError(f"--threads {counts[-1]}: there are {most} cores here.")
    return counts


def _plan(options: argparse.Namespace) -> Plan:
    from fused_bptt.bench.rivals import RIVALS
    from fused_bptt.bench.session import Entrant

    names = list(RIVALS) if options.rivals is None else options.rivals
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise UserError(
            f"--rivals: expected some of {', '.join(RIVALS)}, got {', '.join(unknown)}."
        )
    return _plan_of(options, {name: Entrant(name) for name in names}, "")


def _plan_against(options: argparse.Namespace, console: Console) -> tuple[Plan, Names]:
    """Both revisions built, and the older one twice."""
    from fused_bptt.bench import revisions
    from fused_bptt.bench.against import Names
    from fused_bptt.bench.rivals import OURS
    from fused_bptt.bench.session import Entrant

    if options.rivals is not None:
        raise UserError("--against compares two revisions of fused_bptt.RNN: leave --rivals out.")
    try:
        root = revisions.clone()
        old = revisions.commit_of(root, options.against)
        new, name = revisions.working_tree(root)
        folders = []
        for commit in (old, new):
            console.print(f"building {commit[:9]}", highlight=False)
            folders.append(revisions.build(root, commit))
    except revisions.RevisionError as error:
        raise UserError(f"{error}.") from None
    names = Names(old[:9], name)
    if names.old == names.new:
        raise UserError(f"--against {options.against}: that is the revision of the clone itself.")
    entrants = {
        names.old: Entrant(OURS, folders[0]),
        names.new: Entrant(OURS, folders[1]),
        names.again: Entrant(OURS, folders[0]),
    }
    return _plan_of(options, entrants, f"-{names.new}-against-{names.old}"), names


def _plan_of(options: argparse.Namespace, rivals: dict[str, Entrant], suffix: str) -> Plan:
    from fused_bptt.bench.machine import describe_machine, slug
    from fused_bptt.bench.session import Plan

    out: Path = options.out
    if out.suffix != ".json":
        out = out / f"{slug(describe_machine())}{suffix}.json"
    return Plan(
        preset=preset(options),
        threads=threads(options),
        rivals=rivals,
        path=out,
        resume=options.resume,
        with_memory=not (options.no_memory or options.against),
        minutes=options.minutes,
    )


def _bar(console: Console) -> Progress:
    """Drawn between blocks only: a thread that draws would take time from a measured core."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description:<42}"),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        speed_estimate_period=600,
    )


def watcher(bar: Progress) -> Watcher:
    """Shows a run on the bar."""
    from fused_bptt.bench.session import Watcher

    task = bar.add_task("starting", total=None)

    def start(total: float) -> None:
        bar.update(task, total=total)
        bar.refresh()

    def now(title: str) -> None:
        bar.update(task, description=title)
        bar.refresh()

    def done(work: float) -> None:
        bar.update(task, advance=work)
        bar.refresh()

    return Watcher(start, now, done, lambda text: bar.console.print(text, highlight=False))
