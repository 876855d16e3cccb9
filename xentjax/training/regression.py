"""A regression: data in, a certified fit out, the choice of a path of penalties or with a bootstrap."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models import one_pass
from xentjax.models.streamed import StreamedRows, reading
from xentjax.training import run_folder
from xentjax.training.bootstrap import bootstrap
from xentjax.training.devices import mesh_of
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.evaluation import evaluations
from xentjax.training.fit import fit_logistic
from xentjax.training.fit_result import LogisticFit
from xentjax.training.machine import timed
from xentjax.training.path import fit_path
from xentjax.training.path_result import LogisticPath
from xentjax.training.prepared import Part, Prepared, load_examples, require_in_memory, split_and_encode
from xentjax.training.regression_config import PathConfig, RegressionConfig
from xentjax.training.regression_result import Regression
from xentjax.training.steps import Stage
from xentjax.training.streams.matrix import Reading

#: What a fit is called while it runs, and seconds between two lines of how far a pass over a file is.
_FITTING, _OFTEN = "fitting", 0.1


def regress(config: RegressionConfig, progress: Callable[[Stage], None] = lambda stage: None) -> Regression:
    """Run the config. The callback is told what is done next.

    A fit and a path are programs that run to their end; a KeyboardInterrupt out of the callback while resamples are
    fitted ends the bootstrap with those that there are.

    Raises:
      UserError: a mistake in the data, or in what is asked of them.
    """
    with jax.enable_x64(config.precision == "float64"):
        progress(Stage("reading the data"))
        data = split_and_encode(load_examples(config.data), config, config.seed)
        if config.bootstrap is not None:
            require_in_memory(data, "bootstrap")
        mesh, model = mesh_of(config.mesh), config.model
        if mesh is not None:
            require_in_memory(data, "mesh")
        is_placed = mesh is None and not data.streamed
        x, y = (jnp.asarray(data.x), jnp.asarray(data.y)) if is_placed else (data.x, data.y)
        options: dict[str, Any] = {"fit_intercept": model.fit_intercept, "class_weight": _class_weight(config, data)}
        options |= {"num_classes": data.num_classes, "tol": config.stop.tol, "weights": data.train.weights}
        options["mesh"] = mesh
        if config.stop.max_steps is not None:
            options["max_steps"] = config.stop.max_steps
        path, chosen, resampled = None, None, None
        with timed() as watch, _told(), _watched(x, progress):
            if config.path is not None:
                path, chosen, fit = _chosen(x, y, config.path, config.seed, options, progress)
            else:
                progress(Stage(_FITTING))
                options |= {"l2": model.l2, "l1": model.l1, "solver": config.solver.name}
                fit = fit_logistic(x, y, inference=None if config.inference is None else True, **options)
            if config.bootstrap is not None:
                tell = lambda done, total: progress(Stage("bootstrap", done, total))
                wanted = config.bootstrap.model_dump() | {name: options[name] for name in options if name != "weights"}
                resampled = bootstrap(data.x, data.y, seed=config.seed, progress=tell, **wanted)
        fit = jax.device_get(fit)
        with contextlib.suppress(KeyboardInterrupt):  # what is fitted is evaluated
            progress(Stage("evaluating"))
        parts = evaluations(fit.params, data.parts, len(data.classes))
        return Regression(
            config=config,
            model=run_folder.Model(data.encoder, data.classes, fit.params),
            fit=fit,
            path=jax.device_get(path),
            chosen=chosen,
            bootstrap=resampled,
            train=parts[0],
            test=parts[1] if len(parts) > 1 else None,
            deviations=np.where(data.encoder.of_categories, 1, _deviations(data.train)),
            skipped=data.skipped,
            cost=watch.cost(),
        )


def _deviations(part: Part) -> Any:
    """The standard deviation of each feature."""
    if not isinstance(part.x, StreamedRows):
        return np.std(part.x, axis=0)
    with reading(part.x):
        inverse = np.asarray(_inverse_deviations(part.x, part.weights))
    return np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)


@jax.jit
def _inverse_deviations(x: Any, weights: Any) -> Any:
    return one_pass.scaling_of(x, None if weights is None else weights.astype(x.dtype)).inverse


@contextlib.contextmanager
def _watched(x: Any, progress: Callable[[Stage], None]) -> Iterator[None]:
    """Tell how far each pass over a file is that the block makes."""
    if not isinstance(x, StreamedRows):
        yield
        return

    last = 0.0

    def tell(at: Reading) -> None:
        nonlocal last
        if time.monotonic() - last < _OFTEN:
            return
        last = time.monotonic()
        rate = f"{at.rows_per_second / 1e6:.2f} million rows/s"
        objective = "" if at.objective is None else f", objective {at.objective:.6g}"
        with contextlib.suppress(KeyboardInterrupt):  # a program runs to its end
            progress(Stage(f"{_FITTING}: pass {at.passes}, {rate}{objective}; rows", at.done, at.total))

    source: Any = x.source
    source.told = tell
    try:
        yield
    finally:
        source.told = None


def _chosen(
    x: Any, y: Any, config: PathConfig, seed: int, options: dict[str, Any], progress: Callable[[Stage], None]
) -> tuple[LogisticPath, int, LogisticFit]:
    """The path, the index of the penalty that its rule chooses, and the fit with that penalty."""
    progress(Stage(f"{config.num_lambdas} penalties, {config.folds} folds"))
    wanted = config.model_dump(exclude={"rule"})
    path = fit_path(x, y, seed=seed, **wanted, **options)
    chosen = int(path.best if config.rule == "min" else path.best_1se)
    factor, ratio = float(path.lambdas[chosen]), config.l1_ratio
    # It starts where it ends. Errors would not hold after a choice by the same data.
    penalty: dict[str, Any] = {"l2": factor * (1 - ratio), "l1": factor * ratio}
    return path, chosen, fit_logistic(x, y, init=path.at(chosen), inference=False, **penalty, **options)


def _class_weight(config: RegressionConfig, data: Prepared) -> Any:
    """The factors by the number of the class."""
    given = config.model.class_weight
    if not isinstance(given, dict):
        return given
    for name in given:
        if name not in data.classes:
            hint = did_you_mean(name, data.classes) or f"; there are {', '.join(map(repr, data.classes))}"
            raise UserError(f"model.class_weight: {name!r} is not a class{hint}")
    return {data.classes.index(name): factor for name, factor in given.items()}


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the library finds wrong with the data in the block, as UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
