"""What callers may pass: options and arrays of NumPy's types, too; and errors that name what they may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj

P = jnp.array([0.25, 0.75])
Z = jnp.array([[1.0, 2.0, 3.0]])
Y = jnp.array([0])
PARAMS = xj.LogisticParams(jnp.ones(2), jnp.zeros(()))
ROW = jnp.ones((1, 2))


class Table:
    """What has numbers and words in its columns."""

    def __array__(self, dtype=None, copy=None):
        return np.array([[0.5, "a"]], dtype=object)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "axis, a list": (lambda: xj.entropy(P, axis=[0]), TypeError, r"entropy: axis must be .* got \[0\]"),
    "axis, a boolean": (lambda: xj.entropy(P, axis=True), TypeError, "entropy: axis must be .* got True"),
    "axis, a float": (lambda: xj.entropy(P, axis=1.0), TypeError, "entropy: axis must be .* got 1.0"),
    "axis, traced": (lambda: jax.jit(lambda a: xj.entropy(P, axis=a))(0), TypeError, "axis must be .* known before"),
    "axes of a loss": (lambda: xj.softmax_cross_entropy(Z, Y, axis=(0, 1)), TypeError, r"axis must be an integer,"),
    "keepdims": (lambda: xj.entropy(P, keepdims="yes"), TypeError, "keepdims must be True or False, got 'yes'"),
    "reduction": (lambda: xj.softmax_cross_entropy(Z, Y, reduction=None), ValueError, "reduction must be .* got None"),
    "ignore_index": (
        lambda: xj.softmax_cross_entropy(Z, Y, ignore_index=0.5), TypeError, "ignore_index must be an integer"),
    "None for an array": (lambda: xj.entropy(None), TypeError, "entropy: p must be a real array, got NoneType"),
    "a dict for an array": (lambda: xj.entropy({"p": P}), TypeError, "entropy: p must be a real array, got dict"),
    "no labels": (lambda: xj.softmax_cross_entropy(Z, None), TypeError, "labels must be a real array, got NoneType"),
    "a missing argument": (lambda: xj.softmax_cross_entropy(Z), TypeError, "softmax_cross_entropy: .*'labels'"),
    "ragged lists": (lambda: xj.entropy([[1, 2], [3]]), TypeError, "entropy: p must be a real array, got list"),
    "a table with words": (lambda: xj.entropy(Table()), TypeError, "entropy: p must be .* Table .dtype object; con"),
    "8 bits": (lambda: xj.entropy(P.astype(jnp.float8_e4m3fn)), TypeError, "p needs floats of 16 bits .* float8"),
    "a key": (lambda: xj.logistic(jax.random.key(0)), TypeError, "logistic: z must be numbers, got dtype key"),
    "base, a word": (lambda: xj.entropy(P, base="e"), TypeError, "entropy: base must be a real array, got str"),
    "base, infinite": (lambda: xj.entropy(P, base=float("inf")), ValueError, "base must be a positive .* got inf"),
    "base, several": (lambda: xj.entropy(P, base=jnp.ones(3)), ValueError, r"base has shape \(3,\), but needs \(\)"),
    "temperature": (lambda: xj.softmax_cross_entropy(Z, Y, temperature=None), TypeError, "temperature must be"),
    "z_loss": (lambda: xj.softmax_cross_entropy(Z, Y, z_loss="a"), TypeError, "z_loss must be a real array, got str"),
    "parameters": (lambda: xj.logistic_loss((ROW[0], 0.0), ROW, Y), TypeError, "params must be LogisticParams.* tuple"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_a_derivative_that_is_not_there_names_the_function_that_was_called() -> None:
    with pytest.raises(TypeError, match=r"^softmax_cross_entropy has no derivative with respect to 'z_loss'"):
        jax.grad(lambda coefficient: xj.softmax_cross_entropy(Z[0], 0, z_loss=coefficient))(0.1)


def test_integers_and_booleans_of_numpy_are_options_like_pythons() -> None:
    assert xj.entropy(P, axis=np.int64(0)) == xj.entropy(P, axis=0)
    assert xj.entropy(P[None], axis=(np.int8(0), 1)) == xj.entropy(P)
    assert xj.entropy(P, axis=jnp.array(0)) == xj.entropy(P)
    assert xj.entropy(P, keepdims=np.bool_(True)).shape == (1,)
    assert xj.entropy_of_labels(Y, np.int64(2)) == 0
    assert xj.softmax_cross_entropy(Z, Y, ignore_index=np.int64(0)) == 0


BEYOND: list[Any] = [
    np.array([2**32 + 1]),
    np.array([-(2**32) + 1]),
    np.array([2**63 + 1], np.uint64),
    [2**32 + 1],
    [2**70 + 1],
]


@pytest.mark.parametrize("labels", BEYOND, ids=str)
@pytest.mark.parametrize("x64", [False, True])
def test_labels_beyond_32_bits_stay_out_of_range(labels: Any, x64: bool) -> None:
    with jax.enable_x64(x64):
        for loss, logits in ((xj.softmax_cross_entropy, Z), (xj.sigmoid_cross_entropy, Z[0, :1])):
            value, pull = jax.vjp(lambda z, loss=loss: loss(z, labels), logits)
            assert np.isnan(value).all()
            assert np.isnan(pull(jnp.ones_like(value))[0]).all()
        assert np.isnan(xj.logistic_loss(PARAMS, ROW, labels))
        assert np.isnan(xj.entropy_of_labels(labels, 3))


def test_a_label_as_a_python_number_beyond_32_bits() -> None:
    assert np.isnan(xj.softmax_cross_entropy(Z[0], 2**32 + 1))


def test_integers_that_stand_for_floats_are_not_wrapped_either() -> None:
    counts = np.array([3 * 2**32, 2**32])
    np.testing.assert_allclose(xj.entropy_of_counts(counts), xj.entropy(jnp.array([0.75, 0.25])), rtol=1e-6)
    assert xj.entropy_of_counts(counts).dtype == jnp.float32
    assert xj.logistic(2**40) == 1
    doubled = xj.softmax_cross_entropy(Z, Y, weights=np.array([2**33]))
    np.testing.assert_allclose(doubled, xj.softmax_cross_entropy(Z, Y) * 2.0**33, rtol=1e-6)
