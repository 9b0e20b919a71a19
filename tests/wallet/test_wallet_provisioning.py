# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Cards, money and lists reach the trusted world signed by the issuer, in order, once, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from console.home import Home
from issuer import keys
from issuer.keys import SchemeKeys
from issuer.register import Register
from issuer.service import Issuer
from lab.fixtures import Laboratory, Setup, set_up_issuer, set_up_wallet
from pos.outcome import OutcomeKind
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    Application,
    BlockList,
    BlockListRequest,
    Issuance,
    encode_message,
    expect,
)
from protocol.money import MAX_MINOR
from protocol.signing import PrivateKey
from protocol.transport.issuer import IssuerLink
from protocol.vouchers import LoadRequest, Voucher
from protocol.wire import Wire
from wallet.account import Account
from wallet.key_line import KeyLine
from wallet.phone import PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.contract import ApplyRequest, CommandId, Installation, LoadOrder, TeeError, TeeResult, WalletView
from wallet.tee.state import PURSE, Purse
from wallet.tee.storage import SealedStorage

_EUR, _JPY = 978, 392
OpenStorage = Callable[[Path, Path], SealedStorage]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    set_up_issuer(made)
    return made


@pytest.fixture(scope="module")
def scheme(home: Home) -> SchemeKeys:
    return keys.load(home.issuer)


@pytest.fixture(scope="module")
def issuer(home: Home) -> Iterator[Issuer]:
    with closing(Issuer(home.issuer)) as made:
        yield made


class Wallet:
    """A trusted world, used by hand as the client application would."""

    def __init__(self, folder: Path) -> None:
        for name in ("device", "tee"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tee = TeeSession(start_of(folder, PhoneOptions()))

    def view(self) -> WalletView:
        return self.tee.invoke(CommandId.SHOW, WalletView)

    def pin(self, issuer: Issuer) -> None:
        self.tee.invoke_command(CommandId.PIN_ANCHORS, expect(issuer.handle(encode_message(AnchorsRequest())), Anchors))

    def apply(self, count: int = 3, currency: int = _EUR) -> bytes:
        return KeyLine().converse(self.tee, CommandId.APPLY, ApplyRequest(currency, count))

    def install(self, application: bytes, issuance: bytes) -> WalletView:
        return self.tee.invoke(CommandId.INSTALL, WalletView, Installation(application, issuance))

    def equip(self, issuer: Issuer) -> WalletView:
        self.pin(issuer)
        application = self.apply()
        return self.install(application, issuer.handle(application))

    def request_load(self, amount: int) -> bytes:
        return self.tee.invoke_command(CommandId.REQUEST_LOAD, LoadOrder(amount, _EUR))

    def voucher(self, issuer: Issuer, amount: int) -> Voucher:
        return expect(issuer.handle(self.request_load(amount)), Voucher)

    def load(self, voucher: Voucher) -> WalletView:
        return self.tee.invoke(CommandId.LOAD, WalletView, voucher)

    def refuses(self, command: CommandId, parameters: Wire) -> TeeResult:
        """Return the result by which the command is refused; the view must not change by it."""
        before = self.view()
        with pytest.raises(TeeError) as refused:
            self.tee.invoke_command(command, parameters)
        assert self.view() == before
        return refused.value.result


@pytest.fixture
def wallet(tmp_path: Path) -> Iterator[Wallet]:
    """A wallet without anything."""
    made = Wallet(tmp_path / "wallet")
    yield made
    made.tee.close()


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Wallet]:
    """A wallet with cards, for tests that leave it usable."""
    made = Wallet(tmp_path_factory.mktemp("equipped"))
    made.equip(issuer)
    yield made
    made.tee.close()


# --- cards


def test_a_wallet_gets_its_cards(wallet: Wallet, issuer: Issuer) -> None:
    view = wallet.equip(issuer)
    assert (view.currency, view.balance, view.cards_left, view.no_pin_limit) == (_EUR, 0, 3, 50_00)
    assert view.masked_number.startswith("999910••••••")


