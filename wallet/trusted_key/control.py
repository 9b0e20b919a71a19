# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key's buttons and screen from outside its process: a Unix socket of mode 0600 in its folder, a JSON object a line.

`{"press": "ok"}` presses a button, `{"press": "ok", "seen": 7}` only if frame 7 is still on the screen, `{"show": true}`
asks for the screen, `{"watch": true}` for the screen now and after each change. It stands for fingers and eyes: who may
open it may press, as who holds the device may.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol.closing import Closing
from protocol.errors import LinkUnavailableError, TapLabError
from protocol.transport.socket_link import Address
from wallet.trusted_key.panel import Panel
from wallet.trusted_key.screen import Button, Frame, Showing

SOCKET = "control.sock"
_LOOK_SECONDS = 0.05
_ANSWER_SECONDS = 5.0
_MAX_LINE = 1024
_MAX_CLIENTS = 16


def frame_as_json(frame: Frame) -> dict[str, Any]:
    """Return a frame for programs."""
    return {"frame": frame.number, "showing": frame.showing.value, "lines": list(frame.lines)}


def _frame_of(said: dict[str, Any]) -> Frame:
    try:
        return Frame(int(said["frame"]), Showing(said["showing"]), tuple(map(str, said["lines"])))
    except (KeyError, ValueError, TypeError):
        raise TapLabError(
            "the Key's control socket says what this TapLab does not know; use the same version"
        ) from None


class ControlServer(Closing):
    """Presses and shows `panel` for everybody who opens the socket in `folder`."""

    def __init__(self, folder: Path, panel: Panel) -> None:
        """Listen from now on; LinkUnavailableError says why that cannot be. `start` answers."""
        self._path = folder / SOCKET
        self._panel = panel
        self._server = Address(self._path, "", 0, listen=True).bind()
        self._closing = threading.Event()
        self._clients = threading.BoundedSemaphore(_MAX_CLIENTS)

    def start(self) -> None:
        """Answer from now on, on threads of their own."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            if not self._clients.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="control client", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
                while line := lines.readline(_MAX_LINE):
                    self._answer(connection, line)
        finally:
            self._clients.release()

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            order = json.loads(line)
            if "press" in order:
                seen = order.get("seen")
                effect = self._panel.press(Button(order["press"]), None if seen is None else int(seen))
                _say(connection, {"did": effect.value, **frame_as_json(self._panel.frame)})
            elif order.get("watch"):
                self._watch(connection)
            else:
                _say(connection, frame_as_json(self._panel.frame))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            _say(connection, {"error": "not understood"})

    def _watch(self, connection: socket.socket) -> None:
        """Say each frame once, until the other end has gone, or says anything more, or the Key has gone."""
        last = -1
        connection.settimeout(_ANSWER_SECONDS)
        while not self._closing.is_set():
            frame = self._panel.frame
            if frame.number != last:
                _say(connection, frame_as_json(frame))
                last = frame.number
            if select.select([connection], [], [], _LOOK_SECONDS)[0]:
                return

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _say(connection: socket.socket, value: dict[str, Any]) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


class ControlClient(Closing):
    """The other end: for `tap-key press`, `show` and `face`."""

    def __init__(self, folder: Path) -> None:
        """Connect to the Key that serves from `folder`; LinkUnavailableError when none does."""
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(str(folder / SOCKET))
        except OSError:
            self._connection.close()
            raise LinkUnavailableError(f"no Key serves from {folder}; start it with `tap-key serve`") from None
        self._lines = self._connection.makefile("rb")

    def press(self, button: Button, seen: int | None = None) -> str:
        """Press a button once and return what that did."""
        order = {"press": button.value} | ({} if seen is None else {"seen": seen})
        return str(self._ask(order).get("did", "nothing"))

    def frame(self) -> Frame:
        """Return what is on the screen."""
        return _frame_of(self._ask({"show": True}))

    def watch(self) -> Iterator[Frame]:
        """Yield what is on the screen now and after each change, until the Key ends. It takes the connection for itself."""
        self._send({"watch": True})
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                yield _frame_of(json.loads(line))

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._send(order)
        try:
            self._connection.settimeout(_ANSWER_SECONDS)
            answer: dict[str, Any] = json.loads(self._lines.readline())
        except (OSError, ValueError):
            raise LinkUnavailableError(
                "the Key has ended, or too many are connected to it; start it with `tap-key serve`, or close some windows"
            ) from None
        return answer

    def _send(self, order: dict[str, Any]) -> None:
        try:
            _say(self._connection, order)
        except OSError:
            raise LinkUnavailableError("the Key has ended; start it with `tap-key serve`") from None

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()
