# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Links by URL, with options after a question mark.

Both ends: `memory:NAME`, `socket:/path`, `socket:host:port`, `nfc:usb`, `nfc:tty:port:driver`, `nfc:udp:host:port`. For the
terminal `pcsc:` or `pcsc:READER`, for the wallet `vpcd:` or `vpcd:host:port`.

Options: `listen` or `connect` choose who waits for whom; `short` makes the card state, or the terminal use, short
lengths only. A link's module is imported when the link is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import UsageError
from protocol.transport.base import CardLink, CardPort

SCHEMES = ("memory", "nfc", "pcsc", "socket", "vpcd")
_OPTIONS = ("listen", "connect", "short")


@dataclass(frozen=True, slots=True)
class LinkUrl:
    """A link's URL, taken apart."""

    scheme: str
    target: str
    options: frozenset[str]

    @staticmethod
    def parse(url: str) -> LinkUrl:
        """Return the parts of `url`; UsageError names what is not known."""
        rest, _, query = url.partition("?")
        scheme, colon, target = rest.partition(":")
        options = frozenset(filter(None, query.split("&")))
        unknown = sorted(options.difference(_OPTIONS))
        if unknown:
            raise UsageError(f"link option {unknown[0]!r} is not known; there are {', '.join(_OPTIONS)}")
        if not colon or scheme not in SCHEMES:
            raise UsageError(f"{url!r} is no link; write socket:/path/of/socket, nfc:usb, pcsc: or vpcd:")
        if {"listen", "connect"} <= options:
            raise UsageError("a link's end either listens or connects, not both")
        return LinkUrl(scheme, target, options)

    @property
    def short(self) -> bool:
        """Whether only short lengths are to be used."""
        return "short" in self.options


def open_terminal_end(url: str) -> CardLink:
    """Return the terminal's end of the link `url`; it connects unless the URL says `listen`."""
    parsed = LinkUrl.parse(url)
    if parsed.scheme == "nfc":
        from protocol.transport.nfc import NfcLink

        return NfcLink(parsed.target)
    if parsed.scheme == "pcsc":
        from protocol.transport.pcsc import PcscLink

        return PcscLink(parsed.target)
    if parsed.scheme == "vpcd":
        raise UsageError("vpcd: is a wallet's end; a terminal reaches that card with pcsc:")
    if parsed.scheme == "memory":
        from protocol.transport.memory import MemoryLink

        return MemoryLink(parsed.target)
    from protocol.transport.socket_link import Address, SocketLink

    return SocketLink(Address.parse(parsed.target, listen="listen" in parsed.options))


def open_card_end(url: str) -> CardPort:
    """Return the card's end of the link `url`; it listens unless the URL says `connect`."""
    parsed = LinkUrl.parse(url)
    if parsed.scheme == "nfc":
        from protocol.transport.nfc import NfcPort

        return NfcPort(parsed.target, extended=not parsed.short)
    if parsed.scheme == "vpcd":
        from protocol.transport.socket_link import vpcd_port

        return vpcd_port(parsed.target, extended=not parsed.short)
    if parsed.scheme == "pcsc":
        raise UsageError("a PC/SC reader is a terminal's; a wallet is a card in PC/SC with vpcd:")
    if parsed.scheme == "memory":
        from protocol.transport.memory import MemoryPort

        return MemoryPort(parsed.target, extended=not parsed.short)
    from protocol.transport.socket_link import Address, SocketPort

    address = Address.parse(parsed.target, listen="connect" not in parsed.options)
    return SocketPort(address, extended=not parsed.short)
