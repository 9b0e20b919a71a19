# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`socket:` and `vpcd:`: the loopback between two processes, in the wire protocol of the virtual-smart-card project (vpcd).

A message is its length in two bytes and then the bytes. One byte is a control code from the terminal's end; everything
longer is an APDU. Either end may listen; by default the card listens and the terminal connects. `vpcd:` is the card's end
in front of the vpcd driver inside pcscd: it always connects, and again when pcscd was started again.

The packaged vpcd sends length and data in two segments, and a delayed ACK for the first holds the second back by 40 ms
and more; asking the kernel for quick ACKs before each receive takes that away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from protocol.errors import CardRemovedError, CardSilentError, LinkUnavailableError, UsageError
from protocol.log import traffic
from protocol.transport.base import (
    ANSWER_TIMEOUT,
    NO_CARD_TIMEOUT,
    Activation,
    CardHandler,
    CardLink,
    CardPort,
    card_historical,
    contactless_atr,
)

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.02
VPCD_ADDRESS = "127.0.0.1:35963"
MAX_MESSAGE = 0xFFFF
_APDU_OVERHEAD = 9
_CONNECT_SECONDS = 1.0
_VPCD_SECONDS = 5.0  # vpcd takes one connection at a time, and a while to notice that the last one ended
_NOTICE_SECONDS = 1.5  # pcscd looks for a new card every 0.4 s and then powers it on
_AWAY_SECONDS = 0.6
_TOO_LONG = bytes.fromhex("6700")  # what a card answers in place of more than this link can carry


class Control(IntEnum):
    """Control codes of vpcd."""

    POWER_OFF = 0
    POWER_ON = 1
    RESET = 2
    GET_ATR = 4


