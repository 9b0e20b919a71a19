# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Labels keep what is signed and derived for one purpose from ever standing for another."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.labels import Label, labelled
from protocol.vouchers import LoadRequest, Voucher


def test_all_labels_are_distinct() -> None:
    assert len(Label.__members__) == len(set(Label)) == len({label.value for label in Label})


@pytest.mark.parametrize("label", Label)
def test_label_is_ascii_names_the_protocol_and_fits_its_length_byte(label: Label) -> None:
    assert label.value.isascii()
    assert label.value.startswith("TapLab1 ")
    assert len(label.value) < 256


@pytest.mark.parametrize("label", Label)
def test_label_is_preceded_by_its_length(label: Label) -> None:
    assert labelled(label) == bytes([len(label.value)]) + label.value.encode()
    assert labelled(label, b"\x01", b"\x02\x03") == labelled(label) + b"\x01\x02\x03"


@pytest.mark.parametrize(("first", "second"), list(permutations(Label, 2)))
def test_no_label_starts_another(first: Label, second: Label) -> None:
    assert not labelled(second).startswith(labelled(first))


@given(st.sampled_from(list(permutations(Label, 2))), st.binary(max_size=60), st.binary(max_size=60))
def test_nothing_labelled_for_one_purpose_is_labelled_for_another(
    labels: tuple[Label, Label], first: bytes, second: bytes
) -> None:
    assert labelled(labels[0], first) != labelled(labels[1], second)


def test_request_for_money_is_never_money() -> None:
    fields = (bytes(8), 1, 1000, 978, bytes(64))
    assert LoadRequest(*fields).encode() == Voucher(*fields).encode()
    assert LoadRequest(*fields).signature_input() != Voucher(*fields).signature_input()
