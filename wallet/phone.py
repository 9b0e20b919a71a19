# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The phone put together: trusted world, applications, history, and the housekeeping that goes on beside the taps."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from protocol.closing import Closing
from protocol.commands import DEFAULT_NAME
from protocol.errors import TapLabError
from protocol.messages import Result
from protocol.transport.issuer import IssuerLink
from wallet.account import Account
from wallet.card import Card
from wallet.directory import Directory
from wallet.environment.launcher import ANSWER_SECONDS, Start
from wallet.events import Event, Step
from wallet.history import History, HistoryFailedError
from wallet.key_line import KeyLine
from wallet.payment import PaymentClient
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, Consent, FromKey, WalletView

_log = logging.getLogger(__name__)
CONSENT_SECONDS = 90.0
DIALOGS_SECONDS = 600.0  # several dialogs, one after the other
QUIET_SECONDS = 0.05
_LAST_WORDS_SECONDS = 0.2
KEY_LOOK_SECONDS = 1.0
DEVICE_FOLDER = "device"
STORAGE_FOLDER = "tee"

Watcher = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class _Mark(Event):
    """No event: a place among them. Who put it there learns when the housekeeping has come this far."""

    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """How a wallet behaves: its application names, its trusted UI, whether it insists on its sandbox.

    `tty` and `term` are the terminal that a pinentry appears on, and its type. `one_tap` asks the user while the terminal
    waits, instead of sending it away until the user has agreed. `key_link` is where the Trusted Key is, empty for none.
    """

    names: tuple[bytes, ...] = (DEFAULT_NAME,)
    trusted_ui: str = ""
    require_sandbox: bool = False
    allow_schemes: bool = False
    tty: str = ""
    term: str = "dumb"
    one_tap: bool = False
    key_link: str = ""


def start_of(folder: Path, options: PhoneOptions) -> Start:
    """Return how the TEE of the wallet in `folder` is started."""
    return Start(
        folder / DEVICE_FOLDER,
        folder / STORAGE_FOLDER,
        options.trusted_ui,
        options.require_sandbox,
        tty=options.tty,
        term=options.term,
        at_once=options.one_tap,
    )


class Phone(Closing):
    """A wallet that serves taps: give `card` to a link. `watcher` sees every event after it was written down."""

    def __init__(
        self, folder: Path, issuer_url: str, options: PhoneOptions | None = None, watcher: Watcher | None = None
    ) -> None:
        """Start the trusted world of the wallet in `folder`."""
        options = options or PhoneOptions()
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self._issuer_url = issuer_url
        self._watcher = watcher
        self._wants_consent: Event | None = None
        self._asks_user = self._closing = False
        self.history = History(folder)
        self.tee = TeeSession(start_of(folder, options))
        self.key = KeyLine(options.key_link)
        patience = CONSENT_SECONDS if options.one_tap else ANSWER_SECONDS
        clients: Sequence[PaymentClient] = [
            PaymentClient(name, self.tee, self.events, self.key, patience) for name in options.names
        ]
        self.card = Card([*clients, Directory(options.names)], allow_schemes=options.allow_schemes)
        self.history.keep_view(self.view())
        self._housekeeping = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        self._housekeeping.start()

    def view(self) -> WalletView:
        """Return what may be shown of the wallet now."""
        return self.tee.invoke(CommandId.SHOW, WalletView)

    def rest(self, timeout: float) -> bool:
        """Wait until everything that the taps so far have left to do is done: consent asked for, pool refilled.

        False when it was not done in `timeout` seconds.
        """
        mark = _Mark(Step.TAP_ENDED, "")
        self.events.put(mark)
        return mark.reached.wait(timeout)

    def _keep_house(self) -> None:
        """Write events down, pass them on, ask for consent and refill the pool, none of it while a tap waits."""
        while True:
            events = self._next_events()
            for event in events:
                if event is None:
                    return
                try:
                    self._handle(event)
                except Exception:  # noqa: BLE001 - without housekeeping nobody is asked and no card comes, so it goes on
                    _log.exception("after a tap")

    def _next_events(self) -> list[Event | None]:
        """Wait for events until the tap is over or nothing comes for a while: showing them must not slow the tap."""
        events = [self._first_event()]
        with contextlib.suppress(Empty):
            while (last := events[-1]) is not None and last.step is not Step.TAP_ENDED:
                events.append(self.events.get(timeout=QUIET_SECONDS))
        return events

    def _first_event(self) -> Event | None:
        """Wait for an event, and look now and then what the user began on the Key."""
        while True:
            try:
                return self.events.get(timeout=KEY_LOOK_SECONDS if self.key.is_there else None)
            except Empty:
                if begun := self._begun_on_key():
                    return begun

    def _begun_on_key(self) -> Event | None:
        try:
            words = FromKey.decode(self.key.converse(self.tee, CommandId.FETCH_FROM_KEY)).words
            return Event(Step.KEY, f"begun on the Key: {words}", view=self.view()) if words else None
        except (TapLabError, OSError):
            return None  # the Key is not there, or none is paired

    def _handle(self, event: Event) -> None:
        if isinstance(event, _Mark):
            event.reached.set()
            return
        try:
            if event.step is Step.DEBITED:
                self._wants_consent = event if event.result is Result.SEE_PHONE else None
            elif event.step is Step.TAP_ENDED:
                self._ask_consent()
                event = replace(event, view=self._refill())
        except (TapLabError, OSError, subprocess.SubprocessError) as error:
            if not self._closing:  # what is ended here fails, which is no news
                _log.warning("%s", error)
        self._tell(event)

    def _tell(self, event: Event) -> None:
        """Write an event down and show it; a history that cannot be written must not stop the rest."""
        try:
            self.history.add(event)
        except HistoryFailedError as error:
            _log.warning("%s", error)
        if self._watcher is not None:
            try:
                self._watcher(event)
            except (OSError, ValueError) as error:  # nobody can look any more; the wallet goes on
                _log.warning("events are no longer shown: %s", error)
                self._watcher = None

    def _ask_consent(self) -> None:
        """Let the trusted world ask its user, once the tap no longer needs it."""
        event, self._wants_consent = self._wants_consent, None
        if event is None:
            return
        self._tell(Event(Step.ASKING, "the trusted world asks its user", event.merchant, event.terminal_id))
        self._asks_user = True
        try:
            data = self.key.converse(self.tee, CommandId.ASK_CONSENT, timeout=CONSENT_SECONDS)
        finally:
            self._asks_user = False
        granted = Consent.decode(data).granted
        text = "user agreed: tap again within a minute" if granted else "user did not agree"
        self._tell(Event(Step.CONSENT, text, event.merchant, event.terminal_id, event.amount, event.currency))

    def _refill(self) -> WalletView:
        with IssuerLink(self._issuer_url) as issuer:
            refilled = Account(self.tee, issuer, self.key).refill()  # starts the issuer only when the pool runs low
        for debit in refilled.decided:
            self.history.decide(debit.reference, debit.outcome)
        self.history.keep_view(refilled.view)
        return refilled.view

    def close(self) -> None:
        """Finish the housekeeping and end the trusted world."""
        self._closing = True
        self.events.put(None)
        self.key.close()
        self._housekeeping.join(_LAST_WORDS_SECONDS)
        while self._housekeeping.is_alive():
            if self._asks_user:  # a dialog would keep everybody waiting for its user, who has left
                self.tee.interrupt()
            self._housekeeping.join(_LAST_WORDS_SECONDS)
        self.tee.close()
        self.history.close()
