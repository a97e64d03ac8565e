"""Arrays by their names in PyTorch -> the architecture of the model and its parameters, checked strictly; and back."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from samjax.convert import key_map
from samjax.convert.torch_pickle import NotRead
from samjax.errors import SamjaxError
from samjax.model.checkpoint_keys import CheckpointKey
from samjax.model.config import SIZES, SamConfig, size_name
from samjax.model.encoders import vit_checkpoints
from samjax.model.encoders.vit_checkpoints import HUGGING_FACE, MAE, MAE_MARK, MAE_UNUSED, META, KeyLayout
from samjax.model.params import abstract_state

ALIGNMENT = 64  # bytes
FLOATS = (
    *('float16', 'bfloat16', 'float32', 'float64'),
    *('float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz'),
)
NAMED = 5  # names that are written out in a message


class FoundModel(NamedTuple):
    """A SAM or MAE in what a file holds."""

    location: tuple[str, ...]  # names that lead to it, from the outermost
    layout: KeyLayout
    arrays: dict[str, np.ndarray]  # by their names without a common prefix
    beside: list[str]  # names of arrays in the same state dict without that prefix

    @property
    def key(self) -> str:
        """What --key calls it."""
        return '.'.join(self.location)


def find(saved, path, key: str | None = None) -> FoundModel:
    """The SAM anywhere in `saved`, or if there is none the MAE encoder.

    Checkpoints of training runs wrap the model ('model', 'state_dict', 'model_state') and prefix its names ('module.',
    'sam.'); what is saved beside the model, such as an optimizer, is left alone.
    key: names that lead to the model, or some of them that follow each other, with dots between; needed only if there
    are several models.

    Raises:
        SamjaxError: there is none, or more than one, or it holds tensors of a kind that is not read.
    """
    models = list(_models(saved, (META, HUGGING_FACE))) or list(_models(saved, (MAE,)))
    if not models:
        raise SamjaxError(f'{path} holds no SAM and no MAE encoder: name a checkpoint with {META.positions} in it')
    names = ', '.join(repr(model.key) for model in models)
    chosen = models
    if key is not None:
        wanted = _split(key)
        chosen = [model for model in models if model.location == wanted]
        chosen = chosen or [model for model in models if _is_part_of(wanted, model.location)]
        if not chosen:
            raise SamjaxError(f'{path} holds no model at --key {key!r}: give {names}')
    if len(chosen) > 1:
        raise SamjaxError(
            f'{path} holds {len(chosen)} models ({", ".join(repr(model.key) for model in chosen)}): choose one with '
            f'samjax convert {path} DIR --key {chosen[0].key!r}'
        )
    [model] = chosen
    if not_read := [f'{name} is {value.name}' for name, value in model.arrays.items() if isinstance(value, NotRead)]:
        raise SamjaxError(
            f'{path} holds tensors that are not read ({shortened(not_read)}): save them as dense, dequantized tensors'
        )
    return model


def _models(saved, layouts: Iterable[KeyLayout]) -> Iterable[FoundModel]:
    for location, mapping in _mappings(saved):
        for layout in layouts:
            ends = [key for key in mapping if key == layout.positions or key.endswith('.' + layout.positions)]
            prefixes = [end.removesuffix(layout.positions) for end in ends]
            if layout is MAE:
                prefixes = [prefix for prefix in prefixes if prefix + MAE_MARK in mapping]
            for prefix in prefixes:
                arrays = {key.removeprefix(prefix): mapping[key] for key in mapping if key.startswith(prefix)}
                beside = [key for key in mapping if not key.startswith(prefix)]
                yield FoundModel(location + _split(prefix), layout, arrays, beside)


def _mappings(saved) -> Iterable[tuple[tuple[str, ...], dict]]:
    """Every mapping from names to arrays at any depth, and where it is; each once, also if it contains itself."""
    seen, remaining = set(), [((), saved)]
    while remaining:
        location, value = remaining.pop()
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        yield location, {k: v for k, v in items if isinstance(k, str) and isinstance(v, np.ndarray | NotRead)}
        remaining += [((*location, *_split(str(k))), v) for k, v in reversed(items)]


def _split(key: str) -> tuple[str, ...]:
    return tuple(name for name in re.split('[./]', key) if name)


def _is_part_of(names: tuple[str, ...], location: tuple[str, ...]) -> bool:
    starts = range(len(location) - len(names) + 1)
    return bool(names) and any(location[start : start + len(names)] == names for start in starts)


def shortened(names: Sequence[str]) -> str:
    """At most `NAMED` names, and how many more there are."""
    more = len(names) - NAMED
    return ', '.join([*names[:NAMED], f'{more} more'] if more > 0 else names)


def infer_config(layout: KeyLayout, arrays: Mapping[str, np.ndarray], path) -> SamConfig:
    """The row of `SIZES` that has the shapes of these arrays, at the image size of their position table.

    Raises:
        SamjaxError: no row has them.
    """
    absent = [key for key in (layout.positions, layout.patches, layout.channels) if key and key not in arrays]
    if absent:
        raise SamjaxError(
            f'{path} lacks {", ".join(absent)}, without which its size is unknown: use a complete checkpoint'
        )
    sizes = vit_checkpoints.recognized_sizes(layout, arrays)
    for row in SIZES.values():
        own = {'embed_dim': row.embed_dim, 'depth': row.encoder.depth, **vars(row.encoder)}
        if all(own[name] == value for name, value in sizes.items()):
            if layout is MAE:
                return row
            return dataclasses.replace(row, image_size=vit_checkpoints.image_size(layout, arrays))
    facts = ', '.join(f'{name} {value}' for name, value in sizes.items())
    raise SamjaxError(f'{path} is of an unknown architecture ({facts}): known are {", ".join(SIZES)}')


def from_torch(
    layout: KeyLayout,
    arrays: Mapping[str, np.ndarray],
    config: SamConfig,
    path,
    force: bool,
    ignore_extra: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(our path -> float32 array for every parameter and buffer of `config` that the layout has, extra names).

    ignore_extra: patterns, such as 'adapter.*', of names that may be there although the model has no such arrays.

    Raises:
        SamjaxError: arrays are missing, unknown, of another shape or type, or, unless `force`, not finite; all of them
            are named.
    """
    shapes = our_shapes(config)
    keys = dict(_named_keys(layout, config))
    if layout is HUGGING_FACE:
        arrays = _without_copy(arrays)
    if layout is MAE:
        arrays = {name: value for name, value in arrays.items() if not MAE_UNUSED.fullmatch(name)}
    wrong = [f'{name} is missing' for name in keys.keys() - arrays.keys()]
    extra = sorted(arrays.keys() - keys.keys())
    ignored = [name for name in extra if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore_extra)]
    unknown = [f'{name} is unknown' for name in extra if name not in ignored]
    wrong += unknown
    for name in keys.keys() & arrays.keys():
        shape, expected = arrays[name].shape, torch_shape(keys[name], shapes)
        if layout is MAE and name in (MAE.positions, MAE.patches):
            continue  # these two are resized
        if shape != expected:
            wrong.append(f'{name} is {shape} and should be {expected}')
        if arrays[name].dtype.name not in FLOATS:
            wrong.append(f'{name} is {arrays[name].dtype.name} and should be floating point')
        elif not force and not np.isfinite(arrays[name]).all():
            wrong.append(f'{name} is not finite')
    if wrong:
        remedy = 'it is another model, or damaged'
        if all('finite' in w for w in wrong):
            remedy = 'samjax convert --force accepts them'
        elif wrong == unknown:
            remedy += ', or name them in samjax convert --ignore-extra to leave them out'
        raise SamjaxError(f'{path} is no {size_name(config)}: {"; ".join(sorted(wrong))}: {remedy}')

    ours = {path: _aligned(shapes[path]) for path in {key.ours for key in keys.values()}}
    for name, key in keys.items():
        value = arrays[name]
        if layout is MAE:
            value = vit_checkpoints.from_mae(name, value, config.embedding_size, config.encoder.patch_size)
        ours[key.ours][key.index] = key.axes.to_ours(value, shapes[key.ours][len(key.index) :])
    return ours, ignored


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array so aligned that JAX uses it on a CPU without a copy: ViT-H has 2.6 GB."""
    data = np.empty(4 * math.prod(shape) + ALIGNMENT, np.uint8)
    first = -data.ctypes.data % ALIGNMENT
    return data[first : first + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def to_torch(layout: KeyLayout, ours: Mapping[str, np.ndarray], config: SamConfig) -> dict[str, np.ndarray]:
    """PyTorch's name -> float32 array, the inverse of `from_torch`; views where that is possible."""
    arrays = {name: key.axes.to_torch(ours[key.ours][key.index]) for name, key in _named_keys(layout, config)}
    if layout is HUGGING_FACE:
        copy, original = key_map.HUGGING_FACE_COPY
        arrays[copy] = arrays[original]
    return arrays


