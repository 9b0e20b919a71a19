# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Parties that do not keep to the protocol, built from the protocol's own modules."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from issuer import keys
from lab.fixtures import Laboratory
from pos import identity as identities
from pos.identity import Identity
from pos.session import CardSession, signed
from pos.verifier import Trust, VerifiedCard, verify
from protocol.certificate import issue
from protocol.commands import DEFAULT_NAME
from protocol.messages import GetVirtualCard
from protocol.signing import SIGNATURE_LENGTH, PrivateKey
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardHandler, CardLink, CardPort
from protocol.transport.issuer import IssuerLink
from protocol.transport.memory import MemoryLink, MemoryPort
from protocol.transport.opening import open_card_end
from wallet.account import Account
from wallet.events import Event, Step
from wallet.history import Entry
from wallet.phone import Phone

Edit = Callable[[bytes], bytes]
REFUSED = bytes.fromhex("6982")
_numbers = itertools.count()


# --- links and cards


def link_to(card: CardHandler, *, extended: bool = True) -> CardLink:
    """Return the terminal's end of a link that has `card` at its other end."""
    name = f"test {next(_numbers)}"
    MemoryPort(name, extended=extended).present(card)
    return MemoryLink(name)


@contextmanager
def served(card: CardHandler, url: str) -> Iterator[CardPort]:
    """Let `card` serve at a socket, on a thread of its own."""
    port = open_card_end(url)
    thread = threading.Thread(target=port.serve, args=(card,))
    thread.start()
    try:
        yield port
    finally:
        port.close()
        thread.join()


@dataclass
class EditingCard:
    """A card between the terminal and `card`: it edits the answers to one instruction."""

    card: CardHandler
    ins: int
    edit: Edit

    def activate(self) -> None:
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        answer = self.card.process(apdu)
        return self.edit(answer) if apdu[1] == self.ins else answer

    def deactivate(self) -> None:
        self.card.deactivate()


@dataclass
class HookedCard:
    """A card that calls `hook` with each command before `card` answers it, and `after` when it has."""

    card: CardHandler
    hook: Callable[[bytes], None] = lambda _: None
    after: Callable[[bytes], None] = lambda _: None

    def activate(self) -> None:
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        self.hook(apdu)
        answer = self.card.process(apdu)
        self.after(apdu)
        return answer

    def deactivate(self) -> None:
        self.card.deactivate()


@dataclass
class PlainCard:
    """A card of another application: it answers from a table by the start of the command, else with `otherwise`."""

    answers: dict[bytes, bytes] = field(default_factory=dict)
    otherwise: bytes = bytes.fromhex("6A82")
    seen: list[bytes] = field(default_factory=list)

    def activate(self) -> None:
        self.seen.clear()

    def process(self, apdu: bytes) -> bytes:
        self.seen.append(apdu)
        fitting = [answer for start, answer in self.answers.items() if apdu.startswith(start)]
        return fitting[0] if fitting else self.otherwise

    def deactivate(self) -> None:
        pass


@dataclass
class WatchedLink(CardLink):
    """A link that calls `before` with every command at the moment it leaves the terminal."""

    link: CardLink
    before: Callable[[bytes], None]

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        self.before(apdu)
        return self.link.transceive(apdu)

    def deactivate(self) -> None:
        self.link.deactivate()

    def close(self) -> None:
        self.link.close()


def flip(data: bytes, position: int, bit: int = 0x01) -> bytes:
    """Return `data` with one bit changed; a negative position counts from the end."""
    edited = bytearray(data)
    edited[position] ^= bit
    return bytes(edited)


# --- terminals


def terminal_like(home: Path, signer: PrivateKey | None = None, **changes: Any) -> Identity:
    """Return a new terminal whose certificate, `changes` and all, the acquirer of `home` signed (or `signer`)."""
    own = identities.load(home / "pos")
    key = PrivateKey.generate()
    unsigned = replace(own.certificate, serial=os.urandom(8), public_key=key.public, **changes)
    return replace(own, key=key, certificate=issue(unsigned, signer or keys.load(home / "issuer").acquirer))


class HostileTerminal:
    """Drives a card step by step, so that each step can be left out, repeated or changed."""

    def __init__(self, link: CardLink, identity: Identity) -> None:
        """Put the card into the field."""
        self.link = link
        self.identity = identity
        self.key = X25519PrivateKey.generate()
        self.session = CardSession(link, link.activate(1.0))

    def approach(self) -> None:
        """Select the application and do RELAY CHECK."""
        assert self.session.select(DEFAULT_NAME) is not None
        self.session.relay_check(os.urandom(8))

    def hello(self) -> GetVirtualCard:
        """Return an honest GET VIRTUAL CARD for what was exchanged so far."""
        public = self.key.public_key().public_bytes_raw()
        unsigned = GetVirtualCard(self.identity.certificate, public, bytes(SIGNATURE_LENGTH))
        t1 = self.session.digests(unsigned).t1
        return signed(unsigned, self.identity.key.sign(GetVirtualCard.signature_input(t1)))

    def read_card(self) -> VerifiedCard:
        """Do everything up to an open channel, honestly."""
        self.approach()
        hello = self.hello()
        t2 = self.session.digests(hello).t2
        trust = Trust(self.identity.issuer, self.identity.certificate.valid_from, ())
        verified = verify(self.session.get_virtual_card(hello), t2, self.key, trust)
        self.session.open_channel(verified.keys)
        return verified

    def leave(self) -> None:
        """Switch the field off."""
        self.link.deactivate()


# --- a wallet that is listened to


class ToldLaboratory(Laboratory):
    """A laboratory whose history can be read when everything that happened has been written down."""

    def __init__(self, home: Path) -> None:
        super().__init__(home=home)
        self._written = threading.Semaphore(0)
        self.phone.close()
        self.phone = Phone(self.home.wallet, self.home.issuer_url, None, self._hear)
        self._laid = MemoryPort(str(self.home.path))
        self._laid.present(self.phone.card)

        self._stock()

    def _stock(self) -> None:
        """Fill the pool of cards: tests tap faster than a wallet refills."""
        with IssuerLink(self.home.issuer_url) as issuer:
            for _ in range(2):
                Account(self.phone.tee, issuer).apply(978, 64)

    def _hear(self, event: Event) -> None:
        if event is self._mark:
            self._written.release()

    _mark = Event(Step.NAME_ANSWERED, "everything before this was written down")

    def history(self) -> list[Entry]:
        """Return the user's history after all taps so far."""
        self.phone.events.put(self._mark)
        assert self._written.acquire(timeout=10)
        return self.phone.history.entries()

    def close(self) -> None:
        self._laid.close()
        super().close()
