# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`nfc:usb`, `nfc:tty:PORT:DRIVER`, `nfc:udp:HOST:PORT`: nfcpy's drivers under our own ISO 14443-4, both ends.

nfcpy senses, listens and exchanges frames; everything above a frame is isodep.py. Over UDP (nfcpy's radio for tests, which
binds every address of the machine) the first frame a card gets is RATS; the PN53x and RC-S380 drivers answer RATS themselves
with the ATS they were given and hand over the first block.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import (
    CardRemovedError,
    CardSilentError,
    ForeignCardError,
    LinkUnavailableError,
    MissingOnMachineError,
    UsageError,
)
from protocol.log import traffic
from protocol.transport.base import (
    NO_CARD_TIMEOUT,
    Activation,
    CardHandler,
    CardPort,
    ContactlessCard,
    card_historical,
    contactless_atr,
)
from protocol.transport.fault import FramedLink, Frames
from protocol.transport.isodep import (
    FRAME_SIZES,
    MAX_APDU,
    RATS_START,
    Ats,
    CardHalf,
    Dialogue,
    Reaction,
    ReaderHalf,
    frame_waiting_time,
    rats,
    start_up_guard_time,
)

_log = logging.getLogger(__name__)
_ISO_14443_4 = 0x20  # SAK bit: ISO 14443-3 §6.5.3
_SENS_RES = bytes.fromhex("0400")  # one cascade level, bit-frame anticollision
_RANDOM_UID_START = 0x08  # ISO 14443-3 §6.5.4: a random UID starts so
_RATS_SECONDS = 0.03
_LEAST_WAIT = 0.05  # an operating system's scheduler cannot keep a shorter one
_LISTEN_SECONDS = 0.5
_FIELD_GONE_SECONDS = 5.0
_RESET_SECONDS = 0.0051  # how long the field stays off, EMV Contactless Book D annex A.4: t_RESET
_FOREIGN_EVERY = 2  # looking for other kinds of card takes time in which a phone could have been found

