# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The relay bound: how much later than the modelled air time the answer to RELAY CHECK may come.

A relay adds the time of its own way. What can be told depends on how steady the link's own time is; the bounds below are
what an undisturbed link keeps on a busy machine (docs/links.md has the measurement).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocol.transport.air import air_time
from protocol.transport.opening import LinkUrl

_BOUNDS_MS = {"memory": 5.0, "socket": 10.0, "pcsc": 25.0, "nfc": 30.0}
_ELSEWHERE_MS = 30.0


class RelayPolicy(StrEnum):
    """What a terminal does about a card that answers RELAY CHECK too late."""

    OFF = "off"
    REPORT = "report"
    DECLINE = "decline"


@dataclass(frozen=True, slots=True)
class RelayCheckResult:
    """One RELAY CHECK: the round trip, its modelled time on the air, and the bound for the rest; all in milliseconds.

    On links that are no radio nothing is spent on the air, so the model is subtracted where a radio carries the frames.
    """

    round_trip_ms: float
    air_ms: float
    bound_ms: float

    def __str__(self) -> str:
        return f"{self.excess_ms:.1f} ms beyond the air, bound {self.bound_ms:g} ms"

    @property
    def excess_ms(self) -> float:
        """What the answer took beyond the air."""
        return max(0.0, self.round_trip_ms - self.air_ms)

    @property
    def is_too_late(self) -> bool:
        """Whether the bound was passed."""
        return self.excess_ms > self.bound_ms


def judge(round_trip: float, lengths: tuple[int, int], scheme: str, bound_ms: float | None) -> RelayCheckResult:
    """Judge a round trip in seconds of (command, answer) bytes over a link of this scheme; `bound_ms` overrides its bound."""
    on_air = air_time((lengths,)).milliseconds if scheme in ("nfc", "pcsc") else 0.0
    bound = _BOUNDS_MS.get(scheme, _ELSEWHERE_MS) if bound_ms is None else bound_ms
    return RelayCheckResult(1000 * round_trip, on_air, bound)


def scheme_of(link: object) -> str:
    """Return the scheme of a link's URL; empty for a link that was opened elsewhere."""
    return LinkUrl.parse(link).scheme if isinstance(link, str) else ""
