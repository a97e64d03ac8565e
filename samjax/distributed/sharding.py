"""Where arrays live: a mesh with named axes, and which axis of an array is split along which axis of the mesh.

    data     images are distributed; parameters are replicated
    fsdp     images are distributed; the matrices of the encoder and their optimizer state are split, and gathered
             once per step in the dtype they are used in
    tensor   an image is computed by several devices: heads and hidden channels of the encoder are split

All other parameters are a percent of the model and are replicated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.errors import SamjaxError, check_option
from samjax.model.attention.by_platform import BY_PLATFORM
from samjax.model.params import ParamRules, path_names
from samjax.structs import Batch

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
BATCH = (DATA, FSDP)  # the axes along which images are distributed


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The section `mesh` of samjax.config, which explains the fields."""

    data: int
    fsdp: int
    tensor: int

    def __post_init__(self):
        check_option('mesh.data', self.data, lambda n: n >= 0, '0, which is what the others leave, or more')
        check_option('mesh.fsdp', self.fsdp, lambda n: n >= 0, '0, which is the default, or more')
        check_option('mesh.tensor', self.tensor, lambda n: n >= 1, 'at least 1')


def make_mesh(options: MeshConfig, width: int, heads: int, devices=None) -> Mesh:
    """A mesh of `devices`, or of all of the job, in the shape of `options`, for an encoder with `width` and `heads`.

    Slices of a multi-slice job lie along 'data': only a sum of gradients crosses the slow network between them.
    'fsdp' defaults to a dimension of the torus, as TPU's compiler reduces and scatters along one dimension only.

    Raises:
        SamjaxError: the numbers do not fit the devices or the model.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    tensor = options.tensor
    if tensor < 1 or len(devices) // slices % tensor or heads % tensor:
        raise SamjaxError(
            f'mesh.tensor={tensor} does not divide both the {len(devices) // slices} devices of a slice and the '
            f'{heads} heads of the encoder: set it to a number that does'
        )
    fsdp = options.fsdp or math.gcd(_neighbours(devices) // math.gcd(_neighbours(devices), tensor), width)
    data = options.data or len(devices) // (fsdp * tensor)
    if data * fsdp * tensor != len(devices) or data % slices:
        raise SamjaxError(
            f'mesh.data={data} x mesh.fsdp={fsdp} x mesh.tensor={tensor} is not the {len(devices)} devices in {slices} '
            f'slice(s): set mesh.data and mesh.fsdp to 0 for the default'
        )
    if slices == 1:
        grid = mesh_utils.create_device_mesh((data, fsdp, tensor), devices)
    else:
        grid = mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)
    for group in grid.reshape(-1, tensor):
        if len({device.process_index for device in group}) > 1:
            raise SamjaxError(
                f'mesh.tensor={tensor} would split an image between processes: set it to at most the number of '
                f'devices of a process'
            )
    return Mesh(grid, (DATA, FSDP, TENSOR))


def _neighbours(devices: list) -> int:
    """The number of devices with the fastest links: along the longest side of a TPU slice, or in a process."""
    if hasattr(devices[0], 'coords'):
        return max(len(set(coordinates)) for coordinates in zip(*(device.coords for device in devices), strict=True))
    return sum(device.process_index == devices[0].process_index for device in devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, of images, distributed."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def num_image_groups(mesh: Mesh) -> int:
    """The number of devices, or of groups of `mesh.tensor` devices, that the images of a batch are distributed over."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def check_batch(batch_size: int, grad_accum_steps: int, mesh: Mesh) -> None:
    """Raises SamjaxError if the images cannot be split evenly over the devices, and those of a device into steps."""
    groups = num_image_groups(mesh)
    if batch_size < 1 or batch_size % groups:
        raise SamjaxError(
            f'train.batch_size={batch_size} cannot be split evenly over {groups} devices: '
            f'set --config.train.batch_size to a multiple of {groups}'
        )
    if grad_accum_steps < 1 or batch_size // groups % grad_accum_steps:
        raise SamjaxError(
            f'the {batch_size // groups} image(s) of a device cannot be split evenly into {grad_accum_steps} steps: '
            f'set --config.train.grad_accum_steps to a divisor of {batch_size // groups}'
        )


