"""Where arrays live: a mesh with named axes, and which axis of an array is split along which axis of the mesh.

    data     images are shared out; parameters are whole
    fsdp     images are shared out; the matrices of the encoder and their optimiser state are split, and gathered
             once per step in the type they are used in
    tensor   one image is worked on together: heads and hidden channels of the encoder are split

All other parameters are a percent of the model and stand on every device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.errors import SamjaxError
from samjax.model.attention.attention import ATTEND
from samjax.model.params import path_names
from samjax.structs import Batch

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
BATCH = (DATA, FSDP)  # the axes along which images are shared out
# Encoder parameters that are large and used once per step, so that their gradients may be summed in another type.
LARGE = re.compile(r'pos_embed|kernel|w_qkv_DsAE|w_out_AED|project_DC|smooth_33CC')
# The axis that is split along 'tensor', counted from the last.
HEADS_AND_HIDDEN = (
    (re.compile(r'.*_blocks/attention/w_qkv_DsAE'), -2),
    (re.compile(r'.*_blocks/attention/b_qkv_sAE'), -2),
    (re.compile(r'.*_blocks/attention/w_out_AED'), -3),
    (re.compile(r'.*_blocks/mlp/layers/0/(kernel|bias)'), -1),
    (re.compile(r'.*_blocks/mlp/layers/1/kernel'), -2),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The section `mesh` of configs/default.py, which explains the fields."""

    data: int
    fsdp: int
    tensor: int


def make_mesh(options: MeshConfig, width: int, heads: int, devices=None) -> Mesh:
    """`devices`, or all there are, in the shape that `options` ask for; of an encoder with `width` and `heads`.

    Slices of a multi-slice job lie along 'data': what crosses the slow network between them is one sum of gradients.
    'fsdp' is chosen along one dimension of the torus, as TPU's compiler adds and scatters along one only.

    Raises:
        SamjaxError: the numbers do not fit the devices or the model.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    tensor = options.tensor
    if tensor < 1 or len(devices) // slices % tensor or heads % tensor:
        raise SamjaxError(
            f'mesh.tensor={tensor} divides not both the {len(devices) // slices} devices of a slice and the {heads} '
            f'heads of the encoder: set it to a number that does'
        )
    fsdp = options.fsdp or math.gcd(_neighbours(devices) // math.gcd(_neighbours(devices), tensor), width)
    data = options.data or len(devices) // (fsdp * tensor)
    if data * fsdp * tensor != len(devices) or data % slices:
        raise SamjaxError(
            f'mesh.data={data} x mesh.fsdp={fsdp} x mesh.tensor={tensor} is not the {len(devices)} devices in {slices} '
            f'slice(s): set mesh.data and mesh.fsdp to 0 to have them chosen'
        )
    if slices == 1:
        grid = mesh_utils.create_device_mesh((data, fsdp, tensor), devices)
    else:
        grid = mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)
    for together in grid.reshape(-1, tensor):
        if len({device.process_index for device in together}) > 1:
            raise SamjaxError(
                f'mesh.tensor={tensor} would share one image between processes: set it to at most the number of '
                f'devices of a process'
            )
    return Mesh(grid, (DATA, FSDP, TENSOR))


def _neighbours(devices: list) -> int:
    """How many devices are connected best: along the longest side of a TPU slice, or in a process."""
    if hasattr(devices[0], 'coords'):
        return max(len(set(places)) for places in zip(*(device.coords for device in devices), strict=True))
    return sum(device.process_index == devices[0].process_index for device in devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, of images, shared out."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def num_image_groups(mesh: Mesh) -> int:
    """Among how many devices, or groups of them, the images of a batch are shared out."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def check_batch(batch: int, turns: int, mesh: Mesh) -> None:
    """Raises SamjaxError if the devices cannot share `batch` images evenly, each its own in so many equal turns."""
    shares = num_image_groups(mesh)
    if batch < 1 or batch % shares:
        raise SamjaxError(
            f'train.batch_size={batch} cannot be split evenly over {shares} devices: '
            f'set --config.train.batch_size to a multiple of {shares}'
        )
    if turns < 1 or batch // shares % turns:
        raise SamjaxError(
            f'the {batch // shares} image(s) of a device cannot be split evenly into {turns} turns: '
            f'set --config.train.grad_accum_steps to a divisor of {batch // shares}'
        )


