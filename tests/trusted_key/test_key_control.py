# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The control socket and the face: presses that arrive once, a screen that is seen as it is."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import LinkUnavailableError
from wallet.trusted_key.control import SOCKET, ControlClient, ControlServer
from wallet.trusted_key.face import KeyFace
from wallet.trusted_key.key import TrustedKey
from wallet.trusted_key.panel import Panel
from wallet.trusted_key.screen import Button, Frame, Showing

pytestmark = pytest.mark.requirement("K4")

PATIENCE = 10.0


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[Panel]:
    """A panel that listens in `tmp_path`."""
    panel = Panel()
    with ControlServer(tmp_path, panel) as server:
        server.start()
        yield panel


@pytest.fixture
def client(tmp_path: Path, panel: Panel) -> Iterator[ControlClient]:
    with ControlClient(tmp_path) as client:
        yield client


def test_presses_arrive_and_say_what_they_did(panel: Panel, client: ControlClient) -> None:
    assert client.press(Button.OK) == "nothing"
    panel.ask("Sure?", 60)
    assert client.frame() == panel.frame
    assert [client.press(Button.OK) for _ in range(2)] == ["confirmed", "nothing"]
    assert [client.press(button) for button in (Button.DOWN, Button.CANCEL)] == ["menu", "closed"]


@pytest.mark.attack("D2")
def test_a_press_says_what_was_seen(panel: Panel, client: ControlClient) -> None:
    seen = client.frame().number
    number = panel.ask("Sure?", 60)
    assert client.press(Button.OK, seen) == "nothing"
    assert panel.reply(number) == 0
    assert client.press(Button.OK, client.frame().number) == "confirmed"


def test_the_socket_is_for_its_owner_only(tmp_path: Path, panel: Panel) -> None:
    assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600


def test_the_socket_goes_with_the_server(tmp_path: Path) -> None:
    with ControlServer(tmp_path, Panel()):
        assert (tmp_path / SOCKET).exists()
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(LinkUnavailableError, match="no Key serves from"):
        ControlClient(tmp_path)


@pytest.mark.parametrize(
    "line",
    [b"no json", b"[]", b"7", b'"press"', b"null", b"{", b'{"press": "both"}', b'{"press": 7}', b'{"press": null}',
     b'{"press": "ok", "seen": "x"}', b'{"press": "ok", "seen": []}', b'{"press": "ok", "seen": 1e400}',
     b"[" * 1000, b"\xff\xfe", b"9" * 900],
)  # fmt: skip
def test_whatever_else_is_said_is_not_understood_and_does_nothing(tmp_path: Path, panel: Panel, line: bytes) -> None:
    number = panel.ask("Sure?", 60)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE)
        raw.connect(str(tmp_path / SOCKET))
        raw.sendall(line + b"\n")
        assert json.loads(raw.makefile("rb").readline()) == {"error": "not understood"}
        raw.sendall(b'{"show": true}\n')
        assert json.loads(raw.makefile("rb").readline())["showing"] == "question"
    assert panel.reply(number) == 0


def test_who_watches_sees_each_frame_once(panel: Panel, client: ControlClient) -> None:
    frames: list[Frame] = []
    came = threading.Condition()

    def watch() -> None:
        for frame in client.watch():
            with came:
                frames.append(frame)
                came.notify_all()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def wait_for(showing: Showing) -> None:
        with came:
            assert came.wait_for(lambda: bool(frames) and frames[-1].showing is showing, PATIENCE)

    wait_for(Showing.IDLE)
    panel.ask("Sure?", 60)
    wait_for(Showing.QUESTION)
    panel.press(Button.OK)
    wait_for(Showing.IDLE)
    assert [frame.showing for frame in frames] == [Showing.IDLE, Showing.QUESTION, Showing.IDLE]
    client.close()
    watcher.join(PATIENCE)
    assert not watcher.is_alive()


def test_who_watches_sees_a_question_time_out(tmp_path: Path) -> None:
    now = [0.0]
    panel = Panel(lambda: now[0])
    with ControlServer(tmp_path, panel) as server, ControlClient(tmp_path) as client:
        server.start()
        panel.ask("Sure?", 5)
        frames = client.watch()
        assert next(frames).showing is Showing.QUESTION
        now[0] = 5.0
        assert next(frames).showing is Showing.IDLE


