# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Fixed keys and certificates, so that every byte in these tests is the same each time."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import settings

from protocol.certificate import Authority, CredentialCertificate, Merchant, TerminalCertificate, Usage, issue
from protocol.messages import GetVirtualCard
from protocol.signing import SIGNATURE_LENGTH, PrivateKey

settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")


@pytest.fixture(scope="session")
def acquirer_key() -> PrivateKey:
    return PrivateKey.from_scalar(bytes([1]) * 32)


@pytest.fixture(scope="session")
def issuer_key() -> PrivateKey:
    return PrivateKey.from_scalar(bytes([2]) * 32)


@pytest.fixture(scope="session")
def terminal_key() -> PrivateKey:
    return PrivateKey.from_scalar(bytes([3]) * 32)


@pytest.fixture(scope="session")
def credential_key() -> PrivateKey:
    return PrivateKey.from_scalar(bytes([4]) * 32)


@pytest.fixture(scope="session")
def acquirer(acquirer_key: PrivateKey) -> Authority:
    return Authority(b"ACQ1", acquirer_key.public)


@pytest.fixture(scope="session")
def issuer(issuer_key: PrivateKey) -> Authority:
    return Authority(b"ISS1", issuer_key.public)


@pytest.fixture(scope="session")
def today() -> date:
    """A day on which both certificates are valid."""
    return date(2026, 7, 15)


@pytest.fixture(scope="session")
def terminal_certificate(acquirer_key: PrivateKey, terminal_key: PrivateKey) -> TerminalCertificate:
    unsigned = TerminalCertificate(
        serial=bytes.fromhex("0102030405060708"),
        authority=b"ACQ1",
        usage=Usage.TERMINAL,
        valid_from=date(2026, 7, 1),
        valid_until=date(2027, 6, 30),
        public_key=terminal_key.public,
        signature=bytes(SIGNATURE_LENGTH),
        terminal_id="TERM0001",
        merchant=Merchant("Corner Bakery", 5462, 978),
    )
    return issue(unsigned, acquirer_key)


@pytest.fixture(scope="session")
def credential_certificate(issuer_key: PrivateKey, credential_key: PrivateKey) -> CredentialCertificate:
    unsigned = CredentialCertificate(
        serial=bytes.fromhex("A1A2A3A4A5A6A7A8"),
        authority=b"ISS1",
        usage=Usage.CREDENTIAL,
        valid_from=date(2026, 7, 1),
        valid_until=date(2026, 8, 31),
        public_key=credential_key.public,
        signature=bytes(SIGNATURE_LENGTH),
        offline_ceiling=10000,
    )
    return issue(unsigned, issuer_key)


@pytest.fixture(scope="session")
def terminal_hello(terminal_certificate: TerminalCertificate, terminal_key: PrivateKey) -> GetVirtualCard:
    """GET VIRTUAL CARD with a good signature over some T1."""
    signature = terminal_key.sign(GetVirtualCard.signature_input(bytes(32)))
    return GetVirtualCard(terminal_certificate, bytes(range(32)), signature)
