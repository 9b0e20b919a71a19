# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The users' commands as processes: run to their end, or watched line by line while they run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """Standard error, which must be one line."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one sentence: {self.err!r}"
        return lines[0]


def command_line(program: str, *arguments: str, home: Path | None = None) -> list[str]:
    """Return the command line of `tap-PROGRAM`."""
    return [sys.executable, "-m", program, *arguments, *(["--home", str(home)] if home else [])]


def tap(program: str, *arguments: str, home: Path | None = None) -> Finished:
    """Run `tap-PROGRAM` to its end."""
    command = command_line(program, *arguments, home=home)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    return Finished(done.returncode, done.stdout, done.stderr)


def tap_here(program: str, *arguments: str, home: Path) -> Finished:
    """Run `tap-PROGRAM` to its end in this process, which is quicker: for commands that refuse before they do much."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [f"tap-{program}", *arguments, "--home", str(home)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(f"{program}.cli").main()
    except SystemExit as ended:
        return Finished(int(ended.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("a command always exits")


def balance(home: Path) -> str:
    """What the trusted world of `home` says it holds, in the decimals of its currency."""
    shown: str = tap("wallet", "show", "--json", home=home).json["balance"]
    return shown


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([descriptor], [], [], PATIENCE)
    os.close(descriptor)
    assert ended, f"process {pid} did not end"


class Running:
    """A command that runs; what it prints is collected line by line."""

    def __init__(self, program: str, *arguments: str, home: Path | None = None) -> None:
        self.process = subprocess.Popen(
            command_line(program, *arguments, home=home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # whoever started the tests in the background had Ctrl-C ignored, which would be inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._collect, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until `text` was printed in so many lines of standard output."""
        self._wait_until(lambda: sum(text in line for line in self.out) >= times, text)

    def _wait_until(self, reached: Callable[[], bool], what: str) -> None:
        with self._changed:
            good = self._changed.wait_for(lambda: reached() or not self._is_alive(), PATIENCE)
            assert good, f"{what!r} did not come: {self.out} {self.err}"
            assert reached(), f"it ended before {what!r}: {self.out} {self.err}"

    def _is_alive(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines printed so far."""
        return [json.loads(line) for line in self.out]

    def interrupt(self) -> Finished:
        """Press Ctrl-C and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """Kill it without a warning."""
        self.process.kill()
        self.wait()

    def wait(self) -> Finished:
        """Wait for the end."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join()
        return Finished(code, "".join(f"{line}\n" for line in self.out), "".join(f"{line}\n" for line in self.err))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()


def serving(home: Path, *arguments: str) -> Running:
    """Start `tap-wallet serve --json` and wait until it serves."""
    wallet = Running("wallet", "serve", *arguments, "--json", home=home)
    wallet.wait_for('"ready"')
    return wallet


def pids(wallet: Running) -> dict[str, int]:
    """The process ids of a serving wallet and its TEE."""
    said: dict[str, int] = wallet.events[0]["processes"]
    return said
