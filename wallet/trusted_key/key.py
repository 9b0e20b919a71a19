# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Trusted Key put together: flash, modules, screen and buttons, and the card that a link drives."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from console.home import make_private
from protocol.closing import Closing
from protocol.errors import UsageError
from protocol.key_commands import KeyModule, Rule
from wallet.card import Card
from wallet.trusted_key.application import Channel, KeyApplication
from wallet.trusted_key.computing import Computing
from wallet.trusted_key.flash import Cells, Flash
from wallet.trusted_key.identity import identity_of
from wallet.trusted_key.interaction import Interaction
from wallet.trusted_key.module import Module
from wallet.trusted_key.pairing import Pairing, Pairings
from wallet.trusted_key.panel import Clock, Effect, Panel
from wallet.trusted_key.payments import ConfirmedPayments
from wallet.trusted_key.screen import Button, Frame
from wallet.trusted_key.secure_channel import SecureChannel
from wallet.trusted_key.storage import Quota, Storage

_MODULES = b"modules"
STRANGERS = Quota(objects=16, bytes=0x4000)

ChannelMaker = Callable[[Cells], Channel]
"""Makes the channel module from what the flash holds of the Key's identity and of its pairings."""


def modules_named(names: Collection[str]) -> tuple[KeyModule, ...]:
    """Return the modules of these names, in order; UsageError for a name that is none."""
    known = {module.title: module for module in KeyModule}
    unknown = sorted(set(names).difference(known))
    if unknown:
        raise UsageError(f"there is no module {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(module for name, module in known.items() if name in names)


class TrustedKey(Closing):
    """A Key whose flash lies in `folder`: give `card` to a link, press its buttons, look at its screen."""

    def __init__(
        self,
        folder: Path,
        modules: Collection[str] | None = None,
        clock: Clock = time.monotonic,
        *,
        channel: ChannelMaker | None = None,
        quota: Quota | None = None,
    ) -> None:
        """Open the Key, made anew in an empty folder; `modules` is what it offers, by default what it was made with.

        `channel` makes the channel module, by default that of the Key's own identity and pairings.
        """
        self._flash = Flash(make_private(folder), create=True)
        self.panel = Panel(clock)
        try:
            chosen = modules_of(self._flash) if modules is None else modules_named(modules)
            self.application = assemble(self._flash, chosen, self.panel, clock, channel=channel, quota=quota)
        except BaseException:
            self._flash.close()
            raise
        self.card = Card([self.application])

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that are there."""
        return tuple(module.title for module in self.application.offer.modules)

    @property
    def screen(self) -> Frame:
        """What is on the screen now."""
        return self.panel.frame

    def press(self, button: str, seen: int | None = None) -> Effect:
        """Press `ok`, `cancel`, `up` or `down` once and return what that did."""
        return self.panel.press(Button(button), seen)

    def close(self) -> None:
        """End the session and give the folder back."""
        self.card.deactivate()
        self._flash.close()


def assemble(
    cells: Cells,
    chosen: Collection[KeyModule],
    panel: Panel,
    clock: Clock,
    *,
    channel: ChannelMaker | None = None,
    quota: Quota | None = None,
) -> KeyApplication:
    """Return the application with the modules that were chosen, keeping what it keeps in `cells`.

    Where there is a channel, only a paired trusted world uses screen and buttons, and most of the room is for such ones.
    """
    asks = KeyModule.INTERACTION in chosen
    agent = (channel or channel_of)(cells) if KeyModule.CHANNEL in chosen else None
    confirmed = ConfirmedPayments(clock)
    modules: list[Module] = []
    if KeyModule.STORAGE in chosen:
        modules.append(Storage(cells, quota, STRANGERS if agent is not None else None))
    if KeyModule.COMPUTING in chosen:
        modules.append(Computing(cells, confirmed if asks else None, for_peers=agent is not None))
    if asks:
        modules.append(Interaction(panel, confirmed, Rule.PEER if agent is not None else Rule.OPEN))
        if agent is not None and channel is None:
            modules.append(Pairing(Pairings(cells), identity_of(cells).chain[-1], panel))
    return KeyApplication(modules, agent)


def channel_of(cells: Cells) -> SecureChannel:
    """Return the channel of the Key whose flash `cells` is, with the trusted worlds that are paired."""
    return SecureChannel(identity_of(cells), Pairings(cells).name_of)


def modules_of(cells: Cells) -> tuple[KeyModule, ...]:
    """Return the modules that a Key was made with: all of them where nobody chose."""
    kept = cells.get(_MODULES)
    return tuple(KeyModule) if kept is None else tuple(KeyModule(code) for code in kept)


def choose_modules(cells: Cells, modules: Collection[KeyModule]) -> None:
    """Keep the choice of modules for every later start."""
    cells.commit({_MODULES: bytes(sorted(modules))})
