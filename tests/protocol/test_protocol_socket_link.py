# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The socket link beyond the contract: who may listen where, the vpcd protocol byte by byte, and hostile other ends."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.errors import CardRemovedError, CardSilentError, DecodeError, LinkUnavailableError
from protocol.transport import socket_link
from protocol.transport.base import CardHandler
from protocol.transport.opening import open_card_end, open_terminal_end

_PATIENCE = 10.0
_URL = "socket:./link"
_PATH = Path("link")
_POWER_OFF, _POWER_ON, _RESET, _GET_ATR = (bytes([0, 1, code]) for code in (0, 1, 2, 4))


class Echo:
    """A card that answers with what it was sent."""

    def activate(self) -> None:
        pass

    def process(self, apdu: bytes) -> bytes:
        return apdu

    def deactivate(self) -> None:
        pass


class Stuck(Echo):
    """A card that does not answer before it is told to."""

    def __init__(self) -> None:
        self.freed = threading.Event()

    def process(self, apdu: bytes) -> bytes:
        if apdu == bytes(5):
            self.freed.wait(_PATIENCE)
        return apdu


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with contextlib.chdir(tmp_path):  # a Unix path has at most 107 bytes
        yield tmp_path


@contextlib.contextmanager
def _serving(card: CardHandler, url: str = _URL) -> Iterator[None]:
    port = open_card_end(url)
    thread = threading.Thread(target=port.serve, args=(card,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        port.close()
        thread.join(_PATIENCE)
        assert not thread.is_alive()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the other end closed the link"
        data += piece
    return data


@contextlib.contextmanager
def _peer(behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """Let `behave` have each connection in turn, as the card's end at the path."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(_PATH))
        server.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    with connection, contextlib.suppress(OSError):
                        behave(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(_PATIENCE)
            assert not thread.is_alive()


def _raw_terminal() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    connection.connect(str(_PATH))
    return connection


def _message(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


# Who may listen where.


@pytest.mark.parametrize("other", ["card", "terminal"])
def test_second_listener_at_a_path_is_refused_with_a_sentence(other: str) -> None:
    with _serving(Echo()):
        with pytest.raises(LinkUnavailableError, match="another wallet or terminal is already listening at link"):
            open_card_end(_URL) if other == "card" else open_terminal_end(_URL + "?listen")
        assert _PATH.is_socket()
        with open_terminal_end(_URL) as link:
            link.activate(_PATIENCE)
            assert link.transceive(bytes(4)) == bytes(4)


def test_second_listener_does_not_disturb_a_tap() -> None:
    with _serving(Echo()), open_terminal_end(_URL) as link:
        link.activate(_PATIENCE)
        with pytest.raises(LinkUnavailableError):
            open_card_end(_URL)
        assert link.transceive(bytes(4)) == bytes(4)


def test_second_listener_at_a_port_is_refused_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    url = f"socket:127.0.0.1:{number}"
    with _serving(Echo(), url), pytest.raises(LinkUnavailableError, match=f"cannot listen at 127.0.0.1:{number}"):
        open_card_end(url)


def test_stale_socket_is_taken_over() -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(_PATH))
    assert _PATH.is_socket()
    with _serving(Echo()), open_terminal_end(_URL) as link:
        link.activate(_PATIENCE)
        assert link.transceive(bytes(4)) == bytes(4)


def test_socket_goes_with_its_listener() -> None:
    with _serving(Echo()):
        assert _PATH.is_socket()
    assert not _PATH.exists()


def test_only_the_user_may_connect() -> None:
    before = os.umask(0)
    try:
        with _serving(Echo()):
            assert stat.S_IMODE(_PATH.stat().st_mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_second_terminal_waits_for_the_first() -> None:
    with _serving(Echo()), open_terminal_end(_URL) as second:
        with open_terminal_end(_URL) as first:
            first.activate(_PATIENCE)
            with pytest.raises(CardSilentError):
                second.activate(timeout=0.1)
            assert first.transceive(bytes(4)) == bytes(4)
        second.activate(_PATIENCE)
        assert second.transceive(bytes(5)) == bytes(5)


# The protocol byte by byte.


def test_card_end_speaks_vpcd() -> None:
    with _serving(Echo()), _raw_terminal() as terminal:
        terminal.sendall(_POWER_ON + _RESET + _GET_ATR)
        assert _exactly(terminal, 12).hex().upper() == "000A3B8580018073C001C0F6"
        terminal.sendall(bytes.fromhex("0005 00A4040000"))
        assert _exactly(terminal, 7) == bytes.fromhex("0005 00A4040000")
        terminal.sendall(_POWER_OFF + _GET_ATR)
        assert _exactly(terminal, 2) == bytes.fromhex("000A")


def test_card_end_takes_messages_in_any_pieces() -> None:
    with _serving(Echo()), _raw_terminal() as terminal:
        for byte in _GET_ATR + _message(bytes(300)):
            terminal.sendall(bytes([byte]))
        assert _exactly(terminal, 12)[2:3] == b"\x3b"
        assert _exactly(terminal, 302) == _message(bytes(300))


@pytest.mark.parametrize("code", [3, 5, 0x7F, 0xFF])
def test_card_end_ignores_unknown_control_codes(code: int) -> None:
    with _serving(Echo()), _raw_terminal() as terminal:
        terminal.sendall(bytes([0, 1, code]) + _GET_ATR)
        assert _exactly(terminal, 2) == bytes.fromhex("000A")


@pytest.mark.parametrize("said", [b"", b"\x00", b"\x00\x05", b"\x00\x05\x00\xa4", b"\xff\xff" + bytes(100)])
def test_card_end_survives_a_terminal_that_leaves_within_a_message(said: bytes) -> None:
    with _serving(Echo()):
        with _raw_terminal() as terminal:
            terminal.sendall(said)
        with open_terminal_end(_URL) as link:
            link.activate(_PATIENCE)
            assert link.transceive(bytes(4)) == bytes(4)


def test_terminal_end_speaks_vpcd() -> None:
    heard: list[bytes] = []

    def card(connection: socket.socket) -> None:
        heard.append(_exactly(connection, 9))
        connection.sendall(_message(bytes.fromhex("3B00")))
        heard.append(_exactly(connection, 7))
        connection.sendall(_message(b"\x90\x00"))
        heard.append(_exactly(connection, 3))

    with _peer(card):
        with open_terminal_end(_URL) as link:
            assert link.activate(_PATIENCE).atr == bytes.fromhex("3B00")
            assert link.transceive(bytes.fromhex("00A4040000")) == b"\x90\x00"
        _PATH.unlink()
    assert heard == [_POWER_ON + _RESET + _GET_ATR, bytes.fromhex("0005 00A4040000"), _POWER_OFF]


# Hostile other ends.


@pytest.mark.parametrize("atr", ["", "3B", "3B80", "3B8F8001", "3B" + "80" * 40, "3BFF" + "FF" * 10])
def test_hostile_atr_is_a_decode_error_and_no_more(atr: str) -> None:
    def card(connection: socket.socket) -> None:
        _exactly(connection, 9)
        connection.sendall(_message(bytes.fromhex(atr)))
        connection.recv(1)

    with _peer(card), open_terminal_end(_URL) as link:
        activation = link.activate(_PATIENCE)
        with pytest.raises(DecodeError, match="ATR"):
            _ = activation.takes_extended_length


def test_card_that_never_tells_its_atr_is_silent_in_the_time_given() -> None:
    with _peer(lambda connection: _ignore(connection)), open_terminal_end(_URL) as link:
        started = time.monotonic()
        with pytest.raises(CardSilentError):
            link.activate(timeout=0.1)
        assert time.monotonic() - started < 2


def test_card_that_tells_its_atr_byte_by_byte_is_silent_in_the_time_given() -> None:
    def card(connection: socket.socket) -> None:
        _exactly(connection, 9)
        connection.sendall(b"\xff\xff")
        connection.settimeout(0.02)
        for _ in range(100):
            connection.sendall(b"\x3b")
            with contextlib.suppress(TimeoutError):
                connection.recv(1)

    with _peer(card), open_terminal_end(_URL) as link:
        started = time.monotonic()
        with pytest.raises(CardSilentError):
            link.activate(timeout=0.1)
        assert time.monotonic() - started < 1


def test_card_that_hangs_up_at_once_again_and_again_is_silent_in_the_time_given() -> None:
    calls = 0

    def card(connection: socket.socket) -> None:
        nonlocal calls
        calls += 1
        if calls > 500:  # so that a terminal without a limit fails this test and does not hang it
            _exactly(connection, 9)
            connection.sendall(_message(bytes.fromhex("3B00")))
            connection.recv(1)

    with _peer(card), open_terminal_end(_URL) as link, pytest.raises(CardSilentError):
        link.activate(timeout=0.1)


@pytest.mark.parametrize("said", [b"", b"\x00", b"\x00\x05\x90", b"\xff\xff" + bytes(100)])
def test_card_that_hangs_up_within_its_answer_is_a_removed_card(said: bytes) -> None:
    def card(connection: socket.socket) -> None:
        _exactly(connection, 9)
        connection.sendall(_message(bytes.fromhex("3B00")))
        _exactly(connection, 6)
        connection.sendall(said)

    with _peer(card), open_terminal_end(_URL) as link:
        link.activate(_PATIENCE)
        with pytest.raises(CardRemovedError):
            link.transceive(bytes(4))


def test_late_answer_is_never_the_answer_to_another_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_link, "ANSWER_TIMEOUT", 0.1)
    card = Stuck()
    with _serving(card), open_terminal_end(_URL) as link:
        link.activate(_PATIENCE)
        with pytest.raises(CardSilentError):
            link.transceive(bytes(5))
        with pytest.raises(CardRemovedError):
            link.transceive(bytes(4))
        card.freed.set()
        link.activate(_PATIENCE)
        assert link.transceive(bytes(4)) == bytes(4)


def _ignore(connection: socket.socket) -> None:
    while connection.recv(100):
        pass


def test_a_listener_with_a_full_backlog_is_a_silent_card() -> None:
    """Nothing accepts: the kernel keeps a few connections waiting, and holds the next one up."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as waiting:
        server.bind(str(_PATH))
        server.listen(1)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(_PATH))
        link = open_terminal_end(_URL)
        with contextlib.closing(link), pytest.raises(CardSilentError):
            link.activate(0.2)


def test_a_command_that_another_thread_waits_for_can_be_interrupted() -> None:
    card = Stuck()
    with _serving(card):
        link = open_terminal_end(_URL)
        link.activate(_PATIENCE)
        ended: list[type[BaseException]] = []

        def wait() -> None:
            try:
                link.transceive(bytes(5))
            except CardRemovedError as error:
                ended.append(type(error))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        while thread.is_alive() and not ended:
            link.interrupt()
            thread.join(0.01)
        card.freed.set()
        link.close()
    assert ended == [CardRemovedError]
