# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-issuer handle` as the child process that wallets and terminals start: framed messages, garbage, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from console.home import Home
from issuer.register import Register
from lab.fixtures import set_up_issuer
from protocol.certificate import Merchant
from protocol.errors import LinkUnavailableError, UsageError
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    Application,
    Issuance,
    Refusal,
    RefusalReason,
    TerminalApplication,
    TerminalIssuance,
    decode_message,
    encode_message,
    expect,
)
from protocol.signing import PrivateKey
from protocol.transport.issuer import MAX_MESSAGE, IssuerLink
from protocol.vouchers import LoadRequest, Voucher, device_id

_ANCHORS = encode_message(AnchorsRequest())
_MALFORMED = Refusal(RefusalReason.MALFORMED)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    set_up_issuer(made)
    return made


class Child:
    """`tap-issuer handle`, spoken to byte by byte."""

    def __init__(self, home: Home) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "issuer", "handle", "--dir", str(home.issuer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(int.from_bytes(self.process.stdout.read(4), "big"))

    def ask(self, request: bytes) -> bytes:
        self.write(len(request).to_bytes(4, "big") + request)
        return self.read()

    def end(self) -> tuple[int, bytes, bytes]:
        """Close its input and return exit status, what else it wrote, and its standard error."""
        output, errors = self.process.communicate(timeout=10)
        return self.process.returncode, output, errors


@pytest.fixture
def child(home: Home) -> Iterator[Child]:
    made = Child(home)
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.communicate()


@pytest.fixture(scope="module")
def lasting_child(home: Home) -> Iterator[Child]:
    """A child that every test leaves running."""
    made = Child(home)
    yield made
    assert made.end() == (0, b"", b"")


def test_it_answers_one_message_after_the_other_and_ends_with_its_input(child: Child) -> None:
    answers = [decode_message(child.ask(_ANCHORS)) for _ in range(5)]
    assert all(isinstance(one, Anchors) for one in answers)
    assert child.end() == (0, b"", b"")


def test_messages_may_come_in_any_pieces_and_several_at_once(lasting_child: Child) -> None:
    frame = len(_ANCHORS).to_bytes(4, "big") + _ANCHORS
    for byte in frame:
        lasting_child.write(bytes([byte]))
    expect(lasting_child.read(), Anchors)
    lasting_child.write(frame * 3)
    for _ in range(3):
        expect(lasting_child.read(), Anchors)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0", b"\xff", b"\x02", b"\x02" + bytes(200), b"\x04" + bytes(100), os.urandom(1000), bytes(100_000)],
    ids=["nothing", "0", "ff", "a kind", "application", "terminal", "random", "long"],
)
def test_garbage_is_refused_and_the_next_message_answered(lasting_child: Child, garbage: bytes) -> None:
    assert decode_message(lasting_child.ask(garbage)) == _MALFORMED
    expect(lasting_child.ask(_ANCHORS), Anchors)


def test_a_message_torn_by_the_end_of_the_input_is_not_taken_for_a_whole_one(child: Child, home: Home) -> None:
    request = encode_message(_terminal("TERM0001"))
    child.write(len(request).to_bytes(4, "big") + request[:-1])
    status, output, errors = child.end()
    assert (status, errors) == (0, b"")
    assert output in (b"", b"\0\0\0\x02" + encode_message(_MALFORMED))
    with closing(Register(home.issuer)) as register:
        assert register.terminals() == []


def test_half_a_length_is_the_end(child: Child) -> None:
    child.write(b"\0\0")
    assert child.end() == (0, b"", b"")


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 2**32 - 1])
def test_a_length_beyond_every_message_is_not_waited_for(child: Child, length: int) -> None:
    child.write(length.to_bytes(4, "big") + b"x")
    assert child.process.wait(3) is not None


def test_without_an_issuer_it_says_so_and_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    child = Child(Home(tmp_path_factory.mktemp("empty")))
    status, output, errors = child.end()
    assert (status, output) == (2, b"")
    assert b"make one with `tap-issuer init`" in errors
    assert b"Traceback" not in errors


def _terminal(terminal_id: str) -> TerminalApplication:
    key = PrivateKey.generate()
    unsigned = TerminalApplication(key.public, terminal_id, Merchant("Bakery", 5462, 978), bytes(64))
    return replace(unsigned, signature=key.sign(unsigned.signature_input()))


def _application(device: PrivateKey, *credentials: PrivateKey) -> Application:
    sealing_key = b"\x09" + bytes(31)  # the base point of X25519: a public key like any other
    unsigned = Application(device.public, sealing_key, 978, 1, tuple(one.public for one in credentials), bytes(64))
    return replace(unsigned, signature=device.sign(unsigned.signature_input()))


