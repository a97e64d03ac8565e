"""Arrays by torch names -> the size of the model and its parameters, checked strictly; and back."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from samjax.convert import key_map
from samjax.errors import SamjaxError
from samjax.masks import resize
from samjax.model.params import abstract_state
from samjax.model.sam import SIZES, SamConfig

ALIGNMENT = 64  # bytes
FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
# Parts of MAE's checkpoints that SAM has no use for: https://github.com/facebookresearch/mae
MAE_UNUSED = re.compile(r'cls_token|mask_token|norm\.(weight|bias)|fc_norm\..*|head\..*|decoder_.*')


class KeyLayout(NamedTuple):
    """What the arrays that tell the size of a model are called, and which files use these names."""

    name: str
    positions: str
    patches: str
    block: str
    channels: str | None


META = KeyLayout(
    "Meta's", 'image_encoder.pos_embed', 'image_encoder.patch_embed.proj.weight', 'image_encoder.blocks.{}.',
    'image_encoder.neck.0.weight',
)  # fmt: skip
HUGGING_FACE = KeyLayout(
    "Hugging Face's", 'vision_encoder.pos_embed', 'vision_encoder.patch_embed.projection.weight',
    'vision_encoder.layers.{}.', 'vision_encoder.neck.conv1.weight',
)  # fmt: skip
MAE = KeyLayout("MAE's", 'pos_embed', 'patch_embed.proj.weight', 'blocks.{}.', None)


def find(saved, path) -> tuple[KeyLayout, dict[str, np.ndarray]]:
    """The arrays of a SAM or MAE somewhere in `saved`, by their names without a prefix that all have, and the layout.

    Checkpoints of training runs wrap the model ('model', 'state_dict', 'model_state') and prefix its names ('module.',
    'sam.'); what stands beside the model, such as an optimiser, is left alone.

    Raises:
        SamjaxError: there is none, or more than one.
    """
    found = []
    for where, mapping in _mappings('', saved):
        for layout in (META, HUGGING_FACE, MAE):
            ends = [key for key in mapping if key == layout.positions or key.endswith('.' + layout.positions)]
            prefixes = [end.removesuffix(layout.positions) for end in ends]
            if layout is MAE:  # what the others call their positions ends in the same word
                prefixes = [prefix for prefix in prefixes if prefix + 'cls_token' in mapping]
            for prefix in prefixes:
                arrays = {key.removeprefix(prefix): value for key, value in mapping.items()}
                found.append((where + prefix, layout, arrays))
    if not found:
        raise SamjaxError(f'{path} holds no SAM and no MAE encoder: name a checkpoint with {META.positions} in it')
    if len(found) > 1:
        places = ', '.join(repr(where) for where, *_ in found)
        raise SamjaxError(f'{path} holds {len(found)} models ({places}): save the one that is meant alone')
    return found[0][1:]


def _mappings(where: str, saved) -> Iterable[tuple[str, dict]]:
    """Every mapping from names to arrays at any depth, and where it is."""
    if isinstance(saved, Mapping):
        yield where, {k: v for k, v in saved.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
        for key, value in saved.items():
            yield from _mappings(f'{where}{key}/', value)


def infer(layout: KeyLayout, arrays: Mapping[str, np.ndarray], path) -> SamConfig:
    """The row of `SIZES` that has the shapes of these arrays, at the image size of their position table.

    Raises:
        SamjaxError: no row has them.
    """
    absent = [key for key in (layout.positions, layout.patches, layout.channels) if key and key not in arrays]
    if absent:
        raise SamjaxError(f'{path} lacks {", ".join(absent)}, without which its size cannot be told: use a whole one')
    positions, patches = arrays[layout.positions], arrays[layout.patches]
    width, patch = patches.shape[0], patches.shape[-1]
    depth = 0
    while any(key.startswith(layout.block.format(depth)) for key in arrays):
        depth += 1
    wanted = {'width': width, 'depth': depth}
    if layout.channels:
        wanted |= {'patch': patch, 'channels': arrays[layout.channels].shape[0]}
        relative = arrays.get(layout.block.format(0) + 'attn.rel_pos_h')
        if relative is not None:
            wanted['heads'] = width // relative.shape[-1]
    for size, row in SIZES.items():
        if all(getattr(row, name) == value for name, value in wanted.items()):
            if layout is MAE:
                return row
            h, w = positions.shape[1:3]
            return dataclasses.replace(SIZES[size], image_size=(h * patch, w * patch))
    facts = ', '.join(f'{name} {value}' for name, value in wanted.items())
    raise SamjaxError(f'{path} is of an unknown architecture ({facts}): known are {", ".join(SIZES)}')


def size_name(config: SamConfig) -> str:
    """The name of the row of `SIZES` that `config` is, whatever its image size."""
    return next(n for n, row in SIZES.items() if dataclasses.replace(config, image_size=row.image_size) == row)


def from_torch(
    layout: KeyLayout, arrays: Mapping[str, np.ndarray], config: SamConfig, path, force: bool
) -> dict[str, np.ndarray]:
    """Our path -> float32 array for every parameter and buffer of `config` that the layout knows.

    Raises:
        SamjaxError: arrays are missing, unknown, of another shape or type, or, unless `force`, not finite; all of them
            are named.
    """
    shapes = our_shapes(config)
    rows = dict(_named(layout, config))
    if layout is HUGGING_FACE:
        arrays = _without_copy(arrays)
    if layout is MAE:
        arrays = {key: value for key, value in arrays.items() if not MAE_UNUSED.fullmatch(key)}
    wrong = [f'{key} is missing' for key in rows.keys() - arrays.keys()]
    wrong += [f'{key} is unknown' for key in arrays.keys() - rows.keys()]
    for key in rows.keys() & arrays.keys():
        shape, expected = arrays[key].shape, torch_shape(rows[key], shapes)
        if layout is MAE and key in (MAE.positions, MAE.patches):
            continue  # these two are resized
        if shape != expected:
            wrong.append(f'{key} is {shape} and should be {expected}')
        if arrays[key].dtype.name not in FLOATS:
            wrong.append(f'{key} is {arrays[key].dtype.name} and should be floating point')
        elif not force and not np.isfinite(arrays[key]).all():
            wrong.append(f'{key} is not finite')
    if wrong:
        mend = 'give --force to take it so' if all('finite' in w for w in wrong) else 'it is another model, or damaged'
        raise SamjaxError(f'{path} is no {size_name(config)}: {"; ".join(sorted(wrong))}: {mend}')

    ours = {name: _room(shapes[name]) for name in {row.ours for row in rows.values()}}
    for key, row in rows.items():
        value = arrays[key]
        if layout is MAE and key == MAE.positions:
            value = mae_positions(value, config.grid)
        if layout is MAE and key == MAE.patches:
            value = mae_patches(value, config.patch)
        ours[row.ours][row.place] = row.layout.to_ours(value, shapes[row.ours][len(row.place) :])
    return ours


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """An array of float32 so aligned that JAX takes it over on a CPU without a copy: ViT-H has 2.6 GB."""
    data = np.empty(4 * math.prod(shape) + ALIGNMENT, np.uint8)
    first = -data.ctypes.data % ALIGNMENT
    return data[first : first + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def to_torch(layout: KeyLayout, ours: Mapping[str, np.ndarray], config: SamConfig) -> dict[str, np.ndarray]:
    """Torch's name -> float32 array, the inverse of `from_torch`; views where that is possible."""
    arrays = {}
    for key, row in _named(layout, config):
        arrays[key] = row.layout.to_torch(ours[row.ours][row.place])
    if layout is HUGGING_FACE:
        copy, original = key_map.HUGGING_FACE_COPY
        arrays[copy] = arrays[original]
    return arrays


