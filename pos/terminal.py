# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The transaction, top to bottom: S2, S4, S8 and the terminal's half of S9.

with Terminal.open(Path("home")) as terminal:
    outcome = terminal.charge(Amount.parse("12.50", "EUR"), "socket:/path/of/socket")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pos import identity as identities
from pos import relay, settlement, tap_key
from pos.identity import Identity
from pos.journal import Journal, JournalFailedError, Record, State
from pos.outcome import Air, Outcome, OutcomeKind, Progress, Step
from pos.recovery import settle_open
from pos.relay import RelayCheckResult, RelayPolicy, scheme_of
from pos.session import CardSession, signed
from pos.settlement import Settled
from pos.verifier import Trust, VerifiedCard, verify
from protocol.certificate import CredentialCertificate
from protocol.closing import Closing
from protocol.commands import DEFAULT_NAME, VERSION_1
from protocol.envelope import SUITE_1
from protocol.errors import (
    CardSilentError,
    Check,
    DecodeError,
    ForeignCardError,
    LinkUnavailableError,
    TransportError,
    UsageError,
    VerificationError,
)
from protocol.fci import ApplicationFci
from protocol.messages import Debit, DebitResult, GetVirtualCard, Receipt, Result, certificate_hash
from protocol.money import Amount, Currency
from protocol.signing import SIGNATURE_LENGTH
from protocol.status import StatusError, StatusWord
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink
from protocol.transport.fault import Fault, inject
from protocol.transport.issuer import IssuerLink
from protocol.transport.opening import LinkUrl, open_terminal_end
from protocol.transport.trace import Exchange, TracingLink

VOID_AFTER = 24 * 3600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between taps of a card that tells nothing new
NOT_KNOWN = "the result is not known; this wallet's next tap here will tell, and `tap-pos history` then shows it"
WRITTEN_LATER = "then this wallet's next tap here writes it down, and `tap-pos history` shows it"
Steps = Generator[Progress, None, Outcome]


@dataclass(frozen=True, slots=True)
class TerminalOptions:
    """How a terminal behaves. `use_directory` always reads the directory first; `short` never uses extended lengths.

    `timeout` is how many seconds to wait for a card, `again` how many for the same card when a tap was torn so late that
    its result is not known. `fault` strikes once in a charge. `relay` is what to do about an answer to RELAY CHECK that takes
    more than `relay_bound_ms` milliseconds beyond its air time (None: the bound of the link).
    """

    name: bytes = DEFAULT_NAME
    use_directory: bool = False
    short: bool = False
    timeout: float = NO_CARD_TIMEOUT
    again: float = 0.0
    fault: Fault | None = None
    relay: RelayPolicy = RelayPolicy.REPORT
    relay_bound_ms: float | None = None


class _EndedError(Exception):
    """The transaction is over, with this outcome."""

    def __init__(self, kind: OutcomeKind, reason: str = "", *, charged: bool | None = False) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.reason = reason
        self.charged = charged


@dataclass(slots=True)
class _Transaction:
    """What is known of the transaction so far.

    `in_progress` is the charge whose result is not on disk yet, `standing` how the last tap left the transaction. When it is
    `given_up`, no other tap follows.
    """

    amount: Amount
    scheme: str
    steps: list[Progress] = field(default_factory=list)
    card: str = ""
    reference: str = ""
    receipt_verified: bool = False
    relay: RelayCheckResult | None = None
    to_receipt: int = 0
    key_bytes: int = 0
    in_progress: bytes | None = None
    standing: Outcome | None = None
    given_up: bool = False
    settled: list[str] = field(default_factory=list)

    def outcome(self, kind: OutcomeKind, reason: str, charged: bool | None, trace: list[Exchange]) -> Outcome:
        lengths = tuple(exchange.lengths for exchange in trace)
        return Outcome(
            kind,
            self.amount,
            reason,
            self.card,
            self.reference,
            self.receipt_verified,
            charged,
            self.relay,
            Air(lengths, self.to_receipt, self.key_bytes),
            tuple(self.steps),
            tuple(trace),
            tuple(self.settled),
        )

    def so_far(self, trace: list[Exchange]) -> Outcome:
        """Return how the charge in progress ends if nothing more comes to light."""
        if self.standing is not None and self.standing.reference == self.reference:
            return self.standing
        return self.outcome(OutcomeKind.TORN, NOT_KNOWN, None, trace)


