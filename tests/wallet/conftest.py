# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the wallet's tests share: a laboratory for each module, and a look into sealed storage from outside the TEE."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from lab.fixtures import Laboratory, Setup
from protocol.labels import Label, labelled
from protocol.secret import Secret
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    """One wallet with 500.00 EUR, one terminal and one issuer, for a whole module."""
    with Laboratory(Setup(balance="500.00")) as made:
        yield made


@pytest.fixture
def open_storage() -> Callable[[Path, Path], SealedStorage]:
    """Return what opens a copy of a wallet's sealed storage in an empty folder, with the keys that its TEE derives."""

    def open_copy(wallet: Path, folder: Path) -> SealedStorage:
        root = (wallet / "device" / "root.key").read_bytes()
        for name in ("state.log", "freshness"):
            shutil.copy(wallet / "tee" / name, folder / name)
        return SealedStorage(
            folder,
            _derive(root, Label.STORAGE_KEY),
            FreshnessCounter(folder, _derive(root, Label.COUNTER_KEY)),
        )

    return open_copy


def _derive(root: bytes, label: Label) -> Secret:
    return Secret(HKDFExpand(SHA256(), 32, labelled(label)).derive(root))
