"""The benchmark of linear cross-entropy: its truth, counts, stages at toy sizes, table of blocks, and report."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import __main__ as command
from benchmarks import aims, harness
from benchmarks.linear import blocks, checks, counts, methods, problems, report, stages, suite, sweep, truth
from benchmarks.linear.problems import Shape
from benchmarks.machine import Machine
from xentjax.losses.linear import STRATEGIES, Plan

pytestmark = pytest.mark.usefixtures("compiled_fast")

MACHINE = Machine(
    device="cpu-2core", platform="cpu", name="a processor", cores=2, copy_bytes_per_s=5e10, python="3.11",
    matmul_flop_per_s={"float32": 1e11, "bfloat16": 1e11}, versions={"jax": "0.10"}, commit="abc",
    date="2026-01-01T00:00:00",
)  # fmt: skip


# -- what is measured --------------------------------------------------------------------------------------------------


def test_draws_are_normal_and_the_same_again():
    shape = Shape(200, 50, 300)
    x, w, labels = problems.draw(shape, "float32")
    again = problems.draw(shape, "float32")
    assert all(np.array_equal(a, b) for a, b in zip((x, w, labels), again, strict=True))
    logits = x @ w
    assert logits.std() == pytest.approx(1, abs=0.05)
    assert (x != 0).all()
    assert (w != 0).all()
    assert ((labels >= 0) & (labels < 300)).all()
    rounded = problems.draw(shape, "bfloat16")[0]
    assert np.array_equal(rounded, x.astype(jnp.bfloat16))
    assert not np.array_equal(problems.tangents(shape, "float32")[0], x)


def test_parts_of_a_draw_are_of_every_row():
    few = problems.normal((3, 4), 1.0, "float32", "fewer rows than parts")
    assert (few != 0).all()


def test_the_truth_is_that_of_sums_in_the_order_of_the_definition():
    x, w, labels = problems.draw(Shape(7, 5, 11), "float32")
    found = truth.truth(x, w, labels)
    logits = x.astype(float) @ w.astype(float)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(7), labels]).mean()
    excess = (p - np.eye(11)[labels]) / 7
    assert found.loss == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(found.dx, (excess @ w.T)[found.tokens], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.dw, x.T @ excess, rtol=1e-12, atol=1e-15)


def test_the_truth_in_parts_is_the_truth(monkeypatch):
    x, w, labels = problems.draw(Shape(40, 6, 30), "float32")
    whole = truth.truth(x, w, labels)
    monkeypatch.setattr(truth, "HELD", 7 * 30)
    parts = truth.truth(x, w, labels)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-15)
    np.testing.assert_allclose(parts.dx, whole.dx, atol=1e-16)
    np.testing.assert_allclose(parts.dw, whole.dw, atol=1e-16)


def test_classes_that_are_compared_have_both_ends_and_labels():
    shape = Shape(5000, 4, 100_000)
    labels = problems.labels(shape)
    tokens, classes = truth.places(shape, labels)
    assert {0, 4999} <= set(tokens)
    assert {0, 1, 99_998, 99_999, *labels[:1000]} <= set(classes)
    assert len(tokens) == 256
    assert len(classes) <= 4096


def test_a_gradient_without_its_smallest_columns_is_found_by_the_worst_class():
    x, w, labels = problems.draw(Shape(50, 8, 64), "float32")
    true = truth.truth(x, w, labels)
    loss, dx, dw = true.loss, true.dx, true.dw.copy()
    small = np.linalg.norm(dw, axis=0).argmin()
    dw[:, small] = 0
    wrong = truth.errors((loss, dx, dw), true)
    assert wrong["loss_error"] == wrong["dx_error"] == wrong["dx_max_error"] == 0
    assert wrong["class_error"] == 1
    assert wrong["dw_error"] < 0.1
    assert np.isnan(truth.errors((loss, dx, dw * np.nan), true)["class_error"])


def test_counts():
    shape = Shape(4096, 4096, 128256)
    assert counts.product_flop(shape) == 2 * 4096 * 4096 * 128256
    # 16.34 ms at 790 TFLOP/s, where 2.17 GB take 0.504 ms at 4.3 TB/s.
    assert counts.least_flop(shape, "value_and_grad") / 790e12 == pytest.approx(16.34e-3, rel=1e-3)
    assert counts.least_bytes(shape, "value_and_grad", 2) / 4.3e12 == pytest.approx(0.5043e-3, rel=1e-3)
    few = Shape(8192, 64, 10)
    moved = 4 * (8192 * 64 + 64 * 10)
    assert counts.least_bytes(few, "value", 4) == moved + 4 * 8192
    assert counts.least_bytes(few, "value_and_grad", 4) == 2 * moved + 4 * 8192


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_compared_is_right(dtype):
    """Ours, and the formula with all logits. Peers that are installed run, right or wrong: their errors are shown."""
    shape = Shape(24, 16, 130)
    arguments = problems.draw(shape, dtype)
    true = truth.truth(*arguments)
    for mode in ("value", "value_and_grad"):
        task = suite.task(shape, dtype, mode, arguments, true)
        found = harness.run_all(task, 1, 0.0)
        for name, run in found.items():
            if name.startswith(("xentjax", "optax")):
                assert max(run.errors.values()) < (1e-5 if dtype == "float32" else 3e-2), name


def test_products_alone_are_those_of_a_gradient():
    x, w, labels = (jnp.asarray(a) for a in problems.draw(Shape(48, 6, 40), "float32"))
    for rows in (None, 32):
        run, program = methods.products("value_and_grad", rows).compile((x, w, labels))
        first, second = run(x, w, labels)
        dx, dw = (first, second) if rows is None else (second.reshape(48, 6), first)
        np.testing.assert_allclose(dx, x @ w @ w.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(dw, x.T @ (x @ w), rtol=1e-4, atol=1e-4)
        assert program.temp_bytes > 0


# -- the harness -------------------------------------------------------------------------------------------------------


def test_a_peer_may_fail_and_ours_may_not():
    def broken(x):
        raise NotImplementedError("not here\nsecond line")

    double = harness.jax_implementation("xentjax", lambda x: 2 * x)
    task = harness.Task(
        labels={"dtype": "float32"},
        arguments=(np.ones(8, np.float32),),
        implementations=(double, harness.jax_implementation("peer", broken, may_fail=True)),
        moved=lambda result: 32 + result.nbytes,
    )
    row = harness.measure(task, MACHINE, seconds=0)
    assert row["implementations"]["peer"] == {"failed": "NotImplementedError: not here"}
    assert row["bytes"] == 64
    ours = harness.Task({"dtype": "float32"}, task.arguments, (harness.jax_implementation("ours", broken),), task.moved)
    with pytest.raises(NotImplementedError):
        harness.measure(ours, MACHINE, seconds=0)


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """One small shape, and neither tokamax nor jax-cce, which take long to load and to compile."""
    monkeypatch.setattr(methods, "is_installed", lambda module: False)
    monkeypatch.setattr(stages, "TINY", (Shape(20, 16, 100),))
    monkeypatch.setattr(checks, "TINY_CASES", ((Shape(9, 5, 33), "bfloat16"),))
    monkeypatch.setattr(sweep, "TINY", (16,))


@pytest.mark.thorough
def test_all_stages_at_toy_size_and_their_report(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "settle", lambda device: None)
    folder = tmp_path / "nvidia-h200"
    assert command.main(["linear", "--tiny", "--out", str(folder)]) == 0
    loaded = report.load(folder / "linear.jsonl")
    assert {row["kind"] for row in loaded.rows} == {"skipped", "check", "row", "block"}
    assert all(row["passed"] for row in loaded.of("check"))
    printed = capsys.readouterr().out
    assert printed.count(": passed; ") == len(loaded.of("check"))
    assert report.write(folder / "linear.jsonl") == ["linear.md", "linear.png"]
    page = (folder / "linear.md").read_text()
    for heading in ("Softmax cross-entropy on given logits", "Checks before timing", "Block sizes", "Left out"):
        assert f"## {heading}" in page
    assert "## N = 20, D = 16, V = 100, bfloat16, value_and_grad" in page
    assert "| 20, 16, 100 | bfloat16 | " in report.readme_section(loaded)


def test_a_failed_check_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(command, "settle", lambda device: None)
    monkeypatch.setattr("benchmarks.machine.measure_machine", lambda *_, **__: MACHINE)
    failed = {"kind": "check", "name": "a case", "passed": False, "moving": 0.5, "errors": {"dx_error": 0.1}}
    failed["errors_of_dense"] = {"dx_error": 0.01}
    monkeypatch.setattr(stages, "rows", lambda *_: iter([failed]))
    assert command.main(["linear", "--tiny"]) == 1
    assert "a case: FAILED; dx_error 1.0e-01, of the dense formula 1.0e-02; moves by 0.5" in capsys.readouterr().out


def test_a_stage_ends_with_its_time():
    rows = ({"kind": "check"} for _ in range(3))
    found = list(stages.within(stages.Clock(time.perf_counter() - 1), "checks", rows))
    assert [row["kind"] for row in found] == ["check", "skipped"]
    assert "'checks'" in found[1]["name"]
    rows = ({"kind": "check"} for _ in range(3))
    assert len(list(stages.within(stages.Clock(time.perf_counter() + 60), "checks", rows))) == 3
    assert sum(stages.SECONDS.values()) <= 520


def test_a_suite_may_be_measured_in_parts(tmp_path):
    """Rows of other places stay, if they are of the same machine and versions."""
    machine = {"kind": "machine", "name": "a processor", "versions": {"jax": "0.12"}}
    places = [((8192, 64, 10), "value"), ((8192, 64, 10), "value_and_grad"), ((4096, 256, 8192), "value")]
    rows = [
        {"kind": "row", "suite": "linear", "sizes": Shape(*sizes).sizes, "dtype": "float32", "mode": mode}
        for sizes, mode in places
    ]
    assert suite.kept(tmp_path, machine, "8192,64,10") == []
    (tmp_path / "linear.jsonl").write_text("\n".join(map(json.dumps, [machine, *rows])))
    assert suite.kept(tmp_path, machine, "8192,64,10") == rows[2:]
    assert suite.kept(tmp_path, machine, "8192,64,10 float32 value$") == rows[1:]
    with pytest.raises(SystemExit, match="other versions: measure all of it"):
        suite.kept(tmp_path, {**machine, "versions": {"jax": "0.13"}}, "8192,64,10")


def test_a_wrong_gradient_and_a_moving_one_fail_their_check(monkeypatch):
    calls = iter(range(100))

    def wrong(x, w, labels):
        return 1.01 * optax.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean()

    def moving(x, w, labels):
        turn = jax.pure_callback(lambda: np.float32(1e-3 * next(calls)), jax.ShapeDtypeStruct((), jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean() + turn

    right = lambda x, w, labels: optax.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean()
    listed = [methods.Method(n, loss, is_ours=n != "optax") for n, loss in
              (("wrong", wrong), ("moving", moving), ("right", right), ("optax", right))]  # fmt: skip
    monkeypatch.setattr(checks.methods, "methods", lambda dtype, in_stages: listed)
    monkeypatch.setattr(checks, "TINY_CASES", ((Shape(9, 5, 33), "float32"),))
    found = {row["name"].split(", ")[-1]: row for row in checks.rows(tiny=True)}
    assert {name: row["passed"] for name, row in found.items()} == {"wrong": False, "moving": False, "right": True}
    assert found["moving"]["moving"] > 0
    assert found["wrong"]["moving"] == 0


# -- the table of blocks -----------------------------------------------------------------------------------------------


def entry(milliseconds, **rest):
    fixed = {"device": "card", "dtype": "bfloat16", "n": 8, "d": 4, "v": 100, "strategy": "recompute"}
    return blocks.Entry(**{**fixed, "block": 32, "chunk": None, "milliseconds": milliseconds, **rest})


def test_the_table_keeps_the_fastest_of_each_key_and_the_newest_measurement(tmp_path):
    old = [entry(1.0, block=16), entry(9.0, strategy="dense", block=None)]
    measured = [entry(3.0), entry(2.0, block=64), entry(2.5, block=128), entry(4.0, device="other")]
    table = blocks.merged(old, measured)
    assert set(table) == {measured[1], measured[3], old[1]}
    path = tmp_path / "blocks.json"
    blocks.write(table, path)
    assert set(blocks.read(path)) == set(table)
    assert blocks.read(tmp_path / "none.json") == []
    assert len(path.read_text().splitlines()) == 2 + len(table)
    assert path.read_text() == (blocks.write(reversed(table), path), path.read_text())[1]


def test_blocks_of_a_sweep_that_was_measured_elsewhere(tmp_path, capsys):
    results, table = tmp_path / "linear.jsonl", tmp_path / "blocks.json"
    rows = [{"kind": "machine"}, {"kind": "block", "temp_bytes": 5, **vars(entry(2.0))}, {"kind": "check"}]
    results.write_text("\n".join(map(json.dumps, rows)))
    assert command.main(["blocks", "--measured", str(results), "--table", str(table)]) == 0
    assert blocks.read(table) == [entry(2.0)]


def test_what_is_tried():
    found = sweep.candidates(Shape(300, 8, 3000), on_cpu=True)
    assert sweep.Candidate("dense") in found
    assert sweep.Candidate("recompute", block=2048) in found
    assert sweep.Candidate("recompute", block=4096) not in found
    assert sweep.Candidate("gradient_in_forward", chunk=512) not in found
    assert {candidate.strategy for candidate in found} == set(STRATEGIES)
    assert sweep.Candidate("recompute", block=2048).plan == Plan("recompute", block=2048)
    assert sweep.Candidate("dense").plan == "dense"
    assert {candidate.kernels for candidate in found} == {"xla"}
    found = sweep.candidates(Shape(300, 8, 3000), on_cpu=False)
    assert [c.plan for c in found if c.kernels == "mosaic"] == [
        Plan(strategy, kernels="mosaic") for strategy in methods.KERNEL_STRATEGIES
    ]


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the kernels need jax 0.12 or later")
def test_kernels_take_part_where_they_are_for_the_problem(monkeypatch):
    """And their numbers are compared with XLA's before they are timed."""
    shape = Shape(48, 64, 576)
    named = [f"xentjax {strategy}, kernels" for strategy in methods.KERNEL_STRATEGIES]
    assert [method.name for method in methods.by_kernels(shape, "bfloat16")] == named
    assert not list(methods.by_kernels(shape, "float32"))
    monkeypatch.setattr(sweep, "STRATEGIES", ("recompute",))
    row = list(sweep.rows([shape], ["bfloat16"], 0.01, tiny=True))[-1]
    assert (row["kind"], row["kernels"], row["block"]) == ("block", "mosaic", None)
    assert blocks.of_rows([row])[0].kernels == "mosaic"
    wrong = jax.tree.map(jnp.zeros_like, sweep._by_xla(problems.draw(shape, "bfloat16")))
    monkeypatch.setattr(sweep, "_by_xla", lambda arguments: wrong)
    row = list(sweep.rows([shape], ["bfloat16"], 0.01, tiny=True))[-1]
    assert row["kind"] == "skipped"
    assert "from XLA's" in row["why"]


