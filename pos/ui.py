# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The screen that a shopper reads: amount, “present card”, progress, approved or declined with the reason, receipt."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from console.ui import money
from pos.journal import Record, State
from pos.outcome import Outcome, OutcomeKind, Progress, Step
from pos.probe import Finding
from pos.readers import Reader
from pos.relay import RelayCheckResult
from pos.settlement import Settled
from protocol.money import Amount, Currency
from protocol.settlement import Verdict

_WIDTH = 44
_PROGRESS = {Step.NAME_SENT: 1, Step.CARD_ASKED: 2, Step.CARD_CHECKED: 3, Step.PAID: 4}
_STYLE = {OutcomeKind.APPROVED: "bold green", OutcomeKind.SEE_PHONE: "bold yellow"}


class Screen:
    """The terminal's screen; nothing is drawn when nobody can watch."""

    def __init__(self, amount: Amount, merchant: str) -> None:
        """Show what is to be paid to whom."""
        from rich.console import Console

        self._console = Console(highlight=False, markup=False)
        self._amount = amount
        self._merchant = merchant

    def present_card(self) -> None:
        """Ask for the card."""
        self._console.print(f"{self._merchant}   {money(self._amount)}", style="bold")
        self._console.print("Present card")

    def progress(self, progress: Progress) -> None:
        """Show how far the tap is, as the four lamps of a terminal."""
        if progress.step is Step.PRESENT_AGAIN:
            self._console.print("Present the card again", style="bold yellow")
            return
        lit = _PROGRESS[progress.step]
        lamps = "● " * lit + "○ " * (len(_PROGRESS) - lit)
        if sys.stdout.isatty():
            self._console.print(lamps, end="\r", style="green")

    def result(self, outcome: Outcome) -> None:
        """Show how it ended, and the receipt if there is one."""
        style = _STYLE.get(outcome.kind, "bold red")
        for reference in outcome.settled:
            self._console.print(f"An earlier payment of this wallet was paid: {reference[:16]}", style="bold yellow")
        if outcome.approved and outcome.relay is not None and outcome.relay.is_too_late:
            self._console.print(f"RELAY CHECK came late ({outcome.relay})", style="bold yellow")
        self._console.print(_headline(outcome), style=style)
        if outcome.approved:
            self._console.print(receipt(outcome, self._merchant))


def _headline(outcome: Outcome) -> str:
    words = {
        OutcomeKind.APPROVED: "APPROVED",
        OutcomeKind.SEE_PHONE: "SEE PHONE: agree there, then present it again",
        OutcomeKind.TORN: "NOT FINISHED",
        OutcomeKind.NOT_ACCEPTED: "TERMINAL NOT ACCEPTED",
        OutcomeKind.NOT_VERIFIED: "CARD NOT VERIFIED",
    }.get(outcome.kind, outcome.kind.value.upper())
    shows_reason = outcome.reason and outcome.kind not in (OutcomeKind.SEE_PHONE, OutcomeKind.NOT_ACCEPTED)
    return f"{words}: {outcome.reason}" if shows_reason else words


def receipt(outcome: Outcome, merchant: str) -> str:
    """Return the shopper's receipt."""
    rows = [
        ("paid to", merchant),
        ("amount", money(outcome.amount)),
        ("card", outcome.card),
        ("reference", outcome.reference[:16]),
        ("receipt", _verified(outcome)),
    ]
    rule = "─" * _WIDTH
    return "\n".join([rule, *(f"{name:<10}{value:>{_WIDTH - 10}}" for name, value in rows), rule])


