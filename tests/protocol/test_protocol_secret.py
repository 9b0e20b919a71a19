# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Secrets are bytes to whoever computes with them, and only a length to whoever prints them (I5)."""

from __future__ import annotations

import hashlib
import logging
import pprint
import reprlib
import traceback
from dataclasses import dataclass

import pytest

from protocol.card_number import CardNumber
from protocol.log import TRAFFIC, traffic
from protocol.messages import CardPlaintext
from protocol.secret import Secret
from protocol.signing import PrivateKey

_BYTES = b"correct horse battery staple 42!"
_SECRET = Secret(_BYTES)
_PIECES = ("correct", "staple", _BYTES.hex(), _BYTES.hex().upper(), _BYTES.hex()[:16])


@dataclass(frozen=True)
class _Holder:
    key: Secret


def _shows(text: str) -> bool:
    return any(piece in text for piece in _PIECES)


def test_the_check_itself_finds_bytes() -> None:
    assert _shows(repr(_BYTES))
    assert _shows(_BYTES.hex())


@pytest.mark.parametrize(
    "shown",
    [
        str(_SECRET),
        repr(_SECRET),
        format(_SECRET),
        format(_SECRET, ">40"),
        ascii(_SECRET),
        f"{_SECRET} {_SECRET!r} {_SECRET!s} {_SECRET!a} {_SECRET:>40}",
        "%s %r %a" % (_SECRET, _SECRET, _SECRET),  # type: ignore[str-bytes-safe]  # noqa: UP031
        "{} {!r} {:<20}".format(_SECRET, _SECRET, _SECRET),  # noqa: UP032
        str([_SECRET]) + str((_SECRET,)) + str({"key": _SECRET}),
        repr(_Holder(_SECRET)),
        pprint.pformat(_Holder(_SECRET)),
        pprint.pformat({"key": [_SECRET]}, width=10),
        reprlib.repr(_SECRET),
    ],
)
def test_secret_is_never_shown(shown: str) -> None:
    assert not _shows(shown)
    assert "32 bytes" in shown


def test_secret_is_not_shown_in_a_wrong_format() -> None:
    with pytest.raises(ValueError, match="format") as caught:
        format(_SECRET, "x")
    assert not _shows(str(caught.value))


def _fails_with(key: Secret) -> None:
    raise RuntimeError(f"cannot use {key!r} of {_Holder(key)}")


def test_secret_is_not_in_a_traceback_with_local_variables() -> None:
    with pytest.raises(RuntimeError) as caught:
        _fails_with(_SECRET)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "key = Secret(32 bytes)" in shown
    assert not _shows(shown)


def test_secret_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("taplab.test").debug("key %s of %r", _SECRET, _Holder(_SECRET))
    assert "Secret(32 bytes)" in caplog.text
    assert not _shows(caplog.text)


def test_secret_is_the_same_bytes_to_a_computation() -> None:
    assert _SECRET == _BYTES
    assert hash(_SECRET) == hash(_BYTES)
    assert bytes(_SECRET) == _BYTES
    assert hashlib.sha256(_SECRET).digest() == hashlib.sha256(_BYTES).digest()


def test_card_plaintext_shows_neither_number_nor_secret() -> None:
    card = CardPlaintext(CardNumber.from_index(5), 978, 1, Secret(_BYTES[:16]), bytes(16))
    card.encode()
    assert not _shows(repr(card))
    assert "Secret(16 bytes)" in repr(card)


def test_private_key_shows_nothing() -> None:
    key = PrivateKey.from_scalar(_BYTES)
    shown = repr(key) + str(key) + repr(key.scalar())
    assert not _shows(shown)
    assert str(int.from_bytes(_BYTES, "big")) not in shown


def test_traffic_is_logged_only_below_debug(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("taplab.test")
    with caplog.at_level(logging.DEBUG, "taplab.test"):
        traffic(logger, ">", b"\x00\xa4")
    assert caplog.text == ""
    with caplog.at_level(TRAFFIC, "taplab.test"):
        traffic(logger, ">", b"\x00\xa4")
    assert caplog.messages == ["> 00 A4"]
    assert caplog.records[0].levelname == "TRAFFIC"
