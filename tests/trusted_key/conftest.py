# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A Key on a card, and a trusted world that is paired with it."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.trusted_key.small_key import Bench

settings.register_profile("trusted key", deadline=None)
settings.load_profile("trusted key")


@pytest.fixture
def bench() -> Bench:
    """A Key, the card that it is on, and the trusted world that it knows."""
    return Bench()
