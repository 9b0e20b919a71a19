# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The real trusted application in this process, over real sealed storage: no process to start, so that examples are fast."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocol.errors import TapLabError
from protocol.labels import Label, labelled
from protocol.secret import Secret
from protocol.wire import Wire
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.environment.lockdown import Lockdown
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, Nothing, WalletView
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.internal_api import as_tee_error
from wallet.tee.payment_ta import PaymentApplication
from wallet.tee.storage import SealedStorage
from wallet.tee.trusted_ui import NoUi

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class NearTrustedWorld:
    """A copy of a wallet's sealed storage and the application that works on it, until `close`."""

    def __init__(self, wallet: Path) -> None:
        self._root = (wallet / "device" / "root.key").read_bytes()
        self._folder = Path(tempfile.mkdtemp(prefix="taplab-near-", dir=_MEMORY))
        for name in ("state.log", "freshness"):
            shutil.copy(wallet / "tee" / name, self._folder / name)
        self.application = self._start()

    def _start(self) -> PaymentApplication:
        counter = FreshnessCounter(self._folder, self._key(Label.COUNTER_KEY))
        self._storage = SealedStorage(self._folder, self._key(Label.STORAGE_KEY), counter)
        self._descriptors = (*counter.descriptors, *self._storage.descriptors)
        return PaymentApplication(self._storage, NoUi(), Lockdown(0, seccomp=False, missing=()))

    def _key(self, label: Label) -> Secret:
        return Secret(HKDFExpand(SHA256(), 32, labelled(label)).derive(self._root))

    def view(self) -> WalletView:
        return WalletView.decode(self.application.invoke(CommandId.SHOW, b""))

    def kept(self, prefix: bytes) -> int:
        """Return how many things storage holds whose keys begin so."""
        return len(list(self._storage.items(prefix)))

    def start_again(self) -> None:
        """Let the process die and another one start: what was not on disk is gone."""
        self._stop()
        self.application = self._start()

    def _stop(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self._folder)


class Invoked(Protocol):
    """Whatever has an application at the moment."""

    application: PaymentApplication


class NearSession(TeeSession):
    """The client API, which calls the application itself; a bug there comes out as what it is."""

    def __init__(self, world: Invoked) -> None:
        self._world = world

    def invoke_command(
        self, command: CommandId, parameters: Wire | None = None, timeout: float = ANSWER_SECONDS
    ) -> bytes:
        try:
            return self._world.application.invoke(command, (parameters or Nothing()).encode())
        except TapLabError as error:
            raise as_tee_error(error) from None

    def close(self) -> None:
        pass
