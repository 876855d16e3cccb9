"""The benchmarks: which batches a record is measured on, and what the report makes of rows."""

import json

import pytest

from benchmarks import core, peers, report
from benchmarks.__main__ import results_file
from xentjax.core.op import ops

MACHINE = {
    "kind": "machine", "device": "cpu-1core", "platform": "cpu", "name": "a processor", "cores": 1, "python": "3.11",
    "copy_bytes_per_s": 5e10, "matmul_flop_per_s": {"float32": 1e11}, "versions": {"jax": "0.10"}, "commit": "abc",
    "date": "2026-01-01T00:00:00",
}  # fmt: skip


def row(record, ratio, *, sizes, dtype="float32", mode="value", batch="plain", peer="jax"):
    others = {name: {"ours_over_this": ratio, "temp_bytes": 2**20} for name in (peer, "plain formula")}
    implementations = {"xentjax": {"temp_bytes": 2**21}, **others}
    fixed = {"kind": "row", "record": record, "variant": "", "implementations": implementations}
    return {**fixed, "batch": batch, "sizes": sizes, "dtype": dtype, "mode": mode}


def test_functions_of_logits_are_measured_on_dominated_batches_too():
    for name in ("softmax", "softmax_cross_entropy", "sigmoid_cross_entropy", "entropy_from_logits"):
        assert all(variant.batches == ("plain", "dominated") for variant in peers.variants(name))
    for name in ("kl_divergence_from_logits", "js_divergence_from_logits"):
        assert peers.variants(name)[0].batches == ("plain", "dominated")
    assert peers.variants("kl_divergence")[0].batches == ("plain",)


def test_every_public_record_is_measured_by_value_and_where_it_has_one_by_gradient():
    found = {}
    for task in core.tasks(elements=64, quick=True):
        found.setdefault(task.labels["record"], set()).add(task.labels["mode"])
    assert set(found) == {record.name for record in ops() if record.public and not record.is_whole}
    assert all("value" in modes for modes in found.values())
    for name in ("logistic_loss", "softmax_cross_entropy", "kl_divergence", "entropy"):
        assert found[name] == {"value", "value_and_grad"}


def test_results_have_their_name_when_they_are_whole(tmp_path):
    def stopped():
        with results_file(tmp_path) as write:
            write({"kind": "machine"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["core.jsonl.partial"]
    with results_file(tmp_path) as write:
        write({"kind": "machine"})
        write({"kind": "row"})
    assert [path.name for path in tmp_path.iterdir()] == ["core.jsonl"]
    assert [json.loads(line)["kind"] for line in (tmp_path / "core.jsonl").open()] == ["machine", "row"]


def test_the_readme_has_a_line_for_each_function_that_is_measured_on_plain_batches_alone():
    rows = [
        *(row("softmax", 0.5, sizes={"B": 10, "K": 1024}, batch=batch) for batch in ("plain", "dominated")),
        row("entropy", 0.25, sizes={"B": 99, "K": 10}),
        row("entropy", 0.75, sizes={"B": 9, "K": 1024}),
        row("entropy", 0.8, sizes={"B": 9, "K": 1024}, mode="value_and_grad"),
        row("entropy", 0.6, sizes={"B": 9, "K": 1024}, dtype="bfloat16"),
        row("joint_entropy", 1.5, sizes={"J": 32, "K": 32}, peer="plain formula"),
    ]
    section = report.readme_section(report.Results(MACHINE, tuple(rows)))
    lines = section.splitlines()
    assert f"3 of {sum(record.public and not record.is_whole for record in ops())} functions." in section
    assert "| `softmax` | jax | float32 | 0.50 |" in lines
    assert "| `entropy` | jax | B=9 K=1024 | 0.75 / 0.80 | 0.60 |" in lines
    assert "| `joint_entropy` | plain formula | J=32 K=32 | 1.50 | – |" in lines
