# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-key` as its users have it: a process of its own on a link, killed at any moment, shut in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pexpect
import pytest

from console.exit_codes import ExitCode
from protocol.apdu import Command, Response
from protocol.errors import TransportError
from protocol.key_commands import (
    CounterStep,
    CounterValue,
    EventKind,
    GenerateKey,
    KeyEvent,
    KeyFci,
    KeyIns,
    KeyKind,
    KeyModule,
    KeyOrder,
    KeyUse,
    Named,
    NewCounter,
    Question,
    QuestionNumber,
    QuestionState,
    Reply,
    Rule,
    WriteObject,
)
from protocol.signing import is_valid
from protocol.status import StatusWord
from protocol.transport.base import CardLink
from protocol.transport.chaining import TerminalChaining
from protocol.transport.opening import open_terminal_end
from tests.end_to_end.commands import Finished, Running, command_line, free_port, tap, tap_here
from tests.trusted_key.talk import OK, Talk

PROGRAM = "wallet.trusted_key"
TOKEN = "storage,computing,interaction"
_CHILD = Path(__file__).with_name("key_confined_child.py")


class LinkCard:
    """A card at the other end of a link; long commands are chained as the link needs it."""

    def __init__(self, link: CardLink, *, extended: bool = True) -> None:
        self._link = link
        link.activate(10)
        self._chaining = TerminalChaining(link.transceive, extended=extended)

    def process(self, apdu: bytes) -> bytes:
        return self._chaining.exchange(Command.decode(apdu)).encode()


@contextmanager
def talking(url: str, *, extended: bool = True) -> Iterator[Talk]:
    link = open_terminal_end(url)
    try:
        talk = Talk(LinkCard(link, extended=extended))
        talk.select()
        yield talk
    finally:
        link.close()


def key(*arguments: str, home: Path) -> Finished:
    return tap(PROGRAM, *arguments, home=home)


def serving(home: Path, *arguments: str) -> Running:
    running = Running(PROGRAM, "serve", *arguments, "--json", home=home)
    running.wait_for('"ready"')
    return running