class Terminal(Closing):
    """A terminal that can charge, again and again. Not for several threads."""

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        options: TerminalOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use `identity` and `journal`; `clock` gives the seconds since 1970."""
        self._identity = identity
        self._journal = journal
        self._options = options or TerminalOptions()
        self._clock = clock

    @classmethod
    def open(cls, home: Path, options: TerminalOptions | None = None) -> Self:
        """Return the terminal of a home folder; UsageError when there is none or it is in use."""
        folder = home / "pos"
        return cls(identities.load(folder), Journal(folder, create=False), options)

    @property
    def currency(self) -> Currency:
        """The currency this terminal is certified for."""
        return Currency.of(self._identity.certificate.merchant.currency)

    @property
    def journal(self) -> Journal:
        """What this terminal has written down."""
        return self._journal

    @property
    def merchant(self) -> str:
        """The name that a shopper reads."""
        return self._identity.certificate.merchant.name

    def charge(self, amount: Amount, link: str | CardLink) -> Outcome:
        """Charge the next card at `link`, a URL or an open link, and return how it ended.

        UsageError for an amount of zero or of another currency, LinkUnavailableError when the link cannot be opened;
        JournalFailedError when the journal cannot be written and nothing was on its way; everything that a card can do is an
        Outcome. So is Ctrl-C once a charge is on its way; before, it is KeyboardInterrupt.
        """
        steps = self.transaction(amount, link)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                outcome: Outcome = finished.value
                return outcome

    def require_chargeable(self, amount: Amount) -> None:
        """Raise UsageError for an amount that this terminal cannot charge."""
        if amount.minor == 0 or amount.currency != self.currency:
            raise UsageError(f"this terminal charges more than 0 and in {self.currency}, not {amount}")

    def transaction(self, amount: Amount, link: str | CardLink) -> Steps:
        """Charge as `charge` does, step by step: yields each step when it is taken and returns the outcome."""
        self.require_chargeable(amount)
        opened = open_terminal_end(link) if isinstance(link, str) else link
        short = self._options.short or (isinstance(link, str) and LinkUrl.parse(link).short)
        faulty = inject(opened, self._options.fault) if self._options.fault else opened
        try:
            return (yield from self._run(_Transaction(amount, scheme_of(link)), TracingLink(faulty), short=short))
        finally:
            if isinstance(link, str):
                opened.close()

    def _run(self, known: _Transaction, link: TracingLink, *, short: bool) -> Steps:
        try:
            return (yield from self._taps(known, link, short=short))
        except KeyboardInterrupt:
            outcome = self._interrupted(known, link)
            if outcome is None:
                raise
            return outcome

    def _taps(self, known: _Transaction, link: TracingLink, *, short: bool) -> Steps:
        """Tap once, and again as long as the result is not known and there is time."""
        outcome = yield from self._one_tap(known, link, self._options.timeout, short=short)
        until, pause = time.monotonic() + self._options.again, _FIRST_PAUSE
        while known.in_progress is not None and not known.given_up and (left := until - time.monotonic()) > 0:
            yield _step(known, Step.PRESENT_AGAIN, "the result is not known: present the card again")
            outcome = yield from self._one_tap(known, link, left, short=short)
            if known.in_progress is not None and not known.given_up:
                time.sleep(
                    min(pause, max(0.0, until - time.monotonic()))
                )  # a card that lies there would be tapped on and on
                pause = min(2 * pause, _LONGEST_PAUSE)
        return outcome

    def _one_tap(
        self, known: _Transaction, link: TracingLink, timeout: float, *, short: bool
    ) -> Generator[Progress, None, Outcome]:
        """Tap and return how the transaction stands now."""
        try:
            newest = yield from self._end_of_tap(known, link, timeout, short=short)
            known.standing = self._stands(known, link, newest)
        except JournalFailedError as error:
            known.standing = _without_journal(known, link, error)
        finally:
            link.deactivate()
        return known.standing

    def _stands(self, known: _Transaction, link: TracingLink, newest: Outcome) -> Outcome:
        """Return how the transaction stands after a tap that ended so; what was known of a charge in progress is kept."""
        if known.in_progress is None:
            return newest
        if self._is_approved(known.in_progress):
            return self._approved(known, link)  # the receipt came; only its end was torn
        if known.standing is None or known.standing.reference != known.reference:
            return newest
        if newest.kind in (OutcomeKind.TORN, OutcomeKind.NO_CARD):
            return known.standing
        known.given_up = True
        return replace(known.standing, reason=f"{known.standing.reason} (this card says now: {newest.reason})")

    def _approved(self, known: _Transaction, link: TracingLink) -> Outcome:
        known.in_progress, known.receipt_verified = None, True
        return known.outcome(OutcomeKind.APPROVED, "", True, link.exchanges)

    def _interrupted(self, known: _Transaction, link: TracingLink) -> Outcome | None:
        """Return how a transaction ends that somebody ends with Ctrl-C; None when nothing is being charged."""
        with suppress(JournalFailedError):
            if known.reference and self._is_approved(bytes.fromhex(known.reference)):
                return self._approved(known, link)
        return None if known.in_progress is None else known.so_far(link.exchanges)

    def _end_of_tap(
        self, known: _Transaction, link: TracingLink, timeout: float, *, short: bool
    ) -> Generator[Progress, None, Outcome]:
        try:
            yield from self._tap(known, link, timeout, short=short)
        except _EndedError as ended:
            return known.outcome(ended.kind, ended.reason, ended.charged, link.exchanges)
        except VerificationError as error:
            return known.outcome(OutcomeKind.NOT_VERIFIED, str(error), False, link.exchanges)
        except LinkUnavailableError:
            if not link.exchanges and known.in_progress is None:
                raise
            charged = False if known.in_progress is None else None
            reason = "the link is gone; nothing was charged" if charged is False else NOT_KNOWN
            return known.outcome(OutcomeKind.TORN, reason, charged, link.exchanges)
        except TransportError as error:
            return known.outcome(OutcomeKind.TORN, f"{error}; nothing was charged", False, link.exchanges)
        except StatusError as error:
            return known.outcome(OutcomeKind.DECLINED, _refusal(error), False, link.exchanges)
        except DecodeError as error:
            return known.outcome(OutcomeKind.NOT_VERIFIED, f"malformed answer ({error})", False, link.exchanges)
        return known.outcome(OutcomeKind.APPROVED, "", True, link.exchanges)

    def _tap(
        self, known: _Transaction, link: TracingLink, timeout: float, *, short: bool
    ) -> Generator[Progress, None, None]:
        """The whole tap. The key of this tap is made before the card comes, so that the card need not wait for it."""
        key, challenge = tap_key.make(self._identity.device_secret, self._journal.next_tap_number())
        session = CardSession(link, self._activate(link, timeout), short=short)
        yield _step(known, Step.NAME_SENT, "terminal sends the application name")
        self._select(session)
        known.relay = self._check_relay(known, link, session.relay_check(challenge))
        yield _step(known, Step.CARD_ASKED, "terminal proves itself and asks for the virtual card number")
        verified = self._read_card(session, key)
        yield _step(known, Step.CARD_CHECKED, "terminal verified the signature, decrypted, checked the number")
        settled = self._settle_open(known, session, verified.card.open_id)
        known.settled += [one.hex() for one in settled if self._came_to_light(one) and one != known.in_progress]
        if self._was_paid(known):
            yield _step(known, Step.PAID, "wallet had deducted the amount, terminal has the receipt now")
            return
        known.card = verified.card.number.masked
        if verified.card.currency != known.amount.currency.number:
            raise _EndedError(OutcomeKind.DECLINED, Result.CURRENCY_NOT_SUPPORTED.words)
        self._pay(known, session, verified, link)
        yield _step(known, Step.PAID, "wallet deducted the amount, terminal has the receipt")
        self._confirm(session, verified.keys.transaction_id)

    def _check_relay(self, known: _Transaction, link: TracingLink, seconds: float) -> RelayCheckResult:
        lengths = link.exchanges[-1].lengths
        checked = relay.judge(seconds, lengths, known.scheme, self._options.relay_bound_ms)
        if checked.is_too_late and self._options.relay is RelayPolicy.DECLINE:
            known.relay = checked
            raise _EndedError(OutcomeKind.NOT_VERIFIED, f"{Check.RELAY.value} ({checked})")
        return checked

    def _settle_open(self, known: _Transaction, session: CardSession, open_id: bytes) -> list[bytes]:
        try:
            return settle_open(session, self._journal, open_id)
        except (StatusError, TransportError, DecodeError):
            charged = False if known.in_progress is None else None
            reason = "the tap ended while an earlier one was settled: present the card again"
            raise _EndedError(OutcomeKind.TORN, reason, charged=charged) from None

    def _is_approved(self, transaction_id: bytes) -> bool:
        record = self._journal.find(transaction_id)
        return record is not None and record.state is State.APPROVED

    def _came_to_light(self, transaction_id: bytes) -> bool:
        """Tell whether an earlier payment turned out to be paid; what was given up stays given up."""
        record = self._journal.find(transaction_id)
        return record is not None and record.is_taken

    def _was_paid(self, known: _Transaction) -> bool:
        """Tell whether the charge in progress turned out to be paid; False when it is to be paid now.

        Another card does not inherit a charge whose result is not known, and a refusal ends it.
        """
        if known.in_progress is None:
            return False
        record = self._journal.find(known.in_progress)
        if record is None or record.state is State.OPEN:
            raise _EndedError(OutcomeKind.TORN, "another card: present the first one again", charged=None)
        known.in_progress = None
        if record.state is State.REFUSED:
            raise _EndedError(OutcomeKind.DECLINED, record.reason)
        known.receipt_verified = record.state is State.APPROVED
        return known.receipt_verified

    def _activate(self, link: TracingLink, timeout: float) -> Activation:
        try:
            return link.activate(timeout)
        except CardSilentError as error:
            raise _EndedError(OutcomeKind.NO_CARD, str(error)) from None
        except ForeignCardError as error:
            raise _EndedError(OutcomeKind.NO_APPLICATION, str(error)) from None

    def _select(self, session: CardSession) -> None:
        """S2: by name, falling back to the directory, or the directory first if told so."""
        try:
            offer = None if self._options.use_directory else session.select(self._options.name)
            if offer is None:
                offer = self._select_by_directory(session)
        except StatusError as error:
            if error.status is StatusWord.SELECTED_FILE_DEACTIVATED:
                raise _EndedError(OutcomeKind.DECLINED, "this wallet is locked; see the phone") from None
            if error.status is StatusWord.NO_PRECISE_DIAGNOSIS:
                raise _EndedError(OutcomeKind.DECLINED, _refusal(error)) from None
            raise _EndedError(OutcomeKind.NO_APPLICATION, "the card has no payment application") from None
        except DecodeError:
            raise _EndedError(OutcomeKind.NO_APPLICATION, "the card's application is not one of ours") from None
        if offer is None:
            raise _EndedError(OutcomeKind.NO_APPLICATION, "the card has no payment application")
        if VERSION_1 not in offer.versions or SUITE_1 not in offer.suites:
            raise _EndedError(OutcomeKind.NO_APPLICATION, "the card speaks another version of the protocol")

    def _select_by_directory(self, session: CardSession) -> ApplicationFci | None:
        for entry in session.read_directory():
            if entry.name.startswith(self._options.name):
                return session.select(entry.name)
        return None

    def _read_card(self, session: CardSession, key: X25519PrivateKey) -> VerifiedCard:
        """S4 and S8: prove ourselves, ask, verify, decrypt, check."""
        public = key.public_key().public_bytes_raw()
        unsigned = GetVirtualCard(self._identity.certificate, public, bytes(SIGNATURE_LENGTH))
        t1 = session.digests(unsigned).t1
        hello = signed(unsigned, self._identity.key.sign(GetVirtualCard.signature_input(t1)))
        t2 = session.digests(hello).t2
        try:
            answer = session.get_virtual_card(hello)
        except StatusError as error:
            if error.status is StatusWord.SECURITY_STATUS_NOT_SATISFIED:
                raise _EndedError(OutcomeKind.NOT_ACCEPTED, "the wallet does not accept this terminal") from None
            raise
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        trust = Trust(self._identity.issuer, today, self._identity.blocked.numbers)
        verified = verify(answer, t2, key, trust)
        session.open_channel(verified.keys)
        return verified

    def _pay(self, known: _Transaction, session: CardSession, verified: VerifiedCard, link: TracingLink) -> None:
        """S9: the journal first, then DEBIT, then the receipt's signature, then the journal again."""
        moment = datetime.fromtimestamp(int(self._clock()), UTC)
        debit = Debit(known.amount.minor, known.amount.currency.number, moment.date(), moment.time())
        receipt = self._receipt(verified, debit)
        record = Record(
            receipt.transaction_id,
            moment.isoformat(),
            debit.amount,
            debit.currency,
            known.card,
            verified.credential.encode(),
            receipt.terminal_hash,
            receipt.encode(),
        )
        self._journal.open(record)
        known.reference, known.in_progress = receipt.transaction_id.hex(), receipt.transaction_id
        answer = self._debit(known, session, debit)
        known.to_receipt = len(link.exchanges)
        final = replace(receipt, result=answer.result)
        if not final.is_shown_by(answer.evidence, verified.credential):
            raise _EndedError(OutcomeKind.NOT_VERIFIED, Check.RECEIPT.value, charged=None)
        known.receipt_verified = True
        known.key_bytes = _key_bytes(verified.credential, answer)
        self._record_result(known, session, final, answer)

    def _debit(self, known: _Transaction, session: CardSession, debit: Debit) -> DebitResult:
        """Send DEBIT; from here on only an answer with a valid tag says anything about the money."""
        try:
            return session.debit(debit)
        except (TransportError, StatusError, VerificationError, DecodeError):
            raise _EndedError(OutcomeKind.TORN, NOT_KNOWN, charged=None) from None

    def _record_result(self, known: _Transaction, session: CardSession, final: Receipt, answer: DebitResult) -> None:
        approved = answer.result is Result.APPROVED
        state = State.APPROVED if approved else State.REFUSED
        try:
            self._journal.settle(final.transaction_id, state, answer.evidence, "" if approved else answer.result.words)
        except JournalFailedError as error:
            reason = f"{'the wallet has paid' if approved else 'nothing was deducted'}, but {error}; {WRITTEN_LATER}"
            raise _EndedError(OutcomeKind.TORN, reason, charged=approved) from None
        known.in_progress = None
        if not approved:
            self._confirm(session, final.transaction_id)
            kind = OutcomeKind.SEE_PHONE if answer.result is Result.SEE_PHONE else OutcomeKind.DECLINED
            raise _EndedError(kind, answer.result.words)

    def _confirm(self, session: CardSession, transaction_id: bytes) -> None:
        """Tell the wallet; when that is lost, the wallet says at the next tap that it is not confirmed."""
        try:
            session.confirm()
        except (TransportError, StatusError, VerificationError, DecodeError):
            return
        self._journal.confirm(transaction_id)

    def _receipt(self, verified: VerifiedCard, debit: Debit) -> Receipt:
        return Receipt(
            VERSION_1,
            SUITE_1,
            certificate_hash(verified.credential),
            certificate_hash(self._identity.certificate),
            verified.card.counter,
            verified.keys.transaction_id,
            debit,
            Result.APPROVED,
        )

    def settle(self, issuer: IssuerLink, void_after: float = VOID_AFTER) -> Settled:
        """Claim receipts at the issuer, and give up what has been open for `void_after` seconds."""
        return settlement.settle(self._identity, self._journal, issuer, void_after, self._clock())

    def close(self) -> None:
        """Give the journal back."""
        self._journal.close()