# What a chip can be, by nfcpy's chipset name; facts of the drivers, in docs/links.md with their source.
CAN_BE_CARD = {"UDP": True, "PN532": True, "RC-S380": True, "NFC Port-100": True, "PN531": False, "PN533": False,
               "RC-S956": False, "ACR122U": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Radio:
    """A device that nfcpy opened, with the names it gives itself."""

    frontend: Any
    name: str
    chip: str


def open_radio(path: str) -> Radio:
    """Open a device by nfcpy's path; MissingOnMachineError or LinkUnavailableError says what is not there."""
    if not path:
        raise UsageError("nfc: names no device; write nfc:usb, or nfc:tty:USB0:pn532")
    _require_usable_port(path)
    try:
        import nfc.clf
    except ImportError as error:
        raise MissingOnMachineError(f"nfcpy cannot be used ({error}); install it with `pip install nfcpy`") from None
    logging.getLogger("nfc").setLevel(logging.NOTSET)  # nfcpy sets its own level when it is imported
    try:
        frontend = nfc.clf.ContactlessFrontend(path)
    except (OSError, ValueError) as error:
        raise LinkUnavailableError(
            f"no NFC device at {path}: {error}; `tap-pos readers` shows what is attached"
        ) from None
    if frontend.device is None:
        raise LinkUnavailableError(f"no NFC device at {path}; `tap-pos readers` shows what is attached")
    return Radio(frontend, str(frontend), str(frontend.device.chipset_name))


def _require_usable_port(path: str) -> None:
    """Raise UsageError for a UDP port that there is not, or that nfcpy cannot use."""
    if not path.startswith("udp:"):
        return
    port = path.rpartition(":")[2]
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= 0xFFFF:
        raise UsageError(f"nfc:{path} has no UDP port; write nfc:udp:127.0.0.1:54321")
    with contextlib.suppress(OSError):
        name = socket.getservbyport(int(port))
        raise UsageError(f"nfcpy cannot use UDP port {port}, which this machine calls {name}; choose another one")


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """A USB device that nfcpy has a driver for; `missing` says what keeps it from being opened."""

    link: str
    name: str
    can_be_card: bool
    missing: str


def usb_devices() -> list[UsbDevice]:
    """Return the NFC devices on USB without opening them; MissingOnMachineError when USB cannot be looked at."""
    try:
        import usb1
        from nfc.clf import device, transport
    except (ImportError, OSError) as error:
        raise MissingOnMachineError(f"USB cannot be used ({error}); on Debian: apt-get install libusb-1.0-0") from None
    try:
        found = transport.USB.find("usb") or []
    except (usb1.USBError, OSError) as error:
        raise MissingOnMachineError(f"USB cannot be looked at: {error}") from None
    return [
        _usb_device(device.usb_device_map[vendor, product], bus, number)
        for vendor, product, bus, number in found
        if (vendor, product) in device.usb_device_map
    ]


def _usb_device(driver: str, bus: int, number: int) -> UsbDevice:
    node = Path(f"/dev/bus/usb/{bus:03}/{number:03}")
    missing = "" if os.access(node, os.W_OK) else f"no right to write to {node}; a udev rule for your group gives it"
    can_be_card = any(can for chip, can in CAN_BE_CARD.items() if chip.replace("-", "").lower() == driver)
    return UsbDevice(f"nfc:usb:{bus:03}:{number:03}", f"{driver} on USB {bus:03}:{number:03}", can_be_card, missing)


@dataclass(slots=True)
class NfcFrames:
    """The frames of the reader's end, by nfcpy."""

    radio: Radio

    def begin(self) -> None:
        """Nothing to do: nfcpy has selected the card."""

    def exchange(self, frame: bytes, timeout: float) -> bytes | None:
        """Send a frame and return what comes back; None for silence or damage."""
        import nfc.clf

        try:
            received = self.radio.frontend.exchange(frame, timeout)
        except nfc.clf.BrokenLinkError:
            raise CardRemovedError("the card has left the field") from None
        except (nfc.clf.CommunicationError, ValueError):  # ValueError: the UDP device cannot read a damaged datagram
            return None
        except OSError as error:
            raise LinkUnavailableError(f"the reader is gone: {error}") from None
        return bytes(received) if received is not None else None

    def stay_silent(self, timeout: float) -> None:
        """Wait as for an answer."""
        time.sleep(timeout)

    def switch_off(self) -> None:
        """The field goes."""
        if self.radio.frontend.device is not None:
            with contextlib.suppress(OSError):
                self.radio.frontend.device.mute()
                time.sleep(_RESET_SECONDS)


class NfcLink(FramedLink):
    """The reader's end."""

    def __init__(self, path: str) -> None:
        """Open the device at nfcpy's `path`."""
        self._radio = open_radio(path)
        self.frames: Frames = NfcFrames(self._radio)
        self._half: ReaderHalf | None = None
        self._waiting_time = 0.0

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Look for a Type 4A card until `timeout`, then RATS.

        ForeignCardError when what is in the field is no ISO 14443-4 card.
        """
        import nfc.clf

        self.deactivate()
        deadline = time.monotonic() + timeout
        for attempt in itertools.count(1):
            target = self._sense(nfc.clf.RemoteTarget("106A"))
            if target is not None:
                return self._activate(target)
            if attempt % _FOREIGN_EVERY == 0:
                foreign = self._sense(nfc.clf.RemoteTarget("212F"), nfc.clf.RemoteTarget("106B"))
                if foreign is not None:
                    raise ForeignCardError(f"the card in the field is {describe(foreign)}, no ISO 14443-4 type A card")
            if time.monotonic() >= deadline:
                break
        raise CardSilentError("no card was presented in time")

    def _sense(self, *targets: Any) -> Any:
        try:
            return self._radio.frontend.sense(*targets, iterations=1)
        except (ValueError, IndexError):  # what the UDP device received is not of its format
            return None
        except OSError as error:
            raise LinkUnavailableError(f"the reader is gone: {error}") from None

    def _activate(self, target: Any) -> Activation:
        sak = target.sel_res[0] if target.sel_res else 0
        if not sak & _ISO_14443_4:
            raise ForeignCardError(f"the card in the field is {describe(target)}, no ISO 14443-4 card")
        self.frames.begin()
        fsdi = max(i for i, size in enumerate(FRAME_SIZES) if size <= max(16, self._radio.frontend.max_recv_data_size))
        frame = self.frames.exchange(rats(fsdi), _RATS_SECONDS + _LEAST_WAIT)
        if frame is None:
            raise CardRemovedError("the card has left the field")
        ats = Ats.decode(frame)
        time.sleep(start_up_guard_time(ats.sfgi))
        self._waiting_time = max(frame_waiting_time(ats.fwi), _LEAST_WAIT)
        self._half = ReaderHalf(ats)
        card = ContactlessCard(
            uid=bytes(target.sdd_res), atqa=bytes(target.sens_res), sak=sak, ats=frame, technology="ISO 14443-4 type A"
        )
        return Activation(contactless_atr(ats.historical[:15]), card)

    def transceive(self, apdu: bytes) -> bytes:
        """Send an APDU by blocks and return the answer."""
        if self._half is None:
            raise CardRemovedError("no card is active")
        if len(apdu) > MAX_APDU:
            raise UsageError(f"a command of {len(apdu)} bytes is longer than this link can carry")
        traffic(_log, ">", apdu)
        try:
            answer = self._run(self._half.exchange(apdu))
        except BaseException:
            self._half = None
            raise
        traffic(_log, "<", answer)
        return answer

    def _run(self, dialogue: Dialogue) -> bytes:
        try:
            wanted = next(dialogue)
            while True:
                wanted = dialogue.send(self.frames.exchange(wanted.frame, wanted.wait * self._waiting_time))
        except StopIteration as finished:
            answer: bytes = finished.value
            return answer

    def deactivate(self) -> None:
        """Deselect the card and switch the field off."""
        half, self._half = self._half, None
        if half is not None:
            with contextlib.suppress(CardRemovedError, LinkUnavailableError):
                self._run(half.deselect())
        self.frames.switch_off()

    def close(self) -> None:
        """Give the device back."""
        self.deactivate()
        self._radio.frontend.close()


def describe(target: Any) -> str:
    """Return what kind of card nfcpy found, in words."""
    if target.sensf_res is not None:
        return "a Type 3 tag (FeliCa)"
    if target.sensb_res is not None:
        return "a type B card"
    if target.rid_res is not None:
        return "a Type 1 tag"
    return "a Type 2 tag" if not target.sel_res or not target.sel_res[0] & 0x60 else "an NFC device"


class NfcPort(CardPort):
    """The card's end: a Type 4A card with a random UID for each activation."""

    def __init__(self, path: str, *, extended: bool = True) -> None:
        """Open the device at nfcpy's `path`; LinkUnavailableError when its chip cannot be such a card."""
        self._radio = open_radio(path)
        if not CAN_BE_CARD.get(self._radio.chip, True):
            name = self._radio.name
            self._radio.frontend.close()
            raise LinkUnavailableError(f"{name} cannot be a Type 4A card; a PN532 or RC-S380 can")
        self._ats = Ats(historical=card_historical(extended=extended))
        self._half = CardHalf(self._ats)
        self._closing = threading.Event()
        self._waiting = threading.Lock()
        self._asked_at: float | None = None
        self._lost: Reaction | None = None

    def serve(self, card: CardHandler) -> None:
        """Be there for every reader that comes, tap after tap."""
        watchdog = threading.Thread(target=self._watch, name="waiting time", daemon=True)
        watchdog.start()
        while not self._closing.is_set():
            target = self._listen()
            if target is None or not target.tt4_cmd:  # nobody, or what was left of another tap
                continue
            card.activate()
            try:
                self._serve_tap(target, card)
            finally:
                card.deactivate()
        watchdog.join()
        self._radio.frontend.close()

    def _listen(self) -> Any:
        import nfc.clf

        uid = bytes([_RANDOM_UID_START]) + os.urandom(3)
        target = nfc.clf.LocalTarget(
            "106A",
            sens_res=bytearray(_SENS_RES),
            sdd_res=bytearray(uid),
            sel_res=bytearray([_ISO_14443_4]),
            rats_res=bytearray(self._ats.encode()),
        )
        try:
            return self._radio.frontend.listen(target, _LISTEN_SECONDS)
        except (nfc.clf.CommunicationError, ValueError, IndexError):
            return None
        except OSError as error:
            if self._closing.is_set():
                return None
            raise LinkUnavailableError(f"the NFC device is gone: {error}") from None

    def _serve_tap(self, target: Any, card: CardHandler) -> None:
        """Feed the card half until the field goes, the reader deselects, or nobody says anything any more."""
        self._half.reset()
        frame = bytes(target.tt4_cmd)
        if frame[:1] != bytes([RATS_START]):
            self._half.activated_by(bytes(target.rats_cmd or b""))
        reaction = self._half.receive(frame)
        while not self._closing.is_set():
            try:
                if reaction.deliver is not None:
                    reaction = self._compute(reaction.deliver, card)
                if reaction.deselected:
                    self._exchange(reaction.send, 0)
                    return
                reaction = self._next(reaction.send)
            except CardRemovedError:
                return

    def _next(self, frame: bytes | None) -> Reaction:
        """Send a frame and wait for one that the half reacts to: what is none for it is no sign of our reader."""
        until = time.monotonic() + _FIELD_GONE_SECONDS
        reaction = self._half.receive(self._exchange(frame, _FIELD_GONE_SECONDS))
        while reaction == Reaction():
            left = until - time.monotonic()
            if left <= 0 or self._closing.is_set():
                raise CardRemovedError("the field is gone")
            reaction = self._half.receive(self._exchange(None, left))
        return reaction

    def _compute(self, apdu: bytes, card: CardHandler) -> Reaction:
        """Let the application answer; `_watch` asks the reader for time meanwhile, if that takes long."""
        with self._waiting:
            self._asked_at, self._lost = time.monotonic(), None
        answer = card.process(apdu)
        with self._waiting:  # held while a request for time is under way
            self._asked_at, lost = None, self._lost
        if self._closing.is_set():
            return Reaction(deselected=True)
        return lost or self._half.answer(answer)

    def _watch(self) -> None:
        """Ask for time whenever an answer needs more than half the frame waiting time.

        This thread looks up now and then instead of being told, since waking it for every answer would cost more than
        most answers take.
        """
        patience = frame_waiting_time(self._ats.fwi) / 2
        while not self._closing.wait(patience / 4):
            with self._waiting:
                late = self._asked_at is not None and time.monotonic() - self._asked_at > patience
                if late and self._lost is None:
                    self._lost = self._ask_time()
                    self._asked_at = time.monotonic()

    def _ask_time(self) -> Reaction | None:
        """Exchange S(WTX) with the reader; return what ends the tap instead, if something does."""
        try:
            reaction = self._half.ask_time()
            while reaction.send is not None and not reaction.deselected:  # once more, if it was not understood
                reaction = self._half.receive(self._exchange(reaction.send, _FIELD_GONE_SECONDS))
        except CardRemovedError:
            return Reaction(deselected=True)
        return reaction if reaction.deselected else None

    def _exchange(self, frame: bytes | None, timeout: float) -> bytes | None:
        """Send a frame, or stay silent, and return the next one; None for a damaged one."""
        import nfc.clf

        try:
            received = self._radio.frontend.exchange(frame, min(timeout, _LISTEN_SECONDS))
        except nfc.clf.TimeoutError:
            if timeout <= _LISTEN_SECONDS or self._closing.is_set():
                raise CardRemovedError("the field is gone") from None
            return self._exchange(None, timeout - _LISTEN_SECONDS)
        except nfc.clf.BrokenLinkError:
            raise CardRemovedError("the field is gone") from None
        except (nfc.clf.CommunicationError, ValueError):
            return None
        except OSError:
            raise CardRemovedError("the device is gone") from None
        return bytes(received) if received is not None else None

    def close(self) -> None:
        """Stop serving, at the latest when the tap is over."""
        self._closing.set()
