"""The benchmark of scaling: what travels is what is predicted, in compiled programs and between processes."""

import json
import math

import jax
import pytest

from benchmarks.scale import paper, report, run
from benchmarks.scale.problems import Head, Newton, sent


@pytest.mark.parametrize("problem", run.QUICK, ids=lambda problem: problem.name)
def test_what_a_compiled_program_sends_is_what_is_predicted(problem):
    for parts in (2, 8):
        compiled, _ = problem.program(run._mesh(parts))
        assert sent(compiled.as_text()) == problem.predicted


def test_bytes_of_collectives_are_counted():
    text = (
        "%a = (f32[4,2]{1,0}, s32[]) all-reduce(%x, %y)\n%b = bf16[8]{0} all-gather-start(%z)\n%c = f32[9]{0} add(%a)"
    )
    assert sent(text) == 4 * 8 + 4 + 2 * 8


def test_processes_send_what_a_ring_has_to(tmp_path):
    row = run._of_processes(0, "weak", 2, 0.2, quick=True)
    assert (row["parts"], row["over"], row["sizes"]) == (2, "processes", {"n": 2000, "d": 20})
    assert row["compiled_bytes"] == row["predicted_bytes"] == 4 * (1 + 21 + 21**2)
    # Besides the numbers there are headers, and what processes tell each other to begin together.
    assert row["ring_bytes"] == 2 * row["compiled_bytes"]
    assert row["ring_bytes"] <= row["network_bytes"] <= row["ring_bytes"] + 64_000


def test_the_report_has_every_problem_and_the_sum_of_its_parts(tmp_path):
    row = run._Repeated(Newton(64, 3), 2)
    row.times.append(0.25)
    written = [
        {"kind": "machine", "cores": 2, "name": "one", "commit": "c", "date": "d", "versions": {}, "python": "3"}
    ]
    path = tmp_path / "scale.jsonl"
    path.write_text("\n".join(map(json.dumps, [*written, row.row("devices", "strong")])))
    text = report.sections([path])
    assert "| newton, n = 64, d = 3 | strong | devices |" in text
    assert "H200" in text
    for step in (paper.newton(8, 10**9, 100), paper.head(64, 65_536, 4096, 128_256)):
        assert math.isclose(step.total, max(step.memory, step.products) + step.sent)


def test_times_on_paper_are_those_of_bytes_over_rates():
    cluster = paper.Cluster(start_in_node=0, start_between=0)
    size = 1e9
    assert cluster.all_reduce(size, 1) == 0
    assert math.isclose(cluster.all_reduce(size, 8), 2 * 7 / 8 * size / 450e9)
    assert math.isclose(cluster.all_reduce(size, 16), 2 * 7 / 8 * size / 450e9 + 2 * 1 / 2 * size / 8 / 50e9)
    step = paper.newton(8, 8_000_000, 99, cluster)
    assert math.isclose(step.memory, 1e6 * 99 * 4 / 4.3e12)
    assert math.isclose(step.products, 1e6 * 2 * 100**2 / 50e12)


def test_weak_scaling_begins_with_an_eighth():
    assert run._scaled(Newton(800, 3), "weak", 2) == Newton(200, 3)
    assert run._scaled(Head(8, 4, 64), "weak", 8) == Head(8, 4, 64)
    assert run._scaled(Head(8, 4, 64), "strong", 8) == Head(8, 4, 64)
    assert jax.device_count() == 8