def _named_keys(layout: KeyLayout, config: SamConfig) -> Iterable[tuple[str, CheckpointKey]]:
    """(name in this layout, key) of every array that a checkpoint in it has."""
    for key in key_map.checkpoint_keys(config):
        if layout is META:
            yield key.meta, key
        elif layout is HUGGING_FACE:
            yield key.hugging_face, key
        elif name := vit_checkpoints.mae_name(key):
            yield name, key


def _without_copy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face writes the Fourier matrix under two names, or one of them; the result has the second."""
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


def torch_shape(key: CheckpointKey, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape an array has in PyTorch."""
    shape = shapes[key.ours][len(key.index) :]
    return key.axes.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def resized(ours: Mapping[str, np.ndarray], old: SamConfig, new: SamConfig) -> dict[str, np.ndarray]:
    """The weights of `old` for the image size of `new`."""
    return vit_checkpoints.resized(ours, old.embedding_size, new.embedding_size, our_shapes(new))


def flat(*states: nnx.State) -> dict[str, np.ndarray]:
    """Our path -> array on the host, of params and buffers."""
    return {
        '/'.join(map(str, path)): np.asarray(jax.device_get(leaf[...] if isinstance(leaf, nnx.Variable) else leaf))
        for state in states
        for path, leaf in nnx.to_flat_state(state)
    }


def to_states(arrays: Mapping[str, np.ndarray], config: SamConfig) -> tuple[nnx.State, nnx.State]:
    """(params, buffers) of the model of `config`, still numpy arrays; the inverse of `flat`."""
    _, params, buffers = abstract_state(config)
    return tuple(
        nnx.from_flat_state([(path, leaf.replace(arrays['/'.join(map(str, path))])) for path, leaf in paths])
        for paths in (nnx.to_flat_state(params), nnx.to_flat_state(buffers))
    )
