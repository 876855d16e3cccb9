"""The devices that a config asks for, as a mesh."""

from __future__ import annotations

import contextlib
import os

import jax
import numpy as np
from jax.sharding import Mesh

from xentjax.models.spread import ROWS
from xentjax.training.config import MeshConfig
from xentjax.training.errors import UserError

#: The axis of a mesh that the vocabulary of a language model is split over.
VOCABULARY = "vocab"


def mesh_of(config: MeshConfig | None) -> Mesh | None:
    """The mesh that a config asks for, with the axes ``data`` and ``vocab``; None where it asks for none.

    A CPU gives as many devices as are asked for, as long as JAX has not been used.

    Raises:
      UserError: there are not so many devices.
    """
    if config is None:
        return None
    wanted = config.data * config.vocab
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", wanted)
    devices = jax.devices()
    if len(devices) < wanted:
        raise UserError(
            f"mesh: data = {config.data} and vocab = {config.vocab} need {wanted} devices, but there "
            f"{'is' if len(devices) == 1 else 'are'} {len(devices)} ({devices[0].platform})"
        )
    return Mesh(np.asarray(devices[:wanted]).reshape(config.data, config.vocab), (ROWS, VOCABULARY))
