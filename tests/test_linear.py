"""Linear cross-entropy against its formula in float64: shapes, scales, labels, edges, dtypes, programs, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_truth import OUTPUTS, near, truth

import xentjax as xj
from xentjax.losses.linear import Plan, SoftLabels, Teacher, explain, linear_cross_entropy
from xentjax.losses.linear.outputs import OUTPUTS as EVERY

pytestmark = pytest.mark.usefixtures("compiled_fast")

DENSE = linear_cross_entropy.record.oracle
BLOCKS, CHUNKS = Plan("recompute", 4), Plan("gradient_in_forward", 4, 4)
#: The most probable classes that are asked for.
TOP = 3
IDS = {"ids": lambda plan: plan.strategy if isinstance(plan, Plan) else str(plan)}


def draw(n, d, v, seed=0, sd=1.0):
    """x and w in float32, whose products have the standard deviation ``sd``, and labels."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((d, v)) * sd / np.sqrt(d)
    return x.astype(np.float32), w.astype(np.float32), rng.integers(0, v, n).astype(np.int32)


def draw_cotangents(n, v):
    """For each output."""
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(OUTPUTS, (n,)) | {"top": (n, min(TOP, v))}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def named(parameter):
    """A shape, or a plan with its sizes."""
    return f"{parameter.strategy}-{parameter.block}" if isinstance(parameter, Plan) else str(parameter)


def with_gradients(outputs=("loss",), **static):
    """A program of (x, w, bias, labels, cotangents, options): outputs by name; gradients by x, w and bias.

    "top" is of TOP classes, or of all there are; they are among what is found as "classes"."""

    @jax.jit
    def program(x, w, bias, labels, cotangents, options):
        def total(x, w, bias):
            asked = tuple(f"top_{min(TOP, bias.size)}" if name == "top" else name for name in outputs)
            found = linear_cross_entropy(x, w, labels, bias=bias, outputs=asked, **options, **static)
            found = dict(zip(outputs, [found] if len(outputs) == 1 else found, strict=True))
            if "top" in found:
                found["top"], found["classes"] = found["top"]
            return sum(jnp.sum(found[n] * cotangents[n]) for n in outputs), found

        (_, found), (dx, dw, db) = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(x, w, bias)
        return found, {"x": dx, "w": dw, "bias": db}

    return program


def check(program, x, w, labels, cotangents, bias=None, **options):
    bias = np.zeros(w.shape[1], np.float32) if bias is None else bias
    values, gradients = program(x, w, bias, labels, cotangents, options)
    top = values.pop("classes", None)
    assert top is None or np.all(np.diff(np.sort(top, axis=1), axis=1))  # each once
    truth(x, w, labels, cotangents, bias=bias, top=top, **options).check(values, gradients)
    return values, gradients


def summed(plan, **options):
    """The gradients by x and w of the sum of the losses."""
    return jax.grad(
        lambda x, w, y: linear_cross_entropy(x, w, y, reduction="sum", implementation=plan, **options), (0, 1)
    )


# -- shapes and scales -------------------------------------------------------------------------------------------------

SHAPES = [
    ((6, 7, 9), Plan("recompute", 4)),
    ((7, 5, 11), Plan("recompute", 11)),
    ((1, 1, 1), "dense"),
    ((1, 3, 2), Plan("recompute", 1)),
    ((289, 13, 127), Plan("recompute", 64)),
    ((289, 13, 127), "dense"),
    ((7, 3, 50257), Plan("recompute", 4096)),
    ((100, 31, 2049), Plan("recompute", 1024)),
]


@pytest.mark.parametrize(("shape", "plan"), SHAPES, ids=named)
def test_shapes_and_scales(shape, plan):
    check_scales(shape, plan)


def check_scales(shape, plan):
    """Random cotangents on every float output, labels at the ends of blocks too: of logits that are all 0, small,
    large, and far from 0."""
    n, _, v = shape
    program = with_gradients(OUTPUTS, implementation=plan)
    cotangents = draw_cotangents(n, v)
    block = plan.block if isinstance(plan, Plan) else v
    ends = np.clip([0, v - 1, v - block, v - block - 1, block - 1, block, 2 * block], 0, v - 1)

    def drawn(sd=1.0):
        x, w, labels = draw(*shape, sd=sd)
        labels[: len(ends)] = ends[:n]
        return x, w, labels

    for sd in (0.0, 0.1, 1.0, 30.0):
        values, _ = check(program, *drawn(sd), cotangents)
        if sd == 0:
            # log V itself, as far as log1p is rounded: the sum is V - 1 to the last digit.
            np.testing.assert_allclose(values["loss"], np.log(np.float64(v)), rtol=2.0**-23, atol=0)
    for offset in (1e4, -1e4):
        check(program, *drawn(), cotangents, np.full(v, offset, np.float32))
    check(program, *drawn(), {**jax.tree.map(np.zeros_like, cotangents), "entropy": np.ones(n)})


def test_every_output_that_is_a_float_has_a_truth():
    every = jax.eval_shape(lambda: linear_cross_entropy(*draw(2, 2, 2), outputs=tuple(EVERY)))
    assert {n for n, a in every._asdict().items() if jnp.issubdtype(a.dtype, jnp.floating)} == {*OUTPUTS} - {"top"}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(7, 5, 11), (289, 13, 127)], ids=str)