def test_kernels_that_fail_do_not_end_the_checks(monkeypatch):
    def broken(x, w, labels):
        raise NotImplementedError("not on this card")

    of_kernels = methods.Method("kernels", broken, is_ours=True, may_fail=True)
    listed = [methods.Method("optax", methods._dense)]
    monkeypatch.setattr(checks.methods, "methods", lambda dtype, in_stages: listed)
    monkeypatch.setattr(checks.methods, "by_kernels", lambda shape, dtype: [of_kernels])
    monkeypatch.setattr(checks, "TINY_CASES", ((Shape(9, 5, 33), "float32"),))
    (row,) = checks.rows(tiny=True)
    assert row["kind"] == "skipped"
    assert "not on this card" in row["why"]


# -- the report --------------------------------------------------------------------------------------------------------


def method(seconds, ratio=None, memory=2**20, **rest):
    row = {"run_s": seconds, "p20_s": seconds, "p80_s": seconds, "temp_bytes": memory, "copy_share": 0.1}
    return row | {"matmul_share": 0.9} | ({} if ratio is None else {"ours_over_this": ratio}) | rest


def row(sizes, dtype, mode, implementations, suite="linear"):
    place = {"sizes": dict(zip("NDV", sizes, strict=False)), "dtype": dtype, "mode": mode}
    return {"kind": "row", "suite": suite, **place, "implementations": implementations}


