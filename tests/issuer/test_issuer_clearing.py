# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who bears what: wallets that were copied or that lie, and books that add up whatever is said to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time as clock
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console.home import Home
from issuer.clearing import _debit_of
from issuer.register import Register, WalletEntry
from issuer.service import Issuer
from lab.fixtures import set_up_issuer
from protocol.certificate import CredentialCertificate, Merchant, TerminalCertificate
from protocol.issuing import (
    AnyWire,
    BlockList,
    BlockListRequest,
    Issuance,
    IssuerRefusedError,
    TerminalApplication,
    TerminalIssuance,
    encode_message,
    expect,
)
from protocol.messages import Debit, Receipt, Result, certificate_hash
from protocol.money import MAX_MINOR
from protocol.settlement import (
    Claim,
    IssuerNonce,
    ListedDebit,
    NonceRequest,
    ReportAnswer,
    Settlement,
    Standing,
    Statement,
    TerminalReport,
    Verdict,
    Void,
)
from protocol.signing import PrivateKey
from protocol.vouchers import Voucher
from protocol.wire import Wire
from tests.issuer.device import EUR, Device

DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Shop:
    """A certified terminal and its key."""

    key: PrivateKey
    certificate: TerminalCertificate

    @property
    def hash(self) -> bytes:
        return certificate_hash(self.certificate)

    def claims(self, listed: ListedDebit, evidence: bytes) -> Claim:
        unsigned = Claim(listed.credential, listed.receipt, evidence, bytes(64))
        return replace(unsigned, signature=self.key.sign(unsigned.signature_input()))

    def voids(self, listed: ListedDebit) -> Void:
        receipt = listed.receipt
        unsigned = Void(self.hash, listed.credential, receipt.counter, receipt.transaction_id, bytes(64))
        return replace(unsigned, signature=self.key.sign(unsigned.signature_input()))


