# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The scheme's private keys, each in a file that only its owner can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from console.files import write_privately
from issuer.database import Database
from protocol.errors import UsageError
from protocol.issuing import Anchors
from protocol.signing import PRIVATE_LENGTH, PrivateKey

ISSUER_ID = b"TLIS"
ACQUIRER_ID = b"TLAQ"
_NAMES = ("issuer", "operations", "acquirer")


@dataclass(frozen=True, slots=True)
class SchemeKeys:
    """The issuer's CA, the issuer's key for loads, lists and time, and the acquirer's CA."""

    issuer: PrivateKey
    operations: PrivateKey
    acquirer: PrivateKey

    @property
    def anchors(self) -> Anchors:
        """What wallets and terminals pin."""
        return Anchors(ISSUER_ID, self.issuer.public, self.operations.public, ACQUIRER_ID, self.acquirer.public)


def create(folder: Path) -> SchemeKeys:
    """Make and store what keys are missing: an earlier try may have been torn."""
    for name in _NAMES:
        if not _path(folder, name).exists():
            write_privately(_path(folder, name), PrivateKey.generate().scalar())
    return load(folder)


def load(folder: Path) -> SchemeKeys:
    """Return the stored keys; UsageError says what to do where there is no issuer, or one that has lost a key."""
    missing = [path for name in _NAMES if not (path := _path(folder, name)).exists()]
    if missing:
        Database(folder).close()  # made after the keys: without it there never was an issuer
        raise UsageError(f"{missing[0]} is missing; restore it from a copy")
    scalars = [_path(folder, name).read_bytes() for name in _NAMES]
    damaged = UsageError(f"a key file in {folder} is damaged; restore it from a copy")
    if any(len(scalar) != PRIVATE_LENGTH for scalar in scalars):
        raise damaged
    try:
        return SchemeKeys(*map(PrivateKey.from_scalar, scalars))
    except ValueError:
        raise damaged from None


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"
