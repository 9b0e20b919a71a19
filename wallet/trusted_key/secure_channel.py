# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The communication agent (K1), the Key's end: SCP11a with a trusted world that is paired, SCP11b with anybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.constant_time import bytes_eq

from protocol import scp03, scp11
from protocol.apdu import Command, Response
from protocol.channel_certificate import ChannelCertificate, read, verify_chain
from protocol.errors import DecodeError, VerificationError
from protocol.scp11 import ChannelIns, KeyAgreement, KeyAgreementAnswer, Variant
from protocol.status import StatusWord
from wallet.card import StatusWordError
from wallet.trusted_key.module import PEER_LENGTH, Access

Pairing = Callable[[ChannelCertificate], bytes | None]
"""The peer's name of 8 bytes when the certificate is that of a paired trusted world, or None."""

_HANDSHAKE = frozenset(ChannelIns) - {ChannelIns.GET_DATA}
_CLA_HANDSHAKE = 0x80
_CLA_GET_DATA = 0x00


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """The Key's static key and what certifies it: X.509 leaf last, and its 7F21 form if it has one.

    `version` is the key version number (KVN) by which SCP11 names the key.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: tuple[bytes, ...]
    card_verifiable: bytes = b""
    version: int = 1


@dataclass(frozen=True, slots=True)
class _Peer:
    """A trusted world whose certificate was accepted."""

    name: bytes
    point: bytes


class SecureChannel:
    """The channel module: sets a channel up, takes its commands out and puts its answers in.

    What fails ends the channel, so there is nothing to go on with. `reset` is for the end of the session.
    """

    name = "channel"
    instructions = frozenset(int(ins) for ins in ChannelIns)

    def __init__(
        self, identity: KeyIdentity, paired: Pairing, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Speak for `identity`; `paired` knows the trusted worlds that may open SCP11a, `now` is for their certificates."""
        self._identity = identity
        self._paired = paired
        self._now = now
        self._offered: list[ChannelCertificate] = []
        self._peer: _Peer | None = None
        self._session: scp03.SecureMessaging | None = None
        self.access = Access()

    def reset(self) -> None:
        """End the channel and forget certificates that were sent."""
        self._end()
        self._offered = []
        self._peer = None

    @property
    def is_open(self) -> bool:
        """Whether there is a channel."""
        return self._session is not None

    def process(self, command: Command, serve: Callable[[Command, Access], Response]) -> Response:
        """Answer any command: what comes through the channel and what comes plain while none is open is given to `serve`.

        Whatever `serve` raises is an error, and errors travel bare; so do StatusWordErrors, if they are no warnings.
        """
        if scp03.is_secured(command):
            known = self.unwrap(command)
            try:
                response = self._serve(known, serve)
            except StatusWordError as error:
                response = Response(b"", error.sw)
            return self.wrap(response)
        if command.ins in self.instructions:
            return self.answer(command)
        self.refuse_plain()
        return serve(command, Access())

    def _serve(self, command: Command, serve: Callable[[Command, Access], Response]) -> Response:
        if command.ins == ChannelIns.GET_DATA:
            return self._certificates(command)
        return serve(command, self.access)

    def answer(self, command: Command) -> Response:
        """Answer GET DATA for certificates, PERFORM SECURITY OPERATION, INTERNAL or EXTERNAL AUTHENTICATE, sent plain.

        As anything that is sent plain, they end the channel that is open. `access` stays the same object while neither
        that happens nor another channel is opened.
        """
        self._end()
        if command.ins == ChannelIns.GET_DATA:
            return self._certificates(command)
        if command.unchained_header[0] != _CLA_HANDSHAKE:
            raise StatusWordError(StatusWord.CLA_NOT_SUPPORTED)
        if command.ins == ChannelIns.PERFORM_SECURITY_OPERATION:
            return self._take_certificate(command)
        for variant in Variant:
            if command.ins == variant.ins:
                return self._agree(command, variant)
        raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)

    def refuse_plain(self) -> None:
        """Say that a command came without secure messaging: StatusWordError, and the end of the channel, if one is open."""
        if self._session is not None:
            self.reset()
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)

    def unwrap(self, command: Command) -> Command:
        """Return what the peer said; StatusWordError, and the end of the channel, when a check fails or none is open."""
        session, access = self._session, self.access
        self.reset()
        if session is None or command.ins in _HANDSHAKE:
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        try:
            following, known = scp03.unwrap_command(session, command)
        except VerificationError:
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED) from None
        self._session, self.access = following, access
        return known

    def wrap(self, response: Response) -> Response:
        """Return the answer to the command that was unwrapped last, encrypted and with its R-MAC."""
        if self._session is None:
            return Response(b"", StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        return scp03.wrap_response(self._session, response)

    def _end(self) -> None:
        if self._session is not None:
            self._session = None
            self.access = Access()

    def _certificates(self, command: Command) -> Response:
        if command.unchained_header[0] != _CLA_GET_DATA:
            raise StatusWordError(StatusWord.CLA_NOT_SUPPORTED)
        held = {
            scp11.CERTIFICATE_STORE: b"".join(self._identity.chain),
            scp11.CARD_VERIFIABLE_CERTIFICATE: self._identity.card_verifiable,
        }.get(command.p1 << 8 | command.p2, b"")
        known = [scp11.certificate_request(variant, self._identity.version) for variant in Variant]
        if not held or command.data not in known:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        return Response(held, StatusWord.OK)

    def _take_certificate(self, command: Command) -> Response:
        """Collect the chain, and judge it when its leaf is there."""
        self._peer = None
        offered, self._offered = self._offered, []
        if command.p2 & ~scp11.MORE_CERTIFICATES not in (0, scp11.OCE_AUTHORITY_KID):
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        try:
            chain = [*offered, read(command.data)]
        except DecodeError:
            raise StatusWordError(StatusWord.WRONG_DATA) from None
        if len(chain) > scp11.MAX_CERTIFICATES:
            raise StatusWordError(StatusWord.WRONG_DATA)
        if command.p2 & scp11.MORE_CERTIFICATES:
            self._offered = chain
        else:
            self._peer = self._judge(chain)
        return Response(b"", StatusWord.OK)

    def _judge(self, chain: list[ChannelCertificate]) -> _Peer:
        try:
            leaf = verify_chain(chain, self._now())
        except VerificationError:
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED) from None
        name = self._paired(leaf)
        if name is None:
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        if len(name) != PEER_LENGTH:
            raise ValueError(f"a peer's name has {PEER_LENGTH} bytes")
        return _Peer(name, leaf.point)

    def _agree(self, command: Command, variant: Variant) -> Response:
        peer = self._peer
        self.reset()
        if command.p1 not in (0, self._identity.version) or command.p2 != variant:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        if variant is Variant.SCP11A and peer is None:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        try:
            agreement = KeyAgreement.decode(command.data)
        except DecodeError:
            raise StatusWordError(StatusWord.WRONG_DATA) from None
        if not scp11.is_full(agreement.control, variant):
            raise StatusWordError(StatusWord.WRONG_DATA)
        named = peer if variant is Variant.SCP11A else None
        answer = self._open(agreement, named)
        return Response(answer.encode(), StatusWord.OK)

    def _open(self, agreement: KeyAgreement, peer: _Peer | None) -> KeyAgreementAnswer:
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        try:
            shared = scp11.exchange(ephemeral, agreement.point)
            proven = scp11.exchange(self._identity.key, peer.point if peer else agreement.point)
        except VerificationError:
            raise StatusWordError(StatusWord.WRONG_DATA) from None
        keys = scp11.derive(shared, proven)
        point = scp11.point_of(ephemeral.public_key())
        receipt = scp11.receipt_of(keys, agreement, point)
        self._session = scp11.start(keys, receipt)
        self.access = Access(secure=True, peer=peer.name if peer else b"")
        return KeyAgreementAnswer(point, receipt)


def pinned(names: dict[bytes, bytes]) -> Pairing:
    """Return a pairing by certificate: `names` has a peer's name for each certificate as it is encoded."""

    def name_of(certificate: ChannelCertificate) -> bytes | None:
        return next((name for known, name in names.items() if bytes_eq(known, certificate.encoded)), None)

    return name_of