class Scheme:
    """An issuer whose clock can be moved, two shops, and one wallet that says whatever it is told to."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        set_up_issuer(self.home)
        self.now = clock.time()
        self.issuer = Issuer(self.home.issuer, lambda: self.now)
        self.register = Register(self.home.issuer)
        self.shops = [self._certified(f"TERM000{number}") for number in (1, 2)]
        self.new_wallet()

    def new_wallet(self) -> None:
        self.device, self.credential = Device(), PrivateKey.generate()
        self.listed = 0
        application = self.device.application(self.credential)
        issuance = self._ask(application, Issuance)
        self.card: CredentialCertificate = issuance.certificates[0]
        (self.number,) = self.device.numbers(application, issuance)

    def _ask(self, request: Wire, kind: type[AnyWire]) -> AnyWire:
        return expect(self.issuer.handle(encode_message(request)), kind)

    def _certified(self, terminal_id: str) -> Shop:
        key = PrivateKey.generate()
        unsigned = TerminalApplication(key.public, terminal_id, Merchant("Corner Bakery", 5462, EUR), bytes(64))
        application = replace(unsigned, signature=key.sign(unsigned.signature_input()))
        return Shop(key, self._ask(application, TerminalIssuance).certificate)

    def load(self, amount: int) -> None:
        with self.register._database.transaction() as books:
            newest = books.newest_voucher(self.device.id)
        request = self.device.load_request(newest.number + 1 if newest else 1, amount)
        with suppress(IssuerRefusedError):  # of a wallet that is blocked
            self._ask(request, Voucher)

    def pays(self, amount: int, shop: int = 0) -> ListedDebit:
        """Return a debit as the wallet signs it; the issuer knows nothing of it yet."""
        debit = Debit(amount, EUR, date(2026, 1, 2), time(3, 4, 5))
        hashes = certificate_hash(self.card), self.shops[shop].hash
        return ListedDebit(self.card.serial, Receipt(1, 1, *hashes, 1, os.urandom(16), debit, Result.APPROVED))

    def claim(self, listed: ListedDebit, shop: int = 0) -> Verdict:
        evidence = self.credential.sign(listed.receipt.signature_input())
        return self._report(TerminalReport((self.shops[shop].claims(listed, evidence),), ()))

    def void(self, listed: ListedDebit, shop: int = 0) -> Verdict:
        return self._report(TerminalReport((), (self.shops[shop].voids(listed),)))

    def _report(self, report: TerminalReport) -> Verdict:
        (verdict,) = self._ask(report, ReportAnswer).verdicts
        return verdict

    def lists(self, *debits: ListedDebit, restored: bool = False, after: int | None = None) -> Settlement:
        """Let the wallet list these debits after those that it listed before, or after the first `after` of them."""
        nonce = self._ask(NonceRequest(self.device.id), IssuerNonce).nonce
        before = self.listed if after is None else after
        first, total = (0, 0) if restored else (before + 1, before + len(debits))
        self.listed = max(self.listed, total)
        unsigned = Statement(self.device.id, nonce, bytes(16), restored, 0, total, first, debits, (), bytes(64))
        return self._ask(replace(unsigned, signature=self.device.key.sign(unsigned.signature_input())), Settlement)

    def blocked_numbers(self) -> list[str]:
        return [one.digits for one in self._ask(BlockListRequest(), BlockList).numbers]

    @property
    def wallet(self) -> WalletEntry:
        (entry,) = [one for one in self.register.wallets() if one.device == self.device.id.hex()]
        return entry

    @property
    def books(self) -> tuple[int, int, int, int]:
        """In the wallet, deducted and not settled, with merchants, lost; all of it is what the user paid in."""
        row = self.wallet
        assert row.loaded.minor == row.holds.minor + row.open.minor + row.paid.minor - row.lost.minor
        return row.holds.minor, row.open.minor, row.paid.minor, row.lost.minor

    def taken(self, shop: int) -> int:
        terminal_id = self.shops[shop].certificate.terminal_id
        (paid,) = [one.paid.minor for one in self.register.terminals() if one.terminal_id == terminal_id]
        return paid

    def close(self) -> None:
        self.register.close()
        self.issuer.close()


@pytest.fixture(scope="module")
def module_scheme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheme]:
    made = Scheme(tmp_path_factory.mktemp("home"))
    yield made
    made.close()


@pytest.fixture
def scheme(module_scheme: Scheme) -> Scheme:
    """The scheme with a wallet of its own for this test."""
    module_scheme.now = clock.time()
    module_scheme.new_wallet()
    return module_scheme


# --- a wallet that was copied and paid twice


def test_what_a_copied_wallet_paid_beyond_its_money_is_the_issuers_loss(scheme: Scheme) -> None:
    scheme.load(100_00)
    for _ in range(2):
        assert scheme.claim(scheme.pays(100_00)) is Verdict.PAID
    assert scheme.books == (0, 0, 200_00, 100_00)
    scheme.load(50_00)
    assert scheme.books == (50_00, 0, 200_00, 100_00)


def test_a_loss_is_shown_to_people_and_programs(scheme: Scheme) -> None:
    scheme.load(100_00)
    for _ in range(2):
        scheme.claim(scheme.pays(80_00))
    shown = [_show(scheme), _show(scheme, "--json")]
    assert [one.returncode for one in shown] == [0, 0]
    assert "100.00 EUR loaded: 0.00 EUR in the wallet" in shown[0].stdout
    assert "160.00 EUR with merchants, 60.00 EUR lost" in shown[0].stdout
    (wallet,) = [one for one in json.loads(shown[1].stdout)["wallets"] if one["device"] == scheme.device.id.hex()]
    assert (wallet["holds"], wallet["paid"], wallet["lost"]) == ("0.00", "160.00", "60.00")


@pytest.fixture
def own_scheme(tmp_path: Path) -> Iterator[Scheme]:
    made = Scheme(tmp_path)
    yield made
    made.close()


def test_sums_of_more_digits_than_one_payment_has_are_shown(own_scheme: Scheme) -> None:
    scheme = own_scheme
    for amount in (MAX_MINOR, 1):
        scheme.load(amount)
    with scheme.register._database.transaction() as books:  # as if ceilings were higher: so much takes years to claim
        debit = _debit_of(scheme.pays(MAX_MINOR).receipt, books.credentials()[-1])
        for number in (1, 2):
            books.put_debit(replace(debit, counter=number, device=bytes(8), paid_at=1))
    shown = [_show(scheme), _show(scheme, "--json")]
    assert [one.returncode for one in shown] == [0, 0]
    assert "10,000,000,000.00 EUR loaded" in shown[0].stdout
    assert "19,999,999,999.98 EUR paid to it" in shown[0].stdout
    (wallet,) = [one for one in json.loads(shown[1].stdout)["wallets"] if one["device"] == scheme.device.id.hex()]
    assert (wallet["loaded"], wallet["holds"]) == ("10000000000.00", "10000000000.00")


def _show(scheme: Scheme, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "issuer", "show", "--home", str(scheme.home.path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("later", [0, 30_00])
def test_a_copied_wallet_that_was_put_back_gets_what_is_left_and_no_debt(scheme: Scheme, later: int) -> None:
    scheme.load(100_00)
    for _ in range(2):
        scheme.claim(scheme.pays(100_00))
    if later:
        scheme.load(later)
    assert scheme.lists(restored=True).standing is Standing.WAITING
    scheme.now += 8 * DAY
    settled = scheme.lists(restored=True)
    assert (settled.standing, settled.balance) == (Standing.REISSUED, later)
    assert scheme.books == (later, 0, 200_00, 100_00)


def test_the_other_copys_list_comes_before_its_claim(scheme: Scheme) -> None:
    scheme.load(100_00)
    first, second = scheme.pays(100_00), scheme.pays(100_00)
    assert scheme.claim(first) is Verdict.PAID
    scheme.lists(second)
    assert scheme.books == (0, 100_00, 100_00, 100_00)
    assert scheme.claim(second) is Verdict.PAID
    assert scheme.books == (0, 0, 200_00, 100_00)


def test_a_copy_that_lists_other_debits_under_the_same_numbers_is_blocked(scheme: Scheme) -> None:
    scheme.load(100_00)
    for standing in (Standing.GOOD, Standing.BLOCKED):
        debits = scheme.pays(45_00), scheme.pays(45_00)
        assert scheme.lists(*debits, after=0).standing is standing
        assert [scheme.claim(one) for one in debits] == [Verdict.PAID] * 2
    assert (scheme.books, scheme.wallet.blocked) == ((0, 0, 180_00, 80_00), True)
    with pytest.raises(IssuerRefusedError, match="blocked"):
        scheme._ask(scheme.device.application(PrivateKey.generate()), Issuance)


def test_the_cards_of_a_blocked_wallet_are_listed_until_they_expire(scheme: Scheme) -> None:
    honest = scheme.number
    scheme.new_wallet()
    scheme.load(100_00)
    for blocked in (False, True):
        scheme.lists(scheme.pays(45_00), after=0)
        assert (scheme.number in scheme.blocked_numbers()) is blocked
    assert honest not in scheme.blocked_numbers()
    last = datetime.combine(scheme.card.valid_until, time.max, UTC)
    for now, listed in ((last, True), (last + timedelta(seconds=1), False)):
        scheme.now = now.timestamp()
        assert (scheme.number in scheme.blocked_numbers()) is listed


def test_one_other_debit_among_those_that_were_listed_is_enough(scheme: Scheme) -> None:
    scheme.load(100_00)
    first = scheme.pays(10_00)
    scheme.lists(first, scheme.pays(10_00))
    assert scheme.lists(first, scheme.pays(10_00), scheme.pays(10_00), after=0).standing is Standing.BLOCKED


def test_a_wallet_that_lists_the_same_again_and_goes_on_is_good(scheme: Scheme) -> None:
    """The issuer's answer was lost; meanwhile the wallet paid again."""
    scheme.load(100_00)
    first, second, third = (scheme.pays(10_00) for _ in range(3))
    for debits in ((first, second), (first, second), (first, second, third)):
        settled = scheme.lists(*debits, after=0)
        assert (settled.standing, settled.acknowledged) == (Standing.GOOD, len(debits))
    assert (scheme.books, scheme.wallet.blocked) == ((70_00, 30_00, 0, 0), False)


