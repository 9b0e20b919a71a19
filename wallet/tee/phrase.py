# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The phrase that the user chose on the trusted UI: every dialog begins with it, so that a fake is noticed."""

from __future__ import annotations

from protocol.secret import Secret
from wallet.tee.state import PHRASE
from wallet.tee.storage import SealedStorage
from wallet.tee.trusted_ui import Prompt, Shown, TrustedUi

MIN_LENGTH, MAX_LENGTH = 4, 40


class PhrasedUi:
    """A trusted UI whose every text begins with the user's phrase."""

    def __init__(self, ui: TrustedUi, storage: SealedStorage) -> None:
        """Show on `ui`; the phrase is kept in `storage`."""
        self._ui = ui
        self._storage = storage

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of the surface."""
        return self._ui.descriptors

    def _phrased(self, shown: Shown) -> Prompt:
        phrase = self._storage.get(PHRASE)
        return Prompt(f"[{phrase.decode()}] {shown.text}" if phrase else shown.text)

    def confirm(self, prompt: Shown) -> bool:
        """Show the prompt and return whether the user agreed."""
        return self._ui.confirm(self._phrased(prompt))

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        """Let the user type something that is not shown."""
        return self._ui.ask_pin(self._phrased(prompt), error)

    def tell(self, text: str) -> None:
        """Show a sentence until it was read."""
        self._ui.tell(self._phrased(Prompt(text)).text)

    def choose_phrase(self) -> bool:
        """Let the user type a phrase and keep it; False when that was cancelled."""
        error = ""
        asked = Prompt("Choose a phrase that every question of your wallet will begin with:")
        while (typed := self.ask_pin(asked, error)) is not None:
            phrase = typed.decode("utf-8", "replace").strip()
            if MIN_LENGTH <= len(phrase) <= MAX_LENGTH and phrase.isprintable():
                self._storage.commit({PHRASE: phrase.encode()})
                return True
            error = f"A phrase has {MIN_LENGTH} to {MAX_LENGTH} printable characters"
        return False
