# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the trusted application owns: keys, credentials, purse and lists, and how they get there.

Provisioning can be torn anywhere and repeated: keys that were applied for are kept until their certificates arrive,
and the issuer answers a repeated request alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol import envelope, signing
from protocol.certificate import Authority, CredentialCertificate, Usage, failed_checks
from protocol.errors import Check, VerificationError
from protocol.issuing import MAX_CREDENTIALS, Anchors, Application, BlockList, Issuance, IssuedNumbers
from protocol.money import MAX_MINOR, Amount, Currency
from protocol.secret import Secret
from protocol.vouchers import LoadRequest, Voucher, device_id
from protocol.wire import Wire
from wallet.tee.contract import NewLimits, Origin, TeeError, TeeResult
from wallet.tee.state import (
    ANCHORS,
    BLOCK_LIST,
    CREDENTIAL,
    DEVICE,
    HELD,
    LIMITS,
    MOVED_OUT,
    MOVING_IN,
    MOVING_OUT,
    PENDING,
    PURSE,
    ROLLED_BACK,
    Credential,
    Device,
    Limits,
    Pending,
    Purse,
    signer,
)
from wallet.tee.storage import SealedStorage

DEFAULT_NO_PIN_LIMIT = 50  # in major units of the purse currency
_EMPTY_LIST = BlockList(0, (), (), bytes(signing.SIGNATURE_LENGTH))
_EMPTY_PURSE = Purse(currency=0, balance=0, loads=0, no_pin_limit=0, last_time=0)

AnyWire = TypeVar("AnyWire", bound=Wire)