def test_gradient_in_the_forward_pass(shape, reduction):
    """In chunks that do not divide the examples, and blocks that do not divide the classes."""
    n, _, v = shape
    program = with_gradients(implementation=Plan("gradient_in_forward", v // 2, n // 2 - 1), reduction=reduction)
    for sd in (0.0, 0.1, 1.0, 30.0):
        x, w, labels = draw(*shape, sd=sd)
        for bias in (np.zeros(v, np.float32), np.full(v, 1e4, np.float32)):
            ones = np.ones(n) / (n if reduction == "mean" else 1)
            values, gradients = program(x, w, bias, labels, {"loss": np.float32(1)}, {})
            expected = truth(x, w, labels, {"loss": ones}, bias=bias)
            expected.check({}, gradients)
            loss, allowed = (np.sum(a["loss"] * ones) for a in (expected.values, expected.ulp_of_values))
            assert abs(float(values["loss"]) - loss) <= 2.0**-23 * (allowed + np.sqrt(n) * loss)


def test_no_examples_and_batches_of_batches():
    x, w, labels = draw(12, 5, 9)
    flat = linear_cross_entropy(x, w, labels, implementation=BLOCKS, outputs=("loss", "top_3"))
    shaped = linear_cross_entropy(
        x.reshape(2, 3, 2, 5), w, labels.reshape(2, 3, 2), implementation=BLOCKS, outputs=("loss", "top_3")
    )
    assert shaped.loss.shape == (2, 3, 2)
    assert shaped.top_3.indices.shape == (2, 3, 2, 3)
    for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(shaped), strict=True):
        np.testing.assert_array_equal(a, np.reshape(b, a.shape))
    for plan in (BLOCKS, "dense"):
        value, gradients = jax.value_and_grad(
            lambda x, w, plan=plan: linear_cross_entropy(x, w, labels[:0], reduction="mean", implementation=plan),
            (0, 1),
        )(x[:0], w)
        assert value == 0
        assert gradients[0].shape == (0, 5)
        np.testing.assert_array_equal(gradients[1], np.zeros_like(w))
    none = linear_cross_entropy(x[:0], w, labels[:0], outputs=("loss", "argmax", "top_2"))
    assert none.loss.shape == none.argmax.shape == (0,)
    assert none.top_2.log_probs.shape == (0, 2)


@pytest.mark.parametrize("plan", [Plan("recompute", 8192), "dense"], **IDS)
def test_a_confident_prediction_keeps_its_digits(plan):
    """V = 50257, which no block divides: a loss of 1e-4 and of 1e-11, where zeros in padding would add log V."""
    n, d, v = 5, 6, 50257
    rng = np.random.default_rng(0)
    labels = np.array([0, v - 1, 49152, 49151, 777], np.int32)  # the ends, and those of a block
    # Products of powers of two: the logits are the same in float32 as in float64.
    x = np.eye(n, d, dtype=np.float32) * 0.5
    for margin in (20.0, 36.0):
        w = np.round(rng.standard_normal((d, v)) * 256).astype(np.float32) / 256
        w[np.arange(n), labels] = 2 * margin
        program = with_gradients(implementation=plan)
        values, gradients = program(x, w, np.zeros(v, np.float32), labels, {"loss": np.ones(n, np.float32)}, {})
        z = x.astype(np.float64) @ w
        others = np.exp(z - z[np.arange(n), labels][:, None])
        others[np.arange(n), labels] = 0
        rest = np.sum(others, axis=1)
        assert np.all(rest < 3e-4)
        np.testing.assert_allclose(values["loss"], np.log1p(rest), rtol=2.0**-23 * (4 + np.sqrt(v) / 2 + margin))
        g = others / (1 + rest)[:, None]
        g[np.arange(n), labels] = -rest / (1 + rest)
        # Each number of the gradient by w is one product here, and relative errors are its own.
        np.testing.assert_allclose(
            gradients["w"], x.T.astype(np.float64) @ g, rtol=2.0**-23 * (8 + np.sqrt(v) / 2 + margin), atol=1e-44
        )


def test_blocks_and_chunks_change_nothing_but_rounding_and_runs_nothing_at_all():
    x, w, labels = draw(23, 6, 37, sd=3.0)
    found = {}
    for plan in (
        *(Plan("recompute", b) for b in (5, 36, 37)),
        *(Plan("gradient_in_forward", 10, c) for c in (7, 23)),
    ):
        program = jax.jit(summed(plan))
        found[plan] = program(x, w, labels)
        for a, b in zip(found[plan], program(x, w, labels), strict=True):
            assert a.tobytes() == b.tobytes()
    expected = truth(x, w, labels, {"loss": np.ones(23)})
    for dx, dw in found.values():
        expected.check({}, {"x": dx, "w": dw})


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [BLOCKS, "dense", CHUNKS], **IDS)
def test_labels_that_are_no_classes_and_those_left_out(plan):
    """NaN for one, 0 for the others, and for the gradients by x of the rest what they are without them."""
    x, w, _ = draw(6, 7, 10)
    labels = np.array([0, 3, -1, 9, -100, 10], np.int32)
    both = jax.jit(
        lambda x, w: (
            linear_cross_entropy(x, w, labels, ignore_index=-100, implementation=None if plan is CHUNKS else plan),
            summed(plan, ignore_index=-100)(x, w, labels),
        )
    )
    loss, (dx, dw) = both(x, w)
    rest = np.array([0, 1, 3])
    expected = truth(x[rest], w, labels[rest], {"loss": np.ones(3)})
    expected.check({"loss": loss[rest]}, {"x": dx[rest]})
    assert np.all(np.isnan(loss[np.array([2, 5])]))
    assert np.all(np.isnan(dx[np.array([2, 5])]))
    assert loss[4] == 0
    assert np.all(dx[4] == 0)
    assert np.all(np.isnan(dw))


