"""Embeddings of images in files: the encoder runs once, and masks are predicted later, elsewhere, without the image.

- npz: arrays embed_hwC (channels last), original, size, frame (height and width in px) and model, see `Embedding`
- npy: (1, C, h, w), float32, what `SamPredictor.get_image_embedding().cpu().numpy()` of segment-anything gives and
  annotation tools and the ONNX decoder take; the size of the image is not in it
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from samjax.convert import convert, files, weights
from samjax.errors import SamjaxError
from samjax.inference.predictor import Embedding, Predictor
from samjax.jobs import output_folder as outputs
from samjax.jobs.image_collection import LoadedImage, find_images
from samjax.jobs.output_folder import OutputFolder, ProcessImage, Report
from samjax.model.params import digest

DTYPES = ('float32', 'float16')


def write(path: Path, embedding: Embedding) -> None:
    """Raises SamjaxError if there is something at `path`, or no room."""
    with files.whole(Path(path)) as unfinished:
        unfinished.write_bytes(_npz(embedding))


def read(path: Path) -> Embedding:
    """What `write` or `embed` wrote as npz.

    Raises:
        SamjaxError: it is not there, not whole, or something else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): name an .npz of `samjax embed`') from None
    if data.startswith(np.lib.format.MAGIC_PREFIX):
        raise SamjaxError(f'{path} is an array without the size of its image: name an .npz of `samjax embed`')
    if not data.startswith(b'PK'):
        raise SamjaxError(f'{path} is no .npz: name one of `samjax embed`')
    try:
        with np.load(io.BytesIO(data)) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Embedding)}
        embed_hwC, model = arrays.pop('embed_hwC'), arrays.pop('model')
        sizes = {name: tuple(map(int, array)) for name, array in arrays.items()}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SamjaxError(f'{path} is no whole .npz of `samjax embed` ({error}): embed the image again') from None
    if embed_hwC.dtype not in DTYPES or embed_hwC.ndim != 3 or any(len(s) != 2 or min(s) < 1 for s in sizes.values()):
        raise SamjaxError(
            f'{path} holds {embed_hwC.dtype} {embed_hwC.shape} and sizes {sizes}, not what `samjax embed` writes: '
            'embed the image again'
        )
    return Embedding(embed_hwC, model=str(model), **sizes)


def embed(
    inputs: Sequence[str], model: str, out: Path, form: str = 'npz', dtype: str = 'float32', devices: int = 0
) -> Report:
    """Writes out/NAME.npz or .npy for each image and a report; goes on where an earlier call stopped.

    inputs: see `find_images`; model: what `samjax convert` reads; form: one of `FORMATS`; dtype: one of `DTYPES`, of
    what is stored; devices: of each process, 0 is all.
    Images that cannot be read are left out and named in the report.

    Raises:
        SamjaxError: an input or the model cannot be read, no image is good, `out` holds something else, another process
            writes to it, the disk is full, or the embedding of an image does not fit float16.
    """
    for name, value, known in (('format', form, FORMATS), ('dtype', dtype, DTYPES)):
        if value not in known:
            raise SamjaxError(f'the {name} {value!r} is not known: choose one of {", ".join(known)}')
    if form == 'npy' and dtype != 'float32':
        raise SamjaxError(f'.npy files are float32, as others expect them, not {dtype}: leave --dtype out')
    images = find_images(inputs)
    arrays, config, _ = convert.read(Path(model), force=False)
    states = convert.to_states(arrays, config)
    model_digest = digest(states[0])
    size = [weights.size_name(config), *config.image_size]
    stamp = {'images': images.digest, 'model': {'size': size, 'digest': model_digest}, 'format': form, 'dtype': dtype}

    def look_on(device: jax.Device, output: OutputFolder) -> ProcessImage:
        predictor = Predictor(config, *jax.device_put(states, device))

        def look(place: int, loaded: LoadedImage) -> dict:
            [frame], embed_1hwC = predictor.encode([loaded.image_HW3])
            embed_hwC = _stored(np.asarray(embed_1hwC)[0], dtype, images.place(place))
            embedding = Embedding(embed_hwC, frame.original, frame.size, config.image_size, model_digest)
            output.put(f'{loaded.name}.{form}', FORMATS[form](embedding))
            return {}

        return look

    return outputs.process_images(Path(out), images, stamp, look_on, 'embeddings', Report, devices)


def _stored(embed_hwC: np.ndarray, dtype: str, place: str) -> np.ndarray:
    largest = np.abs(embed_hwC).max()
    if not largest <= np.finfo(dtype).max:
        raise SamjaxError(f'the embedding of {place} has values up to {largest:g}, too large for {dtype}: give float32')
    return embed_hwC.astype(dtype)


def _npz(embedding: Embedding) -> bytes:
    file = io.BytesIO()
    np.savez(file, **vars(embedding))
    return file.getvalue()


def _npy(embedding: Embedding) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(np.moveaxis(embedding.embed_hwC, -1, 0)[None], np.float32))
    return file.getvalue()


FORMATS = {'npz': _npz, 'npy': _npy}
