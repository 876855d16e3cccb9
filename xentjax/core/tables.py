"""What the tables of the check and of the accuracy sweep share: which records they are of, and how they are written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def chosen(only: str | Iterable[str] | None, records: Mapping[str, Any]) -> list[Any]:
    """The records of the given names; all where ``only`` is None or empty.

    Raises:
      ValueError: for a name that is none of them.
    """
    names = [only] if isinstance(only, str) else list(only or records)
    unknown = sorted(set(names) - set(records))
    if unknown:
        raise ValueError(f"only: no record is named {unknown[0]!r}; there are {', '.join(records)}")
    return [records[name] for name in names]


def to_json(rows: Sequence[Any], passed: bool, seconds: float) -> str:
    """Rows (dataclasses) as a JSON array; infinities and NaN as strings."""
    plain = [{k: _number(v) for k, v in dataclasses.asdict(row).items()} for row in rows]
    return json.dumps({"passed": passed, "seconds": seconds, "rows": plain}, indent=1)


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