@pytest.mark.parametrize("plan", [BLOCKS, "dense", CHUNKS], **IDS)
def test_nothing_of_what_is_left_out_is_seen(plan):
    """Weights of 0 on rows of NaN, infinities and numbers whose logits overflow."""
    x, w, labels = draw(6, 7, 10, sd=4.0)
    weights = np.array([1.0, 0.0, 2.0, 0.0, 0.5, 0.0], np.float32)
    x[1], x[3], x[5, 2], labels[3] = np.nan, 3e38, -np.inf, 77
    kept = weights > 0
    expected = truth(x[kept], w, labels[kept], {"loss": np.ones(3)}, weights=weights[kept])
    dx, dw = jax.jit(summed(plan, weights=weights))(x, w, labels)
    expected.check({}, {"x": dx[kept], "w": dw})
    assert np.all(dx[~kept] == 0)
    value, gradients = jax.jit(
        jax.value_and_grad(
            lambda x, w: linear_cross_entropy(
                x, w, labels, weights=0 * weights, reduction="mean", implementation=plan, label_smoothing=0.1
            ),
            (0, 1),
        )
    )(x, w)
    assert value == 0
    assert not any(map(np.any, gradients))


@pytest.mark.parametrize("plan", [BLOCKS, "dense"], **IDS)
def test_predictions_of_examples_that_are_left_out(plan):
    """They are what they are; 0 for an example that holds what is no number, and so is its gradient."""
    x, w, labels = draw(6, 7, 10)
    names = ("logsumexp", "entropy", "argmax", "top_2")
    of = jax.jit(
        lambda x, labels: linear_cross_entropy(x, w, labels, ignore_index=-1, outputs=names, implementation=plan)
    )
    expected = of(x, labels)
    labels[[1, 3, 4]] = -1
    held = np.copy(x)
    held[1], held[3, 2] = np.nan, np.inf
    found = jax.tree.map(np.asarray, (of(held, labels), expected))
    for got, whole in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(got[[0, 2, 4, 5]], whole[[0, 2, 4, 5]])
        assert not np.any(got[[1, 3]])
    total = lambda x: jnp.sum(of(x, labels).entropy + of(x, labels).logsumexp)
    dx = np.asarray(jax.jit(jax.grad(total))(held))
    assert not np.any(dx[[1, 3]])
    assert np.all(np.isfinite(dx))
    held[0, 0] = np.nan
    assert np.all(np.isnan(of(held, labels).entropy[0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32, np.int64, np.uint64, bool])
def test_integer_labels_of_every_type(dtype):
    x, w, _ = draw(4, 3, 201)
    top = {np.uint8: 200, np.int8: 127, bool: 1}.get(dtype, 200)
    labels = np.array([0, 1, top, 1]).astype(dtype)
    got = linear_cross_entropy(x, w, labels, implementation=Plan("recompute", 128))
    expected = truth(x, w, labels.astype(np.int64), {})
    expected.check({"loss": got}, {})
    if dtype is np.int64:
        beyond = linear_cross_entropy(x, w, labels + 2**32)
        assert np.all(np.isnan(beyond))


def test_soft_labels_name_classes_twice_or_with_nothing():
    x, w, _ = draw(3, 5, 9)
    indices = np.array([[3, 3, 8], [0, 1, 2], [8, 4, 8]], np.int32)
    masses = np.array([[0.3, 0.3, 0.4], [0.0, 1.0, 0.5], [0.4, 0.5, 0.2]], np.float32)
    bias = np.zeros(9, np.float32)
    bias[0] = -np.inf  # of probability 0, and named with 0
    program = with_gradients(("loss", "log_prob"), implementation=BLOCKS)
    cotangents = {"loss": np.float32([1, 2, 3]), "log_prob": np.float32([0.5, -1, 0])}
    options = {"label_smoothing": np.float32(0), "class_weights": np.arange(9, dtype=np.float32)}
    values, gradients = program(x, w, bias, (indices, masses), cotangents, {})
    truth(x, w, (indices, masses), cotangents, bias=bias).check(values, gradients)
    values, gradients = program(x, w, 0 * masses[0, 0] + np.ones(9, np.float32), (indices, masses), cotangents, options)
    truth(x, w, (indices, masses), cotangents, bias=np.ones(9), **options).check(values, gradients)
    logits = np.zeros((3, 9), np.float32)
    logits[[0, 1, 2], [3, 1, 8]] = 5
    right = linear_cross_entropy(np.eye(3, dtype=np.float32), logits, SoftLabels(indices, masses), outputs="correct")
    assert np.all(right)  # 3 has 0.6 and 8 has 0.6, although another entry is the largest


@pytest.mark.parametrize("layout", ["dv", "vd"])
def test_a_teacher(layout):
    """Its predictions as labels, in both layouts; classes that neither has."""
    x, w, _ = draw(4, 5, 9)
    own, other, _ = draw(4, 3, 9, seed=1, sd=2.0)
    bias = np.zeros(9, np.float32)
    bias[2] = -np.inf
    weights = np.full(9, 2.0, np.float32)
    flip = (lambda a: a) if layout == "dv" else np.transpose

    def loss(x, w, own, other):
        labels = Teacher(own, other, bias)
        options = {"bias": bias, "class_weights": weights, "w_layout": layout, "reduction": "sum"}
        return linear_cross_entropy(x, w, labels, implementation=BLOCKS, temperature=1.5, **options)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(x, flip(w), own, flip(other))

    def expected(x, w, own, other):
        keep = np.arange(9) != 2
        u = ((x @ w) / 1.5)[:, keep]
        t = jax.nn.softmax((own @ other / 1.5)[:, keep])
        return -2 * jnp.sum(t * jax.nn.log_softmax(u))

    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, w, own, other)]
        true, slopes = jax.value_and_grad(expected, (0, 1, 2, 3))(*wide)
    np.testing.assert_allclose(value, true, rtol=2.0**-20)
    for got, slope, turn in zip(gradients, slopes, (np.asarray, flip, np.asarray, flip), strict=True):
        np.testing.assert_allclose(turn(got), slope, rtol=0, atol=2.0**-20 * np.max(np.abs(slope)))


