"""The logistic loss on given data as an objective for solvers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from xentjax.core import policy
from xentjax.models import _rows, closed_form, one_pass, spectrum
from xentjax.models.logistic import LogisticParams, logistic_derivative
from xentjax.models.loss import check_arguments, logistic_loss
from xentjax.models.scaling import Scaling
from xentjax.models.sparse import SparseRows, as_features, is_sparse
from xentjax.models.spread import Spread
from xentjax.models.streamed import StreamedRows
from xentjax.models.strided import StridedRows, every

#: The penalty that a subsample has for each of its rows, beside the square of the farthest row: 1/10².
_PRIOR = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogisticObjective:
    r""":func:`logistic_loss` on data x, y, as a function of the parameters alone.

    Args:
      x: features ``[n, d]``, :class:`StreamedRows` (not with ``gradient="auto"``), or :class:`SparseRows` (not for
        ``value`` and ``lipschitz``).
      y: labels, as in :func:`logistic_loss`.
      l2: the penalty's factor.
      weights: example weights ``[n]``.
      offset: known parts of the logits, ``[n]`` or ``[n, K]``.
      l1: the factor of :math:`\lambda_1 \|w\|_1`, or one for each feature ``[d]``; None for no such penalty. It is
        declared by :meth:`l1_factors`, and no part of the values and derivatives here.
      scaling: a :class:`Scaling`: the parameters then are those of scaled features, and the penalties are still those
        of the weights of the features as given.
      fit_intercept: whether the bias moves; otherwise its gradient is 0.
      gradient: ``"hand"`` for the closed form, ``"auto"`` for JAX's derivative of the textbook formula.
      num_classes: the K of :meth:`init` where integer labels ``[n]`` do not tell; None for two classes.
      shared: whether x is finite and that of many problems at once, under ``vmap`` over the other fields: the products
        of its columns are then made once for all of them.
      total: the sum of the weights, where it is known already; :meth:`weighted` replaces both.
      spread: the :class:`Spread` of the rows over devices; :meth:`on` makes it.

    It is a pytree with the data x, y, l2, weights, offset, l1 and scaling, so that one can ``vmap`` over each of them.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.LogisticObjective(jnp.array([[1.0], [-1.0]]), jnp.array([1, 0]), l2=0.5)
      >>> value, gradient = objective.value_and_gradient(objective.init())
      >>> gradient
      LogisticParams(weights=Array([-0.5], dtype=float32), bias=Array(0., dtype=float32))
    """

    x: Any
    y: Any
    l2: Any = 0.0
    weights: Any = None
    offset: Any = None
    l1: Any = None
    scaling: Scaling | None = None
    total: Any = None
    fit_intercept: bool = dataclasses.field(default=True, metadata={"static": True})
    gradient: Literal["hand", "auto"] = dataclasses.field(default="hand", metadata={"static": True})
    num_classes: int | None = dataclasses.field(default=None, metadata={"static": True})
    shared: bool = dataclasses.field(default=False, metadata={"static": True})
    spread: Spread | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.gradient not in ("hand", "auto"):
            raise ValueError(f"LogisticObjective: gradient must be 'hand' or 'auto', got {self.gradient!r}")
        if self.gradient == "auto" and isinstance(self.x, StreamedRows):
            raise ValueError("LogisticObjective: gradient='auto' differentiates an array: rows of a file need 'hand'")

    def init(self, function: str = "LogisticObjective") -> LogisticParams:
        """Parameters 0 of the right shapes, in float32 for 16-bit data. Errors name the ``function``.

        K classes if ``num_classes`` says so, y is ``[n, K]``, or y holds integers above 1 that are not traced.

        Raises:
          ValueError: x is not ``[n, d]``, y has not a label for each row, or a label that is not traced is out of
            range in a row that is not of weight 0. (The constructor raises nothing of the kind: under ``vmap`` the
            fields have one axis more, and JAX makes objectives of things that are no arrays.)
        """
        return jax.tree.map(jnp.asarray, self.shapes(function))

    def shapes(self, function: str = "LogisticObjective") -> LogisticParams:
        """:meth:`init` as arrays of NumPy, which take a tenth of the time to make."""
        # Only asked for shapes and dtypes: what is on the host stays there.
        x, y = as_features(function, self.x, _as_it_is), policy.as_array(function, "y", self.y, _as_it_is)
        dtype, d, shape = policy.compute_dtype(policy.result_dtype((x,))), x.shape[-1:], self._classes(y)
        params = LogisticParams(np.zeros((*(d or (0,)), *shape), dtype), np.zeros(shape, dtype))
        check_arguments(function, params, x, y, np.zeros(()), None)
        if all(map(_is_here, (y, self.weights))):
            self._require_labels(function, np.asarray(y), *shape)
        return params

    def _classes(self, y: jax.Array) -> tuple[int, ...]:
        if self.num_classes is not None:
            return (self.num_classes,)
        if y.ndim == 2:
            return (y.shape[1],)
        if isinstance(y, jax.core.Tracer) or not jnp.issubdtype(y.dtype, jnp.integer):
            return ()
        if _is_here(y):
            highest = int(np.max(np.asarray(y), where=self._counted(y), initial=0))
        else:  # in other processes, too
            highest = int(jnp.max(y if self.weights is None else jnp.where(self.weights != 0, y, 0)))
        return (highest + 1,) if highest > 1 else ()

    def _counted(self, y: Any) -> Any:
        """Which rows have a weight, as far as that is known."""
        if isinstance(self.weights, jax.core.Tracer) or np.shape(self.weights) != y.shape[:1]:
            return np.ones(y.shape[:1], bool)
        return np.asarray(self.weights) != 0

    def _require_labels(self, function: str, y: Any, num_classes: int | None = None) -> None:
        if y.ndim == 2:
            good, needed = np.all(y >= 0, axis=1), "masses of 0 or more"
        elif num_classes is not None:
            good, needed = (y >= 0) & (y < num_classes), f"a class index from 0 to {num_classes - 1}"
        else:
            good, needed = (y >= 0) & (y <= 1), "0, 1 or a probability between them"
        bad = np.flatnonzero(~good & self._counted(y))
        if bad.size:
            raise ValueError(f"{function}: y[{bad[0]}] is {y[bad[0]]}, but needs to be {needed}")

    def value(self, params: LogisticParams) -> jax.Array:
        """The loss; JAX differentiates it as ``gradient`` says."""
        if isinstance(self.x, StreamedRows):
            return closed_form.value(self._arguments(self._held(params)))
        loss = logistic_loss if self.gradient == "hand" else logistic_loss.record.oracle
        x = self._array() if self.scaling is None else self.scaling.apply(policy.up(self._array()))
        return loss(self._held(params), x, self.y, l2=self._l2(), weights=self.weights, offset=self.offset)

    def value_and_gradient(self, params: LogisticParams) -> tuple[jax.Array, LogisticParams]:
        if self.gradient == "auto":
            return jax.value_and_grad(self.value)(params)
        value, gradient = closed_form.value_and_gradient(self._arguments(params))
        self._tell(value)
        return value, self._held(gradient)

    def value_gradient_hessian(
        self, params: LogisticParams, dtype: Any = None, exact: Any = None
    ) -> tuple[Any, LogisticParams, Any]:
        """Value, gradient, and the Hessian as a matrix in the order of the raveled parameters.

        In the directions in which the loss does not change by its form, a number added to the same parameter of all
        classes where that is not penalized, and a bias that does not move, the matrix is that of a unit parabola: its
        factorization exists, and steps do not go there.

        Args:
          params: where they are taken.
          dtype: that of the Hessian's products, by default the parameters'.
          exact: a boolean that may be traced: if it is true, the products are in the parameters' dtype after all.
        """
        if self.gradient == "auto":
            value, gradient = self.value_and_gradient(params)
            flat, unflatten = ravel_pytree(params)
            hessian = jax.hessian(lambda p: self.value(unflatten(p)))(flat)
        else:
            value, gradient, hessian = closed_form.value_gradient_hessian(self._arguments(params), dtype, exact)
            self._tell(value)
        return value, self._held(gradient), self._anchored(params, hessian)

    def _tell(self, value: Any) -> None:
        """What a pass over a file has found goes to who shows its progress."""
        if isinstance(self.x, StreamedRows):
            self.x.tell(value)

    def hvp(self, params: LogisticParams, direction: LogisticParams) -> LogisticParams:
        """:func:`logistic_hvp`, or forward over reverse differentiation of the textbook formula."""
        if self.gradient == "auto":
            return jax.jvp(jax.grad(self.value), (params,), (direction,))[1]
        return self._held(closed_form.hvp(self._arguments(params), self._held(direction)))

    def l1_factors(self, params: LogisticParams) -> LogisticParams | None:
        """The factors of the L1 penalty on each parameter, 0 for the bias; None without one.

        Raises:
          ValueError: l1 is neither a number nor one for each feature.
        """
        if self.l1 is None:
            return None
        l1, d = policy.as_array("LogisticObjective", "l1", self.l1), params.weights.shape[:1]
        if l1.shape not in ((), d):
            raise ValueError(f"LogisticObjective: l1 has shape {l1.shape}, but needs () or {d}, one for each feature")
        l1 = l1.astype(params.weights.dtype) * (1 if self.scaling is None else jnp.abs(self.scaling.inverse))
        of_features = jnp.broadcast_to(l1, d).reshape(d + (1,) * (params.weights.ndim - 1))
        return LogisticParams(jnp.broadcast_to(of_features, params.weights.shape), jnp.zeros_like(params.bias))

    def unpenalized(self) -> Any:
        """Which features have no penalty, ``[d]``."""
        held = jnp.asarray(self.l2) != 0
        held = held if self.l1 is None else held | (jnp.asarray(self.l1) != 0)
        return jnp.broadcast_to(~held, self.x.shape[1:])

    def linearized(self, params: LogisticParams) -> Callable[[LogisticParams], LogisticParams]:
        """direction -> :meth:`hvp` at params, in half the time: a number for each logit is kept for all directions."""
        if self.gradient == "auto":
            return jax.linearize(jax.grad(self.value), params)[1]
        product = closed_form.linearized(self._arguments(params))
        return lambda direction: self._held(product(self._held(direction)))

    def hessian_diagonal(self, params: LogisticParams) -> jax.Array:
        """The diagonal of the Hessian, in the order of the raveled parameters."""
        return closed_form.hessian_diagonal(self._arguments(params))

    def hessian_blocks(self, params: LogisticParams, dtype: Any = None) -> jax.Array:
        """The blocks ``[K, d + 1, d + 1]`` of the Hessian between parameters of the same class (two classes: K = 1).

        Block c holds every K-th of the raveled parameters, from number c on. The products are in ``dtype``, by default
        that of the parameters.
        """
        blocks = closed_form.hessian_blocks(self._arguments(params), dtype)
        # Solved with such a block, a bias that does not move would follow the weights.
        return blocks if self.fit_intercept else one_pass.without_bias(blocks, params.weights.shape[0])

    def subsample(self, stride: int) -> LogisticObjective:
        """The objective on every ``stride``-th row.

        A further penalty, that of a normal prior by which the logit of the row that is farthest from the mean is known
        to ±10, gives a minimum to rows so few that a feature separates them.

        Raises:
          ValueError: stride is below 1.
          TypeError: the features are sparse.
        """
        if stride < 1:
            raise ValueError(f"LogisticObjective.subsample: stride must be at least 1, got {stride}")
        if is_sparse(self.x):
            raise TypeError("LogisticObjective.subsample: x is sparse, but needs to be dense")
        parts = 1 if self.spread is None else self.spread.parts
        cut: Any = lambda rows: None if rows is None else every(rows, stride, parts)
        if isinstance(self.x, StreamedRows):  # they are read once, and stay in memory
            x: Any = self.x.take(jnp.arange(0, self.x.shape[0], stride, dtype=jnp.int32))
        else:
            x = StridedRows.of(self.x, stride, parts)
        few = dataclasses.replace(self, x=x, y=cut(self.y), offset=cut(self.offset)).weighted(cut(self.weights))
        size = one_pass.largest_magnitudes(few.rows._replace(offset=None))
        if self.scaling is not None:
            size = jnp.where(self.scaling.inverse == 0, 0, size / _rows.one_for_zero(self.scaling.inverse))
        return dataclasses.replace(few, l2=self.l2 + _PRIOR * size**2 / max(few.x.shape[0], 1))

    def on(self, mesh: Mesh | Spread) -> LogisticObjective:
        """The objective with its rows split over the axis ``data`` of a mesh, and all else on each of its devices.

        Rows of weight 0 fill the last part up. All sums over the rows are then made by each device over its own rows,
        and added up by one all-reduce; features stay where they are. In a run of several processes each has its own
        rows, which may be of unequal number.

        Raises:
          TypeError: it is no mesh, or features are streamed.
          ValueError: no axis of it is named ``data``.
        """
        if isinstance(self.x, StreamedRows):
            raise TypeError("LogisticObjective.on: rows of a file are read by one device: they cannot go with a mesh")
        spread = mesh if isinstance(mesh, Spread) else Spread.over("LogisticObjective.on", mesh)
        n, parts = self.x.shape[0], spread.parts
        each = spread.equal_parts(n)
        weights = self.weights
        if weights is None and each * parts != spread.count(n):
            weights = np.ones(n, policy.compute_dtype(policy.result_dtype((self.x,))))
        if isinstance(self.x, SparseRows):
            of_parts = self.x.in_parts(spread.own_parts, each, spread.largest_of_all)
            x = jax.tree.map(lambda leaf: spread.placed(leaf, len(leaf) // spread.own_parts), of_parts)
            x = dataclasses.replace(x, parts=parts)
        else:
            x = spread.placed(self.x, each)
        y, weights, offset = (None if v is None else spread.placed(v, each) for v in (self.y, weights, self.offset))
        l2, l1, scaling = spread.everywhere((self.l2, self.l1, self.scaling))
        placed = dataclasses.replace(self, x=x, y=y, l2=l2, offset=offset, l1=l1, scaling=scaling, spread=spread)
        return placed.weighted(weights)

    def weighted(self, weights: Any) -> LogisticObjective:
        """The objective with other weights of the examples, whose sum it keeps."""
        return dataclasses.replace(self, weights=weights, total=None if weights is None else _rows.total(weights))

    @property
    def rows(self) -> one_pass.Data:
        """The rows, for sums over them."""
        of_rows = self.x, self.y, self.weights, self.offset
        return one_pass.Data(*of_rows, self.scaling, self.shared, self.total, self.spread)

    def _array(self) -> Any:
        """The features as one array."""
        return self.x.dense() if isinstance(self.x, StridedRows) else jnp.asarray(self.x)

    def _l2(self) -> Any:
        return self.l2 if self.scaling is None else self.scaling.penalty(self.l2)

    def _arguments(self, params: LogisticParams) -> closed_form.Arguments:
        a = closed_form.checked(
            "LogisticObjective", self._held(params), self.x, self.y, self._l2(), self.weights, self.offset, self.scaling
        )[0]
        return a._replace(data=a.data._replace(shared=self.shared, total=self.total, spread=self.spread))

    def _held(self, params: LogisticParams) -> LogisticParams:
        """Parameters or a gradient, the bias 0 where it does not move."""
        return params if self.fit_intercept else params._replace(bias=jnp.zeros_like(params.bias))

    def _anchored(self, params: LogisticParams, hessian: Any) -> Any:
        d, k = params.weights.shape[0], params.bias.size
        if not self.fit_intercept:
            hessian = one_pass.without_bias(hessian, params.weights.size)
        if params.bias.ndim == 0:
            return hessian
        # J/K ⊗ diag(free): the mean over the classes of each parameter that no penalty holds.
        free = jnp.broadcast_to(self._l2() == 0, (d,))
        l1 = self.l1_factors(params)
        free = free if l1 is None else free & (l1.weights[:, 0] == 0)
        free = jnp.append(free, self.fit_intercept).astype(hessian.dtype)
        curvature = jnp.mean(jnp.diagonal(hessian).reshape(d + 1, k), axis=1)
        between = jnp.full((k, k), 1 / k, hessian.dtype)
        return hessian + jnp.kron(jnp.diag(free * jnp.where(curvature == 0, 1, curvature)), between)

    def lipschitz(self) -> jax.Array:
        r"""An upper bound of the gradient's Lipschitz constant, whatever the parameters.

        The Hessian is at most :math:`c\,A + \lambda I` with :math:`A = \tilde X^T \operatorname{diag}(p)\,\tilde X`,
        :math:`\tilde X = [X, 1]`, and c the largest eigenvalue of the logits' curvature: 1/4 for
        :math:`\hat y(1-\hat y)`, 1/2 for :math:`\operatorname{diag}(P) - PP^T`. The largest eigenvalue of A is bounded
        by :func:`xentjax.models.spectrum.largest_eigenvalue_bound`.
        """
        params = self.init()
        factor = 0.25 if params.bias.ndim == 0 else 0.5
        # The margin covers the rounding of the products.
        return factor * 1.001 * self._spread(params) + jnp.max(jnp.asarray(self._l2()).astype(params.bias.dtype))

    def _spread(self, params: LogisticParams) -> Any:
        """A bound of the largest eigenvalue of A."""
        if isinstance(self.x, StreamedRows):
            spread = lambda block: one_pass.spread(block, block.share)
            return spectrum.bound_of_products(one_pass.over_blocks(spread, *self._arguments(params)[:2]))
        x = policy.up(self._array()).astype(params.bias.dtype)
        x = x if self.scaling is None else self.scaling.apply(x)
        weights = None if self.weights is None else jnp.asarray(self.weights).astype(x.dtype)
        share = _rows.shares(weights)
        x = x if weights is None else _rows.only(weights != 0, x)
        x = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
        x = x / math.sqrt(max(x.shape[0], 1)) if share is None else x * jnp.sqrt(share)[:, None]
        return spectrum.largest_eigenvalue_bound(x)

    def gradient_error(self, params: LogisticParams) -> jax.Array:
        r"""An estimate of the rounding error of the gradient's largest component.

        With unit roundoff u and independent roundings: :math:`u\,|x_{ik} w_k|` in the logits, which the slope of the
        prediction hands on; u in each term :math:`p_i r_i x_{ij}` of the sum over the rows, and in its partial sums
        (64 of them, each over n/64 rows). Twice the sum of those: a tolerance below it cannot be tested.
        """
        a = self._arguments(params)
        weights, n = a.params.weights, a.data.x.shape[0]
        largest = jnp.abs(weights) if weights.ndim == 1 else jnp.max(jnp.abs(weights), axis=1)
        coefficients = jnp.append(largest**2, jnp.max(a.params.bias**2))

        def of_block(block: one_pass.Block) -> Any:
            z, squares = block.z, block.x * block.x
            _, residual, _ = _rows.slopes(z, block.y)
            # The column of ones stands for the bias: its share of the logits is that of the largest class.
            logits_squared = _product_with(squares, coefficients) + _over_classes(z**2)
            slope = logistic_derivative(z) if z.ndim == 1 else 0.5
            terms = slope**2 * logits_squared + _over_classes(residual**2) * (1 + n / 64)
            terms = block.share**2 * terms
            return _product_with(terms, squares), one_pass.back(block, residual)[:-1]

        columns, gradient = one_pass.over_blocks(of_block, a.params, a.data)
        error = jnp.sqrt(jnp.max(columns))
        error = error + jnp.max(jnp.abs(gradient), initial=0) * math.sqrt(1 + n / 64)
        return jnp.finfo(weights.dtype).eps * (error + jnp.max(a.l2 * largest, initial=0))


def _is_here(values: Any) -> bool:
    """Whether numbers can be looked at: they are not traced, and this process has all of them."""
    return not isinstance(values, jax.core.Tracer) and getattr(values, "is_fully_addressable", True)


def _as_it_is(values: Any) -> Any:
    return values if isinstance(values, np.ndarray) else jnp.asarray(values)


def _product_with(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=_rows.PRECISION)


def _over_classes(rows: Any) -> Any:
    return rows if rows.ndim == 1 else jnp.max(rows, axis=1)