def _without_journal(known: _Transaction, link: TracingLink, error: JournalFailedError) -> Outcome:
    """Return how a transaction ends whose journal fails; JournalFailedError when nothing of it was on its way yet."""
    known.given_up = True
    if not known.reference:
        raise error
    if known.in_progress is None:
        return known.outcome(OutcomeKind.TORN, f"nothing was charged: {error}", False, link.exchanges)
    so_far = known.so_far(link.exchanges)
    return so_far if str(error) in so_far.reason else replace(so_far, reason=f"{so_far.reason} ({error})")


def _key_bytes(certificate: CredentialCertificate, answer: DebitResult) -> int:
    """Return how many bytes of a tap a Trusted Key has added: its point in the certificate, its signature in the evidence."""
    plain = replace(certificate, co_signing_key=b"")
    return len(certificate.encode()) - len(plain.encode()) + len(answer.evidence) - SIGNATURE_LENGTH


def _step(known: _Transaction, step: Step, text: str) -> Progress:
    progress = Progress(step, text, time.time_ns())
    known.steps.append(progress)
    return progress


def _refusal(error: StatusError) -> str:
    """Say what a status word of the wallet means to the people at the till."""
    return {
        StatusWord.CONDITIONS_NOT_SATISFIED: "the wallet was read too often without a payment; try again in ten minutes",
        StatusWord.REFERENCED_DATA_NOT_FOUND: "the wallet has no virtual card left; it gets new ones from its issuer",
        StatusWord.MEMORY_FAILURE: "the wallet cannot write to its storage; nothing was deducted",
    }.get(error.status, f"the wallet failed: {error.status}")
