"""The closed forms of derivatives in the check: right ones pass, and whatever is planted into them is found."""

import jax
import jax.numpy as jnp
import pytest

from xentjax.core.check import check_records, checkable
from xentjax.core.closed_forms import all_closed_forms
from xentjax.models import _rows, closed_form, one_pass
from xentjax.models.scaling import Scaling

pytestmark = pytest.mark.usefixtures("compiled_fast")

#: The Hessian, and its products with a direction.
SECOND = {"logistic_hvp", "logistic_hessian", "hvp", "linearized", "value_gradient_hessian"}
SECOND |= {"hessian_diagonal", "hessian_blocks"}
FIRST = {"logistic_gradient", "gradient", "slope"}
#: What has no product of its own with a direction.
MATRICES = {"logistic_hessian", "value_gradient_hessian", "hessian_diagonal", "hessian_blocks"}


#: What has scaled features.
OF_OBJECTIVE = (FIRST | SECOND | {"value"}) - {"logistic_gradient", "logistic_hvp", "logistic_hessian"}


def checked(dtypes=("float64",)):
    return check_records([forms.name for forms in all_closed_forms()], dtypes=dtypes, timed=False)


@pytest.fixture
def failed_with(monkeypatch):
    """The forms that fail with something of the derivation replaced, all that was compiled before being forgotten."""

    def check(owner, name, replacement):
        monkeypatch.setattr(owner, name, replacement(getattr(owner, name)))
        jax.clear_caches()
        return {row.order for row in checked().rows if not row.passed}

    yield check
    jax.clear_caches()


def test_every_closed_form_passes_in_every_dtype():
    table = checked(("bfloat16", "float16", "float32", "float64"))
    assert table.passed, str(table)
    assert {row.order for row in table.rows} == SECOND | FIRST | {"value"}
    assert set(checkable()) >= {row.record for row in table.rows}


def test_a_wrong_factor_in_a_form_is_found_in_its_row(monkeypatch):
    for forms in all_closed_forms():
        for name, form in forms.forms.items():
            wrong = lambda *a, f=form.function, **k: jax.tree.map(lambda leaf: leaf * 1.001, f(*a, **k))
            monkeypatch.setitem(forms.forms, name, form._replace(function=wrong))
    assert not any(row.passed for row in checked().rows)


def without_centering(right):
    """P∘(v - ⟨P, v⟩) without the mean."""

    def product(curvature, direction, data):
        back = lambda block: one_pass.back(block, block.y * block.z)
        return one_pass.over_blocks(back, direction, data._replace(y=curvature, offset=None))

    return product


def without(argument):
    """The arguments of a loss but one."""

    def replaced(right):
        names = ("function", "params", "x", "y", "l2", "weights", "offset")
        return lambda *given: right(
            *(None if n == argument else g for n, g in zip(names, given, strict=False)), *given[7:]
        )

    return replaced


PLANTED = {
    "the penalty's curvature, doubled": (
        *(closed_form, "_penalty_curvature", lambda right: lambda a: 2 * right(a)),
        MATRICES,
    ),
    "the penalty's gradient, by one factor for all features": (
        *(_rows, "pull", lambda right: lambda l2, weights: jnp.mean(l2) * weights),
        FIRST | {"value", "logistic_hvp", "hvp", "linearized"},
    ),
    "P - P² of a class without the square": (
        *(one_pass, "_own_variance", lambda right: lambda p: p),
        MATRICES,
    ),
    "ŷ(1 - ŷ) without the second factor": (
        *(one_pass, "logistic_derivative", lambda right: jax.nn.sigmoid),
        MATRICES | {"linearized"},
    ),
    "products of the kept curvature without the mean": (
        *(one_pass, "product_of_curvature", without_centering),
        {"linearized"},
    ),
    "the residual with one part in a thousand more": (
        *(_rows, "slopes", lambda right: lambda z, y: (lambda loss, r, t: (loss, 1.001 * r, t))(*right(z, y))),
        FIRST | {"hvp", "logistic_hvp"},
    ),
    "the mean of the features not taken off": (
        *(Scaling, "apply", lambda right: lambda self, x: x * self.inverse),
        OF_OBJECTIVE,
    ),
    "the penalty in units of scaled features": (
        *(Scaling, "penalty", lambda right: lambda self, l2: l2 * self.inverse),
        OF_OBJECTIVE,
    ),
    "the weights of the rows left out": (*(closed_form, "checked", without("weights")), FIRST | SECOND | {"value"}),
    "the offset left out": (*(closed_form, "checked", without("offset")), FIRST | SECOND | {"value"}),
    "half of the sum of a row's targets": (
        *(one_pass, "_total", lambda right: lambda block: right(block) / 2),
        MATRICES,
    ),
}


@pytest.mark.parametrize("error", PLANTED)
def test_errors_planted_into_the_derivation_are_found(error, failed_with):
    owner, name, replacement, found = PLANTED[error]
    assert failed_with(owner, name, replacement) == found
