"""What a process takes for its first fit: one that finds no compiled program, and those that come after it."""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.harness import digits

#: Ways to a fit: what a process does before it is timed, and what is timed, a call until its result is there.
WAYS = {
    "LogisticRegression().fit": ("from xentjax.sklearn import LogisticRegression", "LogisticRegression().fit(x, y)"),
    "fit_logistic": ("import xentjax; xentjax.fit_logistic", "xentjax.fit_logistic(x, y, l2=1e-3).params.bias.item()"),
}

#: Rows and features, and how many processes come after the first.
SIZES, PROCESSES = {"n": 569, "d": 30}, 7

_SCRIPT = """
import json, time
import jax, numpy as np
{before}
rng = np.random.default_rng(0)
x = rng.standard_normal(({n}, {d}))
y = (x[:, 0] + rng.standard_normal({n}) > 0).astype(int)
times = []
for _ in range(4):
    start = time.perf_counter()
    {timed}
    times.append(time.perf_counter() - start)
print(json.dumps({{"first": times[0], "later": min(times[1:])}}))
"""


def start_row(way: str, sizes: dict[str, int], processes: int) -> dict[str, Any]:
    """Seconds of the first fit in a process without its imports: in the first process, and (median) in later ones.

    ``run_s`` is what a further fit takes in a process that has made one.
    """
    before, timed = WAYS[way]
    script = _SCRIPT.format(before=before, timed=timed, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        first = _process(script, pathlib.Path(folder))
        later = [_process(script, pathlib.Path(folder)) for _ in range(processes)]
    seconds = {
        "first_s": first["first"],
        "later_s": statistics.median(process["first"] for process in later),
        "run_s": statistics.median(process["later"] for process in later),
    }
    labels: dict[str, Any] = {"kind": "start", "name": f"start: {way}", "sizes": sizes}
    return labels | {name: digits(value) for name, value in seconds.items()}


def _process(script: str, cache: pathlib.Path) -> dict[str, float]:
    names = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, env=os.environ | names, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
