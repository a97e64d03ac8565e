"""samjax.sharding on the eight simulated devices of conftest.py."""

import jax
import numpy as np
import pytest

from samjax import sharding
from samjax.errors import SamjaxError
from samjax.structs import Batch


def test_mesh_holds_all_devices():
    assert dict(sharding.make_mesh().shape) == {'data': 8}


def test_batch_is_split_along_its_first_axis():
    mesh = sharding.make_mesh()
    local = Batch(
        np.arange(8 * 2 * 4 * 3, dtype=np.uint8).reshape(8, 2, 4, 3),
        np.zeros((8, 5, 2, 4), bool),
        np.ones((8, 5), bool),
        np.tile(np.int32([2, 4]), (8, 1)),
    )
    batch = sharding.to_global(local, mesh)
    assert isinstance(batch, Batch)
    for given, made in zip(local, batch, strict=True):
        np.testing.assert_array_equal(given, made)
        assert given.dtype == made.dtype
        assert {shard.data.shape for shard in made.addressable_shards} == {(1, *given.shape[1:])}
        assert made.sharding == sharding.batch_sharding(mesh)


def test_replicated_is_whole_on_every_device():
    x = jax.device_put(np.ones((3, 2)), sharding.replicated(sharding.make_mesh()))
    assert [shard.data.shape for shard in x.addressable_shards] == [(3, 2)] * 8


def test_batch_that_devices_can_share_passes():
    sharding.check_batch(16, sharding.make_mesh())


@pytest.mark.parametrize('batch', [0, 12])
def test_batch_that_devices_cannot_share_is_named(batch):
    with pytest.raises(SamjaxError, match=f'train.batch={batch} .* 8 devices.* multiple of 8'):
        sharding.check_batch(batch, sharding.make_mesh())
