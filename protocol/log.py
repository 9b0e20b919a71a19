# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Logging below DEBUG: TRAFFIC shows the bytes on a link, which hold nothing secret in clear."""

from __future__ import annotations

import logging

TRAFFIC = 5
logging.addLevelName(TRAFFIC, "TRAFFIC")


def traffic(logger: logging.Logger, arrow: str, data: bytes) -> None:
    """Log `data` as hexadecimal; costs nothing unless someone listens."""
    if logger.isEnabledFor(TRAFFIC):
        logger.log(TRAFFIC, "%s %s", arrow, data.hex(" ").upper())