def test_an_application_is_repeated_with_the_same_keys_until_it_is_answered(wallet: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    first = Application.decode(wallet.apply()[1:])
    wallet.tee.close()
    again = Application.decode(wallet.apply()[1:])
    assert again.credential_keys == first.credential_keys
    assert again.device_key == first.device_key


@pytest.mark.parametrize("count", [0, 65, 255])
def test_an_impossible_number_of_cards_is_refused_and_spoils_nothing(
    wallet: Wallet, issuer: Issuer, count: int
) -> None:
    assert wallet.refuses(CommandId.APPLY, ApplyRequest(_EUR, count)) is TeeResult.BAD_PARAMETERS
    assert wallet.equip(issuer).cards_left == 3


def test_an_answer_is_installed_once(wallet: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    application = wallet.apply()
    issuance = issuer.handle(application)
    wallet.install(application, issuance)
    assert wallet.refuses(CommandId.INSTALL, Installation(application, issuance)) is TeeResult.BAD_STATE
    wallet.apply()
    assert wallet.refuses(CommandId.INSTALL, Installation(application, issuance)) is not TeeResult.SUCCESS


@pytest.mark.attack("T6")
def test_an_answer_survives_a_kill_between_application_and_installation(wallet: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    application = wallet.apply()
    issuance = issuer.handle(application)
    wallet.tee.close()
    assert wallet.install(application, issuance).cards_left == 3


def test_an_answer_to_another_wallet_is_refused(wallet: Wallet, equipped: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    wallet.apply()
    theirs = equipped.apply()
    issuance = issuer.handle(theirs)
    assert wallet.refuses(CommandId.INSTALL, Installation(theirs, issuance)) is TeeResult.SECURITY
    equipped.install(theirs, issuance)


def test_an_answer_with_any_byte_changed_is_refused(wallet: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    application = wallet.apply(count=1)
    good = issuer.handle(application)
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(TeeError):
            wallet.install(application, bad)
    assert wallet.install(application, good).cards_left == 1


def test_an_answer_signed_by_somebody_else_is_refused(wallet: Wallet, issuer: Issuer) -> None:
    wallet.pin(issuer)
    application = wallet.apply()
    issuance = expect(issuer.handle(application), Issuance)
    digest = Application.decode(application[1:]).digest()
    forged = replace(issuance, signature=PrivateKey.generate().sign(issuance.signature_input(digest)))
    installation = Installation(application, encode_message(forged))
    assert wallet.refuses(CommandId.INSTALL, installation) is TeeResult.SECURITY


def test_an_application_that_the_client_made_up_is_not_installed(wallet: Wallet, issuer: Issuer) -> None:
    """A client application applies under a device key of its own, in a currency whose ceiling is worth more."""
    wallet.equip(issuer)
    genuine = Application.decode(wallet.apply()[1:])
    own = PrivateKey.generate()
    made_up = replace(genuine, device_key=own.public, currency=_JPY)
    made_up = replace(made_up, signature=own.sign(made_up.signature_input()))
    issuance = issuer.handle(encode_message(made_up))
    assert expect(issuance, Issuance).certificates
    installation = Installation(encode_message(made_up), issuance)
    assert wallet.refuses(CommandId.INSTALL, installation) is not TeeResult.SUCCESS


def test_a_wallet_in_one_currency_applies_in_no_other(equipped: Wallet) -> None:
    assert equipped.refuses(CommandId.APPLY, ApplyRequest(_JPY, 3)) is TeeResult.BAD_PARAMETERS


def test_another_issuer_is_refused(equipped: Wallet, issuer: Issuer, tmp_path: Path) -> None:
    other = Home(tmp_path)
    set_up_issuer(other)
    sentence = "this wallet belongs to another issuer; use another --home"
    with closing(Issuer(other.issuer)) as stranger, pytest.raises(TeeError, match=sentence):
        equipped.pin(stranger)
    equipped.pin(issuer)


def test_nothing_can_be_had_before_an_issuer_is_pinned(wallet: Wallet) -> None:
    nobody = Voucher(bytes(8), 1, 1, 0, bytes(64))
    assert wallet.refuses(CommandId.LOAD, nobody) is TeeResult.BAD_STATE
    assert wallet.refuses(CommandId.OBEY_LIST, BlockList(0, (), (), bytes(64))) is TeeResult.BAD_STATE


# --- money (M3)


def test_vouchers_add_up_in_order(equipped: Wallet, issuer: Issuer) -> None:
    before = equipped.view()
    for amount in (1_00, 2_00):
        equipped.load(equipped.voucher(issuer, amount))
    after = equipped.view()
    assert (after.balance, after.loads) == (before.balance + 3_00, before.loads + 2)


@pytest.mark.attack("M3")
def test_a_voucher_used_twice_is_refused(equipped: Wallet, issuer: Issuer) -> None:
    voucher = equipped.voucher(issuer, 1_00)
    equipped.load(voucher)
    assert equipped.refuses(CommandId.LOAD, voucher) is TeeResult.ACCESS_DENIED
    equipped.tee.close()
    assert equipped.refuses(CommandId.LOAD, voucher) is TeeResult.ACCESS_DENIED


@pytest.mark.attack("M3")
def test_a_voucher_of_another_wallet_is_refused(equipped: Wallet, wallet: Wallet, issuer: Issuer) -> None:
    wallet.equip(issuer)
    voucher = wallet.voucher(issuer, 1_00)
    number = equipped.view().loads + 1
    assert equipped.refuses(CommandId.LOAD, voucher) is TeeResult.ACCESS_DENIED
    assert equipped.refuses(CommandId.LOAD, replace(voucher, number=number)) is TeeResult.SECURITY
    wallet.load(voucher)


@pytest.mark.attack("M3")
@pytest.mark.parametrize("ahead", [-1, 1, 2, 1000])
def test_a_voucher_out_of_order_is_refused_even_with_the_issuers_signature(
    equipped: Wallet, scheme: SchemeKeys, ahead: int
) -> None:
    view = equipped.view()
    unsigned = Voucher(view.device, max(view.loads + 1 + ahead, 0), 1_00, _EUR, bytes(64))
    voucher = replace(unsigned, signature=scheme.operations.sign(unsigned.signature_input()))
    assert equipped.refuses(CommandId.LOAD, voucher) is TeeResult.ACCESS_DENIED


@pytest.mark.parametrize("signer", ["issuer", "acquirer", "stranger"])
def test_a_voucher_of_another_key_is_refused(equipped: Wallet, scheme: SchemeKeys, signer: str) -> None:
    view = equipped.view()
    unsigned = Voucher(view.device, view.loads + 1, 1_00, _EUR, bytes(64))
    key = PrivateKey.generate() if signer == "stranger" else getattr(scheme, signer)
    assert isinstance(key, PrivateKey)
    forged = replace(unsigned, signature=key.sign(unsigned.signature_input()))
    assert equipped.refuses(CommandId.LOAD, forged) is TeeResult.SECURITY


def test_a_voucher_in_another_currency_or_beyond_what_a_purse_holds_is_refused(
    equipped: Wallet, scheme: SchemeKeys, issuer: Issuer
) -> None:
    equipped.load(equipped.voucher(issuer, 1_00))
    view = equipped.view()
    for amount, currency in ((1_00, _JPY), (MAX_MINOR, _EUR)):
        unsigned = Voucher(view.device, view.loads + 1, amount, currency, bytes(64))
        voucher = replace(unsigned, signature=scheme.operations.sign(unsigned.signature_input()))
        assert equipped.refuses(CommandId.LOAD, voucher) is TeeResult.ACCESS_DENIED


def test_the_request_for_a_load_is_no_voucher(equipped: Wallet, issuer: Issuer) -> None:
    request = LoadRequest.decode(equipped.request_load(5_00)[1:])
    same_bytes = Voucher.decode(request.encode())
    assert equipped.refuses(CommandId.LOAD, same_bytes) is TeeResult.SECURITY
    equipped.load(equipped.voucher(issuer, 5_00))


@pytest.mark.attack("T6")
def test_a_load_whose_voucher_was_lost_arrives_with_the_next_one(equipped: Wallet, issuer: Issuer) -> None:
    before = equipped.view().balance
    lost = equipped.voucher(issuer, 7_00)
    again = equipped.voucher(issuer, 9_00)
    assert again == lost
    assert equipped.load(again).balance == before + 7_00


@pytest.mark.parametrize(("amount", "currency"), [(MAX_MINOR + 1, _EUR), (2**63, _EUR), (1_00, _JPY), (1_00, 0)])
def test_a_load_that_cannot_be_is_not_asked_for(equipped: Wallet, amount: int, currency: int) -> None:
    assert equipped.refuses(CommandId.REQUEST_LOAD, LoadOrder(amount, currency)) is TeeResult.BAD_PARAMETERS


# --- lists and time


def _list(scheme: SchemeKeys, at: int) -> BlockList:
    unsigned = BlockList(at, (), (), bytes(64))
    return replace(unsigned, signature=scheme.operations.sign(unsigned.signature_input()))


def test_a_forged_list_is_refused(equipped: Wallet, scheme: SchemeKeys) -> None:
    forged = replace(_list(scheme, int(time.time())), terminals=(b"innocent",))
    assert equipped.refuses(CommandId.OBEY_LIST, forged) is TeeResult.SECURITY


@pytest.fixture
def shop() -> Iterator[Laboratory]:
    with Laboratory(Setup(balance="100.00")) as made:
        yield made


def _sync(laboratory: Laboratory) -> None:
    with IssuerLink(laboratory.home.issuer_url) as link:
        Account(laboratory.phone.tee, link).sync()


def test_a_blocked_terminal_is_refused_once_the_wallet_has_the_list(shop: Laboratory) -> None:
    with closing(Register(shop.home.issuer)) as register:
        register.block_terminal("TERM0001")
    assert shop.charge("1.00").approved
    _sync(shop)
    outcome = shop.charge("1.00")
    assert (outcome.kind, outcome.charged) == (OutcomeKind.NOT_ACCEPTED, False)
    assert shop.balance.minor == 99_00


def test_an_older_list_does_not_take_a_newer_ones_place(shop: Laboratory) -> None:
    with closing(Issuer(shop.home.issuer)) as issuer:
        older = expect(issuer.handle(encode_message(BlockListRequest())), BlockList)
    older = replace(older, time=older.time - 60)
    older = replace(older, signature=keys.load(shop.home.issuer).operations.sign(older.signature_input()))
    with closing(Register(shop.home.issuer)) as register:
        register.block_terminal("TERM0001")
    _sync(shop)
    shop.phone.tee.invoke_command(CommandId.OBEY_LIST, older)
    assert shop.charge("1.00").kind is OutcomeKind.NOT_ACCEPTED


def test_a_blocked_card_is_not_shown_any_more(shop: Laboratory) -> None:
    with closing(Register(shop.home.issuer)) as register:
        for card in register.cards():
            register.block_card(card.serial)
    _sync(shop)
    assert shop.phone.view().cards_left == 0
    with IssuerLink(shop.home.issuer_url) as link:
        assert Account(shop.phone.tee, link).refill().view.cards_left == 20
    assert shop.charge("1.00").approved


def test_the_tees_time_never_goes_behind_the_issuers(wallet: Wallet, scheme: SchemeKeys, issuer: Issuer) -> None:
    """A list from far ahead: a certificate that has ended by then is not taken, whatever the machine's clock says."""
    wallet.pin(issuer)
    wallet.tee.invoke_command(CommandId.OBEY_LIST, _list(scheme, int(time.time()) + 400 * 86_400))
    application = wallet.apply()
    issuance = issuer.handle(application)
    for _ in range(2):
        with pytest.raises(TeeError, match="certificate expired"):
            wallet.install(application, issuance)
        wallet.tee.close()


def test_the_issuers_time_is_not_forgotten_with_the_first_cards(
    wallet: Wallet, scheme: SchemeKeys, issuer: Issuer, tmp_path: Path, open_storage: OpenStorage
) -> None:
    wallet.pin(issuer)
    ahead = int(time.time()) + 3600
    wallet.tee.invoke_command(CommandId.OBEY_LIST, _list(scheme, ahead))
    application = wallet.apply()
    wallet.install(application, issuer.handle(application))
    wallet.tee.close()
    stored = open_storage(wallet.folder, tmp_path).get(PURSE)
    assert stored is not None
    assert Purse.decode(stored).last_time == ahead


def test_setting_up_again_keeps_cards_and_money(tmp_path: Path) -> None:
    made = Home(tmp_path)
    set_up_issuer(made)
    set_up_wallet(made, Setup(balance="10.00", cards=2))
    with closing(TeeSession(start_of(made.wallet, PhoneOptions()))) as tee, IssuerLink(made.issuer_url) as link:
        view = Account(tee, link).apply(_EUR, 2)
    assert (view.balance, view.cards_left) == (10_00, 4)