@pytest.mark.parametrize("plan", [BLOCKS, "dense", CHUNKS], **IDS)
@pytest.mark.parametrize("layout", ["dv", "vd"])
def test_what_stands_in_padding_is_not_seen(layout, plan):
    x, w, labels = draw(6, 5, 9)
    padded = np.concatenate([w, np.full((5, 2), np.nan, np.float32), np.full((5, 1), np.inf, np.float32)], axis=1)
    beside = np.concatenate([np.zeros(9), np.full(3, np.nan)]).astype(np.float32)
    flip = (lambda a: a) if layout == "dv" else np.transpose
    options = {"label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1}
    expected = truth(x, w, labels, {"loss": np.ones(6)}, class_weights=np.ones(9), **options)
    of = summed(plan, bias=beside, class_weights=1 + beside, w_layout=layout, num_classes=9, **options)
    dx, dw = jax.jit(of)(x, flip(padded), labels)
    expected.check({}, {"x": dx, "w": flip(dw)[:, :9]})
    assert np.all(flip(dw)[:, 9:] == 0)
    beyond = linear_cross_entropy(x, flip(padded), np.full(6, 9), num_classes=9, w_layout=layout, implementation=BLOCKS)
    assert np.all(np.isnan(beyond))


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 9])
def test_infinite_logits(block):
    """A class of probability zero; all classes so; one that is certain; two that cannot be."""
    x, w, labels = draw(5, 4, 9)
    labels[:] = [0, 1, 8, 7, 3]
    outputs = ("loss", "logsumexp", "entropy", "top_3", "argmax")
    run = jax.jit(
        lambda b: linear_cross_entropy(x, w, labels, bias=b, outputs=outputs, implementation=Plan("recompute", block))
    )
    bias = np.zeros(9, np.float32)
    zero = bias.copy()
    zero[[2, 8]] = -np.inf
    found = run(zero)
    expected = truth(x, w, labels, {}, bias=zero)
    expected.check({"loss": found.loss, "logsumexp": found.logsumexp, "entropy": found.entropy}, {})
    assert found.loss[2] == np.inf
    none = run(np.full(9, -np.inf, np.float32))
    assert np.all(np.isnan(none.loss))
    certain = bias.copy()
    certain[7] = np.inf
    found = run(certain)
    np.testing.assert_array_equal(found.loss, np.where(labels == 7, 0, np.inf))
    assert np.all(found.entropy == 0)
    assert np.all(found.argmax == 7)
    certain[0] = np.inf
    assert np.all(np.isnan(run(certain).loss))
    # The most probable classes, each once, also where most have no probability.
    few = np.where(np.arange(9) == 5, 0, -np.inf).astype(np.float32)
    np.testing.assert_array_equal(run(few).top_3.indices, np.tile([5, 0, 1], (5, 1)))
    np.testing.assert_array_equal(run(few).top_3.log_probs, np.tile([0, -np.inf, -np.inf], (5, 1)))


