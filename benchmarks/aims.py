"""How many times faster than the best peer each problem is meant to be solved, and what stands in the way."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Aim:
    """``obstacle`` is what the report says where the aim is missed: why, and what was tried."""

    times: float
    obstacle: str = "not looked into"


AIMS = {
    "flights": Aim(2.5),
    "synthetic": Aim(1.0),
    "ill-conditioned": Aim(1.0),
    "magic": Aim(2.8),
    "spambase": Aim(2.4),
    "breast cancer": Aim(5.0),
    "digits": Aim(1.0),
    "satimage": Aim(1.9),
    "L1 spambase": Aim(1.0),
    "1000 tables": Aim(10.0),
    "1000 bootstraps": Aim(25.0),
    "100 penalties in 5 folds": Aim(10.0),
}