@pytest.mark.parametrize("by_void", [True, False])
def test_no_more_is_credited_than_a_debit_took(scheme: Scheme, by_void: bool) -> None:
    """The wallet was copied: its last debit is for money that the other copy spent."""
    scheme.load(100_00)
    scheme.claim(scheme.pays(80_00))
    second = scheme.pays(80_00)
    scheme.lists(second)
    assert scheme.books == (0, 80_00, 80_00, 60_00)
    if by_void:
        scheme.void(second)
    else:
        scheme.now += 8 * DAY
        scheme.issuer.settle()
    assert scheme.books == (20_00, 0, 80_00, 0)


# --- a wallet that lists something else than its credential signed


def _lie(scheme: Scheme, true: ListedDebit, *, amount: int | None = None, shop: int | None = None) -> ListedDebit:
    """Return the debit as a wallet lists it that wants another amount or terminal in the books."""
    receipt = true.receipt
    debit = replace(receipt.debit, amount=amount or receipt.debit.amount)
    terminal_hash = receipt.terminal_hash if shop is None else scheme.shops[shop].hash
    return replace(true, receipt=replace(receipt, debit=debit, terminal_hash=terminal_hash))


@pytest.mark.parametrize("other", [{"amount": 1}, {"amount": 500_00}, {"shop": 1}], ids=["less", "more", "terminal"])
@pytest.mark.parametrize("lists_first", [True, False])
def test_the_receipt_that_was_signed_is_paid_whatever_the_wallet_lists(
    scheme: Scheme, other: dict[str, int], lists_first: bool
) -> None:
    scheme.load(150_00)
    true, before = scheme.pays(100_00), [scheme.taken(0), scheme.taken(1)]
    if lists_first:
        scheme.lists(_lie(scheme, true, **other))
    assert scheme.claim(true) is Verdict.PAID
    if not lists_first:
        scheme.lists(_lie(scheme, true, **other))
    assert [scheme.taken(0) - before[0], scheme.taken(1) - before[1]] == [100_00, 0]
    assert (scheme.books, scheme.wallet.blocked) == ((50_00, 0, 100_00, 0), True)
    assert scheme.lists().standing is Standing.BLOCKED
    assert scheme.claim(true) is Verdict.PAID
    assert scheme.books == (50_00, 0, 100_00, 0)


