# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The way to the issuer: `embedded:DIR` speaks to `tap-issuer handle`, a child process, over its standard input and output.

A message is its length in four bytes and then the bytes; the child answers one after the other until its input ends. An
answer that has not come after ANSWER_SECONDS, many times what the longest report takes, never will: the child is ended.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

from protocol.closing import Closing
from protocol.errors import LinkUnavailableError, UsageError

MAX_MESSAGE = 1 << 20
_LENGTH_BYTES = 4
ANSWER_SECONDS = 120.0
_STOP_SECONDS = 5.0


class IssuerLink(Closing):
    """One conversation with an embedded issuer; the child starts at the first message and ends with `close`."""

    def __init__(self, url: str, at: float | None = None) -> None:
        """Take `embedded:DIR`; UsageError for anything else.

        `at` makes the issuer's clock stand at those seconds since 1970, for who cannot wait seven days.
        """
        scheme, _, folder = url.partition(":")
        if scheme != "embedded" or not folder:
            raise UsageError(f"{url!r} is no issuer; write embedded:DIR")
        self._folder = folder
        self._at = at
        self._child: subprocess.Popen[bytes] | None = None

    def exchange(self, request: bytes) -> bytes:
        """Return the issuer's answer; LinkUnavailableError when there is no issuer, it gave up or never answers.

        Every request can be repeated without harm; after a silence of ANSWER_SECONDS a new child gets the next one.
        """
        child = self._child = self._child or self._start()
        silent = threading.Event()
        with _ended_after(ANSWER_SECONDS, child, silent):
            answer = self._converse(child, request)
        if silent.is_set():
            self.close()
            raise LinkUnavailableError(
                f"the issuer at {self._folder} did not answer within {ANSWER_SECONDS:g} seconds and was ended; try again"
            )
        if not answer:
            raise LinkUnavailableError(self._why())
        return answer

    def _converse(self, child: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Return the child's answer, empty when it gave none that is whole."""
        if child.stdin is None or child.stdout is None:
            raise LinkUnavailableError("the issuer has no standard input or output")
        try:
            child.stdin.write(len(request).to_bytes(_LENGTH_BYTES, "big") + request)
            child.stdin.flush()
        except BrokenPipeError:
            return b""
        head = child.stdout.read(_LENGTH_BYTES)
        length = int.from_bytes(head, "big")
        answer = child.stdout.read(length) if len(head) == _LENGTH_BYTES and length <= MAX_MESSAGE else b""
        return answer if len(answer) == length else b""

    def _start(self) -> subprocess.Popen[bytes]:
        clock = [] if self._at is None else ["--at", str(self._at)]
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "issuer", "handle", "--dir", self._folder, *clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _why(self) -> str:
        if self._child is None or self._child.stderr is None:
            return f"the issuer at {self._folder} cannot be reached"
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()  # its last words end only when it does
        said = self._child.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return said[-1].removeprefix("tap-issuer: ") if said else f"the issuer at {self._folder} does not answer"

    def close(self) -> None:
        """End the child: by the end of its input, or by force when that takes too long."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            child.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


@contextlib.contextmanager
def _ended_after(seconds: float, child: subprocess.Popen[bytes], silent: threading.Event) -> Iterator[None]:
    """Kill the child and set `silent` if the block lasts longer: whoever waits for its pipes then sees their end."""

    def end() -> None:
        silent.set()
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
