"""Linear cross-entropy, its vocabulary split over devices: the numbers of one device, and only O(N) of them travel."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from xentjax.losses.linear import Plan, SoftLabels, Teacher, linear_cross_entropy
from xentjax.losses.linear.outputs import OUTPUTS

pytestmark = pytest.mark.usefixtures("compiled_fast")

N, D, V = 6, 4, 24
EVERY = (*OUTPUTS, "top_3")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def real(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def labels_of(kind):
    rng = np.random.default_rng(3)
    if kind == "indices":
        return jnp.asarray(rng.integers(0, V, N))
    if kind == "soft":
        return SoftLabels(jnp.asarray(rng.integers(0, V, (N, 3))), jnp.asarray(rng.dirichlet(np.ones(3), N)))
    return Teacher(real(4, N, 3), real(5, 3, V), real(6, V), jnp.asarray(2.0))


def arguments(kind):
    return {
        "x": real(0, N, D),
        "w": real(1, D, V),
        "labels": labels_of(kind),
        "bias": real(2, V),
        "class_weights": jnp.abs(real(7, V)),
        "weights": jnp.abs(real(8, N)),
    }


def specs(given, vocabulary="model", tokens=None):
    of = {"x": P(tokens), "w": P(None, vocabulary), "bias": P(vocabulary), "class_weights": P(vocabulary)}
    of |= {"weights": P(tokens), "labels": P(tokens)}
    labels = given.get("labels")
    if isinstance(labels, Teacher):
        of["labels"] = Teacher(P(tokens), P(None, vocabulary), P(vocabulary), P())
    elif isinstance(labels, SoftLabels):
        of["labels"] = SoftLabels(P(tokens), P(tokens))
    return {n: of[n] for n in given}


OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "temperature": 1.5}


def mesh_of(**axes):
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=kinds, devices=jax.devices()[: np.prod([*axes.values()])]
    )


def floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def total(outputs):
    """A weighted sum of every float output."""
    rng = np.random.default_rng(9)
    return sum(jnp.sum(leaf * rng.standard_normal(leaf.shape)) for leaf in floats(outputs))


def split(given):
    """What is differentiated by, and the rest."""
    moving = {n: v for n, v in given.items() if n != "labels" or isinstance(v, Teacher)}
    return moving, {n: v for n, v in given.items() if n not in moving}


def same(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.max(np.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=2**-45 * scale)


@pytest.mark.parametrize("kind", ["indices", "soft", "teacher"])
@pytest.mark.parametrize("shards", [8, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 2, 4))])
def test_every_output_and_derivative_is_that_of_one_device(kind, shards):
    given = arguments(kind)
    moving, rest = split(given)
    call = functools.partial(linear_cross_entropy, outputs=EVERY, **OPTIONS)
    mesh = mesh_of(model=shards)
    block = Plan("recompute", max(V // shards - 1, 1))

    def sharded(moving):
        everything = {**moving, **rest}
        return jax.shard_map(
            lambda given: call(**given, axis_name="model", implementation=block),
            mesh=mesh,
            in_specs=(specs(everything),),
            out_specs=P(),
        )(everything)

    along = jax.tree.map(lambda a: real(11, *a.shape), moving)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function, moving, along):
        outputs, tangents = jax.jvp(function, (moving,), (along,))
        return outputs, floats(tangents), jax.grad(lambda m: total(function(m)))(moving)

    got = derivatives(sharded, moving, along)
    same(got, derivatives(lambda moving: call(**moving, **rest), moving, along))


@pytest.mark.parametrize("strategy", ["recompute", "gradient_in_forward"])
def test_tokens_on_one_axis_and_the_vocabulary_on_another(strategy):
    given = arguments("indices")
    moving, rest = split(given)
    mesh = mesh_of(data=2, model=4)
    plan = Plan(strategy, 5, 2)

    def sharded(moving):
        everything = {**moving, **rest}

        def local(given):
            loss = linear_cross_entropy(**given, **OPTIONS, axis_name="model", reduction="sum", implementation=plan)
            return jax.lax.psum(loss, "data")

        in_specs = specs(everything, tokens="data")
        return jax.shard_map(local, mesh=mesh, in_specs=(in_specs,), out_specs=P())(everything)

    plain = lambda moving: linear_cross_entropy(**moving, **rest, **OPTIONS, reduction="sum")
    along = jax.tree.map(lambda a: real(12, *a.shape), moving)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function, moving, along):
        gradient = jax.grad(function)
        return jax.value_and_grad(function)(moving), jax.jvp(gradient, (moving,), (along,))[1]

    same(derivatives(sharded, moving, along), derivatives(plain, moving, along))


def test_a_gradient_that_is_taken_inside_of_the_map():
    given = arguments("indices")
    moving, rest = split(given)
    mesh = mesh_of(model=4)

    def local(given):
        loss = lambda given: linear_cross_entropy(**given, **rest, **OPTIONS, axis_name="model", reduction="mean")
        return jax.grad(loss)(given)

    got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(specs(moving),), out_specs=specs(moving)))(moving)
    expected = jax.grad(lambda m: linear_cross_entropy(**m, **rest, **OPTIONS, reduction="mean"))(moving)
    same(got, expected)


def test_classes_that_the_devices_do_not_divide():
    x, w, labels = real(0, N, D), real(1, D, V - 3), jnp.asarray(np.random.default_rng(2).integers(0, V - 3, N))
    padded = jnp.pad(w, ((0, 0), (0, 3)), constant_values=jnp.nan)
    mesh = mesh_of(model=8)
    call = functools.partial(
        linear_cross_entropy, label_smoothing=0.1, z_loss=0.01, outputs=("loss", "entropy", "top_2")
    )

    def sharded(x, padded):
        local = lambda x, w: call(x, w, labels, axis_name="model", num_classes=V - 3)
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "model")), out_specs=P())(x, padded)

    same(jax.jit(sharded)(x, padded), call(x, w, labels))
    by_x, by_w = jax.jit(jax.grad(lambda x, w: total(sharded(x, w)), (0, 1)))(x, padded)
    expected = jax.grad(lambda x, w: total(call(x, w, labels)), (0, 1))(x, w)
    same((by_x, by_w[:, : V - 3]), expected)
    np.testing.assert_array_equal(by_w[:, V - 3 :], 0)


@pytest.mark.parametrize("classes", [V - 3, pytest.param(V, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", ["teacher", pytest.param("indices", marks=pytest.mark.thorough)])
def test_a_mesh_that_is_set_in_the_place_of_a_map(kind, classes):
    given = arguments(kind)
    of_classes = {"w": (slice(None), slice(classes)), "bias": slice(classes), "class_weights": slice(classes)}
    given |= {n: given[n][part] for n, part in of_classes.items()}
    if kind == "teacher":
        teacher = given["labels"]
        given["labels"] = Teacher(teacher.x, teacher.w[:, :classes], teacher.bias[:classes], teacher.softcap)
    else:
        given["labels"] = given["labels"] % classes
    moving, rest = split(given)
    call = functools.partial(linear_cross_entropy, outputs=EVERY, **OPTIONS)

    def derivatives(function, moving):
        return function(moving), jax.grad(lambda m: total(function(m)))(moving)

    expected = jax.jit(lambda m: derivatives(lambda m: call(**m, **rest), m))(moving)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        function = lambda m: call(**m, **rest, axis_name="model", implementation="recompute")
        same(jax.jit(lambda m: derivatives(function, m))(moving), expected)


class TestExplicitAxes:
    """Those of a mesh as ``jax.make_mesh`` makes it, which types of arrays name."""

    @pytest.mark.parametrize(("vocabulary", "is_named"), [(("model", "rest"), True), ("model", False)], ids=str)
    def test_tokens_and_vocabulary_are_split(self, vocabulary, is_named):
        """The axis of the vocabulary need not be named; results are split as the tokens are."""
        given = arguments("teacher")
        moving, rest = split(given)
        call = functools.partial(linear_cross_entropy, outputs=EVERY, **OPTIONS, implementation=Plan("recompute", 4))

        @functools.partial(jax.jit, static_argnums=2)
        def derivatives(moving, rest, axis_name):
            function = lambda m: call(**m, **rest, axis_name=axis_name)
            return function(moving), jax.grad(lambda m: total(function(m)))(moving)

        expected = derivatives(moving, rest, None)
        with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "model", "rest"))):
            placed = jax.tree.map(jax.reshard, given, specs(given, vocabulary, "data"))
            outputs, gradients = derivatives(*split(placed), vocabulary if is_named else None)
        same((outputs, gradients), expected)
        assert jax.typeof(outputs.loss).sharding.spec == P("data")
        assert jax.typeof(outputs.top_3.indices).sharding.spec == P("data", None)
        assert jax.typeof(gradients["w"]).sharding.spec == P(None, vocabulary)

    def test_no_mesh_is_set(self):
        """The arrays know theirs."""
        given = arguments("indices")
        mesh = jax.make_mesh((2, 4), ("data", "model"))
        of = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs(given, "model", "data"))
        same(linear_cross_entropy(**jax.device_put(given, of), **OPTIONS), linear_cross_entropy(**given, **OPTIONS))

    def test_within_a_map_over_the_vocabulary(self):
        given = arguments("soft")
        with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"))):
            placed = jax.tree.map(jax.reshard, given, specs(given, "model", "data"))
            mapped = jax.shard_map(
                lambda given: linear_cross_entropy(**given, **OPTIONS, axis_name="model"),
                in_specs=(specs(given),),
                out_specs=P(),
                axis_names={"model"},
            )
            loss = jax.jit(mapped)(placed)
        same(loss, linear_cross_entropy(**given, **OPTIONS))
        assert loss.sharding.spec == P("data")

    def test_nothing_is_split_before(self):
        given = arguments("indices")
        moving, rest = split(given)
        loss = lambda m, **kw: linear_cross_entropy(**m, **rest, **OPTIONS, reduction="mean", **kw)
        expected = jax.jit(jax.value_and_grad(loss))(moving)
        with jax.set_mesh(jax.make_mesh((4,), ("model",), devices=jax.devices()[:4])):
            own = lambda m: loss(m, axis_name="model", implementation="recompute")
            same(jax.jit(jax.value_and_grad(own))(moving), expected)


def test_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match=r"no axis here: call it under jax\.shard_map"):
        linear_cross_entropy(**arguments("indices"), axis_name="model")


def test_only_numbers_for_each_token_travel():
    x, w, labels = real(0, 64, 16), real(1, 16, 512), jnp.zeros(64, jnp.int32)
    mesh = mesh_of(model=4)

    def loss(x, w):
        local = lambda x, w: linear_cross_entropy(
            x, w, labels, axis_name="model", label_smoothing=0.1, reduction="mean"
        )
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "model")), out_specs=P())(x, w)

    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, w).compile().as_text()
    travels = re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)", text)
    shapes = [shape.split(",") for line in travels for shape in re.findall(r"\[([\d,]*)\]", line)]
    sizes = [math.prod(int(n) for n in shape if n) for shape in shapes]
    assert sizes
    # The gradient by x is a sum over the devices.
    assert max(sizes) <= x.size


def test_many_tokens_of_which_few_need_care():
    """There is a program for few rows of a batch, beside that for all."""
    n, d, v = 256, 4, 64
    x = real(0, n, d).at[::50].multiply(100.0)
    given = {"x": x, "w": real(1, d, v), "labels": jnp.arange(n) % v}
    loss = functools.partial(linear_cross_entropy, reduction="mean")
    of_device = functools.partial(loss, axis_name="model")
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("model",))
    sharded = jax.shard_map(
        lambda x, w, labels: of_device(x, w, labels), mesh=mesh, in_specs=(*specs(given).values(),), out_specs=P()
    )
    expected = jax.value_and_grad(loss, (0, 1))(*given.values())
    found = jax.jit(jax.value_and_grad(sharded, (0, 1)))(*given.values())
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), found, expected)
