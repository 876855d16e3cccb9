"""The registry: one block adds a function to every check and table, and every record keeps the promises of all."""

import contextlib
import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.core import tasks
from benchmarks.readme import functions_table
from xentjax.accuracy import measure
from xentjax.core.check import check_records
from xentjax.core.domains import Domain, Logit
from xentjax.core.op import forget, op, ops
from xentjax.core.reference import Formula

pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")


@contextlib.contextmanager
def log_cosh_record():
    """A throw-away record, the whole of it: entered in the registry, and taken out again."""

    @op(
        wrt=("residual",),
        domain=Domain(residual=Logit("B")),
        group="losses",
        formula="log cosh r",
        gradient="tanh r",
        source="smooth near 0, linear far from it",
    )
    def log_cosh(residual):
        """log cosh r."""
        return jnp.log(jnp.exp(residual) / 2 + jnp.exp(-residual) / 2)

    @log_cosh.value
    def _(residual):
        size = jnp.abs(residual)
        half = jnp.sinh(jnp.minimum(size, 1.0) / 2)
        return jnp.where(size < 1, jnp.log1p(2 * half * half), size + jnp.log1p(jnp.exp(-2 * size)) - np.log(2)), None

    @log_cosh.partial("residual")
    def _(saved, residual):
        return jnp.tanh(residual)

    @log_cosh.second
    def _(tangents, active, residual):
        # 1 - tanh² = 4e/(1 + e)², e = exp(-2|r|): without cancellation where tanh is close to 1
        e = jnp.exp(-2 * jnp.abs(residual))
        return (4 * e / (1 + e) ** 2 * tangents["residual"],)

    try:
        yield log_cosh.record
    finally:
        forget("log_cosh")


def test_one_block_and_every_tool_finds_it():
    before = ops()
    with log_cosh_record() as record:
        assert ops() == (*before, record)

        checked = check_records("log_cosh", dtypes=("bfloat16", "float32", "float64"))
        assert checked.passed, str(checked)
        assert {row.order for row in checked.rows} == {"gradient", "jvp", "hessian"}

        swept = measure("log_cosh", ("float32",), quick=True)
        assert {row.quantity for row in swept.rows} == {"value", "gradient"}

        assert "| `log_cosh(residual)` | log cosh r | tanh r |" in functions_table(ops())
        assert any("log_cosh" in task.labels.values() for task in tasks(4096, "log_cosh", quick=True))

        x = np.array([0.5, -3.0])
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                jax.hessian(lambda x: jnp.sum(record.function(x)))(x).diagonal(), 1 - np.tanh(x) ** 2
            )
    assert ops() == before


def test_a_wrong_gradient_in_the_block_is_found():
    with log_cosh_record() as record:
        record._partials["residual"] = lambda saved, residual: jnp.sinh(residual)
        checked = check_records("log_cosh", dtypes=("float64",), timed=False)
        assert not checked.passed
        assert "FAIL log_cosh / residual / gradient / float64" in str(checked)


def test_a_value_alone_is_taken_where_no_derivative_is_asked_for_and_swept():
    with log_cosh_record() as record:
        record.alone(lambda residual: jnp.full_like(residual, 7.0))
        x = jnp.array([0.5, -3.0])
        np.testing.assert_array_equal(jax.jit(record.function)(x), [7, 7])
        value, _ = jax.vmap(jax.value_and_grad(record.function))(x)
        np.testing.assert_allclose(value, np.log(np.cosh([0.5, -3.0])), rtol=1e-6)
        assert not measure("log_cosh", ("float32",), quick=True).passed


#: Of a throw-away record of r.
THROW_AWAY = {"wrt": ("r",), "group": "losses", "formula": "Σ r²", "gradient": "2r", "source": "school"}


def test_a_formula_that_drops_its_axis_is_told_so():
    @op(**THROW_AWAY, domain=Domain(r=Logit("B K")))
    def dropped(r, *, axis=-1):
        """Σ r²."""
        return jnp.sum(r**2, axis=axis)

    try:
        with pytest.raises(TypeError, match=r"dropped: the formula .* axis -1, with length 1 .* \(3,\)"):
            dropped.record.oracle(jnp.ones((3, 2)))
    finally:
        forget("dropped")


def squares(**options):
    """A throw-away record of a sum of squares, with what it needs but ``options``."""

    @op(**{**THROW_AWAY, "domain": Domain(r=Logit("B K")), **options})
    def sum_of_squares(r, *, axis=-1, where=None):
        """Σ r²."""
        return jnp.sum(r**2, axis=axis, keepdims=True)

    return sum_of_squares


