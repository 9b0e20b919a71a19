# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The communication agent (K1), the trusted world's end: SCP11 with the Key that is paired, and nothing sent by itself.

The trusted world has no link. It says what to send and is told what came; the client world carries both and reads neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.constant_time import bytes_eq

from protocol import scp03, scp11
from protocol.apdu import Command, Response
from protocol.channel_certificate import KeyUse, failed_checks, read
from protocol.errors import Check, DecodeError, VerificationError
from protocol.scp11 import ControlReference, KeyAgreement, KeyAgreementAnswer, Variant
from protocol.status import StatusWord, raise_for_status


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The static key by which a trusted world is known to a Key, and its certificates, leaf last."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PairedKey:
    """The Key that a trusted world is paired with: its certificate, X.509 or 7F21, and the version of its key."""

    certificate: bytes
    version: int = 1


@dataclass(frozen=True, slots=True)
class _Step:
    command: Command
    take: Callable[[Response], None]


class KeyChannel:
    """One channel from its first command to its last.

    While `next_command` gives a command, send it and hand its answer to `take`. Then it is open: `wrap` a command, send it,
    `unwrap` its answer, in turn. The first thing that fails ends it: VerificationError then and ever after.
    """

    def __init__(self, paired: PairedKey, host: HostIdentity | None, now: datetime) -> None:
        """Begin with `paired`: SCP11a as `host`, SCP11b without. VerificationError or DecodeError when it cannot be used."""
        certificate = read(paired.certificate)
        if failed := failed_checks(certificate, KeyUse.KEY_AGREEMENT, now):
            raise VerificationError(failed[0])
        self._paired = paired
        self._point = certificate.point
        self._host = host
        self._variant = Variant.SCP11A if host else Variant.SCP11B
        self._ephemeral = ec.generate_private_key(ec.SECP256R1())
        self._steps = self._handshake()
        self._session: scp03.SecureMessaging | None = None
        self._answering: scp03.SecureMessaging | None = None

    @property
    def is_open(self) -> bool:
        """Whether a command can be wrapped now."""
        return self._session is not None

    def next_command(self) -> Command | None:
        """Return the next command of setting the channel up; None when there is no more."""
        return self._steps[0].command if self._steps else None

    def take(self, response: Response) -> None:
        """Take the answer to the command that `next_command` gave; StatusError when the Key refused it."""
        steps, self._steps = self._steps, []
        if not steps:
            self.close()
            raise VerificationError(Check.CHANNEL)
        step, *rest = steps
        raise_for_status(scp11.ChannelIns(step.command.ins).title, response.sw)
        step.take(response)
        self._steps = rest

    def wrap(self, command: Command) -> Command:
        """Return `command` as it goes to the Key; its answer must be unwrapped before the next one.

        ValueError, and the channel stays open, for a command that cannot be secured.
        """
        if self._session is None:
            self.close()
            raise VerificationError(Check.CHANNEL)
        self._answering, secured = scp03.wrap_command(self._session, command)
        self._session = None
        return secured

    def unwrap(self, response: Response) -> Response:
        """Return what the Key answered to the command that was wrapped last.

        A status word of error comes without a MAC: it may be anybody's, so take it for "not known to be done".
        """
        session = self._answering
        self.close()
        if session is None:
            raise VerificationError(Check.CHANNEL)
        known = scp03.unwrap_response(session, response)
        self._session = session
        return known

    def close(self) -> None:
        """End the channel: its keys are forgotten."""
        self._steps = []
        self._session = self._answering = None

    def _handshake(self) -> list[_Step]:
        tag = scp11.CERTIFICATE_STORE
        if self._paired.certificate.startswith(scp11.CARD_VERIFIABLE_CERTIFICATE.to_bytes(2, "big")):
            tag = scp11.CARD_VERIFIABLE_CERTIFICATE
        ask = scp11.get_certificates(self._variant, self._paired.version, tag)
        point = scp11.point_of(self._ephemeral.public_key())
        agreement = KeyAgreement(ControlReference(self._variant.parameters), point)
        agree = scp11.authenticate(self._variant, self._paired.version, agreement)
        return [
            _Step(ask, self._recognise),
            *(_Step(command, _nothing_more) for command in self._introduction()),
            _Step(agree, lambda response: self._agree(agreement, response)),
        ]

    def _introduction(self) -> list[Command]:
        own = self._host.certificates if self._host else ()
        last = len(own) - 1
        return [scp11.perform_security_operation(one, more=at < last) for at, one in enumerate(own)]

    def _recognise(self, response: Response) -> None:
        """Check that this is the paired Key. The receipt proves it; this tells another Key from an attack."""
        try:
            shown = scp11.split_certificates(response.data)
        except DecodeError:
            raise VerificationError(Check.CERTIFICATE_FORMAT) from None
        if not shown or not bytes_eq(shown[-1], self._paired.certificate):
            raise VerificationError(Check.CERTIFICATE_ISSUER)

    def _agree(self, agreement: KeyAgreement, response: Response) -> None:
        try:
            answer = KeyAgreementAnswer.decode(response.data)
        except DecodeError:
            raise VerificationError(Check.CHANNEL) from None
        shared = scp11.exchange(self._ephemeral, answer.point)
        own = self._host.key if self._host else self._ephemeral
        keys = scp11.derive(shared, scp11.exchange(own, self._point))
        if not bytes_eq(scp11.receipt_of(keys, agreement, answer.point), answer.receipt):
            raise VerificationError(Check.CHANNEL)
        self._session = scp11.start(keys, answer.receipt)


def open_scp11a(host: HostIdentity, paired: PairedKey, now: datetime | None = None) -> KeyChannel:
    """Return the channel of a trusted world and its Key, each of which proves itself to the other."""
    return KeyChannel(paired, host, now or datetime.now(UTC))


def open_scp11b(paired: PairedKey, now: datetime | None = None) -> KeyChannel:
    """Return the channel of somebody whom the Key need not know, and a Key that proves itself."""
    return KeyChannel(paired, None, now or datetime.now(UTC))


def _nothing_more(response: Response) -> None:
    if response.data or response.sw is not StatusWord.OK:
        raise VerificationError(Check.CHANNEL)
