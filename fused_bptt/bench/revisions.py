"""Two revisions of a clone, built so that they can take part in one run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from fused_bptt.bench.native import cache

_BENCH = Path(__file__).parent


class RevisionError(Exception):
    """A revision is not there, or does not build; the text says which and why."""


def clone() -> Path:
    """The clone of this repository that the current folder is in.

    Raises:
        RevisionError: it is in none.
    """
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if top is None or not (Path(top) / "fused_bptt" / "module.py").exists():
        raise RevisionError(
            "--against needs a clone of the fused-bptt repository as the current folder, to build "
            "its revisions"
        )
    return Path(top)


def commit_of(root: Path, revision: str) -> str:
    """The commit that a revision names.

    Raises:
        RevisionError: it names none.
    """
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found is None:
        raise RevisionError(f"--against {revision}: git knows no such revision")
    return found


def working_tree(root: Path) -> tuple[str, str]:
    """A commit of the tracked files as they are now, and what to call it."""
    head = commit_of(root, "HEAD")
    changed = _git(root, "stash", "create")  # a commit that no branch or stash knows
    return (changed, f"{head[:9]}+changes") if changed else (head, head[:9])


def build(root: Path, commit: str) -> Path:
    """A folder with the package as of a commit, built, and with the measuring code of today.

    A build is kept in the user's cache, by commit and by versions.

    Raises:
        RevisionError: it does not build; the end of what the build said.
    """
    tree = _git(root, "rev-parse", f"{commit}^{{tree}}")
    assert tree is not None
    identity = f"{tree} {torch.__version__} {sys.version} {os.environ.get('CXX', '')}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = cache() / "revisions" / key
    if not folder.exists():
        making = folder.with_name(f"{key}.{os.getpid()}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        try:
            _export(root, commit, making)
            _compile(making)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout or "").strip().splitlines()[-5:]
            shutil.rmtree(making, ignore_errors=True)
            raise RevisionError(f"{commit[:9]} does not build:\n" + "\n".join(said)) from None
        for entry in making.iterdir():
            if entry.name != "fused_bptt":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        making.rename(folder)
    bench = folder / "fused_bptt" / "bench"
    shutil.rmtree(bench, ignore_errors=True)
    shutil.copytree(_BENCH, bench, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _export(root: Path, commit: str, folder: Path) -> None:
    archive = folder / "source.tar"
    command = ["git", "archive", "--output", str(archive), commit]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    shutil.unpack_archive(archive, folder, filter="data")


def _compile(folder: Path) -> None:
    """For the CPU: what is compared."""
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "FUSED_BPTT_CUDA_ARCHS": "none"},
        check=True,
        capture_output=True,
        text=True,
    )


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