def link_of(home: Path) -> str:
    return f"socket:{home}/key/card.sock"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a Key that is a plain token."""
    assert key("init", "--modules", TOKEN, home=tmp_path).code == 0
    return tmp_path


@pytest.mark.requirement("K2")
@pytest.mark.requirement("K3")
@pytest.mark.requirement("K4")
def test_a_key_from_init_to_the_end(home: Path) -> None:
    with serving(home) as running, talking(link_of(home)) as talk:
        assert talk.write(b"note", b"x" * 10_000) == OK
        public = talk.good(KeyIns.GENERATE_KEY, GenerateKey(b"k", KeyKind.P256, KeyUse.SIGN, Rule.OPEN))
        number = talk.ask(QuestionState, KeyIns.ASK, Question(60, "Sign this?")).number
        shown = key("show", "--json", home=home).json
        assert (shown["showing"], shown["lines"][0]) == ("question", "Sign this?".ljust(20))
        assert key("press", "ok", "--json", home=home).json == {"button": "ok", "did": "confirmed"}
        assert key("press", "ok", home=home).out == "nothing\n"
        assert talk.ask(QuestionState, KeyIns.POLL, QuestionNumber(number)).reply is Reply.CONFIRMED
        assert is_valid(public, talk.good(KeyIns.SIGN, KeyOrder(b"k", b"this")), b"this")
        assert [key("press", button, home=home).out for button in ("down", "ok")] == ["menu\n", "queued\n"]
        assert talk.send(KeyIns.RANDOM, p2=1).sw == 0x910B
        assert KeyEvent.decode(talk.good(KeyIns.FETCH)).details.kind is EventKind.READY_TO_PAY
        assert running.interrupt().code == ExitCode.INTERRUPTED
    with serving(home), talking(link_of(home)) as talk:
        assert talk.read(b"note").data == b"x" * 10_000
        assert talk.good(KeyIns.PUBLIC_KEY, Named(b"k")) == public


@pytest.mark.parametrize("short", [False, True])
def test_a_key_over_tcp_in_short_and_extended_lengths(home: Path, short: bool) -> None:
    url = f"socket:127.0.0.1:{free_port()}"
    with serving(home, url + ("?short" if short else "")), talking(url, extended=not short) as talk:
        assert talk.write(b"note", bytes(range(256)) * 20) == OK
        assert talk.read(b"note").data == bytes(range(256)) * 20


def test_modules_are_chosen_once_or_for_one_run(tmp_path: Path) -> None:
    assert key("init", "--json", home=tmp_path).json["modules"] == ["channel", "storage", "computing", "interaction"]
    for arguments, expected in (
        (("--modules", "storage"), (KeyModule.STORAGE,)),
        (("--modules", ""), ()),
    ):
        with serving(tmp_path, *arguments) as running, talking(link_of(tmp_path)) as talk:
            assert KeyFci.decode(talk.select().data).offer.modules == expected
            assert running.events[0]["modules"] == [module.title for module in expected]
    with serving(tmp_path) as running:
        assert {"storage", "computing", "interaction"} <= set(running.events[0]["modules"])
    again = key("init", "--modules", "interaction,computing", "--json", home=tmp_path).json
    assert (again["created"], again["modules"]) == (False, ["computing", "interaction"])
    with serving(tmp_path), talking(link_of(tmp_path)) as talk:
        assert talk.sw(KeyIns.LIST) == StatusWord.INS_NOT_SUPPORTED
        assert talk.sw(KeyIns.LIST_KEYS) == OK


def test_the_face_without_a_terminal_prints_each_screen(home: Path) -> None:
    with serving(home) as running, Running(PROGRAM, "face", "--json", home=home) as face:
        face.wait_for('"idle"')
        key("press", "down", home=home)
        face.wait_for('"menu"')
        running.interrupt()
        assert face.wait().code == 0
        assert [event["showing"] for event in face.events] == ["idle", "menu"]


def test_the_screen_is_drawn_for_a_person(home: Path) -> None:
    with serving(home):
        drawn = key("show", home=home).out.splitlines()
    assert drawn[1] == "| TapLab Trusted Key   |"
    assert {len(line) for line in drawn} == {24}


def test_a_trace_names_the_keys_commands(home: Path) -> None:
    running = serving(home, "--trace")
    with running, talking(link_of(home)) as talk:
        talk.good(KeyIns.LIST)
        running.interrupt()
    assert any("# LIST: " in line for line in running.err)


# --- what cannot be


def test_what_cannot_be_has_its_sentence_and_code(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = tmp_path_factory.mktemp("nowhere")
    for arguments, where, code, sentence in (
        (("serve",), nowhere, ExitCode.USAGE, "make one with `tap-key init`"),
        (("serve", "--modules", "stor"), home, ExitCode.USAGE, "there is no module 'stor'"),
        (("init", "--modules", "stor"), nowhere, ExitCode.USAGE, "there is no module 'stor'"),
        (("press", "ok"), home, ExitCode.UNAVAILABLE, "start it with `tap-key serve`"),
        (("show",), nowhere, ExitCode.UNAVAILABLE, "start it with `tap-key serve`"),
        (("face", "--json"), home, ExitCode.UNAVAILABLE, "start it with `tap-key serve`"),
        (("face",), home, ExitCode.USAGE, "needs a terminal"),
        (("serve", "pcsc:"), home, ExitCode.USAGE, "vpcd:"),
    ):
        done = tap_here(PROGRAM, *arguments, home=where)
        assert (done.code, sentence in done.err) == (code, True), (arguments, done)
    assert list(nowhere.iterdir()) == []


def test_a_second_key_process_is_told_so_and_the_first_goes_on(home: Path) -> None:
    with serving(home), talking(link_of(home)) as talk:
        second = key("serve", home=home)
        assert (second.code, "another process is using the Key" in second.sentence) == (ExitCode.UNAVAILABLE, True)
        assert key("init", home=home).code == ExitCode.UNAVAILABLE
        assert talk.sw(KeyIns.LIST) == OK


def test_a_link_that_is_taken_is_said_and_the_control_socket_stays_whole(home: Path) -> None:
    with serving(home):
        pass
    assert not (home / "key" / "control.sock").exists()
    taken = home / "taken.sock"
    with serving(home, f"socket:{taken}"):
        other = home / "other"
        key("init", home=other)
        done = key("serve", f"socket:{taken}", home=other)
        assert (done.code, "already listening" in done.sentence) == (ExitCode.UNAVAILABLE, True)


# --- killed


class _Writer(threading.Thread):
    """Writes an object and advances a counter in turn, until the Key is gone; keeps what was answered."""

    def __init__(self, url: str, start: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.written = start
        self.counted = 0
        self.tried = start
        self.began = threading.Event()

    def run(self) -> None:
        try:
            with talking(self._url) as talk:
                while True:
                    self.tried = self.written + 1
                    if talk.sw(KeyIns.WRITE, WriteObject(b"object", Rule.OPEN, _value(self.tried))) == OK:
                        self.written = self.tried
                    self.counted = talk.ask(CounterValue, KeyIns.COUNTER, Named(b"count"), p1=CounterStep.ADVANCE).value
                    self.began.set()
        except TransportError:
            return


def _value(number: int) -> bytes:
    return number.to_bytes(4, "big") * 2000


@pytest.mark.attack("D4")
@pytest.mark.attack("D6")
@pytest.mark.requirement("K2")
@pytest.mark.requirement("K3")
def test_a_key_that_is_killed_while_it_stores_has_the_old_object_or_the_new_one_and_counts_on(home: Path) -> None:
    random, object_number, count = Random(7), 0, 0  # noqa: S311 - to be repeated, not to be secret
    with serving(home), talking(link_of(home)) as talk:
        talk.write(b"object", _value(0))
        talk.good(KeyIns.COUNTER, NewCounter(b"count", Rule.OPEN), p1=CounterStep.CREATE)
    for _ in range(6):
        running = serving(home)
        writer = _Writer(link_of(home), object_number)
        writer.start()
        assert writer.began.wait(20)
        threading.Event().wait(random.uniform(0.0, 0.05))
        running.kill()
        writer.join(20)
        assert not writer.is_alive()
        with serving(home), talking(link_of(home)) as talk:
            found = talk.read(b"object").data
            value = talk.ask(CounterValue, KeyIns.COUNTER, Named(b"count")).value
        assert found in (_value(writer.written), _value(writer.tried))
        assert value in (writer.counted, writer.counted + 1)
        assert value > count
        object_number, count = int.from_bytes(found[:4], "big"), value
    assert object_number >= 6


@pytest.mark.attack("D4")
def test_a_key_that_is_killed_between_begin_and_commit_has_the_old_object(home: Path) -> None:
    running = serving(home)
    with talking(link_of(home)) as talk:
        talk.write(b"a", b"old")
        talk.good(KeyIns.BEGIN, b"\x01a\x00\x00\x06")
        talk.good(KeyIns.APPEND, b"newer")
        running.kill()
    with serving(home), talking(link_of(home)) as talk:
        assert talk.read(b"a").data == b"old"
        assert talk.sw(KeyIns.COMMIT) == StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.requirement("K3")
def test_no_key_of_a_killed_process_can_be_read_in_its_files(home: Path) -> None:
    running = serving(home)
    with talking(link_of(home)) as talk:
        talk.write(b"telling name", b"a secret of many letters")
        talk.good(KeyIns.GENERATE_KEY, GenerateKey(b"telling key", KeyKind.AES128, KeyUse.MAC, Rule.OPEN))
        running.kill()
    files = {path.name: path.read_bytes() for path in (home / "key").iterdir() if path.is_file()}
    assert {"flash.sqlite", "flash.sqlite-wal", "root.key"} <= set(files)
    assert [name for name, data in files.items() if b"telling" in data or b"secret" in data] == []
    with serving(home), talking(link_of(home)) as talk:
        assert talk.read(b"telling name").data == b"a secret of many letters"


# --- shut in


@pytest.mark.attack("I1")
def test_a_key_gets_at_nothing_outside_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "root.key"
    outside.parent.mkdir()
    outside.write_bytes(b"another party's")
    line = [sys.executable, str(_CHILD), str(tmp_path / "key"), str(outside)]
    root = Path(__file__).parents[2]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=root, env={"PYTHONPATH": str(root)})
    said = json.loads(done.stdout)
    refused = {name for name, outcome in said.items() if outcome == "PermissionError"}
    assert said.pop("confined") is True
    assert refused == {
        "read outside", "read outside, in a thread", "write outside", "list outside", "remove outside", "make outside",
        "run a program", "write a library",
    }  # fmt: skip
    assert {said[name] for name in ("read a library", "write inside", "open a socket")} == {"done"}
    assert said["press"] == "menu"
    assert outside.read_bytes() == b"another party's"


@pytest.mark.attack("I1")
def test_a_serving_key_is_shut_in(home: Path) -> None:
    with serving(home) as running:
        ready = running.events[0]
        status = Path(f"/proc/{ready['pid']}/status").read_text()
    assert ready["confined"] is True
    assert "NoNewPrivs:\t1" in status


def test_answers_are_decoded_as_they_came() -> None:
    assert Response.decode(b"\x91\x0b").sw.meaning == "ok, and an event of 11 bytes to fetch"


# --- the face, in a terminal


def test_the_face_in_a_terminal_shows_a_question_and_enter_answers_it(home: Path) -> None:
    with serving(home), talking(link_of(home)) as talk:
        number = talk.ask(QuestionState, KeyIns.ASK, Question(60, "Sign this?")).number
        line = command_line(PROGRAM, "face", home=home)
        face = pexpect.spawn(line[0], line[1:], dimensions=(24, 80), timeout=20, env={**os.environ, "TERM": "xterm"})
        face.expect_exact("Sign this?")
        face.send("\r")
        face.expect_exact("TapLab Trusted Key")
        assert talk.ask(QuestionState, KeyIns.POLL, QuestionNumber(number)).reply is Reply.CONFIRMED
        face.send("q")
        face.expect(pexpect.EOF)
        face.close()
        assert face.exitstatus == 0


def test_the_face_says_that_its_key_has_ended(home: Path) -> None:
    with serving(home):
        line = command_line(PROGRAM, "face", home=home)
        face = pexpect.spawn(line[0], line[1:], dimensions=(24, 80), timeout=20, env={**os.environ, "TERM": "xterm"})
        face.expect_exact("TapLab Trusted Key")
    face.expect_exact("the Key has ended; start it with tap-key serve")
    face.expect(pexpect.EOF)
    face.close()
    assert face.exitstatus == ExitCode.UNAVAILABLE


def test_without_textual_the_face_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "wallet.trusted_key.face", raising=False)
    done = tap_here(PROGRAM, "face", home=home)
    assert (done.code, "[key-face]" in done.sentence) == (ExitCode.UNAVAILABLE, True)
