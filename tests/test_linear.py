"""Linear cross-entropy against the dense formula in float64: shapes, options, outputs, labels, edges, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax.losses.linear import Plan, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("compiled_fast")

EVERY = ("loss", "logsumexp", "log_prob", "entropy", "argmax", "correct", "top_3")
DENSE = linear_cross_entropy.record.oracle


def draw(n, d, v, seed=0, sd=1.0, dtype=np.float64):
    """x, w and labels; the logits have the standard deviation ``sd``."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((d, v)) * sd / np.sqrt(d)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(rng.integers(0, v, n), jnp.int32)


def in_float64(function):
    """What it gives on float64 arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function())


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def slopes(function, *arrays):
    """The function's outputs and their gradients by the arrays, with random cotangents."""

    def total(*arrays):
        outputs = function(*arrays)
        rng = np.random.default_rng(7)
        parts = [
            jnp.sum(leaf * rng.standard_normal(leaf.shape))
            for leaf in jax.tree.leaves(outputs)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        return sum(parts), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(total, tuple(range(len(arrays))), has_aux=True))(*arrays)
    return outputs, gradients


def close(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.max(np.abs(b), initial=1e-300, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# -- shapes ------------------------------------------------------------------------------------------------------------

SHAPES = [(6, 7, 9), (7, 5, 11), (1, 1, 1), (1, 3, 2), (289, 13, 127), (7, 3, 50257), (1024, 520, 2049)]


@pytest.mark.parametrize("plan", [Plan("recompute", 128), "dense", None], ids=["blocks", "dense", "chosen"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, plan):
    n, d, v = shape
    plan = Plan("recompute", min(128, v)) if isinstance(plan, Plan) else plan
    if isinstance(plan, Plan) and v > 10_000:
        plan = Plan("recompute", 4096)
    x, w, labels = draw(n, d, v, dtype=np.float32)
    got = slopes(lambda x, w: linear_cross_entropy(x, w, labels, implementation=plan), x, w)
    expected = in_float64(lambda: slopes(lambda x, w: DENSE(x, w, labels), *wide((x, w))))
    # Sums over D, over V, and over N in the gradient by w: each rounding is half an ULP, of either sign.
    close(got, expected, 2**-23 * (8 + np.sqrt(d) + np.sqrt(v) / 2 + np.sqrt(n)))


# -- the gradient in the forward pass ----------------------------------------------------------------------------------

#: bfloat16, and more tokens than a chunk but fewer than twice the depth: the dlogits of all of them are stored.
STORED = {
    "plain": {},
    "vd": {"w_layout": "vd"},
    "options": {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "class_weights": True},
    "bias": {"bias": True, "num_classes": 97},
}


@pytest.mark.parametrize(
    ("name", "sizes"), [("plain", (101, 16)), ("vd", (40, 11)), ("options", (40, 11)), ("bias", (101, 11))]
)
def test_stored_dlogits(name, sizes):
    """As exact as where nothing is stored: a rounding of what is compared is all that they may differ by."""
    options = dict(STORED[name])
    x, w, y = draw(32, 24, 101, sd=2.0, dtype=jnp.bfloat16)
    y = y % options.get("num_classes", 101)
    rng = np.random.default_rng(5)
    arrays = {"x": x, "w": w.T if "w_layout" in options else w}
    for vector in {"bias", "class_weights"} & options.keys():
        arrays[vector] = jnp.asarray(rng.uniform(0.5, 1.5, 101), jnp.bfloat16)
        del options[vector]

    def loss(arrays, **more):
        return linear_cross_entropy(labels=y, reduction="mean", **arrays, **options, **more)

    got = jax.jit(jax.value_and_grad(lambda a: loss(a, implementation=Plan("gradient_in_forward", *sizes))))(arrays)
    again = jax.jit(jax.value_and_grad(lambda a: loss(a, implementation=Plan("recompute", 101))))(arrays)

    def exactly():
        return jax.value_and_grad(loss)({n: jnp.asarray(np.asarray(a, np.float64)) for n, a in arrays.items()})

    exact = in_float64(exactly)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, again)
    for a, b, c in zip(*map(jax.tree.leaves, (wide(got), wide(again), exact)), strict=True):
        assert np.abs(a - c).max() <= np.abs(b - c).max() + 2.0**-9 * np.abs(c).max()
