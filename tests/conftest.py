"""Eight host devices for every test, settled before JAX starts, and how JAX works where a test file asks for it."""

import importlib.metadata
import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# Half the time to compile, for a run of nothing but tests marked "fast". Later versions lack the flag, and stop at it.
if os.environ.get("COMPILED_FAST") and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Nothing of a test's stays in the user's cache.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import contextlib

import jax
import pytest

#: Files whose tests `make thorough` runs: solvers and fits in all their variants, linear cross-entropy on many devices,
#: kernels as they are interpreted, what takes long to compile, scikit-learn's own tests, many fits in one process or at
#: once.
THOROUGH = {f"test_{name}.py" for name in ("solvers", "fit", "l1", "path", "fit_many", "buckets", "program_cache")}
THOROUGH |= {f"test_{name}.py" for name in ("forms", "host", "kept", "regressions", "language_runs", "linear_hard")}
THOROUGH |= {"test_streams_fits.py"}
THOROUGH |= {f"test_{name}.py" for name in ("benchmarks_regression", "linear_kernels", "sklearn", "sklearn_own")}
THOROUGH |= {f"test_{name}.py" for name in ("linear_sharded", "logit_divergences", "memory", "benchmarks_linear")}
THOROUGH |= {f"test_{name}.py" for name in ("mesh", "mesh_runs", "processes")}
THOROUGH |= {f"test_{name}.py" for name in ("soak", "threads")}

#: Mappings of a process that leave room for those of any one file.
MAPPINGS = 20_000


def pytest_addoption(parser):
    parser.addoption("--first-parameters", action="store_true", help="each test with the first of its parameters alone")


def pytest_collection_modifyitems(config, items):
    """Mark the tests that need no program as users get it, so that a run of them may compile with less care, and those
    of a longer run. What is collected has the same name in each process."""
    if config.getoption("first_parameters"):
        functions = {}
        for item in items:
            functions.setdefault(item.nodeid.split("[")[0], item)
        items[:] = functions.values()
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: an address names a test; give parameters ids")
        if item.path.name in THOROUGH:
            item.add_marker("thorough")
        fixtures = set(getattr(item, "fixturenames", ()))
        plain = "optimized" in fixtures or item.get_closest_marker("production")
        is_example = isinstance(item, pytest.DoctestItem)
        if is_example or (fixtures & {"compiled_fast", "module_compiled_fast"} and not plain):
            item.add_marker("fast")


def pytest_runtest_teardown(item, nextitem):
    """Programs of a file are forgotten before the next one where they are many: XLA:CPU maps memory for each, and a
    process that has more mappings than Linux allows, 65,530, dies."""
    maps = pathlib.Path("/proc/self/maps")
    is_last = nextitem is None or nextitem.path != item.path
    if is_last and maps.exists() and maps.read_text().count("\n") > MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def strict_dtypes():
    """Two arrays of different dtypes in one operation are an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def compiled_fast(request):
    """Programs are compiled fast, which takes most of the time, but for tests that ask for ``optimized`` ones."""
    with _compiled_fast("optimized" not in request.fixturenames):
        yield


@pytest.fixture(scope="module")
def module_compiled_fast():
    """The same for a whole file, fixtures of the file included."""
    with _compiled_fast(True):
        yield


@contextlib.contextmanager
def _compiled_fast(fast):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", fast)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def optimized():
    jax.clear_caches()