@pytest.mark.parametrize("plan", [Plan("recompute", 5), "dense"], **IDS)
def test_caps_and_penalties(plan):
    """Soft-caps from 0.7 to 30 on logits up to 1e4, the slope of the cap and of the z-loss among their gradients."""
    x, w, labels = draw(8, 5, 13)
    program = with_gradients(OUTPUTS, implementation=plan)
    cotangents = draw_cotangents(8, 13)
    classes = np.arange(13, dtype=np.float32) % 4  # zeros among them
    for cap in (0.7, 5.0, 30.0):
        for scale in (0.1, 1.0, 30.0, 3e3):
            options = {"softcap": cap, "z_loss": 0.01, "temperature": 1.7, "label_smoothing": 0.1}
            options = {name: np.float32(o) for name, o in options.items()}
            check(program, x, scale * w, labels, cotangents, class_weights=classes, **options)


@pytest.mark.parametrize("plan", [Plan("recompute", 5), "dense"], **IDS)
def test_logits_of_ten_thousand(plan):
    x, w, labels = draw(8, 5, 13, sd=5e3)
    program = with_gradients(OUTPUTS, implementation=plan)
    check(program, x, w, labels, jax.tree.map(np.ones_like, draw_cotangents(8, 13)))


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("plan", [Plan("recompute", 128), "dense", Plan("gradient_in_forward", 128, 40)], **IDS)
def test_bfloat16_gradients_are_as_true_as_those_of_the_dense_formula(plan, scale):
    """For each class, not only in norm, at activations of each scale; and so are the losses."""
    n, d, v = 128, 32, 300
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((n, d)) * scale, jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((d, v)) / np.sqrt(d), jnp.bfloat16)
    labels = rng.integers(0, v, n).astype(np.int32)

    def dense(x, w, y):
        logits = x @ w
        return jnp.sum(jax.nn.logsumexp(logits, axis=1) - logits[np.arange(n), y])

    true = truth(np.asarray(x, np.float64), np.asarray(w, np.float64), labels, {"loss": np.ones(n)})
    for name, got, naive in zip("xw", summed(plan)(x, w, labels), jax.grad(dense, (0, 1))(x, w, labels), strict=True):
        assert got.dtype == jnp.bfloat16
        axis, exact = ("xw".index(name) - 1), true.gradients[name]
        error = lambda a, exact=exact, axis=axis: np.linalg.norm(np.asarray(a, np.float64) - exact, axis=axis)
        assert np.all(error(got) <= error(naive) + 2.0**-8 * np.linalg.norm(exact, axis=axis))


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [("float16", "float16"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
@pytest.mark.parametrize("plan", [BLOCKS, CHUNKS], **IDS)
def test_dtypes(plan, x_dtype, w_dtype):
    """Mixed ones too, with bias, weights and options in float32, and where promotion, of ranks too, is forbidden."""
    x, w, labels = draw(6, 7, 10)
    x, w = jnp.asarray(x, x_dtype), jnp.asarray(w, w_dtype)
    bias, weights = np.float32(np.linspace(-1, 1, 10)), np.float32([1, 2, 0, 0.5, 3, 1])
    classes = np.float32(np.arange(10) % 3)
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "temperature": 2.0}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        shared = {"class_weights": classes, "weights": weights, **options}
        value, gradients = jax.jit(
            jax.value_and_grad(
                lambda x, w, b: linear_cross_entropy(
                    x, w, labels, bias=b, reduction="sum", implementation=plan, **shared
                ),
                (0, 1, 2),
            )
        )(x, w, bias)
    assert value.dtype == jnp.promote_types(x.dtype, w.dtype)
    assert [g.dtype for g in gradients] == [x.dtype, w.dtype, jnp.float32]
    wide = np.asarray(x, np.float64), np.asarray(w, np.float64)
    true = truth(*wide, labels, {"loss": np.ones(6)}, bias=bias, **shared)
    np.testing.assert_allclose(float(value), np.sum(true.values["loss"]), rtol=float(jnp.finfo(value.dtype).eps))
    # Terms and results are rounded to the operands' dtype and the arrays' own, once each.
    for got, name in zip(gradients, ("x", "w", "bias"), strict=True):
        coarsest = max(float(jnp.finfo(dtype).eps) for dtype in (value.dtype, got.dtype))
        exact = true.gradients[name]
        assert np.max(np.abs(np.asarray(got, np.float64) - exact)) <= coarsest * np.max(np.abs(exact)) * 1.5


def test_float64():
    x, w, labels = draw(6, 7, 10)
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64), jnp.asarray(w, jnp.float64)
        value, gradients = with_gradients(implementation=BLOCKS)(
            *wide, jnp.zeros(10), labels, {"loss": jnp.ones(6)}, {}
        )
        assert value["loss"].dtype == jnp.float64
        truth(*wide, labels, {"loss": np.ones(6)}).check(value, gradients, unit=2.0**-52)


