"""The `janus` command: ``janus run``, ``janus plan``, ``janus trace``; also ``python -m janus.cli``.

Importing this package loads no typer and no torch; `main` says which extra is missing instead of a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from janus.cli.report import RunFailed, fail
from janus.errors import JanusError, PeerLost

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; default those of this process.

    Returns:
        0: done; 1: a process crashed; 2: a mistake in the arguments or files (`janus.JanusError`); 3: a peer was lost,
        or the deadline passed; 130: Ctrl-C.

    Example:
        >>> main(["--version"])
        janus 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    as_json = "--json" in arguments
    try:
        return _dispatch(arguments)
    except (JanusError, PeerLost, RunFailed) as error:
        return fail(error, as_json)


def _dispatch(arguments: list[str]) -> int:
    try:
        from janus.cli.app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        rule = "the janus command needs typer, which is not installed"
        raise JanusError("cli.extra", f"{rule}; pip install 'janus-moe[cli]'") from None
    try:
        return app(args=arguments, prog_name="janus", standalone_mode=False, obj=arguments) or 0
    except Exception as error:
        # typer before 0.2x raises click's errors and later ones its own copy of them: told by what both have
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        raise JanusError("cli.usage", _usage(error)) from None


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "janus"
    message = getattr(error, "format_message")().rstrip(".")  # noqa: B009  # see above: no common type
    return f"{message}; see `{path} --help`"