def test_a_wallet_that_lists_what_it_signed_is_not_blocked(scheme: Scheme) -> None:
    scheme.load(150_00)
    first, second = scheme.pays(100_00), scheme.pays(20_00)
    scheme.claim(first)
    assert scheme.lists(first, second).standing is Standing.GOOD
    assert (scheme.claim(first), scheme.claim(second)) == (Verdict.PAID, Verdict.PAID)
    assert (scheme.books, scheme.wallet.blocked) == ((30_00, 0, 120_00, 0), False)


def test_a_credit_by_the_void_of_another_terminal_takes_no_merchants_money(scheme: Scheme) -> None:
    """Wallet and second shop play together: it gives up what was never its own."""
    scheme.load(100_00)
    true, before = scheme.pays(100_00), scheme.taken(0)
    scheme.lists(_lie(scheme, true, amount=40_00, shop=1))
    assert scheme.void(_lie(scheme, true, shop=1), shop=1) is Verdict.VOIDED
    assert scheme.books == (100_00, 0, 0, 0)
    assert scheme.claim(true) is Verdict.PAID
    assert (scheme.taken(0) - before, scheme.books, scheme.wallet.blocked) == (100_00, (0, 0, 100_00, 0), True)
    assert scheme.void(true) is Verdict.CHARGED_BACK
    assert scheme.books == (100_00, 0, 0, 0)


def test_a_credit_after_the_window_stays(scheme: Scheme) -> None:
    scheme.load(100_00)
    true = scheme.pays(100_00)
    scheme.lists(_lie(scheme, true, amount=1))
    scheme.now += 8 * DAY
    scheme.issuer.settle()
    assert scheme.claim(true) is Verdict.TOO_LATE
    assert (scheme.books, scheme.wallet.blocked) == ((100_00, 0, 0, 0), False)


def test_what_its_own_terminal_gave_up_stays_given_up(scheme: Scheme) -> None:
    scheme.load(100_00)
    true = scheme.pays(100_00)
    scheme.lists(_lie(scheme, true, amount=1))
    scheme.void(true)
    assert scheme.claim(true) is Verdict.VOIDED
    assert (scheme.books, scheme.wallet.blocked) == ((100_00, 0, 0, 0), False)


@pytest.mark.parametrize(("amount", "shop"), [(30_00, 0), (20_00, 1)], ids=["amount", "terminal"])
def test_of_two_receipts_for_one_debit_the_first_is_paid_and_the_other_not_valid(
    scheme: Scheme, amount: int, shop: int
) -> None:
    """Its credential signed both, so its keys are its user's."""
    scheme.load(100_00)
    first = scheme.pays(20_00)
    second = _lie(scheme, first, amount=amount, shop=shop)
    assert (scheme.claim(first), scheme.claim(second, shop)) == (Verdict.PAID, Verdict.NOT_VALID)
    assert scheme.books == (80_00, 0, 20_00, 0)


# --- everything at once


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["load", "pay", "claim", "void", "list", "deny", "expire", "lie"]),
        st.integers(0, 5),
        st.integers(1, 90_00),
        st.integers(0, 1),
    ),
    max_size=14,
)


@given(steps=_STEPS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_books_of_a_wallet_that_says_anything_add_up(
    scheme: Scheme, steps: list[tuple[str, int, int, int]]
) -> None:
    """Its device and its credential are its user's; what the books add up to is asserted after every step."""
    scheme.now = clock.time()
    scheme.new_wallet()
    scheme.load(100_00)
    made: list[tuple[ListedDebit, int]] = []
    for what, which, amount, shop in steps:
        scheme.now += 2
        debit, own = made[which % len(made)] if made else (scheme.pays(amount, shop), shop)
        if what == "pay":
            made.append((scheme.pays(amount, shop), shop))
        elif what == "load":
            scheme.load(amount)
        elif what == "claim":
            scheme.claim(debit, own)
        elif what == "void":
            scheme.void(debit, shop)
        elif what == "list":
            scheme.lists(debit)
        elif what == "lie":
            scheme.lists(_lie(scheme, debit, amount=amount, shop=shop))
        elif what == "deny":
            scheme.lists()
        else:
            scheme.now += 8 * DAY
            scheme.issuer.settle()
        assert min(scheme.books) >= 0
        assert scheme.wallet.holds.minor <= scheme.wallet.loaded.minor
