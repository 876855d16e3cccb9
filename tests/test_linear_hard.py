"""Linear cross-entropy where it is hard: real vocabularies, pairs of options, derivatives of every kind."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_truth import truth
from test_linear import BLOCKS, CHUNKS, IDS, check_scales, draw, named, with_gradients

from xentjax.losses.linear import Plan, Teacher, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("compiled_fast")

DENSE = linear_cross_entropy.record.oracle

# -- shapes ------------------------------------------------------------------------------------------------------------

SHAPES = [
    ((7, 9, 50257), Plan("recompute", 50257)),
    ((3, 5, 128256), Plan("recompute", 8192)),
    ((3, 5, 151936), Plan("recompute", 4096)),
    ((1024, 520, 2049), Plan("recompute", 1000)),
]


@pytest.mark.parametrize(("shape", "plan"), SHAPES, ids=named)
def test_vocabularies(shape, plan):
    check_scales(shape, plan)


@pytest.mark.parametrize(
    ("shape", "plan"),
    [((5136, 1288, 2664), Plan("recompute", 1024)), ((1024, 32, 65537), Plan("gradient_in_forward", 8192, 300))],
    ids=str,
)
def test_large_problems(shape, plan, optimized):
    """All of the computation; examples of weight 0 need no truth."""
    x, w, labels = draw(*shape)
    n, _, v = shape
    rows = np.r_[0:40, n // 2 : n // 2 + 20, n - 40 : n]
    weights = np.zeros(n, np.float32)
    weights[rows] = 1
    program = with_gradients(implementation=plan, reduction="sum")
    found, gradients = program(x, w, np.zeros(v, np.float32), labels, {"loss": np.float32(1)}, {"weights": weights})
    true = truth(x[rows], w, labels[rows], {"loss": np.ones(len(rows))})
    assert not np.any(np.delete(gradients["x"], rows, axis=0))
    true.check({}, {**gradients, "x": gradients["x"][rows]})
    np.testing.assert_allclose(found["loss"], np.sum(true.values["loss"]), rtol=2.0**-20)


def test_more_logits_than_32_bits_count(optimized):
    """N·V > 2³¹: rows at the ends, of one column of w that is all there is."""
    n, v = 65_600, 32_768
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 1)).astype(np.float32)
    w = rng.standard_normal((1, v)).astype(np.float32)
    labels = rng.integers(0, v, n).astype(np.int32)
    run = jax.jit(lambda: linear_cross_entropy(x, w, labels, implementation=Plan("recompute", 512)))
    loss = run()
    rows = np.r_[0:3, 65_534:65_538, n - 3 : n]
    truth(x[rows], w, labels[rows], {}).check({"loss": loss[rows]}, {})


# -- options -----------------------------------------------------------------------------------------------------------

N, D, V = 6, 5, 11
CLASSES = np.float32([1, 0, 2, 0.5, 0, 3, 1, 1, 0.25, 2, 1])
OPTIONS = {
    "bias": np.linspace(-1, 1, V).astype(np.float32),
    "weights": np.float32([1, 0, 2, 0.5, 3, 1]),
    "ignore_index": 3,
    "label_smoothing": 0.2,
    "class_weights": CLASSES,
    "z_loss": 0.05,
    "softcap": 1.3,
    "temperature": 1.7,
    "mean": True,
    "soft labels": True,
    "layout": True,
    "padding": True,
}
PLANS = (BLOCKS, CHUNKS, "dense")


def _sets():
    """Each two options together, each alone, and neither of them; with all others, too."""
    places = itertools.combinations(range(6), 4)  # any two meet, and neither holds the other
    of_option = dict(zip(OPTIONS, places, strict=False))
    sets = [{option for option, own in of_option.items() if i in own} for i in range(6)]
    # These two do not go together.
    return [{*some} - {("ignore_index", "soft labels")[i % 2]} for i, some in enumerate([*sets, OPTIONS, OPTIONS])]


@pytest.mark.parametrize("plan", PLANS, **IDS)
@pytest.mark.parametrize("options", _sets(), ids=range(8))
def test_options_together(options, plan):
    _check_options(options, plan)


def _check_options(names, plan):
    x, w, labels = draw(N, D, V, sd=2.0)
    given = {n: OPTIONS[n] for n in names & {*list(OPTIONS)[:8]}}
    bias = given.pop("bias", np.zeros(V, np.float32))
    shares = np.array(given.get("weights", np.ones(N, np.float32)), np.float64)
    if "ignore_index" in given:
        labels[[0, 4]] = 3
        shares = np.where(labels == 3, 0, shares)
    if "soft labels" in names:
        rng = np.random.default_rng(3)
        labels = (rng.integers(0, V, (N, 3)).astype(np.int32), rng.dirichlet(np.ones(3), N).astype(np.float32))
    static = {"implementation": plan, "reduction": "mean" if "mean" in names else "sum"}
    own = {n: v for n, v in given.items() if n not in ("weights", "ignore_index")}
    true = truth(x, w, labels, {"loss": np.ones(N)}, bias=bias, weights=shares, **own)
    flip = np.transpose if "layout" in names else np.asarray
    if "padding" in names:
        static["num_classes"] = V
        w = np.concatenate([w, np.full((D, 2), np.nan, np.float32)], axis=1)
        bias = np.concatenate([bias, np.float32([np.nan, np.inf])])
        if "class_weights" in given:
            given["class_weights"] = np.concatenate([CLASSES, np.float32([np.nan, 5])])
    static["w_layout"] = "vd" if "layout" in names else "dv"
    arrays = {n: given.pop(n) for n in ("weights", "class_weights") if n in given}
    program = with_gradients(**static, **given)
    found, gradients = program(x, flip(w), bias, labels, {"loss": np.float32(1)}, arrays)
    total = np.sum(shares) if "mean" in names else 1.0
    gradients = {n: np.asarray(g, np.float64) * total for n, g in gradients.items()}
    gradients["w"], gradients["bias"] = flip(gradients["w"])[:, :V], gradients["bias"][:V]
    true.check({}, gradients)
    near, allowed = np.sum(true.values["loss"]), np.sum(true.ulp_of_values["loss"]) + 4 * np.sum(true.values["loss"])
    assert abs(float(found["loss"]) * total - near) <= 2.0**-23 * allowed, (names, plan)


@pytest.mark.parametrize("is_teacher", [False, True], ids=["indices", "teacher"])
def test_every_argument_is_differentiated_twice(is_teacher):
    """Gradients and Hessian-vector products by all that is a float, of every option together, in chunks: the check has
    those in blocks."""
    x, w, y = draw(N, D, V)
    own, other, _ = draw(N, 3, V, seed=1)
    arrays = {"x": x, "w": w, "bias": OPTIONS["bias"], "weights": OPTIONS["weights"], "class_weights": CLASSES + 0.5}
    arrays |= {n: np.float32(OPTIONS[n]) for n in ("label_smoothing", "z_loss", "softcap", "temperature")}
    arrays |= {"teacher": (own, other, OPTIONS["bias"], np.float32(2))} if is_teacher else {}
    rng = np.random.default_rng(5)
    along = jax.tree.map(lambda a: np.asarray(rng.standard_normal(a.shape), np.float32), arrays)

    def products(function, arrays, along, **static):
        def total(arrays):
            rest = {n: a for n, a in arrays.items() if n != "teacher"}
            labels = Teacher(*arrays["teacher"]) if is_teacher else y
            return function(labels=labels, reduction="mean", **rest, **static)

        slope = lambda arrays: jax.jvp(total, (arrays,), (along,))[1]
        return jax.jit(
            lambda arrays: (
                jax.grad(total)(arrays),
                slope(arrays),
                jax.jvp(jax.grad(total), (arrays,), (along,))[1],
                jax.grad(slope)(arrays),
            )
        )(arrays)

    gradient, slope, forward, reverse = products(linear_cross_entropy, arrays, along, implementation=CHUNKS)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (arrays, along))
        true = jax.tree.map(np.asarray, products(DENSE, *wide))
    # Sums of some tens of terms up to the largest number of each argument's derivative; those by weights are
    # differences of losses, over the sum of the weights.
    for got, expected in zip((gradient, forward, reverse), (true[0], true[2], true[2]), strict=True):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-18 * max(np.max(np.abs(b)), 0.25))
    np.testing.assert_allclose(slope, true[1], rtol=2.0**-18)


@pytest.mark.parametrize("plan", [BLOCKS, CHUNKS, "dense"], **IDS)
@pytest.mark.parametrize("is_teacher", [False, True], ids=["indices", "teacher"])
def test_promotion_of_ranks_may_be_forbidden(plan, is_teacher):
    """In the derivatives, too: none of them broadcasts by itself."""
    x, w, labels = draw(N, D, V)
    labels = Teacher(*draw(N, 3, V, seed=1)[:2], OPTIONS["bias"]) if is_teacher else labels
    every = {"outputs": ("loss", "entropy", "top_2", "correct")} if plan != CHUNKS else {"reduction": "mean"}

    names = ("bias", "weights", "label_smoothing", "class_weights", "z_loss", "softcap", "temperature")
    every |= {n: OPTIONS[n] for n in names}

    def total(x, w):
        found = linear_cross_entropy(x, w, labels, implementation=plan, **every)
        return sum(jnp.sum(a) for a in jax.tree.leaves(found) if jnp.issubdtype(a.dtype, jnp.floating))

    with jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(lambda x, w: jax.jvp(jax.grad(total, (0, 1)), (x, w), (x, w)))(x, w)


# -- transformations ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """x, w, labels and what they give densely in float64: gradients, and the Hessian by x and w as one matrix."""
    x, w, labels = draw(3, 2, 5)

    def total(flat):
        x, w = flat[:6].reshape(3, 2), flat[6:].reshape(2, 5)
        return jnp.sum(DENSE(x, w, labels) ** 2)

    with jax.enable_x64(True):
        flat = jnp.concatenate([jnp.asarray(a, jnp.float64).ravel() for a in (x, w)])
        gradient, hessian = jax.jit(lambda flat: (jax.grad(total)(flat), jax.hessian(total)(flat)))(flat)
        return x, w, labels, np.asarray(gradient), np.asarray(hessian)


@pytest.mark.parametrize("plan", [Plan("recompute", 2), Plan("recompute", 5), "dense"], **IDS)
def test_derivatives_of_every_mode(small, plan):
    x, w, labels, gradient, hessian = small

    def losses(flat):
        return linear_cross_entropy(flat[:6].reshape(3, 2), flat[6:].reshape(2, 5), labels, implementation=plan) ** 2

    total = lambda flat: jnp.sum(losses(flat))
    flat, along = jnp.concatenate([x.ravel(), w.ravel()]), np.cos(np.arange(16)).astype(np.float32)
    slope = lambda flat: jax.jvp(total, (flat,), (along,))[1]
    first = {
        "grad": jax.grad(total),
        "jacfwd": lambda f: jnp.sum(jax.jacfwd(losses)(f), axis=0),
        "jacrev": lambda f: jnp.sum(jax.jacrev(losses)(f), axis=0),
        "checkpoint": jax.grad(jax.checkpoint(total)),
    }
    along_it = {"jvp": slope, "linearize": lambda f: jax.linearize(total, f)[1](along)}
    second = {"hessian": jax.hessian(total), "reverse over reverse": jax.jacrev(jax.grad(total))}
    products = {
        "forward over reverse": lambda f: jax.jvp(jax.grad(total), (f,), (along,))[1],
        "reverse over forward": jax.grad(slope),
        "reverse over reverse": lambda f: jax.grad(lambda f: jnp.vdot(jax.grad(total)(f), along))(f),
    }
    every = lambda f: [{n: of(f) for n, of in group.items()} for group in (first, along_it, second, products)]
    found = jax.jit(every)(flat)
    truths = (gradient, gradient @ along, hessian, hessian @ along)
    for group, expected in zip(found, truths, strict=True):
        for name, got in group.items():
            scale = np.max(np.abs(hessian if np.ndim(expected) != 1 or "over" in name else gradient))
            np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-19 * scale * 4, err_msg=name)


@pytest.mark.parametrize("plan", [BLOCKS, CHUNKS], **IDS)
def test_maps_loops_and_programs(plan):
    """vmap over x, w and both, scan, and a program that is taken apart and put together: each the same numbers."""
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((3, N, D)).astype(np.float32)
    ws = rng.standard_normal((3, D, V)).astype(np.float32)
    labels = rng.integers(0, V, N).astype(np.int32)
    of = jax.value_and_grad(
        lambda x, w: linear_cross_entropy(x, w, labels, reduction="sum", implementation=plan), (0, 1)
    )
    one = jax.jit(of)
    for axes in ((0, None), (None, 0), (0, 0)):
        x, w = xs if axes[0] == 0 else xs[0], ws if axes[1] == 0 else ws[0]
        mapped = jax.jit(jax.vmap(of, axes))(x, w)
        for i in range(3):
            alone = one(xs[i] if axes[0] == 0 else x, ws[i] if axes[1] == 0 else w)
            for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=0, atol=2.0**-21 * np.max(np.abs(b)))
    scanned = jax.jit(lambda: jax.lax.scan(lambda c, xw: (c, of(*xw)), 0, (xs, ws))[1])()
    both = jax.jit(jax.vmap(of))(xs, ws)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(both), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-21 * np.max(np.abs(b)))
    exported = jax.export.export(one)(xs[0], ws[0])
    for a, b in zip(jax.tree.leaves(exported.call(xs[0], ws[0])), jax.tree.leaves(one(xs[0], ws[0])), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-21 * np.max(np.abs(b)))