@pytest.mark.parametrize("plan", [Plan("recompute", 7), Plan("gradient_in_forward", 7, 3000)], **IDS)
def test_float16_means_over_many_examples_do_not_underflow(plan):
    """dlogits below the smallest float16, 2^-24, whose sum is not; and a gradient below it that a scale is to save."""
    n, d, v = 10_000, 2, 9
    x, w, labels = draw(n, d, v)
    x, w = jnp.asarray(x, jnp.float16), jnp.asarray(w, jnp.float16)
    exact = truth(x, w, labels, {"loss": np.full(n, 1 / n)}).gradients

    @jax.jit
    def scaled(scale, weights):
        def loss(x, w):
            total = linear_cross_entropy(x, w, labels, weights=weights, reduction="sum", implementation=plan)
            return total * scale.astype(total.dtype)

        return jax.grad(loss, (0, 1))(x, w)

    # 2^-9 underflows what is a mean already; 2^15 is to save what would.
    for scale, share in ((2.0**-9, 1 / n), (2.0**15, 2.0**-24 / n)):
        found = scaled(np.float32(scale), np.full(n, share, np.float32))
        for got, name in zip(found, "xw", strict=True):
            true = exact[name] * (scale * share * n)
            # A rounding of each dlogit, and one of the result.
            allowed = 2.0**-10 * np.max(np.abs(true)) + 2.0**-25
            assert np.max(np.abs(np.asarray(got, np.float64) - true)) <= allowed


@pytest.mark.parametrize("plan", [BLOCKS, CHUNKS], **IDS)
def test_a_float16_gradient_is_measured_without_those_that_are_nan(plan):
    """One label that is no class takes no digits from the gradients of other examples."""
    x, w, labels = draw(8, 3, 10)
    x, w = jnp.asarray(x, jnp.float16), jnp.asarray(w * 1000, jnp.float16)
    wrong = np.where(np.arange(8) == 5, 10, labels)
    got = jax.jit(summed(plan, weights=np.full(8, 2.0**-26, np.float32), temperature=1000.0))(x, w, wrong)[0]
    exact = truth(x, w, labels, {"loss": np.full(8, 2.0**-26)}, temperature=1000.0).gradients["x"]
    others = np.arange(8) != 5
    assert np.all(np.isnan(got[5]))
    assert np.max(np.abs(np.asarray(got, np.float64) - exact)[others]) <= 2.0**-25 + 2.0**-10 * np.max(np.abs(exact))


# -- stored dlogits ----------------------------------------------------------------------------------------------------

#: bfloat16, and more tokens than a chunk but fewer than twice the depth: the dlogits of all of them are stored.
STORED = {
    "options": {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "w_layout": "vd"},
    "bias": {"num_classes": 97},
}


@pytest.mark.parametrize(("name", "sizes"), [("options", (40, 11)), ("bias", (101, 16))])
def test_stored_dlogits(name, sizes):
    """In blocks and chunks that divide nothing, and all classes at once: dlogits and results are rounded once each."""
    static, plan = dict(STORED[name]), Plan("gradient_in_forward", *sizes)
    x, w, labels = draw(32, 24, 101, sd=2.0)
    x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    classes = static.get("num_classes", 101)
    labels = labels % classes
    rng = np.random.default_rng(5)
    bias, class_weights = (jnp.asarray(rng.uniform(0.5, 1.5, 101), jnp.bfloat16) for _ in range(2))
    assert explain(x, w, labels, reduction="mean", implementation=plan).keeps_dlogits

    def loss(x, w, bias):
        w = w.T if "w_layout" in static else w
        given = {"bias": bias, "class_weights": class_weights, "implementation": plan, **static}
        return linear_cross_entropy(x, w, labels, reduction="mean", **given)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, w, bias)
    wide = [np.asarray(a, np.float64)[..., :classes] for a in (w, bias, class_weights)]
    shares = labels != static.get("ignore_index")
    options = {n: static[n] for n in ("label_smoothing", "z_loss", "softcap") if n in static}
    options |= {"bias": wide[1], "class_weights": wide[2], "weights": shares / np.sum(shares)}
    wide_x, wide_w = np.asarray(x, np.float64), wide[0]
    true = truth(wide_x, wide_w, labels, {"loss": np.ones(32)}, **options)
    np.testing.assert_allclose(float(value), np.sum(true.values["loss"]), rtol=2.0**-8)
    # The gradient by the logits themselves: those of x where w is the identity.
    dlogits = truth(wide_x @ wide_w, np.eye(classes), labels, {"loss": np.ones(32)}, **options).gradients["x"]
    dlogits = np.abs(dlogits)
    terms = {"x": dlogits @ np.abs(wide_w).T, "w": np.abs(wide_x).T @ dlogits, "bias": np.sum(dlogits, axis=0)}
    for got, (key, exact) in zip(gradients, true.gradients.items(), strict=True):
        assert got.dtype == jnp.bfloat16
        found = np.asarray(got, np.float64)
        assert key == "x" or not np.any(found[..., classes:])
        found = found if key == "x" else found[..., :classes]
        rounded = 2.0**-8 * ((1 + 2.0**-8) * terms[key] + np.abs(exact))
        near(found, exact, rounded + 2.0**-23 * true.ulp_of_gradients[key], key)


# -- programs ----------------------------------------------------------------------------------------------------------

N, D, V, BLOCK = 256, 24, 50257, 2048
PROGRAMS = {"recompute": Plan("recompute", BLOCK), "gradient_in_forward": Plan("gradient_in_forward", BLOCK, 64)}


def lowered(function, *dtypes, v=V):
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(((N, D), (D, v)), dtypes, strict=True)]
    return jax.jit(function).lower(*arrays)


