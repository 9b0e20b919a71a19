# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key's one application: it says which modules there are, and hands each command to the one whose instruction it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from protocol.apdu import Command, Response
from protocol.commands import CLA_PROPRIETARY, KEY_NAME
from protocol.key_commands import KEY_VERSION, KeyFci, KeyModule, KeyOffer, announces
from protocol.status import StatusWord
from wallet.card import StatusWordError
from wallet.trusted_key.interaction import Interaction
from wallet.trusted_key.module import Access, Module

_SECURE_MESSAGING = 0x04
_INTERINDUSTRY = 0x00


class Channel(Protocol):
    """The channel module: it stands between the link and the others."""

    name: str
    access: Access

    def process(self, command: Command, serve: Callable[[Command, Access], Response]) -> Response:
        """Answer any command; what was secured, and what is plain while there is no channel, is for `serve`.

        `access` is another object whenever a channel was ended or opened.
        """

    def reset(self) -> None:
        """End the channel."""


class KeyApplication:
    """The application that `protocol.commands.KEY_NAME` selects."""

    name = KEY_NAME
    classes = frozenset({_INTERINDUSTRY, _SECURE_MESSAGING, CLA_PROPRIETARY, CLA_PROPRIETARY | _SECURE_MESSAGING})

    def __init__(self, modules: Sequence[Module], channel: Channel | None = None) -> None:
        """Offer `modules`, and `channel` if it is there."""
        self._modules = modules
        self._channel = channel
        self._interaction = next((one for one in modules if isinstance(one, Interaction)), None)
        names = {one.name for one in modules} | ({channel.name} if channel is not None else set())
        self.offer = KeyOffer(KEY_VERSION, tuple(one for one in KeyModule if one.title in names))

    def select(self) -> Response:
        """Answer with the FCI: name, version, and the modules that are there."""
        return Response(KeyFci(self.name, self.offer).encode(), StatusWord.OK)

    def reset(self) -> None:
        """The session is over, and its channel with it."""
        if self._channel is not None:
            self._channel.reset()
        self._end_session()

    def answer(self, command: Command, prefix: bytes) -> Response:
        """Answer any other command. Modules forget the session when the channel that it had is over."""
        channel = self._channel
        if channel is None:
            if command.cla & _SECURE_MESSAGING:
                raise StatusWordError(StatusWord.CLA_NOT_SUPPORTED)
            return self._serve(command, Access())
        before = channel.access
        try:
            return channel.process(command, self._serve)
        finally:
            if channel.access is not before:
                self._end_session()

    def _serve(self, command: Command, access: Access) -> Response:
        return self._announce(self._dispatch(command, access), access)

    def _dispatch(self, command: Command, access: Access) -> Response:
        module = next((one for one in self._modules if command.ins in one.instructions), None)
        if module is None:
            raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)
        if command.unchained_header[0] != CLA_PROPRIETARY:
            raise StatusWordError(StatusWord.CLA_NOT_SUPPORTED)
        return module.answer(command, access)

    def _announce(self, response: Response, access: Access) -> Response:
        """Let an answer that is good say that the user began something."""
        waiting = self._interaction.event_bytes(access) if self._interaction is not None else 0
        if response.sw is not StatusWord.OK or not waiting:
            return response
        return Response(response.data, announces(waiting, in_channel=access.secure))

    def _end_session(self) -> None:
        for module in self._modules:
            module.reset()
