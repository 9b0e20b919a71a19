# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the attacks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.stage import Stage


@pytest.fixture
def stage(home: Path, tmp_path: Path) -> Iterator[Stage]:
    """All parties in this process, for one attack."""
    made = Stage(home, tmp_path)
    yield made
    made.close()