def test_a_mask_without_a_fill_is_refused_and_with_one_it_masks():
    for fill in (None, {}):
        with pytest.raises(TypeError, match="sum_of_squares: where has the shape of r, but fill does not say"):
            squares(fill=fill)
    assert all(record.name != "sum_of_squares" for record in ops())
    function = squares(fill={"r": 0.0})
    try:
        function.value(lambda r, axis: (jnp.sum(r * r, axis=axis, keepdims=True), None))
        with pytest.raises(TypeError, match="'r' is in wrt, but has no partial: register one"):
            jax.grad(function)(jnp.ones(3))
        function.partial("r")(lambda saved, r, axis: 2 * r)
        value, gradient = jax.value_and_grad(function)(jnp.arange(1.0, 4), where=jnp.array([True, False, True]))
        assert value == 10
        np.testing.assert_array_equal(gradient, [2, 0, 6])
        with pytest.raises(ValueError, match="there is a record 'sum_of_squares' already"):
            squares(fill={"r": 0.0})
    finally:
        forget("sum_of_squares")


@pytest.mark.parametrize("place", ["wrt", "bounded", "own"])
def test_a_name_that_is_no_parameter_is_refused(place):
    with pytest.raises(TypeError, match=rf"{place} names \['q'\], which are not among its parameters"):
        squares(fill={"r": 0.0}, **{place: ("q",)})


def test_keywords_that_would_be_ignored_are_refused():
    def define(function):
        domain = Domain(r=Logit("B"))
        return op(wrt=("r",), domain=domain, group="", formula="", gradient="", source="")(function)

    with pytest.raises(TypeError, match="weights go with a reduction"):
        define(lambda r, *, weights=None: r)
    with pytest.raises(TypeError, match="ignore_index needs one argument of class indices"):
        define(lambda r, *, ignore_index=None, reduction="none": r)


ALL = pytest.mark.parametrize("record", ops(), ids=lambda r: r.name)
PUBLIC = pytest.mark.parametrize("record", [r for r in ops() if r.public], ids=lambda r: r.name)


@ALL
def test_a_record_is_complete(record):
    assert record._value is not None or record._whole is not None or record._through is not record
    assert set(record.wrt) >= set(record._partials)
    assert record.source.strip()
    assert record.formula_text.strip()
    assert record.gradient_text.strip() or not record.wrt
    assert set(record.inputs) >= set(record.domain.kinds)


@ALL
def test_a_mask_leaves_out_what_it_masks(record):
    """The value without the last class, and with it masked: the truth that the fill is held against."""
    if "where" not in record.signature.parameters or "axis" not in record.signature.parameters:
        pytest.skip("no mask over the entries of a sum")
    case = record.domain.case(np.random.default_rng(0), "unit", record.domain.options[0], B=2, K=3, J=2, D=3)
    first = record.inputs[0]
    where = np.arange(case.arrays[first].shape[-1]) < case.arrays[first].shape[-1] - 1
    where = np.broadcast_to(where, case.arrays[first].shape)
    arrays = {n: v % 2 if n in record.indices else v for n, v in case.cast(np.float32).items() if n in case.arrays}
    fewer = {n: v[..., :-1] if v.shape == where.shape else v for n, v in arrays.items()}
    got = record.function(**arrays, where=where, **case.options)
    expected = record.function(**fewer, **case.options)
    if got.shape == where.shape:
        np.testing.assert_array_equal(got[..., -1], 0)
        got = got[..., :-1]
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)


@PUBLIC
def test_help_is_the_definitions(record):
    function, definition = record.function, record.definition
    assert inspect.signature(function) == inspect.signature(definition)
    assert function.__name__ == record.name
    assert function.__doc__ == definition.__doc__
    assert function.__annotations__ == definition.__annotations__
    assert function.__module__ == definition.__module__


@PUBLIC
def test_the_docstring_has_an_example(record):
    assert doctest.DocTestParser().get_examples(record.function.__doc__ or "")


@PUBLIC
def test_every_float_argument_is_differentiable_or_says_that_it_is_not(record):
    case = record.domain.case(np.random.default_rng(0), "unit", record.domain.options[0], B=2, K=3, J=2, D=2)
    arrays = {n: jax.tree.map(jnp.asarray, v) for n, v in case.cast(np.float32).items() if n in case.arrays}
    for name, value in arrays.items():
        if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(value)):
            continue

        def total(value, name=name):
            result = record.function(**{**arrays, name: value}, **case.options)
            return jnp.sum(result * jnp.linspace(0.5, 1, result.size).reshape(result.shape))

        if name in record.wrt:  # and is not silently constant: see the transformations
            jax.eval_shape(jax.grad(total), value)
        else:
            with pytest.raises(TypeError, match=f"no derivative with respect to '{name}'"):
                jax.eval_shape(jax.grad(total), value)


@ALL
def test_every_formula_can_be_evaluated_in_arbitrary_precision(record):
    case = record.domain.case(np.random.default_rng(0), "unit", record.domain.options[0], B=2, K=3, J=2, D=2)
    arrays = {n: v for n, v in case.cast(np.float64).items() if n in case.arrays}
    formula = Formula(lambda arrays: record.oracle(**arrays, **case.options), arrays)
    with jax.enable_x64(True):
        expected = record.oracle(**arrays, **case.options)
    got, _ = formula.truth(arrays)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)