def _named(layout: KeyLayout, config: SamConfig) -> Iterable[tuple[str, key_map.Row]]:
    """(name in this layout, row) of every array that a checkpoint in it has."""
    for row in key_map.table(config):
        if layout is META:
            yield row.meta, row
        elif layout is HUGGING_FACE:
            yield row.hugging_face, row
        elif row.meta.startswith('image_encoder.') and not re.search(r'\.neck\.|rel_pos', row.meta):
            yield row.meta.removeprefix('image_encoder.').replace('mlp.lin', 'mlp.fc'), row


def _without_copy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face writes the Fourier matrix under two names, or one of them; here it has the second."""
    copy, original = key_map.HUGGING_FACE_COPY
    kept = dict(arrays)
    if copy in kept:
        kept.setdefault(original, kept.pop(copy))
    kept.pop(copy, None)
    return kept


def our_shapes(config: SamConfig) -> dict[str, tuple[int, ...]]:
    """Our path -> shape of every parameter and buffer; allocates nothing."""
    states = abstract_state(config)[1:]
    return {'/'.join(map(str, path)): leaf.shape for state in states for path, leaf in nnx.to_flat_state(state)}


def torch_shape(row: key_map.Row, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape an array has in torch."""
    shape = shapes[row.ours][len(row.place) :]
    return row.layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def resized(ours: Mapping[str, np.ndarray], old: SamConfig, new: SamConfig) -> dict[str, np.ndarray]:
    """The weights of `old` for the image size of `new`: position tables are resized linearly, without antialiasing.

    This is what the reference does to relative positions of another length when it meets them.
    """
    shapes, result = our_shapes(new), dict(ours)
    name = 'image_encoder/pos_embed'
    rows, columns = (resize.matrix(a, b) for a, b in zip(old.grid, new.grid, strict=True))
    result[name] = np.einsum('hi,ijD,wj->hwD', rows, ours[name], columns)
    for name, value in ours.items():
        if re.search(r'/rel_[hw]_RE$', name):
            result[name] = resize.matrix(value.shape[-2], shapes[name][-2]) @ value
    return result


def mae_positions(table_1ND: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """MAE's positions (1, 1 + n n, D), the first of the class token, -> (1, h, w, D), bicubic as torch does it."""
    side = round((table_1ND.shape[1] - 1) ** 0.5)
    square_ijD = table_1ND[0, 1:].astype(np.float32).reshape(side, side, -1)
    rows, columns = (resize.cubic_matrix(side, n) for n in grid)
    return np.einsum('hi,ijD,wj->hwD', rows, square_ijD, columns)[None].astype(np.float32)


def mae_patches(kernel_DIpq: np.ndarray, patch: int) -> np.ndarray:
    """The kernel of the patch embedding for another patch (14 -> 16 px in ViT-H), bicubic as torch does it."""
    if kernel_DIpq.shape[-1] == patch:
        return kernel_DIpq
    cubic = resize.cubic_matrix(kernel_DIpq.shape[-1], patch)
    return np.einsum('yp,DIpq,xq->DIyx', cubic, kernel_DIpq.astype(np.float32), cubic)


def flat(*states: nnx.State) -> dict[str, np.ndarray]:
    """Our path -> array on the host, of params and buffers."""
    return {
        '/'.join(map(str, path)): np.asarray(jax.device_get(leaf[...] if isinstance(leaf, nnx.Variable) else leaf))
        for state in states
        for path, leaf in nnx.to_flat_state(state)
    }