def results(*rows):
    return report.Results("cpu-2core", MACHINE.to_json(), rows)


def test_the_readme_names_the_fastest_peer_and_the_aims_that_are_missed():
    found = {"xentjax": method(0.9, dw_error=3e-3), "xentjax recompute": method(0.8, 1.125), "optax": method(1.0, 0.9)}
    found |= {"jax-cce": method(0.5, 1.8), "broken": {"failed": "OOM"}, methods.PRODUCTS: method(0.1, 9.0)}
    one = row((2048, 512, 32768), "bfloat16", "value_and_grad", found)
    section = report.readme_section(results(one))
    line = "| 2,048, 512, 32,768 | bfloat16 | 900 | 1,000 | 0.90 | jax-cce 1.80 | 1.0 | 1.0 | 3.0e-03 | – |"
    assert line in section.splitlines()
    assert "xentjax: 0.90 of optax, aim 0.70: " in section
    assert "xentjax: 1.80 of jax-cce, aim 1.00: " in section
    same = row((2048, 512, 32768), "float32", "value_and_grad", found | {"jax-cce": method(1.0, 0.9)})
    assert "aim" not in report.readme_section(results(same))
    value = row((2048, 512, 32768), "float32", "value", {"xentjax": method(0.2), "optax": method(0.4, 0.5)})
    both = report.readme_section(results(same, value))
    assert "| 2,048, 512, 32,768 | float32 | 200 / 900 | 400 / 1,000 | 0.50 / 0.90 | – / jax-cce 0.90 |" in both


