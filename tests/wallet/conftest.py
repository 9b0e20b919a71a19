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

from console.home import Home
from lab.fixtures import Laboratory, Setup, set_up
from protocol.labels import Label, labelled
from protocol.secret import Secret
from tests.wallet.shop import Shop
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    """One wallet with 500.00 EUR, one terminal and one issuer, for a whole module."""
    with Laboratory(Setup(balance="500.00")) as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose wallet has 900.00 EUR and 64 cards, for a whole module."""
    made = Home(tmp_path_factory.mktemp("home"))
    set_up(made, Setup(balance="900.00", cards=64))
    return made


@pytest.fixture
def shop(home: Home, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    """Return what opens a shop in `home` by a script; the next one closes the one before."""
    opened: list[Shop] = []

    def open_shop(answers: str, *, one_tap: bool = False) -> Shop:
        close()
        opened.append(Shop(home, tmp_path, answers, one_tap=one_tap))
        return opened[-1]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield open_shop
    close()


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
