"""Eight host devices for every test, settled before JAX starts, and how JAX works where a test file asks for it."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest


@pytest.fixture
def strict_dtypes():
    """Two arrays of different dtypes in one operation are an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def compiled_fast(request):
    """Programs are compiled fast, which takes most of the time, but for tests that ask for ``optimized`` ones."""
    jax.config.update("jax_disable_most_optimizations", "optimized" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def optimized():
    jax.clear_caches()
