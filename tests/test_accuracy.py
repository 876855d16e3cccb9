"""The accuracy sweep, and the units it counts in."""

import json

import mpmath
import numpy as np
import pytest
import ulp as independent

from xentjax import accuracy, peers, sweep
from xentjax.core import ulp
from xentjax.core.domains import Domain, Logit, Logits, Probabilities
from xentjax.core.op import ops


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_spacing_is_the_distance_to_the_next_number(dtype):
    import ml_dtypes

    kind = np.dtype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16).type
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(kind).itemsize]
    smallest = np.array(1, bits).view(kind)
    for x in (1.0, 1.5, 0.75, 3.0e-2, 1000.0):
        here = kind(x)
        after = (here.view(bits) + bits(1)).view(kind)
        assert ulp.spacing(float(here), dtype) == float(after) - float(here)
    assert ulp.spacing(0.0, dtype) == float(smallest)


def test_deviation_counts_overflow_and_equal_infinities_as_right():
    got = np.array([np.inf, np.inf, np.nan, 1.0, -np.inf])
    truth = np.array([1e39, np.inf, np.nan, 1.0, 1e39])
    error = ulp.deviation(got, truth, np.zeros(5), np.float32)
    np.testing.assert_array_equal(error, [0, 0, 0, 0, np.inf])


def test_deviation_sees_below_the_last_bit_of_the_truth():
    assert ulp.deviation(1.0, 1.0, 2.0**-54, np.float64) == 2.0**-54


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_contract_is_that_of_the_tests_own_ruler(dtype):
    np.testing.assert_allclose(ulp.allowed([2.0, 1.0, np.exp(-10)]), [4, 4, 14])
    sizes = [2.0**k * f for k in (-160, -126, -30, -14, -1, 0, 1, 10) for f in (1.0, 1.25, 1.999)]
    for size in sizes:
        assert ulp.spacing(size, dtype) == float(independent.ulp(size, dtype))
        if dtype in ("float32", "float64"):
            assert float(ulp.allowed(size)) == pytest.approx(float(independent.allowed_ulp(size, dtype)), rel=1e-12)
    assert float(independent.allowed_ulp(1.0, "float16")) == ulp.ROUNDED_ONCE


def test_only_entropies_may_lose_more_to_underflow_than_a_smallest_number_for_each_entry():
    more = {record.name: record.underflow for record in ops() if record.underflow != 1}
    assert more == {"entropy": 200, "entropy_from_logits": 200}
    tiny = float(np.finfo(np.float32).tiny)
    assert ulp.tolerance(0.0, 0.0, 7, np.float32) == pytest.approx(7 * tiny, rel=1e-4)


def test_what_is_near_another_argument_is_of_its_kind():
    domain = Domain(logits=Logits("B K"), labels=Probabilities("B K"), other=Logits("B K"))
    case = domain.case(np.random.default_rng(0), "near").arrays
    np.testing.assert_allclose(case["labels"].sum(-1), 1)
    assert 0 < np.max(np.abs(case["other"] - case["logits"])) < 1e-2


def test_single_logits_are_infinite_in_the_corner_and_zero_among_the_ties():
    domain = Domain(logit=Logit("B"))
    for size in (2, 7):
        corner, ties = (domain.case(np.random.default_rng(0), s, B=size).arrays["logit"] for s in ("corner", "ties"))
        assert {-np.inf, np.inf} <= set(corner)
        assert 0 in ties


@pytest.fixture(scope="module")
def table():
    return accuracy.measure(["logistic", "entropy_from_logits"], ("bfloat16", "float32", "float64"), quick=True)


def test_the_library_is_within_its_contract_on_a_few_inputs(table):
    assert table.passed, str(table)
    assert all(row.compared > 0 for row in table.rows)


