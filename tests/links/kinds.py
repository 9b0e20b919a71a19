# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Every kind of link that there is, and both ends of one of them. A new link joins by one more entry in LINKS."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.demo import free_udp_port
from protocol.apdu import MAX_DATA
from protocol.closing import Closing
from protocol.transport.base import CardHandler, CardLink, CardPort
from protocol.transport.isodep import MAX_APDU
from protocol.transport.opening import open_card_end, open_terminal_end
from tests.echo_card import EchoCard
from tests.pcsc.slots import READERS, VPCD_URLS, ExchangeableCard, wait_for_no_card

PATIENCE = 10.0  # seconds until a test gives up waiting for what must happen

Ends = tuple[str, str]  # URL of the terminal's end, URL of the card's end


@dataclass(frozen=True)
class LinkKind:
    """How both ends of one kind of link are named, and the longest APDU that it can carry.

    `ends` gives those of the first and of a second link, in a folder of its own. `service` names the fixture of what has
    to run between both ends; such a service looks for cards twice a second, and resets them in its own time as well.
    """

    name: str
    ends: Callable[[Path, int], Ends]
    longest: int
    service: str = ""
    one_process: bool = False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _tcp(_: Path, __: int) -> str:
    return f"socket:127.0.0.1:{_free_port()}"


def _unix(_: Path, number: int) -> str:
    return f"socket:./link-{number}"  # relative, because a Unix path has at most 107 bytes


def _card_listens(url: Callable[[Path, int], str]) -> Callable[[Path, int], Ends]:
    return lambda folder, number: (both := url(folder, number), both)


def _terminal_listens(url: Callable[[Path, int], str]) -> Callable[[Path, int], Ends]:
    return lambda folder, number: ((both := url(folder, number)) + "?listen", both + "?connect")


LINKS = [
    LinkKind(
        "memory",
        _card_listens(lambda folder, number: f"memory:{folder}/{number}"),
        longest=4 + 3 + MAX_DATA + 2,
        one_process=True,
    ),
    LinkKind("unix-card-listens", _card_listens(_unix), longest=0xFFFF),
    LinkKind("unix-terminal-listens", _terminal_listens(_unix), longest=0xFFFF),
    LinkKind("tcp-card-listens", _card_listens(_tcp), longest=0xFFFF),
    LinkKind("tcp-terminal-listens", _terminal_listens(_tcp), longest=0xFFFF),
    LinkKind("nfc-udp", _card_listens(lambda *_: f"nfc:udp:127.0.0.1:{free_udp_port()}"), longest=MAX_APDU),
    LinkKind(
        "pcsc",
        lambda _, number: (f"pcsc:{READERS[number]}", VPCD_URLS[number]),
        longest=0xFFFF,
        service="pcsc_service",
    ),
]


def params_of(kinds: list[LinkKind]) -> list[object]:
    """Return kinds of links as parameters of a fixture; what needs the PC/SC service is marked so."""
    return [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.pcsc] if kind.service == "pcsc_service" else [])
        for kind in kinds
    ]


class TestCard(EchoCard):
    """A card of which a link may take leave more than once."""

    __test__ = False

    def deactivate(self) -> None:
        if self.events[-1:] != ["off"]:
            super().deactivate()


