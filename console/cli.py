# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What every command line has: --home, --json, logging, and one place where an error becomes a sentence and a code."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

from console.exit_codes import ExitCode, code_of
from console.home import Home
from console.ui import print_error, print_json
from protocol.errors import TapLabError, UsageError
from protocol.log import TRAFFIC

Function = TypeVar("Function", bound=Callable[..., Any])

_LEVELS = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG, "traffic": TRAFFIC}


def _set_log_level(_: click.Context, __: click.Parameter, level: str) -> None:
    logging.basicConfig(level=_LEVELS[level], format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)


def _home(_: click.Context, __: click.Parameter, folder: Path | None) -> Home:
    path = (folder or Path(platformdirs.user_data_dir("taplab"))).expanduser().absolute()
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise UsageError(
            f"the home {str(path)[:60]}… cannot be used: {error.strerror}; name another with --home"
        ) from None
    if is_file:
        raise UsageError(f"the home {path} is a file; name a folder with --home")
    return Home(path)


def common_options(function: Function) -> Function:
    """Add the options that every command has; the function gets `home` and `as_json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Report in JSON on standard output, for programs."),
        click.option(
            "--home",
            type=click.Path(path_type=Path),
            envvar="TAPLAB_HOME",
            callback=_home,
            help="Folder of issuer, wallet and terminal. Default: your data folder; TAPLAB_HOME sets it too.",
        ),
        click.option(
            "--log",
            type=click.Choice(list(_LEVELS)),
            default="warning",
            expose_value=False,
            callback=_set_log_level,
            help="What to log on standard error. `traffic` shows the bytes on the link.",
        ),
    ):
        function = option(function)
    return function


EVERYWHERE = "Every command takes --home DIR, --json and --help."
trace_option = click.option(
    "--trace", is_flag=True, help="Show each APDU on standard error: its fields, its status word, its milliseconds."
)


def require_shared(url: str) -> None:
    """Raise UsageError for a link that no other process could be at the other end of."""
    if url.startswith("memory:"):
        raise UsageError("memory: joins both ends within one process; write socket:/path/of/socket between two")


class _Output(io.TextIOWrapper):
    """Standard output that remembers why it failed: what a command did is done, whether or not it can be shown."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write as any output does."""
        with self._remembering():
            return super().write(text)

    def flush(self) -> None:
        """Flush as any output does."""
        with self._remembering():
            super().flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def run(group: click.Group, program: str) -> None:
    """Run a command line and exit with the code of its outcome."""
    before = sys.stdout
    code = _run(group, program)
    if isinstance(sys.stdout, _Output):
        if sys.stdout.failure:  # Python would try once more at its end, and exit with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        sys.stdout.detach()  # or it would close what it shares with the one before
        sys.stdout = before
    sys.exit(code)


def _open_streams() -> None:
    """Make output something that cannot fail a command that has done its work: closed, or without our characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output(
            sys.stdout.buffer,
            sys.stdout.encoding,
            "replace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def _run(group: click.Group, program: str) -> int:
    _open_streams()
    if sys.platform != "linux":
        print_error(program, f"TapLab runs on Linux; this is {sys.platform}")
        return ExitCode.UNAVAILABLE
    try:
        code = group.main(prog_name=program, standalone_mode=False)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        with suppress(OSError):
            if "--json" in sys.argv:
                print_json({"error": error.format_message(), "exit_code": error.exit_code})
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        exec("")  # noqa: S102 - one that left an exec, as dataclasses do it, lets Python die of SIGINT; the next exec takes that back
        print_error(program, "interrupted")
        return ExitCode.INTERRUPTED
    except TapLabError as error:
        return _report(program, error)
    except OSError as error:
        return _report(program, _not_shown() or TapLabError(_sentence_of(error)))
    failed = _not_shown()
    if failed is None:
        return code if isinstance(code, int) else ExitCode.OK
    said = _report(program, failed)
    return code if isinstance(code, int) else said  # who paid has paid


def _not_shown() -> TapLabError | None:
    """Return what to say when standard output failed, None when it did not."""
    with suppress(OSError):
        sys.stdout.flush()
    failure = sys.stdout.failure if isinstance(sys.stdout, _Output) else None
    if failure is None or isinstance(failure, BrokenPipeError):  # a reader that goes away is nothing to talk about
        return None
    return TapLabError(f"output: {failure.strerror}; what the command did is done, only showing it failed")


def _sentence_of(error: OSError) -> str:
    return f"{error.filename or 'input or output'}: {error.strerror or error}"


def _report(program: str, error: TapLabError) -> ExitCode:
    code = code_of(error)
    if "--json" in sys.argv:
        with suppress(OSError):  # who cannot be told there is told on standard error
            print_json({"error": str(error), "exit_code": code})
    with suppress(OSError):
        print_error(program, str(error))
    return code
