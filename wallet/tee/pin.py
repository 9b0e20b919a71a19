# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The user's PIN: entered on the trusted UI only, kept as an Argon2id verifier, three tries, unblocked by the issuer.

A try is counted on disk before it is compared, so that pulling the battery gives none back. No command of the contract
carries a PIN, and nothing that a terminal sends starts a try: only what the user types is one.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from protocol.layout import Fields
from protocol.messages import SecretField
from protocol.secret import Secret
from protocol.wire import Wire
from wallet.tee.storage import SealedStorage
from wallet.tee.trusted_ui import Prompt, Shown, TrustedUi

PIN = b"pin"
TRIES = 3
MIN_DIGITS, MAX_DIGITS = 4, 12  # ISO 9564-1 §6.1.1
_SALT_BYTES = 16
_VERIFIER_BYTES = 32
_ITERATIONS, _LANES, _MEMORY_KIB = 2, 1, 19_456  # RFC 9106 with one lane: the locked-down process has one thread


@dataclass(frozen=True, slots=True)
class Pin(Wire):
    """What is stored of a PIN. `tries` is how many are left; 0 is blocked."""

    salt: bytes
    verifier: Secret
    tries: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "salt" / Bytes(_SALT_BYTES), "verifier" / SecretField(_VERIFIER_BYTES), "tries" / Byte
    )


def derive(pin: bytes, salt: bytes) -> Secret:
    """Return the verifier of a PIN: Argon2id, RFC 9106."""
    kdf = Argon2id(salt=salt, length=_VERIFIER_BYTES, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY_KIB)
    return Secret(kdf.derive(pin))


class Pins:
    """Sets, checks and changes the PIN; storage is the only truth."""

    def __init__(self, storage: SealedStorage, ui: TrustedUi) -> None:
        """Ask on `ui`."""
        self._storage = storage
        self._ui = ui

    @property
    def stored(self) -> Pin | None:
        """What is stored, None before a PIN was set."""
        found = self._storage.get(PIN)
        return Pin.decode(found) if found is not None else None

    @property
    def is_set(self) -> bool:
        """Whether the user has a PIN."""
        return self.stored is not None

    @property
    def is_blocked(self) -> bool:
        """Whether every try is used up."""
        stored = self.stored
        return stored is not None and stored.tries == 0

    def ask(self, prompt: Shown) -> bool:
        """Ask the user to agree to `prompt`: by the PIN where there is one, else by a yes."""
        return self.enter(prompt) if self.is_set else self._ui.confirm(prompt)

    def enter(self, prompt: Shown) -> bool:
        """Ask for the PIN under `prompt` until it is right, cancelled or blocked; return whether it was right."""
        error = ""
        while not self.is_blocked:
            entered = self._ui.ask_pin(prompt, error)
            if entered is None:
                return False
            if self._try(entered):
                return True
            stored = self.stored
            error = f"Wrong PIN, {_tries(stored.tries if stored else 0)} left"
        self._ui.tell("The PIN is blocked. Your issuer can unblock it.")
        return False

    def _try(self, entered: Secret) -> bool:
        stored = self.stored
        if stored is None or stored.tries == 0:
            return False
        self._storage.commit({PIN: replace(stored, tries=stored.tries - 1).encode()})  # before the comparison
        if not hmac.compare_digest(derive(entered, stored.salt), stored.verifier):
            return False
        self._storage.commit({PIN: replace(stored, tries=TRIES).encode()})
        return True

    def change(self) -> bool:
        """Ask for the old PIN, if there is one, and twice for the new one; return whether it was changed."""
        if self.is_set and not self.enter(Prompt("Your PIN, to change it:")):
            return False
        error = ""
        while (
            first := self._ui.ask_pin(Prompt(f"Your new PIN, {MIN_DIGITS} to {MAX_DIGITS} digits:"), error)
        ) is not None:
            if not (MIN_DIGITS <= len(first) <= MAX_DIGITS and first.isdigit()):
                error = f"A PIN has {MIN_DIGITS} to {MAX_DIGITS} digits"
                continue
            again = self._ui.ask_pin(Prompt("The new PIN once more:"), "")
            if again is None:
                return False
            if again == first:
                self._store(first)
                return True
            error = "These were two different PINs"
        return False

    def _store(self, pin: Secret) -> None:
        salt = os.urandom(_SALT_BYTES)
        self._storage.commit({PIN: Pin(salt, derive(pin, salt), TRIES).encode()})

    def unblock(self) -> None:
        """Give every try back; the issuer has allowed it."""
        stored = self.stored
        if stored is not None:
            self._storage.commit({PIN: replace(stored, tries=TRIES).encode()})


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"
