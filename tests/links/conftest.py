# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A link over nfcpy's UDP radio, on a port of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.links.radio import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Both ends of `nfc:udp:127.0.0.1:PORT`; whatever is laid there is taken away at the end."""
    with Rig() as made:
        yield made
