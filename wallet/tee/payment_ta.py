# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The payment application of the trusted world: one handler for each command of the contract, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol import tally
from protocol.issuing import Anchors, Application, BlockList, Issuance, Unblocking, decode_message, encode_message
from protocol.key_commands import EventKind
from protocol.settlement import Settlement
from protocol.vouchers import Voucher
from protocol.wire import Wire
from wallet.environment.lockdown import Lockdown
from wallet.tee.clearing import Clearing
from wallet.tee.consent import Consents
from wallet.tee.contract import (
    NO_PIN,
    Agreed,
    ApplyRequest,
    BegunTap,
    CardRequest,
    ChannelAnswer,
    ChannelRequest,
    CommandId,
    Consent,
    DecidedDebit,
    FromKey,
    Installation,
    KeyAnswer,
    LoadOrder,
    NewLimits,
    Nothing,
    Origin,
    Report,
    SettledView,
    StatementOrder,
    TeeError,
    TeeResult,
    WalletView,
)
from wallet.tee.key_agent import KeyAgent, Talk, slot_name
from wallet.tee.moving import Mover
from wallet.tee.phrase import PhrasedUi
from wallet.tee.pin import Pins
from wallet.tee.state import Limits
from wallet.tee.storage import SealedStorage
from wallet.tee.talks import Talks
from wallet.tee.tap import Tap
from wallet.tee.transactions import TransactionBook
from wallet.tee.trusted_ui import Prompt, TrustedUi
from wallet.tee.unblock import Unblock
from wallet.tee.vault import Vault


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a command takes, and who handles it."""

    takes: type[Wire]
    handle: Callable[..., bytes]


_CHANGE_THE_PURSE = frozenset(
    {
        CommandId.PIN_ANCHORS,
        CommandId.APPLY,
        CommandId.INSTALL,
        CommandId.REQUEST_LOAD,
        CommandId.LOAD,
        CommandId.OBEY_LIST,
        CommandId.REQUEST_STATEMENT,
        CommandId.SETTLE,
        CommandId.CHANGE_LIMITS,
    }
)

_FORGET = "Forget the Trusted Key? Payments that need it are over until another one is paired."
_FORGET_WITH_MONEY = "Forget the Trusted Key? YOUR MONEY IS ON IT, and only a wallet without a purse can take it in."


class PaymentApplication:
    """Entry points in GlobalPlatform's sense (TEE Internal Core API §4.3): open, invoke, close."""

    def __init__(
        self,
        storage: SealedStorage,
        ui: TrustedUi,
        lockdown: Lockdown,
        limits: Limits | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Work on `storage`; `lockdown` is what holds this process, `limits` are chosen when the wallet is new.

        `at_once` asks the user within a tap, while the terminal waits.
        """
        self._vault = Vault(storage)
        if limits is not None:
            self._vault.choose_limits(limits)
        self._book = TransactionBook(storage)
        self._clearing = Clearing(storage, self._vault, self._book)
        self._ui = PhrasedUi(ui, storage)
        self._pins = Pins(storage, self._ui)
        self._key = KeyAgent(storage, self._ui, self._vault.now)
        self._mover = Mover(storage, self._key)
        self._consents = Consents(self._pins, key=self._key, at_once=at_once)
        self._unblocking = Unblock(self._vault, self._pins)
        self._lockdown = lockdown
        self._tap: Tap | None = None
        self._talks = Talks()
        self._entries = self._table()

    def _table(self) -> dict[int, _Entry]:
        return {
            CommandId.BEGIN_TAP: _Entry(Nothing, self._begin_tap),
            CommandId.GET_VIRTUAL_CARD: _Entry(CardRequest, self._get_virtual_card),
            CommandId.CHANNEL: _Entry(ChannelRequest, self._channel),
            CommandId.END_TAP: _Entry(Nothing, self._end_tap),
            CommandId.ASK_CONSENT: _Entry(Nothing, self._ask_consent),
            CommandId.CHANGE_PIN: _Entry(Nothing, self._change_pin),
            CommandId.CHOOSE_PHRASE: _Entry(Nothing, self._choose_phrase),
            CommandId.CHANGE_LIMITS: _Entry(NewLimits, self._change_limits),
            CommandId.PAIR_KEY: _Entry(Nothing, self._pair_key),
            CommandId.FORGET_KEY: _Entry(Nothing, self._forget_key),
            CommandId.FETCH_FROM_KEY: _Entry(Nothing, self._fetch_from_key),
            CommandId.MOVE_OUT: _Entry(Nothing, self._move_out),
            CommandId.MOVE_IN: _Entry(Nothing, self._move_in),
            CommandId.KEY_ANSWER: _Entry(KeyAnswer, self._key_answer),
            CommandId.SHOW: _Entry(Nothing, self._show),
            CommandId.REPORT: _Entry(Nothing, self._report),
            CommandId.PIN_ANCHORS: _Entry(Anchors, self._pin_anchors),
            CommandId.APPLY: _Entry(ApplyRequest, self._apply),
            CommandId.INSTALL: _Entry(Installation, self._install),
            CommandId.REQUEST_LOAD: _Entry(LoadOrder, self._request_load),
            CommandId.LOAD: _Entry(Voucher, self._load),
            CommandId.OBEY_LIST: _Entry(BlockList, self._obey_list),
            CommandId.REQUEST_STATEMENT: _Entry(StatementOrder, self._request_statement),
            CommandId.SETTLE: _Entry(Settlement, self._settle),
            CommandId.REQUEST_UNBLOCK: _Entry(Nothing, self._request_unblock),
            CommandId.UNBLOCK: _Entry(Unblocking, self._unblock),
        }

    def invoke(self, command: int, parameters: bytes) -> bytes:
        """Check the shape of the parameters, then run the command."""
        entry = self._entries.get(command)
        if command in _CHANGE_THE_PURSE and self._vault.is_moving:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the purse is on its way: tap-wallet move")
        if entry is None:
            raise TeeError(TeeResult.NOT_SUPPORTED, Origin.TRUSTED_APP, "the payment application has no such command")
        return entry.handle(entry.takes.decode(parameters))

    def close(self) -> None:
        """End the tap, if there is one, and what is being said to the Key."""
        self._drop_tap()
        self._talks.close()

    def _drop_tap(self) -> None:
        """End the tap, and what it had begun to say to the Key: its payment is not made."""
        self._talks.end_tap()
        self._tap = None

    # --- a tap

    def _begin_tap(self, _: Nothing) -> bytes:
        self._drop_tap()
        self._tap = Tap(self._vault, self._book, self._consents, self._key)
        return BegunTap(self._tap.nonce, self._vault.is_locked or self._vault.is_held or self._vault.is_moving).encode()

    def _get_virtual_card(self, request: CardRequest) -> bytes:
        return self._current_tap().get_virtual_card(request)

    def _channel(self, request: ChannelRequest) -> bytes:
        return self._talks.begin(self._in_channel(self._current_tap(), request), in_tap=True)

    def _in_channel(self, tap: Tap, request: ChannelRequest) -> Talk[bytes]:
        shown, body = yield from tap.channel(request.command())
        return ChannelAnswer(shown, body).encode()

    def _current_tap(self) -> Tap:
        if self._vault.is_locked:
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "payment is locked: the storage was put back")
        if self._vault.is_moving:
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "the purse is on its way: tap-wallet move")
        if self._vault.is_held:
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "the user has locked the wallet at the Key")
        if self._tap is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "no tap has begun")
        return self._tap

    def _end_tap(self, _: Nothing) -> bytes:
        self._drop_tap()
        return b""

    def _ask_consent(self, _: Nothing) -> bytes:
        return self._talks.begin(self._consented())

    def _consented(self) -> Talk[bytes]:
        return Consent((yield from self._consents.ask())).encode()

    # --- the Key

    def _key_answer(self, answer: KeyAnswer) -> bytes:
        if self._talks.is_in_tap(answer.talk):
            self._current_tap()  # what keeps a tap from going on may have come while the Key was asked
        return self._talks.go_on(answer)

    def _pair_key(self, _: Nothing) -> bytes:
        return self._talks.begin(self._paired())

    def _paired(self) -> Talk[bytes]:
        may = not self._pins.is_set or self._pins.enter(Prompt("Your PIN, to pair a Key:"))
        before = self._key.paired
        done = may and (yield from self._key.pair())
        if before and self._key.paired != before:
            self._vault.drop_backed()
        return Agreed(done).encode()

    def _forget_key(self, _: Nothing) -> bytes:
        agreed = self._pins.ask(Prompt(_FORGET_WITH_MONEY if self._vault.has_moved_out else _FORGET))
        if agreed:
            self._key.forget()
            self._vault.drop_backed()
        return Agreed(agreed).encode()

    def _move_out(self, _: Nothing) -> bytes:
        return self._talks.begin(self._moved_out())

    def _moved_out(self) -> Talk[bytes]:
        self._require_unlocked()
        agreed = self._pins.ask(Prompt("Move all your money and cards to the Trusted Key?"))
        if agreed:
            try:
                yield from self._mover.out()
            finally:
                self._read_again()
        return Agreed(agreed).encode()

    def _move_in(self, _: Nothing) -> bytes:
        return self._talks.begin(self._moved_in())

    def _moved_in(self) -> Talk[bytes]:
        self._require_unlocked()
        try:
            yield from self._mover.take_back() if self._mover.is_leaving else self._mover.take_in()
        finally:
            self._read_again()
        return Agreed(done=True).encode()

    def _require_unlocked(self) -> None:
        if self._vault.is_locked:
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "the wallet is locked: tap-wallet sync")

    def _read_again(self) -> None:
        self._drop_tap()
        self._vault.forget_cache()
        self._book.read_again()

    def _fetch_from_key(self, _: Nothing) -> bytes:
        return self._talks.begin(self._fetched())

    def _fetched(self) -> Talk[bytes]:
        event = yield from self._key.fetch()
        if event is None:
            return FromKey("").encode()
        kind = event.details.kind
        if kind is EventKind.NEXT_CARD:
            self._vault.put_next_card_first()
        else:
            self._vault.hold(held=kind is EventKind.LOCK)
        return FromKey(kind.words).encode()

    # --- what the user does on the trusted UI

    def _change_pin(self, _: Nothing) -> bytes:
        return Agreed(self._pins.change()).encode()

    def _choose_phrase(self, _: Nothing) -> bytes:
        may = not self._pins.is_set or self._pins.enter(Prompt("Your PIN, to choose another phrase:"))
        return Agreed(may and self._ui.choose_phrase()).encode()

    def _change_limits(self, wanted: NewLimits) -> bytes:
        agreed = self._pins.ask(Prompt(f"Let payments through without asking: {self._vault.limits_in_words(wanted)}?"))
        if agreed:
            self._vault.change_limits(wanted)
        return Agreed(agreed).encode()

    def _request_unblock(self, _: Nothing) -> bytes:
        return encode_message(self._unblocking.request())

    def _unblock(self, answer: Unblocking) -> bytes:
        self._unblocking.take(answer)
        return self._view().encode()

    # --- what the other world may see

    def _show(self, _: Nothing) -> bytes:
        return self._view().encode()

    def _view(self) -> WalletView:
        purse, usable = self._vault.purse, self._vault.usable_credentials()
        return WalletView(
            self._vault.device_id,
            purse.currency,
            purse.balance,
            purse.loads,
            usable[0].number.masked if usable else "",
            len(usable),
            purse.no_pin_limit,
            self._vault.is_locked,
            self._vault.limits.sum,
            self._vault.limits.count,
            NO_PIN if (pin := self._pins.stored) is None else pin.tries,
            self._vault.limits.key,
            self._key.paired,
            len(self._vault.usable_credentials(with_key=True)),
            self._vault.is_held,
            self._vault.is_moving,
            self._vault.has_moved_out,
        )

    def _report(self, _: Nothing) -> bytes:
        done = tally.snapshot()
        lockdown = self._lockdown
        counts = tuple(done[operation] for operation in tally.Operation)
        return Report(lockdown.landlock_abi, lockdown.seccomp, lockdown.missing, counts).encode()

    # --- provisioning

    def _pin_anchors(self, anchors: Anchors) -> bytes:
        self._vault.pin_anchors(anchors)
        return b""

    def _apply(self, request: ApplyRequest) -> bytes:
        return self._talks.begin(self._applied(request))

    def _applied(self, request: ApplyRequest) -> Talk[bytes]:
        is_new = not self._vault.is_pending
        keys = self._vault.pending_keys(request.currency, request.count)
        if request.with_key and is_new:
            backed = self._vault.usable_credentials(with_key=True)
            kept = {slot_name(one.certificate.public_key) for one in backed}
            made = yield from self._key.make_keys([slot_name(one) for one in keys], kept)
            self._vault.back_pending(made)
        locked_down = self._lockdown.complete
        return encode_message(self._vault.apply(request.currency, request.count, locked_down=locked_down))

    def _install(self, installation: Installation) -> bytes:
        application = decode_message(installation.application)
        issuance = decode_message(installation.issuance)
        if not isinstance(application, Application) or not isinstance(issuance, Issuance):
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "this is no application and its answer")
        self._vault.install(application, issuance)
        return self._view().encode()

    def _request_load(self, order: LoadOrder) -> bytes:
        return encode_message(self._vault.request_load(order.amount, order.currency))

    def _load(self, voucher: Voucher) -> bytes:
        self._vault.load(voucher)
        return self._view().encode()

    def _obey_list(self, listed: BlockList) -> bytes:
        self._vault.obey(listed)
        return b""

    # --- settlement

    def _request_statement(self, order: StatementOrder) -> bytes:
        return encode_message(self._clearing.statement(order.nonce))

    def _settle(self, settlement: Settlement) -> bytes:
        if self._vault.is_locked:
            self._drop_tap()  # what is reissued is another purse
        decided = self._clearing.take(settlement)
        purse = self._vault.purse
        more = not self._vault.is_locked and purse.acknowledged < purse.debits
        return SettledView(
            self._view(), tuple(DecidedDebit(one.reference, one.outcome) for one in decided), more
        ).encode()
