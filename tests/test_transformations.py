"""Every public record under every transformation of JAX: the same numbers as when called directly.

A transformation may change how the compiler fuses, and so how it rounds: 8 ULP of the largest result of the same
case in float64, where a wrong rule would be wrong by orders of magnitude more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import xentjax as xj
from xentjax.core.op import Record, ops

PUBLIC = [record for record in ops() if record.public]
DIFFERENTIABLE = [record for record in PUBLIC if record.wrt]
SIZES = {"B": 8, "K": 4, "J": 8, "D": 3}
ULP = 8


@pytest.fixture(autouse=True)
def _float64(compiled_fast):
    """Float64, and programs that are compiled fast: what is tested is the transformation, not the optimizer."""
    with jax.enable_x64(True):
        yield


@functools.cache
def situation(record: Record):
    """Arguments by name, split in those to differentiate by and the others; the function and a weighted sum of it."""
    case = record.domain.case(np.random.default_rng(0), "unit", record.domain.options[0], **SIZES)
    arrays = {n: jax.tree.map(jnp.asarray, case.arrays[n]) for n in case.arrays}
    moving = {n: v for n, v in arrays.items() if n in record.wrt and is_float(v)}
    rest = {n: v for n, v in arrays.items() if n not in moving}

    def call(moving, rest=rest):
        return record.function(**moving, **rest, **case.options)

    value = call(moving)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1, value.shape))

    def total(moving, rest=rest, weights=weights):
        return jnp.sum(weights * call(moving, rest))

    return call, total, moving, rest, value, weights


@functools.cache
def derivatives(record: Record):
    """Tangents, and derivatives of first and second order in every mode, from one compiled program."""
    call, total, moving, _, _, weights = situation(record)
    tangents = jax.tree.map(lambda v: jnp.asarray(np.random.default_rng(2).uniform(-1, 1, v.shape)), moving)

    def weighted(jacobian):
        return jax.tree.map(lambda j: jnp.tensordot(weights, j, weights.ndim), jacobian)

    @jax.jit
    def every(moving, tangents):
        primal, slope = jax.jvp(call, (moving,), (tangents,))
        again, linear = jax.linearize(call, moving)
        return {
            "gradient": jax.grad(total)(moving),
            "checkpoint": jax.grad(jax.checkpoint(total))(moving),
            "jacrev": weighted(jax.jacrev(call)(moving)),
            "jacfwd": weighted(jax.jacfwd(call)(moving)),
            "primals": (primal, again),
            "jvp": slope,
            "linearize": linear(tangents),
            "hessian": jax.hessian(total)(moving),
            "reverse over reverse": jax.jacrev(jax.grad(total))(moving),
        }

    return tangents, every(moving, tangents)


def is_float(tree) -> bool:
    return all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(tree))


def same(got, expected, terms=1e-300):
    """Equal but for rounding; ``terms`` is the size of the terms that the results are differences of, if it is more."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = float(np.nanmax(np.abs(b), initial=terms))
        np.testing.assert_allclose(a, b, rtol=0, atol=ULP * 2**-52 * scale)


def by_name(records):
    return pytest.mark.parametrize("record", records, ids=lambda r: r.name)


@by_name(PUBLIC)
def test_jit_scan_and_vmap_over_all_and_over_each_argument(record):
    call, _, moving, rest, value, _ = situation(record)
    arrays = {**moving, **rest}
    double = {n: jax.tree.map(lambda a: jnp.stack([a, a]), v) for n, v in arrays.items()}
    choices = [dict.fromkeys(arrays, 0)]
    if len(arrays) > 1:
        choices += [{n: 0 if n == name else None for n in arrays} for name in arrays]

    @jax.jit
    def every(arrays, double):
        one = lambda given: call({n: given[n] for n in moving}, {n: given[n] for n in rest})
        _, stacked = jax.lax.scan(lambda count, _: (count + 1, one(arrays)), 0, length=3)
        mapped = []
        for axes in choices:
            given = {n: double[n] if axes[n] == 0 else arrays[n] for n in arrays}
            mapped.append(jax.vmap(one, (axes,))(given))
        return one(arrays), stacked, mapped

    jitted, stacked, mapped = every(arrays, double)
    for result in (jitted, stacked[2], *(m[i] for m in mapped for i in (0, 1))):
        same(result, value)


