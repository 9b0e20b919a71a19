# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What is attached to this machine that a tap could go through, and, for what is not usable, why."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import TapLabError


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader: the link to it, what it calls itself, what it can do, and what keeps it from working (empty: nothing)."""

    link: str
    name: str
    as_terminal: bool
    as_card: bool
    card_present: bool = False
    missing: str = ""


def find() -> list[Reader]:
    """Return every reader that can be seen, and a row for each way in that cannot be used with the reason."""
    return [*_pcsc(), *_usb()]


def _pcsc() -> list[Reader]:
    from protocol.transport import pcsc

    try:
        states = pcsc.readers()
    except TapLabError as error:
        return [Reader("pcsc:", "PC/SC", as_terminal=True, as_card=False, missing=str(error))]
    return [
        Reader(f"pcsc:{state.name}", state.name, as_terminal=True, as_card=False, card_present=bool(state.atr))
        for state in states
    ]


def _usb() -> list[Reader]:
    from protocol.transport import nfc

    try:
        devices = nfc.usb_devices()
    except TapLabError as error:
        return [Reader("nfc:usb", "USB", as_terminal=True, as_card=False, missing=str(error))]
    return [Reader(device.link, device.name, True, device.can_be_card, missing=device.missing) for device in devices]