# --- two at once


def test_two_children_at_once_keep_one_book(home: Home) -> None:
    """Both certify terminals and wallets at the same time; each id and each key is given once."""
    requests = [encode_message(_terminal(f"RACE{number:04}")) for number in range(20)]
    rivals = [encode_message(_terminal(f"RACE{number:04}")) for number in range(20)]
    answers: dict[int, list[bytes]] = {}

    def work(number: int, mine: list[bytes]) -> None:
        with IssuerLink(home.issuer_url) as link:
            answers[number] = [link.exchange(one) for one in mine]

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((requests, rivals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for pair in zip(answers[0], answers[1], strict=True):
        first, second = map(decode_message, pair)
        kinds = {type(first), type(second)}
        assert kinds == {TerminalIssuance, Refusal}
        assert Refusal(RefusalReason.TERMINAL_ID_TAKEN) in (first, second)


def test_the_same_load_by_two_children_at_once_costs_once(home: Home) -> None:
    device = PrivateKey.generate()
    unsigned = LoadRequest(device_id(device.public), 1, 10_00, 978, bytes(64))
    request = encode_message(replace(unsigned, signature=device.sign(unsigned.signature_input())))
    with IssuerLink(home.issuer_url) as link:
        expect(link.exchange(encode_message(_application(device, PrivateKey.generate()))), Issuance)
    answers: list[bytes] = []
    start = threading.Barrier(4)

    def load() -> None:
        with IssuerLink(home.issuer_url) as link:
            link.exchange(_ANCHORS)  # the child is up
            start.wait(30)
            answers.append(link.exchange(request))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert expect(answers[0], Voucher).amount == 10_00
    with closing(Register(home.issuer)) as register:
        (mine,) = [one for one in register.wallets() if one.device == device_id(device.public).hex()]
    assert mine.loaded.minor == 10_00


def test_what_was_answered_is_there_after_a_kill(home: Home, child: Child) -> None:
    request = encode_message(_terminal("KILLED01"))
    first = child.ask(request)
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(10)
    with IssuerLink(home.issuer_url) as link:
        assert link.exchange(request) == first


# --- the link to it


def test_a_link_to_an_issuer_that_is_not_there_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = tmp_path_factory.mktemp("nowhere") / "issuer"
    with IssuerLink(f"embedded:{nowhere}") as link, pytest.raises(LinkUnavailableError, match="tap-issuer init"):
        link.exchange(_ANCHORS)


@pytest.mark.parametrize("url", ["", "embedded", "embedded:", "https:/somewhere", "/a/folder"])
def test_a_url_that_is_no_issuer_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no issuer; write embedded:DIR"):
        IssuerLink(url)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every child that a link starts, none of which may be left behind."""
    children: list[subprocess.Popen[bytes]] = []
    start = IssuerLink._start

    def note(link: IssuerLink) -> subprocess.Popen[bytes]:
        children.append(start(link))
        return children[-1]

    monkeypatch.setattr(IssuerLink, "_start", note)
    yield children
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


def test_a_child_that_does_not_end_is_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr("protocol.transport.issuer._STOP_SECONDS", 0.1)
    with IssuerLink(home.issuer_url) as link:
        link.exchange(_ANCHORS)
        started[0].send_signal(signal.SIGSTOP)
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("request_bytes", [_ANCHORS, bytes(MAX_MESSAGE)], ids=["short", "longer than a pipe holds"])
def test_an_issuer_that_hangs_is_ended_and_the_next_request_answered(
    home: Home, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]], request_bytes: bytes
) -> None:
    with IssuerLink(home.issuer_url) as link:
        link.exchange(_ANCHORS)
        started[0].send_signal(signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr("protocol.transport.issuer.ANSWER_SECONDS", 0.2)
            with pytest.raises(
                LinkUnavailableError, match=r"did not answer within 0\.2 seconds and was ended; try again"
            ):
                link.exchange(request_bytes)
        assert started[0].returncode == -signal.SIGKILL
        expect(link.exchange(_ANCHORS), Anchors)
        assert len(started) == 2


def test_a_child_that_answers_nonsense_and_stays_is_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr("protocol.transport.issuer._STOP_SECONDS", 0.1)
    link = IssuerLink(home.issuer_url)
    child = subprocess.Popen(
        ["/bin/sh", "-c", "printf '\\377\\377\\377\\377'; exec cat >/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    started.append(child)
    link._child = child
    with pytest.raises(LinkUnavailableError, match="does not answer"):
        link.exchange(_ANCHORS)
    link.close()
    assert child.returncode == -signal.SIGKILL
