"""Eight host devices for every test, settled before JAX starts; no silent promotion where a test file asks for it."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest


@pytest.fixture
def strict_dtypes():
    """Two arrays of different dtypes in one operation are an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield
