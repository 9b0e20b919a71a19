# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The ordinary UI: the card as the user sees it, and what just happened. It never asks for a PIN and never sees a key."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from console.ui import money, print_json
from protocol.messages import Result
from protocol.money import Amount, Currency
from protocol.settlement import SettledAs, Standing
from wallet.account import Synced
from wallet.events import Event, Step
from wallet.history import Entry
from wallet.tee.contract import NO_PIN, Report, WalletView

LABEL = "TapLab"
_TOLD = (Step.DEBITED, Step.TERMINAL_REFUSED, Step.ASKING, Step.CONSENT, Step.KEY)


def amount_of(minor: int | None, currency: int) -> str:
    """Return money as a person reads it; empty when there is none to show."""
    return money(Amount(minor, Currency.of(currency))) if minor is not None and currency else ""


def view_as_json(view: WalletView) -> dict[str, Any]:
    """Return a wallet view for programs."""
    applied = bool(view.currency)
    return {
        "device": view.device.hex(),
        "currency": Currency.of(view.currency).code if applied else None,
        "balance": str(Amount(view.balance, Currency.of(view.currency)).decimal) if applied else None,
        "card": view.masked_number or None,
        "cards_left": view.cards_left,
        "no_pin_limit": str(Amount(view.no_pin_limit, Currency.of(view.currency)).decimal) if applied else None,
        "locked": view.locked,
        "sum_limit": _limit(view.sum_limit, view.currency),
        "count_limit": view.count_limit or None,
        "pin_tries": None if view.pin_tries == NO_PIN else view.pin_tries,
        "key": view.key.hex() or None,
        "key_limit": _limit(view.key_limit, view.currency),
        "key_cards_left": view.key_cards_left,
        "held": view.held,
        "moving": view.moving,
        "moved": view.moved,
    }


def _limit(minor: int, currency: int) -> str | None:
    return str(Amount(minor, Currency.of(currency)).decimal) if minor and currency else None


def view_as_text(view: WalletView) -> str:
    """Return a wallet view for a person."""
    if view.locked:
        return (
            "LOCKED: the storage or its freshness counter was put back to an older copy, or damaged; nothing can be paid."
            " `tap-wallet sync` asks the issuer for the money."
        )
    if view.moved:
        return "The purse of this wallet is at the Key. `tap-wallet move in` brings it back."
    if not view.currency:
        return "This wallet has no virtual card yet. Next: tap-wallet apply."
    lines = [
        f"{LABEL}   {view.masked_number or 'no virtual card left: tap-wallet apply'}",
        f"balance  {amount_of(view.balance, view.currency)}",
        f"cards    {view.cards_left} left; above {amount_of(view.no_pin_limit, view.currency)} the phone asks you",
    ]
    if view.sum_limit:
        lines.append(f"         and when {amount_of(view.sum_limit, view.currency)} were spent since it last asked")
    if view.count_limit:
        lines.append(f"         and after {view.count_limit} payments since it last asked")
    if view.pin_tries != NO_PIN:
        lines.append(
            f"PIN      {f'{view.pin_tries} tries left' if view.pin_tries else 'BLOCKED: tap-wallet pin --unblock'}"
        )
    if view.key:
        above = f"; above {amount_of(view.key_limit, view.currency)} it is needed" if view.key_limit else ""
        lines.append(f"Key      {view.key.hex()}, {view.key_cards_left} cards{above}")
    if view.moving:
        lines.append("MOVING   the purse is on its way; `tap-wallet move` goes on with it, nothing is paid until then")
    if view.held:
        lines.append("HELD     locked at the Key; choose “Ready to pay” there")
    return "\n".join(lines)


def synced_as_json(synced: Synced, view: WalletView) -> dict[str, Any]:
    """Return what a sync brought, for programs; `view` is the wallet afterwards."""
    counts = Counter(debit.outcome for debit in synced.decided)
    return {
        **view_as_json(view),
        "standing": synced.standing.name.lower(),
        "money_due": datetime.fromtimestamp(synced.until, UTC).isoformat() if synced.until else None,
        "paid": counts[SettledAs.PAID],
        "refunded": counts[SettledAs.REFUNDED],
    }


def synced_as_text(synced: Synced, view: WalletView) -> str:
    """Return what a sync brought, for a person."""
    if synced.standing is Standing.BLOCKED:
        return (
            "The issuer has blocked this wallet: a terminal holds a receipt that the wallet's own list does not have."
        )
    if synced.until:
        due = datetime.fromtimestamp(synced.until).astimezone().strftime("%Y-%m-%d %H:%M")
        return (
            "This wallet was put back to an older copy, so its cards were withdrawn. What terminals do not claim until"
            f" {due} is reissued to it: sync again then."
        )
    counts = Counter(debit.outcome for debit in synced.decided)
    decided = [
        f"{counts[outcome]} debits that were not confirmed: {outcome.words}."
        for outcome in (SettledAs.PAID, SettledAs.REFUNDED)
        if counts[outcome]
    ]
    first = f"The wallet has settled with its issuer and has the newest list and {view.cards_left} virtual cards."
    return "\n".join([first, *decided, f"balance  {amount_of(view.balance, view.currency)}"])


