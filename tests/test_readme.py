"""The README: its Python runs, its commands exist, and its generated parts are up to date."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import language_report, readme, regression_report, report, stream_report
from benchmarks.linear import report as linear_report
from benchmarks.scale import report as scale_report
from benchmarks.survival import results as survival_results
from xentjax.core.op import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_runs(number):
    """Each block by itself, in a fresh interpreter: what it registers stays there."""
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # quick to compile
    command = [sys.executable, "-c", BLOCKS[number]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


def test_first_example_has_twelve_lines_after_its_imports():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 12


def test_function_table_is_up_to_date():
    assert readme.part(TEXT, "functions") == readme.functions_table(ops()), "run `python -m benchmarks report`"


def test_accuracy_table_is_up_to_date():
    assert readme.part(TEXT, "accuracy") == readme.ACCURACY.read_text().strip(), "run `python -m benchmarks report`"


def test_speed_tables_are_up_to_date():
    sections = [report.readme_section(report.load(path)) for path in report.result_files(report.RESULTS)]
    assert readme.part(TEXT, "speed") == "\n\n".join(sections), "run `python -m benchmarks report`"


def test_regression_tables_are_up_to_date():
    paths = regression_report.result_files(report.RESULTS)
    assert readme.part(TEXT, "regression") == regression_report.sections(paths), "run `python -m benchmarks report`"


def test_linear_tables_are_up_to_date():
    paths = linear_report.result_files(report.RESULTS)
    assert readme.part(TEXT, "linear") == linear_report.sections(paths), "run `python -m benchmarks report`"


def test_scaling_is_up_to_date():
    paths = scale_report.result_files(report.RESULTS)
    assert readme.part(TEXT, "scale") == scale_report.sections(paths), "run `python -m benchmarks report`"


def test_stream_tables_are_up_to_date():
    paths = stream_report.result_files(report.RESULTS)
    assert readme.part(TEXT, "stream") == stream_report.sections(paths), "run `python -m benchmarks report`"


def test_language_model_is_up_to_date():
    paths = language_report.result_files(report.RESULTS)
    assert readme.part(TEXT, "language") == language_report.sections(paths), "run `python -m benchmarks report`"


def test_table_of_faults_is_up_to_date():
    paths = survival_results.result_files(report.RESULTS)
    assert readme.part(TEXT, "faults") == survival_results.sections(paths), "run `python -m benchmarks report`"
    for path in paths:
        assert [row["fault"] for row in survival_results.load(path) if row["failed"]] == []


def test_paths_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in re.findall(r"\b(?:configs|benchmarks|tests)/[\w./-]+\w", TEXT + makefile):
        if "<" not in path:
            assert (ROOT / path).exists(), path
    targets = re.findall(r"^(\w+):", makefile, re.MULTILINE)
    for target in re.findall(r"(?:^|`)make (\w+)", TEXT, re.MULTILINE):
        assert target in targets, target


def test_subcommands_exist():
    shown = subprocess.run([sys.executable, "-m", "xentjax", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    for command in set(re.findall(r"^xentjax (\w+)", TEXT, re.MULTILINE)):
        assert re.search(rf"\b{command}\b", shown.stdout), f"xentjax {command} is not a command"


def test_parts_are_replaced_between_their_markers(tmp_path):
    page = tmp_path / "README.md"
    marker = "<!-- {0}: generated -->old<!-- end {0} -->"
    page.write_text("before\n" + "\n".join(marker.format(n) for n in ("functions", "accuracy", "speed")) + "\nafter\n")
    readme.refresh(page, {"speed": "fast"})
    text = page.read_text()
    assert readme.part(text, "speed") == "fast"
    assert readme.part(text, "functions").startswith("| group |")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    with pytest.raises(ValueError, match="no part between"):
        readme.replace(text, "colours", "blue")