def test_a_client_is_told_when_the_key_has_ended(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, Panel())
    client = ControlClient(tmp_path)
    server.close()
    with pytest.raises(LinkUnavailableError, match="the Key has ended"):
        client.frame()
    client.close()


def test_there_is_an_end_to_how_many_may_look(tmp_path: Path, panel: Panel) -> None:
    clients = [ControlClient(tmp_path) for _ in range(16)]
    assert all(client.frame().showing is Showing.IDLE for client in clients)
    with ControlClient(tmp_path) as one_more, pytest.raises(LinkUnavailableError):
        one_more.frame()
    for client in clients:
        client.close()


def test_a_key_is_pressed_and_seen_from_python(tmp_path: Path) -> None:
    with TrustedKey(tmp_path / "key", ["storage", "interaction"]) as key:
        key.panel.ask("Sure?", 60)
        assert (key.modules, key.screen.text) == (("storage", "interaction"), "Sure?")
        assert [key.press("ok"), key.press("ok")] == ["confirmed", "nothing"]
        with pytest.raises(ValueError, match="both"):
            key.press("both")


# --- the face


def _in_face(folder: Path, play: Callable[[KeyFace, Any], Any]) -> None:
    async def run() -> None:
        face = KeyFace(folder)
        async with face.run_test(size=(80, 24)) as pilot:
            await play(face, pilot)

    asyncio.run(run())


async def _until(pilot: Any, reached: Callable[[], bool]) -> None:
    for _ in range(200):
        if reached():
            return
        await pilot.pause(0.02)
    raise AssertionError("the face never got there")


def _shown(face: KeyFace) -> str:
    return str(face.query_one("#screen").render())


def test_the_face_shows_the_screen_and_marks_a_question(tmp_path: Path, panel: Panel) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        await _until(pilot, lambda: "TapLab Trusted Key" in _shown(face))
        panel.ask("Pay 250.00 EUR to Corner Bakery?", 60)
        await _until(pilot, lambda: "Corner Bakery?" in _shown(face))
        assert face.query_one("#screen").has_class("question")
        panel.withdraw()
        await _until(pilot, lambda: "TapLab Trusted Key" in _shown(face))
        assert not face.query_one("#screen").has_class("question")

    _in_face(tmp_path, play)


@pytest.mark.parametrize(("key", "reply"), [("enter", 1), ("escape", 2)])
def test_keys_press_buttons(tmp_path: Path, panel: Panel, key: str, reply: int) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        number = panel.ask("Sure?", 60)
        await _until(pilot, lambda: "Sure?" in _shown(face))
        await pilot.press(key)
        assert panel.reply(number) == reply
        await pilot.press(key)
        assert panel.pending is None

    _in_face(tmp_path, play)


def test_arrows_move_in_the_menu_and_enter_takes_what_is_marked(tmp_path: Path, panel: Panel) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        for key, marked in (
            ("down", "> Ready to pay"),
            ("down", "> Next card"),
            ("up", "> Ready to pay"),
            ("up", "> Lock"),
        ):
            await pilot.press(key)
            await _until(pilot, lambda marked=marked: marked in _shown(face))  # type: ignore[misc]
        await pilot.press("enter")
        assert panel.pending is not None
        assert panel.pending.details.kind.words == "Lock"

    _in_face(tmp_path, play)


def test_a_click_presses_a_button(tmp_path: Path, panel: Panel) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        number = panel.ask("Sure?", 60)
        await _until(pilot, lambda: "Sure?" in _shown(face))
        await pilot.click("#ok")
        await _until(pilot, lambda: panel.reply(number) == 1)

    _in_face(tmp_path, play)


@pytest.mark.attack("D2")
def test_a_key_pressed_for_what_was_seen_before_does_nothing(tmp_path: Path, panel: Panel) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        await _until(pilot, lambda: "TapLab Trusted Key" in _shown(face))
        face._watcher.close()  # so that the face is behind
        number = panel.ask("Sure?", 60)
        face.action_press("ok")
        assert panel.reply(number) == 0

    _in_face(tmp_path, play)


def test_the_face_leaves_with_q_and_the_key_goes_on(tmp_path: Path, panel: Panel) -> None:
    async def play(face: KeyFace, pilot: Any) -> None:
        await pilot.press("q")
        await _until(pilot, lambda: not face.is_running)

    _in_face(tmp_path, play)
    with ControlClient(tmp_path) as client:
        assert client.frame() == panel.frame