class Laid:
    """A card's end that serves a card; the card can become another one where it lies."""

    def __init__(self, url: str, card: CardHandler) -> None:
        self.url = url
        self.card = ExchangeableCard(card)
        self.closed = False
        self._port: CardPort = open_card_end(url)
        self._thread = threading.Thread(target=self._port.serve, args=(self.card,), daemon=True)
        self._thread.start()

    @property
    def serves(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Close the end, which may happen on the thread that serves."""
        self.closed = True
        self._port.close()

    def take_away(self) -> None:
        """Close the end; it must stop serving."""
        self.close()
        self._thread.join(PATIENCE)
        assert not self.serves, "close() did not end serve()"


class Kept(Closing):
    """What one test left in the readers of a service for the next one: to take a card out and put it in costs a second."""

    def __init__(self) -> None:
        self._cards: dict[int, Laid] = {}

    def keep(self, number: int, laid: Laid) -> None:
        laid.card.card = TestCard()
        self._cards[number] = laid

    def take(self, number: int, url: str, card: CardHandler) -> Laid | None:
        """Return the card's end that lies in reader `number`, with `card` in it; None when it is another one."""
        if number not in self._cards or self._cards[number].url != url:
            return None
        laid = self._cards.pop(number)
        laid.card.card = card
        return laid

    def empty(self, number: int) -> None:
        """Make sure that reader `number` is empty and that the service has noticed."""
        if number in self._cards:
            self._cards.pop(number).take_away()
        wait_for_no_card(number)

    def close(self) -> None:
        """Empty every reader."""
        for number in list(self._cards):
            self.empty(number)


class Rig:
    """Both ends of one link: the terminal's, and whatever card's ends are laid to it one after the other."""

    def __init__(self, kind: LinkKind, folder: Path, kept: Kept, number: int = 0) -> None:
        self.kind = kind
        self.number = number
        self.terminal_url, self.card_url = kind.ends(folder, number)
        self._link: CardLink = open_terminal_end(self.terminal_url)
        self._kept = kept
        self._untouched = True
        self._laid: list[Laid] = []

    @property
    def link(self) -> CardLink:
        """The terminal's end; its field is empty until a card is laid."""
        self.empty()
        return self._link

    def empty(self) -> None:
        """Make sure that nothing lies in the field but what this test lays there."""
        if self._untouched and self.kind.service:
            self._kept.empty(self.number)
        self._untouched = False

    def lay(self, card: CardHandler, *, short: bool = False) -> Laid:
        """Let `card` be served until it is taken away."""
        url = _with_option(self.card_url, "short") if short else self.card_url
        laid = self._kept.take(self.number, url, card) if self._untouched and self.kind.service else None
        if laid is None:
            self.empty()
            laid = Laid(url, card)
        self._untouched = False
        self._laid.append(laid)
        return laid

    def take_away(self) -> None:
        """End the card's end that was laid last; it must stop serving."""
        self._laid.pop().take_away()

    def assert_serving(self) -> None:
        assert all(laid.serves for laid in self._laid), "serve() ended by itself"

    def assert_taps(self, card: TestCard, *taps: list[bytes], ended: bool = False) -> None:
        """Check that just these APDUs came to `card`, a reset before each tap and nothing between its APDUs.

        The last tap has `ended` or goes on. What a service adds to that are resets, before or after a tap.
        """
        expected: list[str | bytes] = []
        for apdus in taps:
            expected += ["on", *apdus, "off"]
        if not ended:
            expected.pop()
        if not self.kind.service:
            assert card.events == expected
            return
        assert without_idle_resets(card.events) == without_idle_resets(expected)
        assert not ended or card.events[-1] == "off"

    def restart_terminal(self) -> None:
        """Close the terminal's end and open it anew."""
        self._link.close()
        self._link = open_terminal_end(self.terminal_url)

    def close(self) -> None:
        self._link.close()
        while self._laid:
            laid = self._laid.pop()
            if self.kind.service and not laid.closed and not self._laid:
                self._kept.keep(self.number, laid)
            else:
                laid.take_away()


def _with_option(url: str, option: str) -> str:
    return url + ("&" if "?" in url else "?") + option


def without_idle_resets(events: list[str | bytes]) -> list[str | bytes]:
    """Leave of a card's events the APDUs, and what happened to it last before each of them."""
    following = [*events[1:], "nothing"]
    return [
        one for one, after in zip(events, following, strict=True) if isinstance(one, bytes) or isinstance(after, bytes)
    ]


@contextlib.contextmanager
def rig_of(request: pytest.FixtureRequest, kind: LinkKind, folder: Path, kept: Kept, number: int = 0) -> Iterator[Rig]:
    """Open the terminal's end of a link, with the service that it needs; everything is taken away at the end."""
    if kind.service:
        request.getfixturevalue(kind.service)
    with contextlib.chdir(folder):
        rig = Rig(kind, folder, kept, number)
        try:
            yield rig
        finally:
            rig.close()