def to_global(local: Batch, mesh: Mesh) -> Batch:
    """This process's numpy share of a batch -> global arrays."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard('allow'):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def spec(path, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of the training state is split; `path` is its key path, which ends like that of its parameter."""
    names = path_names(path)
    if 'image_encoder' not in names:
        return PartitionSpec()
    axes: list[str | None] = [None] * len(shape)
    for name, axis in HEADS_AND_HIDDEN:
        if mesh.shape[TENSOR] > 1 and name.fullmatch('/'.join(names)):
            axes[axis] = TENSOR
    if mesh.shape[FSDP] > 1 and large(path):
        free = [i for i, side in enumerate(shape) if axes[i] is None and side % mesh.shape[FSDP] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*axes)


def large(path) -> bool:
    """Whether a parameter is a large one: of the encoder, and used once per step in the type of activations."""
    names = path_names(path)
    return 'image_encoder' in names and LARGE.fullmatch(names[-1]) is not None


def state_shardings(state, mesh: Mesh):
    """`state`, a tree of shapes, with the sharding of each array in its place."""
    return jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh)), state)


def attention(mesh: Mesh) -> Callable:
    """How the encoder attends on the devices of `mesh`: each on its own heads."""
    heads = PartitionSpec(None, TENSOR)
    return jax.shard_map(
        ATTEND[mesh.devices.flat[0].platform],
        in_specs=(heads, heads, heads, PartitionSpec(), PartitionSpec()),
        out_specs=heads,
        axis_names={TENSOR},
        check_vma=False,
    )


def data_parallel(summed_gradients: Callable, params, mesh: Mesh, dtype: str) -> Callable:
    """`summed_gradients` of `samjax.training.step` with the images shared out over `mesh`; `params` are shapes.

    Each device turns the large parameters into `dtype` and gathers those that are split, both once; it works on its
    images alone, and the sums of all are added in float32.  Written out, since a compiler that chooses by itself moves
    activations about (docs/scaling.md).
    """
    shardings = state_shardings(params, mesh)
    splits = jax.tree.map(lambda sharding: PartitionSpec(*(a if a == FSDP else None for a in sharding.spec)), shardings)

    def use(path, x, split):
        x = x.astype(dtype) if large(path) else x
        return x if FSDP not in split else jax.lax.all_gather(x, FSDP, axis=split.index(FSDP), tiled=True)

    def add(gradient, split):
        gradient = gradient.astype(jnp.float32)
        if FSDP not in split:
            return jax.lax.psum(gradient, BATCH)
        own = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=split.index(FSDP), tiled=True)
        return jax.lax.psum(own, DATA)

    def share(params, buffers, batch, index_B, key):
        grads, sums = summed_gradients(
            jax.tree_util.tree_map_with_path(use, params, splits), buffers, batch, index_B, key
        )
        return jax.tree.map(add, grads, splits), jax.lax.psum(sums, BATCH)

    images = PartitionSpec(BATCH)
    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(splits, PartitionSpec(), images, images, PartitionSpec()),
        out_specs=(splits, PartitionSpec()),
        axis_names=set(BATCH),
        check_vma=False,
    )


def local_copy(tree, mesh: Mesh):
    """Arrays that are split over all processes -> whole ones on the first device of each process."""
    return jax.tree.map(lambda x: x.addressable_data(0), _whole(mesh)(tree))


@functools.cache
def _whole(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def global_max(number: int, mesh: Mesh) -> jax.Array:
    """The global_max of the numbers that the processes of the job name; an array, to be read when all have named one."""
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    mine = np.full(len(mesh.local_devices), number, np.int32)
    with jax.transfer_guard('allow'):
        numbers = jax.make_array_from_process_local_data(each, mine)
    return _global_max(mesh)(numbers)


@functools.cache
def _global_max(mesh: Mesh):
    return jax.jit(jnp.max, out_shardings=replicated(mesh))