def _verified(outcome: Outcome) -> str:
    if not outcome.receipt_verified:
        return "not verified"
    return "signatures of card and Key verified" if outcome.air.key_bytes else "signature verified"


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for programs."""
    air = outcome.air
    return {
        "outcome": outcome.kind.value,
        "reason": outcome.reason or None,
        "amount": str(outcome.amount.decimal),
        "currency": outcome.amount.currency.code,
        "card": outcome.card or None,
        "reference": outcome.reference or None,
        "receipt_verified": outcome.receipt_verified,
        "charged": outcome.charged,
        "settled": list(outcome.settled),
        **_relay_as_json(outcome.relay),
        "apdus": len(air.lengths),
        "bytes_command": air.bytes_command,
        "bytes_response": air.bytes_response,
        "key_bytes": air.key_bytes,
        "air_ms": {str(kbit): round(ms, 2) for kbit, ms in air.by_bit_rate.items()},
        "air_ms_106": round(air.milliseconds(), 2),
        "air_ms_106_to_receipt": round(air.milliseconds_to_receipt, 2),
        "steps": [{"step": step.step.value, "text": step.text, "at": step.at} for step in outcome.steps],
    }


def _relay_as_json(relay: RelayCheckResult | None) -> dict[str, Any]:
    if relay is None:
        return {"relay_ms": None, "relay_bound_ms": None, "relay_suspected": None}
    return {
        "relay_ms": round(relay.round_trip_ms, 3),
        "relay_bound_ms": relay.bound_ms,
        "relay_suspected": relay.is_too_late,
    }


def record_as_json(record: Record) -> dict[str, Any]:
    """Return a line of the journal for programs."""
    amount = Amount(record.amount, Currency.of(record.currency))
    return {
        "started": record.started,
        "amount": str(amount.decimal),
        "currency": amount.currency.code,
        "card": record.card,
        "reference": record.transaction_id.hex(),
        "state": record.state.value,
        "reason": record.reason or None,
        "confirmed": record.confirmed,
        "verdict": record.verdict.name.lower() if record.verdict is not None else None,
    }


def record_as_text(record: Record) -> str:
    """Return a line of the journal for a person."""
    amount = money(Amount(record.amount, Currency.of(record.currency)))
    state = record.state.value + (f": {record.reason}" if record.reason else "")
    unknown = "" if record.state is not State.OPEN or record.verdict is not None else "  result not known"
    verdict = f", {record.verdict.words}" if record.verdict is not None else ""
    return f"{record.started[:19].replace('T', ' ')}  {amount:>14}  {record.card}  {state}{unknown}{verdict}"


def settled_as_json(settled: Settled, unit: Currency) -> dict[str, Any]:
    """Return what a settlement brought, for programs."""
    verdicts = {verdict.name.lower(): settled.verdicts[verdict] for verdict in Verdict}
    paid = str(Amount(settled.paid, unit).decimal)
    return {"paid_amount": paid, "currency": unit.code, "result_not_known": settled.unknown, **verdicts}


def settled_as_text(settled: Settled, unit: Currency) -> str:
    """Return what a settlement brought, for a person."""
    lines = [f"{count} {verdict.words}" for verdict, count in sorted(settled.verdicts.items())]
    paid = f"{money(Amount(settled.paid, unit))} paid out now"
    unknown = f"{settled.unknown} with a result not known yet" if settled.unknown else ""
    return "\n".join(filter(None, [*lines, paid, unknown]))


def finding_as_json(finding: Finding) -> dict[str, Any]:
    """Return what was in the field for programs."""
    return {
        "foreign": finding.foreign or None,
        "atr": finding.atr.hex() or None,
        "uid": finding.uid.hex() or None,
        "uid_is_random": finding.uid_is_random,
        "atqa": finding.atqa.hex() or None,
        "sak": finding.sak,
        "ats": finding.ats.hex() or None,
        "extended_length": finding.extended_length,
        "directory": [
            {"name": one.name.hex(), "label": one.label, "priority": one.priority} for one in finding.directory
        ],
        "applications": [{"what": one.what, "name": one.name.hex()} for one in finding.applications],
        "ndef": ndef_records(finding.ndef),
    }


def finding_as_text(finding: Finding) -> str:
    """Return what was in the field for a person."""
    if finding.foreign:
        return f"{finding.foreign[0].upper()}{finding.foreign[1:]}."
    lines = []
    if finding.uid:
        kind = "random, another at each tap" if finding.uid_is_random else "fixed"
        lines.append(f"UID          {finding.uid.hex(' ').upper()} ({kind})")
        lines.append(f"ATQA, SAK    {finding.atqa.hex(' ').upper()}, {finding.sak:02X}")
        lines += [f"ATS          {finding.ats.hex(' ').upper()}", *_ats_lines(finding.ats)]
    lines.append(f"ATR          {finding.atr.hex(' ').upper()}")
    lines.append(f"lengths      {'extended' if finding.extended_length else 'short'}")
    lines += [
        f"directory    {_printable(one.label) or 'no label'}  {one.name.hex().upper()}" for one in finding.directory
    ]
    lines += [f"application  {one.what}  {one.name.hex().upper()}" for one in finding.applications]
    lines += [f"NDEF         {record}" for record in ndef_records(finding.ndef)]
    if not finding.directory and not finding.applications:
        lines.append("application  none that this program knows")
    return "\n".join(lines)


def _ats_lines(ats: bytes) -> list[str]:
    from protocol.transport.isodep import Ats, frame_waiting_time

    decoded = Ats.decode(ats)
    waiting = f"waits {1000 * frame_waiting_time(decoded.fwi):.1f} ms (FWI {decoded.fwi})"
    historical = decoded.historical.hex(" ").upper() or "none"
    return [f"             frames of {decoded.frame} bytes, {waiting}, historical bytes {historical}"]


def ndef_records(message: bytes) -> list[str]:
    """Return the records of an NDEF message in words; a message that is none is said to be."""
    if not message:
        return []
    import ndef

    try:
        return [_printable(str(record)) for record in ndef.message_decoder(message)]
    except (ndef.DecodeError, ValueError) as error:  # what a tag says is anybody's
        return [f"{len(message)} bytes that are no NDEF message: {_printable(str(error))}"]


def _printable(text: str) -> str:
    """Return text that cannot steer a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


def reader_as_json(reader: Reader) -> dict[str, Any]:
    """Return a reader for programs."""
    return asdict(reader)


def reader_as_text(reader: Reader) -> str:
    """Return a reader for a person."""
    roles = " and ".join(role for role, can in (("terminal", reader.as_terminal), ("card", reader.as_card)) if can)
    state = reader.missing or f"can be {roles}{', a card is present' if reader.card_present else ''}"
    return f"{reader.link:<28} {reader.name}: {state}"