def report_as_json(report: Report) -> dict[str, Any]:
    """Return what locks the TEE down, for programs."""
    return {"landlock_abi": report.landlock_abi, "seccomp": report.seccomp, "missing": list(report.missing)}


def report_as_text(report: Report) -> str:
    """Return what locks the TEE down, in one line."""
    if report.missing:
        return f"TEE      not fully locked down: {'; '.join(report.missing)}"
    return (
        f"TEE      locked down: seccomp allow-list, Landlock (ABI {report.landlock_abi}), not dumpable, no privileges"
    )


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """Return a line of the history for programs."""
    plain = asdict(entry)
    plain["result"] = entry.result.words if entry.result is not None else None
    plain["amount"] = str(Amount(entry.amount, Currency.of(entry.currency)).decimal) if entry.currency else None
    plain["currency"] = Currency.of(entry.currency).code if entry.currency else None
    return plain


def entry_as_text(entry: Entry) -> str:
    """Return a line of the history for a person."""
    when = datetime.fromtimestamp(entry.at / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    where = f"{entry.merchant} ({entry.terminal_id})" if entry.merchant else ""
    parts = [when, amount_of(entry.amount or None, entry.currency).rjust(14), entry.what, where, entry.reason]
    return "  ".join(part for part in parts if part)


def event_as_json(event: Event) -> dict[str, Any]:
    """Return an event for programs; `step` is S3 to S9 or a word."""
    plain: dict[str, Any] = {"step": event.step.value, "text": event.text, "at": event.at}
    if event.result is not None:
        plain["result"] = event.result.words
        plain["amount"] = str(Amount(event.amount, Currency.of(event.currency)).decimal)
        plain["currency"] = Currency.of(event.currency).code
        plain["merchant"] = event.merchant
    if event.balance is not None:
        plain["balance"] = str(Amount(event.balance, Currency.of(event.currency)).decimal)
    if event.reason:
        plain["reason"] = event.reason
    return plain


class CardScreen:
    """The live view of the card while it serves: drawn in place on a terminal, line by line elsewhere."""

    def __init__(self, link: str, *, as_json: bool, shares_terminal: bool = False) -> None:
        """Show a card that serves `link`.

        Where the trusted UI `shares_terminal`, nothing is drawn in place: its dialogs come between.
        """
        self._in_place = not shares_terminal
        self._link = link
        self._as_json = as_json
        self._live: Any = None
        self._view: WalletView | None = None
        self._last = "hold the phone to a terminal"

    def ready(self, view: WalletView, processes: dict[str, int | None]) -> None:
        """The wallet serves from now on."""
        self._view = view
        if self._as_json:
            print_json({"step": "ready", "link": self._link, "processes": processes, **view_as_json(view)})
        elif self._in_place and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._panel(), auto_refresh=False)
            self._live.start(refresh=True)
        else:
            sys.stdout.write(f"{view_as_text(view)}\nready at {self._link}\n")
            sys.stdout.flush()

    def show(self, event: Event) -> None:
        """Show what just happened."""
        if self._as_json:
            print_json(event_as_json(event))
            return
        if event.step in _TOLD:
            self._last = _event_line(event)
        if event.view is not None:
            self._view = event.view
        elif event.balance is not None and self._view is not None:
            self._view = _with_balance(self._view, event.balance)
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)
        elif event.step in _TOLD:
            sys.stdout.write(self._last + "\n")
            sys.stdout.flush()

    def _panel(self) -> Any:
        from rich.panel import Panel
        from rich.text import Text

        view = self._view
        balance = amount_of(view.balance, view.currency) if view else ""
        body = Text.assemble(
            (f"{view.masked_number if view else ''}\n", "bold"), (f"{balance}\n\n", "bold green"), self._last
        )
        return Panel(body, title=LABEL, subtitle=self._link, width=56)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()


def _event_line(event: Event) -> str:
    if event.step is Step.DEBITED:
        paid = event.result is Result.APPROVED
        words = "paid" if paid else f"not paid ({event.result.words if event.result else 'unknown'})"
        return f"{words}: {amount_of(event.amount, event.currency)} to {event.merchant}"
    return f"{event.text}: {event.reason}" if event.reason else event.text


def _with_balance(view: WalletView, balance: int) -> WalletView:
    from dataclasses import replace

    return replace(view, balance=balance)