class Vault:
    """Reads from and writes to sealed storage; the objects it hands out are frozen values."""

    def __init__(self, storage: SealedStorage) -> None:
        """Use `storage`; nothing is written before something is provisioned."""
        self._storage = storage
        self._unshown: dict[bytes, Credential] | None = None
        self._decoded: dict[bytes, tuple[bytes, Wire]] = {}

    def _read(self, key: bytes, kind: type[AnyWire]) -> AnyWire | None:
        """Return a stored value, decoded once for as long as it does not change."""
        stored = self._storage.get(key)
        if stored is None:
            return None
        encoded, value = self._decoded.get(key, (b"", None))
        if encoded is not stored or not isinstance(value, kind):
            value = kind.decode(stored)
            self._decoded[key] = (stored, value)
        return value

    # --- what is there

    @property
    def is_locked(self) -> bool:
        """Whether payment is locked, since storage or counter were put back."""
        return self._storage.is_stale or self._storage.get(ROLLED_BACK) is not None

    @property
    def is_moving(self) -> bool:
        """Whether the purse is on its way to or from the Trusted Key, so that nothing is paid from it here."""
        return self._storage.get(MOVING_OUT) is not None or self._storage.get(MOVING_IN) is not None

    @property
    def has_moved_out(self) -> bool:
        """Whether the purse of this wallet was moved to the Trusted Key, and nobody has said what became of it since."""
        return self._storage.get(MOVED_OUT) is not None

    @property
    def is_held(self) -> bool:
        """Whether the user locked the wallet at the Trusted Key."""
        return self._storage.get(HELD) is not None

    def hold(self, *, held: bool) -> None:
        """Lock the wallet as its user wishes, or let it pay again."""
        if held is not self.is_held:
            self._storage.commit({HELD: b"\x01" if held else None})

    @property
    def purse(self) -> Purse:
        """The money; an empty purse of no currency before the first application."""
        return self._read(PURSE, Purse) or _EMPTY_PURSE

    @property
    def anchors(self) -> Anchors:
        """The trust anchors; BAD_STATE before they are pinned."""
        anchors = self._read(ANCHORS, Anchors)
        if anchors is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the wallet has no issuer yet: tap-wallet apply")
        return anchors

    @property
    def acquirer(self) -> Authority:
        """Who certifies terminals."""
        return Authority(self.anchors.acquirer_id, self.anchors.acquirer_key)

    @property
    def limits(self) -> Limits:
        """What the user chose at set-up."""
        return self._read(LIMITS, Limits) or Limits()

    def choose_limits(self, limits: Limits) -> None:
        """Keep what the user chose, once: nobody changes it from outside later."""
        if self._storage.get(LIMITS) is None:
            self._storage.commit({LIMITS: limits.encode()})

    def limits_in_words(self, wanted: NewLimits) -> str:
        """Return new limits as a person reads them; BAD_STATE before the purse has a currency."""
        if not self.purse.currency:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the wallet has no card yet: tap-wallet apply")
        if max(wanted.payment, wanted.sum, wanted.key) > MAX_MINOR:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "no purse holds that much")
        unit = Currency.of(self.purse.currency)
        parts = [f"{Amount(wanted.payment, unit)} each"]
        parts += [f"{Amount(wanted.sum, unit)} together"] if wanted.sum else []
        parts += [f"{wanted.count} payments"] if wanted.count else []
        parts += [f"with the Key above {Amount(wanted.key, unit)}"] if wanted.key else []
        return ", ".join(parts)

    def change_limits(self, wanted: NewLimits) -> None:
        """Keep what the user agreed to; the counting begins anew."""
        limits = replace(self.limits, sum=wanted.sum, count=wanted.count, key=wanted.key)
        purse = replace(self.purse, no_pin_limit=wanted.payment, spent=0, payments=0)
        self._storage.commit({LIMITS: limits.encode(), PURSE: purse.encode()})

    @property
    def blocked_terminals(self) -> frozenset[bytes]:
        """Serials of terminal certificates that are not to be trusted."""
        return frozenset(self._block_list.terminals)

    @property
    def _block_list(self) -> BlockList:
        return self._read(BLOCK_LIST, BlockList) or _EMPTY_LIST

    def now(self) -> int:
        """Seconds since 1970, never before the newest time that the issuer has signed."""
        return max(int(time.time()), self.purse.last_time)

    @property
    def device(self) -> Device:
        """The device's keys; BAD_STATE before the first application."""
        stored = self._read(DEVICE, Device)
        if stored is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the wallet has no card yet: tap-wallet apply")
        return stored

    def _device_made(self) -> Device:
        """Return the device's keys, made and stored by the first application."""
        if stored := self._read(DEVICE, Device):
            return stored
        sealing = X25519PrivateKey.generate().private_bytes_raw()
        device = Device(signing.PrivateKey.generate().scalar(), Secret(sealing))
        self._storage.commit({DEVICE: device.encode()})
        return device

    @property
    def device_id(self) -> bytes:
        """The eight bytes by which the issuer knows this wallet; empty before the first application."""
        stored = self._read(DEVICE, Device)
        return device_id(signer(stored.signing_scalar).public) if stored else b""

    def usable_credentials(self, *, with_key: bool = False) -> list[Credential]:
        """Return the credentials that were never shown, are valid today and are not blocked, oldest first.

        They are those that the Trusted Key backs, or those that it does not.
        """
        return list(self._usable(with_key=with_key))

    def _usable(self, *, with_key: bool) -> Iterator[Credential]:
        """Yield them one by one: a tap needs the first of hundreds."""
        if self._unshown is None:
            stored = (Credential.decode(value) for _, value in self._storage.items(CREDENTIAL))
            self._unshown = {one.key: one for one in stored if one.counter == 0}
        today = datetime.fromtimestamp(self.now(), UTC).date()
        blocked = self._block_list.numbers
        for one in self._unshown.values():
            if bool(one.certificate.co_signing_key) is with_key and _is_valid(one, today) and one.number not in blocked:
                yield one

    def expired_credentials(self) -> list[Credential]:
        """Return all credentials, shown or not, that were valid until a day that is over."""
        today = datetime.fromtimestamp(self.now(), UTC).date()
        stored = (Credential.decode(value) for _, value in self._storage.items(CREDENTIAL))
        return [one for one in stored if one.certificate.valid_until < today]

    def mark_shown(self, credential: Credential) -> None:
        """Forget a credential that storage holds as shown: it is spent."""
        if self._unshown is not None:
            self._unshown.pop(credential.key, None)

    def forget_cache(self) -> None:
        """Read the credentials anew: storage has changed beneath."""
        self._unshown = None

    def credential(self, serial: bytes) -> Credential:
        """Return a credential that was shown, by the serial of its certificate."""
        stored = self._storage.get(CREDENTIAL + serial)
        if stored is None:
            raise TeeError(TeeResult.ITEM_NOT_FOUND, Origin.TRUSTED_APP, "that credential is gone")
        return Credential.decode(stored)

    def drop_backed(self) -> None:
        """Forget the cards that a Trusted Key backs and that were never shown: it is not this wallet's any more."""
        backed = self.usable_credentials(with_key=True)
        self._storage.commit({one.key: None for one in backed})
        self._unshown = None

    def put_next_card_first(self) -> None:
        """Let the next tap show another card than it would have shown."""
        usable = self.usable_credentials()
        if len(usable) > 1 and self._unshown is not None:
            self._unshown[usable[0].key] = self._unshown.pop(usable[0].key)

    def next_credential(self, *, with_key: bool = False) -> Credential:
        """Return the credential for this tap; ITEM_NOT_FOUND when there is none left."""
        first = next(self._usable(with_key=with_key), None)
        if first is None:
            raise TeeError(TeeResult.ITEM_NOT_FOUND, Origin.TRUSTED_APP, "no virtual card left: tap-wallet apply")
        return first

    # --- how it gets there

    def pin_anchors(self, anchors: Anchors) -> None:
        """Trust these authorities from now on, and never others."""
        stored = self._storage.get(ANCHORS)
        if stored is None:
            self._storage.commit({ANCHORS: anchors.encode()})
        elif stored != anchors.encode():
            raise TeeError(
                TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "this wallet belongs to another issuer; use another --home"
            )

    def pending_keys(self, currency: int, count: int) -> list[bytes]:
        """Return the public keys that are applied for next: those that are pending already, or `count` new ones.

        They are stored before a Trusted Key is asked to back them, by what it makes for exactly these.
        """
        if self.has_moved_out:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "its purse is at the Key: tap-wallet move in")
        if not 1 <= count <= MAX_CREDENTIALS:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, f"1 to {MAX_CREDENTIALS} cards at once")
        if self.purse.currency not in (0, currency):
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "the purse is in another currency already")
        pending = self._read(PENDING, Pending)
        if pending is None:
            pending = Pending(tuple(signing.PrivateKey.generate().scalar() for _ in range(count)))
            self._storage.commit({PENDING: pending.encode()})
        return [signer(scalar).public for scalar in pending.scalars]

    @property
    def is_pending(self) -> bool:
        """Whether keys were applied for already: the issuer may have answered, so nothing about them may change."""
        return self._storage.get(PENDING) is not None

    def back_pending(self, co_signing_keys: tuple[bytes, ...]) -> None:
        """Note the keys that a Trusted Key made for what is pending."""
        pending = self._read(PENDING, Pending)
        if pending is not None:
            self._storage.commit({PENDING: replace(pending, co_signing_keys=co_signing_keys).encode()})

    def apply(self, currency: int, count: int, *, locked_down: bool) -> Application:
        """Return a signed application for `count` credentials; keys that are pending already are applied for first."""
        self.pending_keys(currency, count)
        device = self._device_made()
        pending = self._read(PENDING, Pending)
        if pending is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "nothing is pending")
        return self._application(device, pending, currency, locked_down=locked_down)

    def _application(self, device: Device, pending: Pending, currency: int, *, locked_down: bool) -> Application:
        sealing = X25519PrivateKey.from_private_bytes(device.sealing_key).public_key()
        unsigned = Application(
            signer(device.signing_scalar).public,
            sealing.public_bytes(Encoding.Raw, PublicFormat.Raw),
            currency,
            int(locked_down),
            tuple(signer(scalar).public for scalar in pending.scalars),
            bytes(signing.SIGNATURE_LENGTH),
            pending.co_signing_keys,
        )
        return replace(unsigned, signature=signer(device.signing_scalar).sign(unsigned.signature_input()))

    def install(self, application: Application, issuance: Issuance) -> None:
        """Take over the certificates and numbers that answer `application`; all of them or none."""
        device = self.device
        pending = self._read(PENDING, Pending)
        if pending is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "nothing was applied for")
        own = signer(device.signing_scalar).public
        if not signing.is_valid(own, application.signature, application.signature_input()):
            raise VerificationError(Check.SIGNATURE)  # the client application made it up
        digest = application.digest()
        if not signing.is_valid(self.anchors.operations_key, issuance.signature, issuance.signature_input(digest)):
            raise VerificationError(Check.SIGNATURE)
        sealing = X25519PrivateKey.from_private_bytes(device.sealing_key)
        opened = envelope.unseal(issuance.sealed_numbers, sealing, IssuedNumbers.info(digest))
        numbers = IssuedNumbers.decode(opened).numbers
        backing = pending.co_signing_keys or (b"",) * len(pending.scalars)
        answered = zip(pending.scalars, backing, numbers, issuance.certificates, strict=True)
        credentials = [
            Credential(scalar, number, 0, self._checked(scalar, co_signing_key, certificate))
            for scalar, co_signing_key, number, certificate in answered
        ]
        changes: dict[bytes, bytes | None] = {one.key: one.encode() for one in credentials}
        purse = self.purse if self.purse.currency else _with_currency(self.purse, application.currency)
        self._storage.commit({**changes, PENDING: None, PURSE: purse.encode()})
        self._unshown = None

    def _checked(
        self, scalar: Secret, co_signing_key: bytes, certificate: CredentialCertificate
    ) -> CredentialCertificate:
        issuer = Authority(self.anchors.issuer_id, self.anchors.issuer_key)
        today = datetime.fromtimestamp(self.now(), UTC).date()
        failed = failed_checks(certificate, Usage.CREDENTIAL, issuer, today)
        if (certificate.public_key, certificate.co_signing_key) != (signer(scalar).public, co_signing_key):
            failed.append(Check.CERTIFICATE_USAGE)
        if failed:
            raise VerificationError(failed[0])
        return certificate

    def request_load(self, amount: int, currency: int) -> LoadRequest:
        """Return a signed request for the next load."""
        purse = self.purse
        if currency != purse.currency:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "the purse is in another currency")
        if purse.balance + amount > MAX_MINOR:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "the purse cannot hold that much")
        unsigned = LoadRequest(self.device_id, purse.loads + 1, amount, currency, bytes(signing.SIGNATURE_LENGTH))
        return replace(unsigned, signature=signer(self.device.signing_scalar).sign(unsigned.signature_input()))

    def load(self, voucher: Voucher) -> None:
        """Add a voucher to the balance: for this device, in order, once."""
        self._storage.commit({PURSE: self.with_voucher(self.purse, voucher).encode()})

    def with_voucher(self, purse: Purse, voucher: Voucher) -> Purse:
        """Return `purse` with a voucher added; VerificationError or ACCESS_DENIED for one that is not its next."""
        if not signing.is_valid(self.anchors.operations_key, voucher.signature, voucher.signature_input()):
            raise VerificationError(Check.SIGNATURE)
        fits = (voucher.device, voucher.number, voucher.currency) == (
            self.device_id,
            purse.loads + 1,
            purse.currency,
        )
        if not fits or purse.balance + voucher.amount > MAX_MINOR:
            raise TeeError(
                TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "this voucher is not the next one for this purse"
            )
        return replace(purse, balance=purse.balance + voucher.amount, loads=voucher.number)

    def obey(self, listed: BlockList) -> None:
        """Take over a newer list of what is blocked, and its time; an older one changes nothing."""
        if not signing.is_valid(self.anchors.operations_key, listed.signature, listed.signature_input()):
            raise VerificationError(Check.SIGNATURE)
        if listed.time < self._block_list.time:
            return
        purse = replace(self.purse, last_time=max(self.purse.last_time, listed.time))
        self._storage.commit({BLOCK_LIST: listed.encode(), PURSE: purse.encode()})


def _is_valid(credential: Credential, today: date) -> bool:
    return credential.certificate.valid_from <= today <= credential.certificate.valid_until


def _with_currency(purse: Purse, currency: int) -> Purse:
    """Return the purse as its first cards find it: empty, in a currency that stays; the issuer's time is kept."""
    limit = DEFAULT_NO_PIN_LIMIT * 10 ** Currency.of(currency).exponent
    return replace(purse, currency=currency, no_pin_limit=limit)