@by_name(PUBLIC)
def test_export_with_a_symbol_for_the_number_of_rows(record):
    call, _, moving, rest, value, _ = situation(record)
    (rows,) = jax.export.symbolic_shape("b")

    def specification(array):
        shape = (rows, *array.shape[1:]) if array.shape[:1] == (SIZES["B"],) else array.shape
        return jax.ShapeDtypeStruct(shape, array.dtype)

    exported = jax.export.export(jax.jit(call))(*jax.tree.map(specification, (moving, rest)))
    same(exported.call(moving, rest), value)


@by_name(DIFFERENTIABLE)
def test_reverse_mode_and_checkpoint(record):
    _, found = derivatives(record)
    assert all(np.any(np.asarray(slope) != 0) for slope in jax.tree.leaves(found["gradient"]))
    same(found["checkpoint"], found["gradient"])
    same(found["jacrev"], found["gradient"])


@by_name(DIFFERENTIABLE)
def test_forward_mode_and_linearize(record):
    *_, value, weights = situation(record)
    tangents, found = derivatives(record)
    for primal in found["primals"]:
        same(primal, value)
    same(found["linearize"], found["jvp"])
    same(found["jacfwd"], found["gradient"])
    products = jax.tree.leaves(jax.tree.map(lambda g, t: g * t, found["gradient"], tangents))
    along, terms = sum(map(jnp.sum, products)), sum(jnp.sum(jnp.abs(p)) for p in products)
    assert abs(jnp.sum(weights * found["jvp"]) - along) <= ULP * 2**-52 * terms * 4


@by_name(DIFFERENTIABLE)
def test_hessian_forward_over_reverse_and_reverse_over_reverse(record):
    _, _, moving, *_ = situation(record)
    _, found = derivatives(record)
    # A second derivative is a difference of terms as large as the first: those of softmax are p·v·p and p·v.
    terms = max(float(np.nanmax(np.abs(slope), initial=0)) for slope in jax.tree.leaves(found["gradient"]))
    same(found["reverse over reverse"], found["hessian"], terms)
    name = next(iter(moving))
    if isinstance(moving[name], jax.Array):
        size = moving[name].size
        square = np.asarray(found["hessian"][name][name]).reshape(size, size)
        scale = np.max(np.abs(square), initial=1e-300)
        np.testing.assert_allclose(square, square.T, rtol=0, atol=ULP * 2**-52 * scale)


def split_by_example(record: Record):
    """Partition specs that split the batch of every argument, or None where the record has no batch of examples."""
    kinds = record.domain.kinds
    if not all(kind.shape.split()[:1] == ["B"] for kind in kinds.values()):
        return None
    return {n: P("data") for n in kinds}


@by_name([r for r in DIFFERENTIABLE if split_by_example(r)])
def test_shard_map_over_eight_devices(record):
    call, total, moving, rest, value, weights = situation(record)
    if len(jax.devices()) < 8:
        pytest.skip("eight devices are needed: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = split_by_example(record)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=({n: specs[n] for n in moving}, {n: specs[n] for n in rest}, P("data")),
        out_specs=(P("data"), {n: specs[n] for n in moving}, P()),
        check_vma=True,
    )
    def sharded(moving, rest, weights):
        found = call(moving, rest)
        return found, jax.grad(total)(moving, rest, weights), jax.lax.psum(jnp.sum(weights * found), "data")

    shards, slopes, summed = jax.jit(sharded)(moving, rest, weights)
    same(shards, value)
    same(slopes, derivatives(record)[1]["gradient"])
    np.testing.assert_allclose(summed, jnp.sum(weights * value), rtol=8 * ULP * 2**-52)


LOGITS = {
    "softmax_cross_entropy": lambda z, labels: xj.softmax_cross_entropy(z, labels, label_smoothing=0.1),
    "entropy_from_logits": lambda z, _: xj.entropy_from_logits(z),
    "kl_divergence_from_logits": lambda z, _: xj.kl_divergence_from_logits(z, z * z),
}


@pytest.mark.parametrize("name", LOGITS)
def test_explicit_axes_of_a_mesh(name):
    """Rows and classes are split over axes that types of arrays name, as ``jax.make_mesh`` makes them."""
    logits, labels = jnp.asarray(np.random.default_rng(3).normal(0, 3, (8, 100))), jnp.arange(0, 96, 12)
    both = jax.jit(lambda z, y: (LOGITS[name](z, y), jax.grad(lambda z: jnp.sum(LOGITS[name](z, y)))(z)))
    expected = both(logits, labels)
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"))):
        placed = jax.reshard(logits, P("data", "model")), jax.reshard(labels, P("data"))
        value, slope = both(*placed)
    same((value, slope), expected)
    assert jax.typeof(value).sharding.spec == P("data")
    assert jax.typeof(slope).sharding.spec == P("data", "model")