def products(text):
    """The operands' types of each matrix product in StableHLO."""
    return re.findall(r"dot_general.*?:\s*\(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_of_bfloat16_stay_so_and_w_is_not_copied(name):
    labels = np.zeros(N, np.int32)
    text = lowered(summed_of(PROGRAMS[name], labels), jnp.bfloat16, jnp.bfloat16).as_text()
    found = products(text)
    assert len(found) >= 3
    assert set(found) == {("bf16", "bf16")}
    assert not re.search(rf"stablehlo\.(pad|transpose|concatenate|gather) .*\b{V}x", text)
    assert not re.search(rf"stablehlo\.convert %arg\d+ : \(tensor<{D}x{V}xbf16>\)", text)


def summed_of(plan, labels):
    return jax.value_and_grad(
        lambda x, w: linear_cross_entropy(x, w, labels, reduction="sum", implementation=plan), (0, 1)
    )


def test_what_is_not_asked_for_is_not_computed():
    """Matrix products in the program: of the value, one; of the gradient by x, two more; by x and w, three more."""
    labels = np.zeros(N, np.int32)
    loss = lambda x, w: linear_cross_entropy(x, w, labels, reduction="sum", implementation=PROGRAMS["recompute"])
    for function, number in ((loss, 1), (jax.grad(loss), 3), (jax.grad(loss, 1), 3), (jax.grad(loss, (0, 1)), 4)):
        assert len(products(lowered(function, jnp.float32, jnp.float32).as_text())) == number


# -- errors ------------------------------------------------------------------------------------------------------------

X, W, Y = draw(4, 3, 6)
ERRORS = [
    ({"x": np.float32(1)}, ValueError, ["x", r"\(\)", r"\(\.\.\., D\)"]),
    ({"w": W[:2]}, ValueError, ["w", r"\(2, 6\)", r"\(3, V\)"]),
    ({"w": W.T}, ValueError, ["w", r"\(6, 3\)", r"\(3, V\)", 'w_layout="vd"']),
    ({"w": W[:, :0]}, ValueError, ["w", r"\(3, 0\)", r"\(3, V\)"]),
    ({"w": W[None]}, ValueError, ["w", r"\(1, 3, 6\)", r"\(3, V\)"]),
    ({"x": "a"}, TypeError, ["x", "str", "real array"]),
    ({"w": W.astype(complex)}, TypeError, ["w", "complex", "real"]),
    ({"labels": Y[:3]}, ValueError, ["labels", r"\(3,\)", r"\(4,\)"]),
    ({"labels": X}, ValueError, ["labels", "floats", "SoftLabels"]),
    ({"labels": None}, ValueError, ["labels", "loss", "None"]),
    ({"labels": (Y, Y, Y)}, TypeError, ["labels", "tuple of 3", "pair"]),
    ({"labels": (Y, X)}, ValueError, ["indices", r"\(4,\)", "'k'"]),
    ({"labels": (Y[:, None], X)}, ValueError, ["probabilities", r"\(4, 3\)", r"\(4, 1\)"]),
    ({"labels": SoftLabels(X, X)}, TypeError, ["indices", "float32", "integers"]),
    ({"labels": (X, W[:, :4])}, ValueError, ["teacher's w", "4 columns", "6"]),
    ({"labels": (X[:2], W)}, ValueError, ["teacher's x", r"\(2,\)", r"\(4,\)"]),
    ({"labels": Teacher(X, W, Y)}, ValueError, ["teacher's bias", r"\(4,\)", r"\(6,\)"]),
    ({"labels": Teacher(X, None)}, TypeError, ["labels", "Teacher", "need w"]),
    ({"labels": SoftLabels(Y[:, None], None)}, TypeError, ["labels", "SoftLabels", "need probabilities"]),
    ({"labels": (X, W), "ignore_index": 1}, ValueError, ["ignore_index", "weights"]),
    ({"bias": X}, ValueError, ["bias", r"\(4, 3\)", r"\(6,\)"]),
    ({"bias": 1.0}, ValueError, ["bias", r"\(\)", r"\(6,\)"]),
    ({"class_weights": Y}, ValueError, ["class_weights", r"\(4,\)", r"\(6,\)"]),
    ({"weights": W[0]}, ValueError, ["weights", r"\(6,\)", r"\(4,\)"]),
    ({"label_smoothing": 1.5}, ValueError, ["label_smoothing", "1.5", "from 0 to 1"]),
    ({"softcap": -1.0}, ValueError, ["softcap", "-1.0", "positive"]),
    ({"softcap": np.inf}, ValueError, ["softcap", "inf", "finite"]),
    ({"temperature": 1e-300}, ValueError, ["temperature", "1e-300", "float32", "positive"]),
    ({"temperature": 0.0}, ValueError, ["temperature", "0.0", "positive"]),
    ({"z_loss": X}, ValueError, ["z_loss", r"\(4, 3\)", r"\(\)"]),
    ({"reduction": "average"}, ValueError, ["reduction", "average", "'mean'"]),
    ({"w_layout": "vv"}, ValueError, ["w_layout", "vv", "'dv' or 'vd'"]),
    ({"outputs": ("loss", "perplexity")}, ValueError, ["outputs", "perplexity", "'logsumexp'"]),
    ({"outputs": "top_0"}, ValueError, ["outputs", "top_0", "top_<k>"]),
    ({"outputs": "top_7"}, ValueError, ["top_7", "6"]),
    ({"outputs": ()}, ValueError, ["outputs", r"\(\)", "one or more"]),
    ({"outputs": None}, ValueError, ["outputs", "None", "one or more"]),
    ({"outputs": {"loss"}}, TypeError, ["outputs", "set", "strings or tuples"]),
    ({"outputs": ("loss", "loss")}, ValueError, ["outputs", "each once"]),
    ({"num_classes": 7}, ValueError, ["num_classes", "7", "from 1 to 6"]),
    ({"num_classes": 1.5}, TypeError, ["num_classes", "1.5", "whole number"]),
    ({"implementation": "magic"}, ValueError, ["implementation", "magic", "'recompute'"]),
    ({"implementation": "gradient_in_forward"}, ValueError, ["gradient_in_forward", "'none'", "scalar"]),
    ({"memory_budget": 0}, ValueError, ["memory_budget", "0", "positive"]),
    ({"memory_budget": 1}, ValueError, ["memory_budget", "1 bytes", "recompute", "at least"]),
    ({"memory_budget": "1 MB"}, TypeError, ["memory_budget", "1 MB", "number of bytes"]),
    ({"memory_budget": np.array(2**20)}, TypeError, ["memory_budget", "number of bytes", "Tracer"]),
    ({"axis_name": 0}, ValueError, ["axis_name", "0", "shard_map"]),
    ({"axis_name": "shards"}, ValueError, ["axis_name", "shards", "shard_map"]),
]


@pytest.mark.parametrize(("wrong", "error", "words"), ERRORS, ids=lambda p: "-".join(p) if isinstance(p, dict) else "")
def test_errors_name_the_argument_what_it_got_and_what_it_needs(wrong, error, words):
    with pytest.raises(error) as raised:
        xj.linear_cross_entropy(**{"x": X, "w": W, "labels": Y, **wrong})
    for word in ("linear_cross_entropy", *words):
        assert re.search(word, str(raised.value)), (word, str(raised.value))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (("magic",), ["strategy", "magic", "'recompute'"]),
        (("recompute", -1), ["block", "-1", "whole number"]),
        (("recompute", 1.5), ["block", "1.5", "whole number"]),
        (("gradient_in_forward", 2, "all"), ["chunk", "all", "whole number"]),
        (("recompute", 0, 0, "triton"), ["kernels", "triton", "'mosaic'"]),
    ],
)
def test_a_plan_that_is_none(sizes, words):
    with pytest.raises(ValueError) as raised:
        Plan(*sizes)
    for word in ("Plan", *words):
        assert word in str(raised.value)