@dataclass(frozen=True, slots=True)
class Address:
    """Where the link is and which way it is opened: a Unix path, or host and port."""

    path: Path | None
    host: str
    port: int
    listen: bool

    @staticmethod
    def parse(text: str, *, listen: bool) -> Address:
        """Return the address in `text`: ``/path`` or ``host:port``; UsageError when it is neither."""
        if "/" in text:
            return Address(Path(text), "", 0, listen)
        host, _, port = text.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= 0xFFFF:
            raise UsageError(f"{text!r} is no socket; write socket:/path/of/socket or socket:127.0.0.1:35963")
        try:
            host.encode("idna")
        except UnicodeError:
            raise UsageError(f"{host!r} is no name of a machine") from None
        return Address(None, host, int(port), listen)

    def connect(self, timeout: float = _CONNECT_SECONDS) -> socket.socket:
        """Return a connected socket, or raise OSError; LinkUnavailableError when no socket will ever be there."""
        if self.path is None:
            connection = socket.create_connection((self.host, self.port), timeout=timeout)
            return _without_delay(connection)
        if what := _something_else(self.path):
            raise LinkUnavailableError(f"{self.path} is {what}, not a socket; name another LINK")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.path))
            connection.settimeout(None)
        except OSError:
            connection.close()
            raise
        return connection

    def bind(self) -> socket.socket:
        """Return a listening socket; LinkUnavailableError says why there is none."""
        try:
            return self._bind()
        except OSError as error:
            taken = ", or end what listens there" if error.errno == errno.EADDRINUSE else ""
            raise LinkUnavailableError(
                f"cannot listen at {self}: {error.strerror or error}; name another LINK{taken}"
            ) from None

    def _bind(self) -> socket.socket:
        if self.path is None:
            return socket.create_server((self.host, self.port))
        self._remove_stale_socket(self.path)
        server = socket.socket(socket.AF_UNIX)
        previous = os.umask(0o177)
        try:
            server.bind(str(self.path))
            server.listen()
        except OSError:
            server.close()
            raise
        finally:
            os.umask(previous)
        return server

    def _remove_stale_socket(self, path: Path) -> None:
        """Remove the socket that a killed process left behind, never one that somebody listens at."""
        if what := _something_else(path):
            raise LinkUnavailableError(f"cannot listen at {path}, which is {what}; name another LINK")
        if not path.is_socket():
            return
        with contextlib.suppress(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # who listens and is busy does not take us at once
            with contextlib.suppress(BlockingIOError):
                probe.connect(str(path))
            raise LinkUnavailableError(
                f"another wallet or terminal is already listening at {path}; end it, or name another LINK"
            )
        path.unlink()

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"{self.host}:{self.port}"


class _Messages:
    """Length-prefixed messages over one connection."""

    def __init__(self, connection: socket.socket, *, quick_ack: bool = True) -> None:
        self._connection = connection
        self._quick_ack = quick_ack and connection.family != socket.AF_UNIX

    def send(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            raise UsageError(f"a message of {len(message)} bytes is longer than this link can carry ({MAX_MESSAGE})")
        self._connection.sendall(len(message).to_bytes(2, "big") + message)

    def receive(self, timeout: float | None) -> bytes:
        """Return the next message; ConnectionError when the other end is gone, TimeoutError when it is too slow."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._exactly(int.from_bytes(self._exactly(2, deadline), "big"), deadline)

    def _exactly(self, count: int, deadline: float | None) -> bytes:
        data = b""
        while len(data) < count:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("the message does not end")
            self._connection.settimeout(left)
            if self._quick_ack:  # the kernel forgets it, so it is said before every receive
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            piece = self._connection.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("the other end closed the link")
            data += piece
        return data

    def shut(self) -> None:
        """End the conversation; who waits for a message in another thread finds the other end gone."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut()
        self._connection.close()


def vpcd_port(target: str, *, extended: bool = True, quick_ack: bool = True) -> SocketPort:
    """Return the card's end in front of the vpcd driver at `target` (host:port, default that of its first slot).

    LinkUnavailableError when nobody listens there now; later the port connects again by itself.
    """
    address = Address.parse(target or VPCD_ADDRESS, listen=False)
    try:
        first = address.connect(_VPCD_SECONDS)
    except OSError:
        raise LinkUnavailableError(
            f"no vpcd driver listens at {address}; on Debian: apt-get install pcscd vsmartcard-vpcd, then start pcscd"
        ) from None
    return SocketPort(address, extended=extended, quick_ack=quick_ack, in_pcscd=True, first=first)


class SocketLink(CardLink):
    """The terminal's end."""

    def __init__(self, address: Address) -> None:
        """Take the address; a listening end listens from now on."""
        self._address = address
        self._server = address.bind() if address.listen else None
        self._messages: _Messages | None = None
        self._active = False

    @property
    def max_data(self) -> int:
        """What fits a message beside header, Lc and Le."""
        return MAX_MESSAGE - _APDU_OVERHEAD

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Wait for the card's end, reset the card and ask for its ATR."""
        deadline = time.monotonic() + timeout
        while True:
            self._messages = self._messages or _Messages(self._open(deadline))
            try:
                atr = self._reset(self._messages, deadline)
            except TimeoutError:
                self._drop()
                raise CardSilentError("the card at the other end does not answer a reset") from None
            except OSError:
                self._drop()
                if time.monotonic() >= deadline:
                    raise CardSilentError(f"the card at {self._address} hangs up again and again") from None
                time.sleep(_RETRY_SECONDS)
            else:
                self._active = True
                return Activation(atr)

    def _reset(self, messages: _Messages, deadline: float) -> bytes:
        for code in (Control.POWER_ON, Control.RESET, Control.GET_ATR):
            messages.send(bytes([code]))
        return messages.receive(max(deadline - time.monotonic(), _RETRY_SECONDS))

    def _open(self, deadline: float) -> socket.socket:
        while True:
            try:
                if self._server is None:
                    return self._address.connect()
                self._server.settimeout(max(deadline - time.monotonic(), _RETRY_SECONDS))
                return _without_delay(self._server.accept()[0])
            except OSError as error:
                if not isinstance(error, ConnectionError | FileNotFoundError | TimeoutError | BlockingIOError):
                    raise LinkUnavailableError(f"cannot use {self._address}: {error.strerror or error}") from None
                if time.monotonic() >= deadline:
                    raise CardSilentError(f"no card was presented at {self._address} in time") from error
                time.sleep(_RETRY_SECONDS)

    def transceive(self, apdu: bytes) -> bytes:
        """Send a command and wait for its answer."""
        if self._messages is None or not self._active:
            raise CardRemovedError("no card is active")
        try:
            traffic(_log, ">", apdu)
            self._messages.send(apdu)
            answer = self._messages.receive(ANSWER_TIMEOUT)
        except TimeoutError:
            self._drop()
            raise CardSilentError("the card did not answer in time") from None
        except OSError:
            self._drop()
            raise CardRemovedError("the card has left the field") from None
        traffic(_log, "<", answer)
        return answer

    def interrupt(self) -> None:
        """Let a command that another thread waits for fail now."""
        messages = self._messages
        if messages is not None:
            messages.shut()

    def _drop(self) -> None:
        messages, self._messages, self._active = self._messages, None, False
        if messages is not None:
            messages.close()

    def deactivate(self) -> None:
        """Switch the card off; the connection stays for the next tap."""
        active, self._active = self._active, False
        if active and self._messages is not None:
            try:
                self._messages.send(bytes([Control.POWER_OFF]))
            except OSError:
                self._drop()

    def close(self) -> None:
        """Switch the card off and close the connection."""
        self.deactivate()
        self._drop()
        _close_server(self._server, self._address)


class SocketPort(CardPort):
    """The card's end."""

    def __init__(
        self,
        address: Address,
        *,
        extended: bool = True,
        quick_ack: bool = True,
        in_pcscd: bool = False,
        first: socket.socket | None = None,
    ) -> None:
        """Take the address; a listening end listens from now on. `extended` is what the ATR states.

        `quick_ack` is there to be switched off by who wants to see what it is good for; `first` is a connection that
        was made already. With `in_pcscd` the card comes again when the service has not noticed it: pcscd misses a card
        that came back before it saw the last one leave.
        """
        self._first = first
        self._in_pcscd = in_pcscd
        self._address = address
        self._quick_ack = quick_ack
        self._server = address.bind() if address.listen else None
        self._atr = contactless_atr(card_historical(extended=extended))
        self._closing = threading.Event()
        self._messages: _Messages | None = None

    def serve(self, card: CardHandler) -> None:
        """Answer every terminal that comes, one after the other."""
        while not self._closing.is_set():
            try:
                connection = self._next_connection()
            except OSError:
                self._closing.wait(_RETRY_SECONDS)
                continue
            self._messages = _Messages(connection, quick_ack=self._quick_ack)
            noticed = not self._in_pcscd or self._wait_for_notice(card, self._messages)
            with contextlib.suppress(OSError):
                if noticed:
                    self._serve_connection(card, self._messages)
            card.deactivate()
            self._messages.close()
            if not noticed:
                self._closing.wait(_AWAY_SECONDS)

    def _next_connection(self) -> socket.socket:
        first, self._first = self._first, None
        if first is not None:
            return first
        if self._server is None:
            return self._address.connect()
        return _without_delay(self._server.accept()[0])

    def _wait_for_notice(self, card: CardHandler, messages: _Messages) -> bool:
        """Answer control codes until the service powers the card on; False when it does not in time."""
        deadline = time.monotonic() + _NOTICE_SECONDS
        with contextlib.suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                message = messages.receive(left)
                if len(message) == 1:
                    self._control(card, messages, message[0])
                if message in (bytes([Control.POWER_ON]), bytes([Control.RESET])):
                    return True
        return False

    def _serve_connection(self, card: CardHandler, messages: _Messages) -> None:
        while not self._closing.is_set():
            message = messages.receive(None)
            if len(message) == 1:
                self._control(card, messages, message[0])
                continue
            traffic(_log, ">", message)
            answer = card.process(message)
            traffic(_log, "<", answer)
            messages.send(answer if len(answer) <= MAX_MESSAGE else _TOO_LONG)

    def _control(self, card: CardHandler, messages: _Messages, code: int) -> None:
        if code == Control.GET_ATR:
            messages.send(self._atr)
        elif code == Control.RESET:
            card.activate()
        elif code == Control.POWER_OFF:
            card.deactivate()

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        _close_server(self._server, self._address)
        if self._first is not None:
            self._first.close()
        if self._messages is not None:
            self._messages.close()


def _something_else(path: Path) -> str:
    """Return what is at `path` when it is no socket, nothing when it is one or nothing is there."""
    if path.is_dir():
        return "a folder"
    return "a file" if path.exists() and not path.is_socket() else ""


def _without_delay(connection: socket.socket) -> socket.socket:
    """Send small messages at once: Nagle's algorithm would hold an answer back until the one before is acknowledged."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _close_server(server: socket.socket | None, address: Address) -> None:
    if server is None:
        return
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()
    if address.path is not None:
        address.path.unlink(missing_ok=True)
