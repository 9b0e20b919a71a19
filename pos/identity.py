# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who this terminal is: its keys, its certificate and what it trusts, in one folder; and how it gets them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from console.files import write_privately
from protocol import signing
from protocol.certificate import Authority, Merchant, TerminalCertificate
from protocol.errors import Check, DecodeError, UsageError, VerificationError
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    BlockList,
    BlockListRequest,
    TerminalApplication,
    TerminalIssuance,
    encode_message,
    expect,
)
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.transport.issuer import IssuerLink
from protocol.wire import Wire

SIGNING_KEY_FILE = "terminal.key"
DEVICE_SECRET_FILE = "device.secret"  # noqa: S105 - a file name
CERTIFICATE_FILE = "certificate.7f21"
ANCHORS_FILE = "anchors"
LIST_FILE = "blocklist"
_SECRET_BYTES = 32

AnyWire = TypeVar("AnyWire", bound=Wire)


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a terminal needs before a card comes."""

    key: PrivateKey
    device_secret: Secret
    certificate: TerminalCertificate
    anchors: Anchors
    blocked: BlockList

    @property
    def issuer(self) -> Authority:
        """Who certifies credentials."""
        return Authority(self.anchors.issuer_id, self.anchors.issuer_key)


def load(folder: Path) -> Identity:
    """Return the terminal of `folder`; UsageError says how to make one when there is none."""
    try:
        return Identity(
            PrivateKey.from_scalar(_read_secret(folder / SIGNING_KEY_FILE)),
            _read_secret(folder / DEVICE_SECRET_FILE),
            TerminalCertificate.decode((folder / CERTIFICATE_FILE).read_bytes()),
            Anchors.decode((folder / ANCHORS_FILE).read_bytes()),
            BlockList.decode((folder / LIST_FILE).read_bytes()),
        )
    except FileNotFoundError as error:
        if not (folder / CERTIFICATE_FILE).exists():
            raise UsageError(f"there is no terminal in {folder}; make one with `tap-pos init`") from None
        raise UsageError(f"{error.filename} is missing; restore it from a copy") from None
    except (DecodeError, ValueError):
        raise UsageError(f"a file in {folder} is damaged; restore it from a copy") from None


def create(folder: Path, terminal_id: str, merchant: Merchant, issuer: IssuerLink) -> Identity:
    """Make keys, have them certified and fetch the list; what an earlier, torn try left behind is used again.

    The certificate comes last: with it there is a terminal, which is never made again.
    """
    key = PrivateKey.from_scalar(_secret(folder / SIGNING_KEY_FILE, PrivateKey.generate().scalar()))
    _secret(folder / DEVICE_SECRET_FILE, Secret(os.urandom(_SECRET_BYTES)))
    anchors = _ask(issuer, AnchorsRequest(), Anchors)
    unsigned = TerminalApplication(key.public, terminal_id, merchant, bytes(signing.SIGNATURE_LENGTH))
    application = replace(unsigned, signature=key.sign(unsigned.signature_input()))
    certificate = _ask(issuer, application, TerminalIssuance).certificate
    write_privately(folder / ANCHORS_FILE, anchors.encode())
    fetch_list(folder, anchors, issuer)
    write_privately(folder / CERTIFICATE_FILE, certificate.encode())
    return load(folder)


def fetch_list(folder: Path, anchors: Anchors, issuer: IssuerLink) -> BlockList:
    """Fetch, check and keep the issuer's newest list of what is blocked."""
    listed = _ask(issuer, BlockListRequest(), BlockList)
    if not signing.is_valid(anchors.operations_key, listed.signature, listed.signature_input()):
        raise VerificationError(Check.SIGNATURE)
    write_privately(folder / LIST_FILE, listed.encode())
    return listed


def _secret(path: Path, fresh: Secret) -> Secret:
    """Return the secret in `path`, which is `fresh` when there was none."""
    if not path.exists():
        write_privately(path, fresh)
    return _read_secret(path)


def _read_secret(path: Path) -> Secret:
    secret = Secret(path.read_bytes())
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"{path.name} does not hold {_SECRET_BYTES} bytes")
    return secret


def _ask(issuer: IssuerLink, request: Wire, kind: type[AnyWire]) -> AnyWire:
    return expect(issuer.exchange(encode_message(request)), kind)