def to_global(local: Batch, mesh: Mesh) -> Batch:
    """The numpy arrays of this process, its rows of a batch -> global arrays."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard('allow'):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def spec(path, shape: tuple[int, ...], mesh: Mesh, rules: ParamRules) -> PartitionSpec:
    """How an array of the training state is split; `path` is its key path, which ends like that of its parameter."""
    names = path_names(path)
    if not rules.is_param(names):
        return PartitionSpec()
    rule, axes = rules.of(names), [None] * len(shape)
    if mesh.shape[TENSOR] > 1 and rule.tensor_axis is not None:
        axes[rule.tensor_axis] = TENSOR
    if mesh.shape[FSDP] > 1 and rule.fsdp:
        divisible = [i for i, side in enumerate(shape) if axes[i] is None and side % mesh.shape[FSDP] == 0]
        if divisible:
            axes[max(divisible, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def state_shardings(state, mesh: Mesh, rules: ParamRules):
    """`state`, a tree of shapes, with the sharding of each array in its position."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh, rules)), state
    )


def attention(mesh: Mesh) -> Callable:
    """The encoder's attention on the devices of `mesh`: each computes its own heads."""
    heads = PartitionSpec(None, TENSOR)
    return jax.shard_map(
        BY_PLATFORM[mesh.devices.flat[0].platform],
        in_specs=(heads, heads, heads, PartitionSpec(), PartitionSpec()),
        out_specs=heads,
        axis_names={TENSOR},
        check_vma=False,
    )


def data_parallel(summed_gradients: Callable, params, mesh: Mesh, rules: ParamRules, dtype: str) -> Callable:
    """`summed_gradients` of `samjax.training.step` with the images distributed over `mesh`; `params` are shapes.

    Each device casts the large parameters to `dtype` and gathers those that are split, both once; it computes the
    gradient of its own images, and the sums of all devices are added in float32.  The collectives are explicit, since a
    compiler that chooses them moves activations between devices (docs/scaling.md).
    """
    shardings = state_shardings(params, mesh, rules)
    specs = jax.tree.map(lambda sharding: PartitionSpec(*(a if a == FSDP else None for a in sharding.spec)), shardings)

    def gather(path, x, spec):
        x = x.astype(dtype) if rules.of(path_names(path)).fsdp else x
        return x if FSDP not in spec else jax.lax.all_gather(x, FSDP, axis=spec.index(FSDP), tiled=True)

    def reduce(gradient, spec):
        gradient = gradient.astype(jnp.float32)
        if FSDP not in spec:
            return jax.lax.psum(gradient, BATCH)
        own = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=spec.index(FSDP), tiled=True)
        return jax.lax.psum(own, DATA)

    def sums_on_device(params, buffers, batch, index_B, key):
        gathered = jax.tree_util.tree_map_with_path(gather, params, specs)
        grads, sums = summed_gradients(gathered, buffers, batch, index_B, key)
        return jax.tree.map(reduce, grads, specs), jax.lax.psum(sums, BATCH)

    images = PartitionSpec(BATCH)
    return jax.shard_map(
        sums_on_device,
        mesh=mesh,
        in_specs=(specs, PartitionSpec(), images, images, PartitionSpec()),
        out_specs=(specs, PartitionSpec()),
        axis_names=set(BATCH),
        check_vma=False,
    )


def local_copy(tree, mesh: Mesh):
    """Arrays that are split over all processes -> whole arrays on the first device of each process."""
    return jax.tree.map(lambda x: x.addressable_data(0), _replicate(mesh)(tree))


@functools.cache
def _replicate(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def global_max(number: int, mesh: Mesh) -> jax.Array:
    """The maximum of the numbers of all processes of the job; an array, to be read when all have given theirs."""
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    local = np.full(len(mesh.local_devices), number, np.int32)
    with jax.transfer_guard('allow'):
        numbers = jax.make_array_from_process_local_data(each, local)
    return _global_max(mesh)(numbers)


@functools.cache
def _global_max(mesh: Mesh):
    return jax.jit(jnp.max, out_shardings=replicated(mesh))