def test_peers_stand_beside_it_on_the_same_inputs(table):
    cells = {(r.record, r.library, r.quantity): r for r in table.rows if r.dtype == "float32"}
    own, jax_idiom = (cells["entropy_from_logits", library, "value"] for library in ("xentjax", "jax"))
    assert own.compared + own.skipped > jax_idiom.compared + jax_idiom.skipped > 0  # it alone is run with options, too
    assert own.within
    assert not jax_idiom.within


def test_tables_for_people_and_machines(table):
    assert json.loads(table.to_json())["rows"][0]["record"] == "logistic"
    lines = table.to_markdown().splitlines()
    assert lines[0].startswith("| function | bfloat16 | float32 | float64 | jax, float32")
    assert [line.split("`")[1] for line in lines[2:4]] == ["logistic", "entropy_from_logits"]
    assert lines[-1] == "The contract is kept everywhere: 12 worst cases of xentjax compared."
    assert "entropy_from_logits" in str(table)


def test_every_option_set_is_swept_and_float32_is_compared_with_arbitrary_precision(monkeypatch):
    labels, exact = [], []
    add, truth = sweep.Sweep.add, sweep.Sweep.exact
    monkeypatch.setattr(sweep.Sweep, "exact", lambda self, *a: exact.append(self.number) or truth(self, *a))
    monkeypatch.setattr(
        sweep.Sweep, "add", lambda self, lib, label, *rest: labels.append(label) or add(self, lib, label, *rest)
    )
    monkeypatch.setattr(sweep, "SITUATIONS", ("unit",))
    assert accuracy.measure("tsallis_entropy", ("float32",), quick=True).passed
    assert set(exact) == {0, 1, 2, 3}
    for option in ("alpha=2.0", "alpha=0.5, keepdims=True", "alpha=1.0", "alpha=5.0, axis=0"):
        assert any(option in label for label in labels), option


def test_many_entries_are_compared_with_arbitrary_precision_by_a_row():
    (record,) = (r for r in ops() if r.name == "entropy_from_logits")
    worst: dict = {}
    swept = sweep.Sweep(record, 0, ("float64",), 0, False, worst)
    case = record.domain.case(np.random.default_rng(0), "unit", K=2000, B=1)
    swept.of_case("unit", case)
    assert worst["xentjax", "gradient", "float64"].compared == 2000
    assert 0 < worst["xentjax", "gradient", "float64"].ratio <= 1


def test_what_is_not_measured_is_said_to_be():
    row = accuracy.AccuracyRow("f", "xentjax", "value", "float64", 1.0, 4.0, True, 3, 0, "")
    lines = accuracy.AccuracyTable([row], 0.0).to_markdown().splitlines()
    assert lines[2] == "| `f` | 1 / not measured |"


def test_sixteen_bit_numbers_are_taken_exhaustively():
    (record,) = (r for r in ops() if r.name == "logistic")
    worst = {}
    swept = sweep.Sweep(record, 0, ("float16",), 0, False, worst)
    (kind,) = record.domain.kinds.values()
    numbers = sweep.every("float16", kind)
    assert numbers.size == 2**16 - 2 * 2**10  # all but infinities and NaN
    swept.one("every number", ["float16"], {"z": numbers}, exactly=False)
    assert worst["xentjax", "value", "float16"].ratio <= 1
    x = np.float16(-5.3)
    with mpmath.workdps(30):
        true = float(1 / (1 + mpmath.exp(-float(x))))
    assert abs(float(record.function(x)) - true) <= 0.51 * ulp.spacing(true, "float16")


def test_every_peer_belongs_to_a_record():
    names = {record.name for record in ops()}
    assert set(peers.JAX) | set(peers.OPTAX) <= names


def test_every_peer_of_torch_belongs_to_a_record():
    pytest.importorskip("torch")
    assert set(peers.torch_functions()) <= {record.name for record in ops()}


def test_a_name_that_is_no_record_is_refused():
    with pytest.raises(ValueError, match="no record is named 'sotfmax'"):
        accuracy.measure("sotfmax")