def test_a_budget_for_few_classes_is_kept_to():
    """Few classes are summed with all logits stored only where the budget has room for them."""
    x, w = jax.ShapeDtypeStruct((4096, 64), jnp.float32), jax.ShapeDtypeStruct((64, 512), jnp.float32)
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32)
    assert explain(x, w, labels).strategy == "dense"
    chosen = explain(x, w, labels, memory_budget=6 * 2**20)
    assert chosen.strategy == "recompute"
    assert chosen.temporary_bytes <= 6 * 2**20


def test_what_is_explained_is_called_as_the_function_is():
    assert explain(X, W, outputs="entropy").strategy == "dense"
    assert explain(X.tolist(), W.tolist(), Y.tolist(), outputs=["loss", "argmax"]).strategy == "dense"


@pytest.mark.parametrize("plan", [None, "dense", Plan("recompute", 256)], ids=named)
def test_export_for_any_number_of_tokens(plan):
    """The plan is not chosen by N then; gradients of a mean come out as for the numbers that it is called with."""
    gradients = jax.grad(
        lambda x, w, y: linear_cross_entropy(x, w, y, reduction="mean", ignore_index=-1, implementation=plan), (0, 1)
    )
    batch, tokens = jax.export.symbolic_shape("b, t")
    w = jax.ShapeDtypeStruct((5, 600), jnp.float32)
    shapes = jax.ShapeDtypeStruct((batch, tokens, 5), w.dtype), w, jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    exported = jax.export.export(jax.jit(gradients))(*shapes)
    for n in (1, 289):
        x, w, labels = draw(n, 5, 600)
        given = x[None], w, labels[None]
        for got, expected in zip(exported.call(*given), gradients(*given), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=2**-20 * np.abs(expected).max())


def test_what_needs_the_number_of_tokens_says_so():
    (tokens,) = jax.export.symbolic_shape("t")
    x, w = jax.ShapeDtypeStruct((tokens, 5), jnp.float32), jax.ShapeDtypeStruct((5, 600), jnp.float32)
    labels = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    with pytest.raises(ValueError, match=r"memory_budget needs N to be a number, got t"):
        explain(x, w, labels, memory_budget=2**20)
    with pytest.raises(ValueError, match=r"'gradient_in_forward' needs N to be a number, got t"):
        explain(x, w, labels, reduction="mean", implementation="gradient_in_forward")