def test_aims_of_memory_and_of_copies():
    big = {"xentjax": method(0.02, memory=2**31), "xentjax recompute": method(0.02, 1.0, memory=2**20)}
    one = row((4096, 4096, 128256), "bfloat16", "value", big)
    given = row((8192, 131072), "bfloat16", "value", {"xentjax": method(1e-3, copy_share=0.5)}, "given logits")
    lines = list(report.missed(results(one, given)))
    assert [line.split(", aim")[0].split("xentjax: ")[1] for line in lines] == ["2048.00 MiB", "2.00 of copies"]


def test_methods_of_another_process_are_compared_by_the_products_alone():
    mine = {"xentjax": method(4.0), methods.PRODUCTS: method(2.0, 2.0)}
    theirs = {methods.PRODUCTS: method(3.0), "torch": method(12.0, products_over_this=0.25)}
    place = ((8, 4, 16), "bfloat16", "value_and_grad")
    (joined,) = report.joined(results(row(*place, mine), row(*place, theirs, "linear, torch")))
    # Twice the products, where torch takes four times as long as they do.
    assert joined["implementations"]["torch"]["ours_over_this"] == 0.5
    assert joined["implementations"][f"{methods.PRODUCTS}, torch"]["run_s"] == 3.0


def test_every_aim_is_of_a_place_that_is_measured():
    known = {(s.n, s.d, s.v) for s in (*problems.CPU, *problems.GPU)} | {(8192, 131072)}
    assert {aim.sizes for aim in aims.LINEAR_AIMS} - {None} <= known
