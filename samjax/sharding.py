"""Where arrays live: one mesh over all devices, batches split along it, everything else on every device."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.errors import SamjaxError

DATA = 'data'  # the mesh axis along which the images of a batch are split


def make_mesh() -> Mesh:
    """All devices of all processes on the axis 'data'."""
    return Mesh(np.asarray(jax.devices()), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(batch: int, mesh: Mesh) -> None:
    """Raises SamjaxError if the devices cannot share `batch` images evenly."""
    if batch < 1 or batch % mesh.size:
        raise SamjaxError(
            f'train.batch={batch} cannot be split evenly over {mesh.size} devices: '
            f'set --config.train.batch to a multiple of {mesh.size}'
        )


def to_global(local, mesh: Mesh):
    """This process's numpy share of a batch (any pytree) -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)
