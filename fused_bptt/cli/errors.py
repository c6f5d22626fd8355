"""Errors of the user's own making, and the check for optional packages."""

from __future__ import annotations

from importlib.util import find_spec


class UserError(Exception):
    """What the user asked for cannot be done; the message is a sentence that says why."""


def require(*modules: str) -> None:
    """Check that the optional packages with these import names are installed.

    Raises:
        UserError: at least one is missing; says which, and how to get them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(
            f"this command needs {' and '.join(missing)}, not installed here; "
            "`pip install 'fused-bptt[cli]'` brings what it needs."
        )
