"""Embeddings of images in files: the encoder runs once, and masks are predicted later, elsewhere, without the image.

- npz: arrays embed_hwC (channels last), original, size, frame (height and width in px) and model, see `Embedding`
- npy: (1, C, h, w), float32, what `SamPredictor.get_image_embedding().cpu().numpy()` of segment-anything gives and
  annotation tools and the ONNX decoder take; the size of the image is not in it
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from samjax.errors import SamjaxError, reason
from samjax.images.open import DEFAULT, ImageOptions
from samjax.inference.predictor import Embedding
from samjax.jobs.image_collection import LoadedImage, find_images
from samjax.jobs.model import JobModel
from samjax.jobs.output_folder import ImageReport, OutputFolder, ProcessImage, process_images
from samjax.storage import atomic

DTYPES = ('float32', 'float16')
SIZES = ('original', 'size', 'frame')  # arrays of an .npz: height and width in px


def write(path: Path, embedding: Embedding) -> None:
    """Writes an .npz.  Raises SamjaxError if there is something at `path`, or the disk is full."""
    with atomic.new_path(Path(path)) as unfinished:
        unfinished.write_bytes(_npz(embedding))


def read(path: Path) -> Embedding:
    """Reads an .npz of `write` or `write_embeddings`.

    Raises:
        SamjaxError: the file is missing, incomplete or of another kind.
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
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            embed_hwC, model = _array(archive, 'embed_hwC'), str(_array(archive, 'model'))
            sizes = {name: tuple(map(int, _array(archive, name))) for name in SIZES}
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged files
        raise SamjaxError(
            f'{path} is no complete .npz of `samjax embed` ({reason(error)}): embed the image again'
        ) from None
    if embed_hwC.dtype not in DTYPES or embed_hwC.ndim != 3 or any(len(s) != 2 or min(s) < 1 for s in sizes.values()):
        raise SamjaxError(
            f'{path} holds {embed_hwC.dtype} {embed_hwC.shape} and sizes {sizes}, not what `samjax embed` writes: '
            'embed the image again'
        )
    return Embedding(embed_hwC, model=model, **sizes)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz, whose bytes are compared with their checksum before their header is believed."""
    file = io.BytesIO(archive.read(f'{name}.npy'))
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError(f'{name} has more bytes than its shape')
    return array


def write_embeddings(
    inputs: Sequence[str],
    model: str,
    out: Path,
    output_format: str = 'npz',
    dtype: str = 'float32',
    devices: int = 0,
    image_options: ImageOptions = DEFAULT,
) -> ImageReport:
    """Writes out/NAME.npz or .npy for each image, and a report; resumes an earlier call that was interrupted.

    inputs: see `find_images`; model: path of what `samjax convert` reads; output_format: one of `FORMATS`; dtype: of
    the stored array, one of `DTYPES`; devices: number for each process, 0 for all.
    Images that cannot be read are left out and named in the report.

    Raises:
        SamjaxError: an input or the model cannot be read, no image is valid, `out` holds something else, another
            process writes to it, the disk is full, or the embedding of an image exceeds the range of float16.
    """
    for name, value, known in (('format', output_format, FORMATS), ('dtype', dtype, DTYPES)):
        if value not in known:
            raise SamjaxError(f'the {name} {value!r} is not known: choose one of {", ".join(known)}')
    if output_format == 'npy' and dtype != 'float32':
        raise SamjaxError(f'.npy files are float32, as others expect them, not {dtype}: leave --dtype out')
    images, job_model = find_images(inputs, image_options), JobModel.read(Path(model))
    fingerprint = {
        'images': images.digest,
        'model': job_model.fingerprint,
        'format': output_format,
        'dtype': dtype,
    }

    def prepare_device(device: jax.Device, output: OutputFolder) -> ProcessImage:
        predictor = job_model.predictor(device)

        def encode(index: int, image: LoadedImage) -> dict:
            [frame], embed_BhwC = predictor.encode([image.image_HW3])
            embed_hwC = _as_dtype(np.asarray(embed_BhwC)[0], dtype, images.location(index))
            sizes = frame.original_size, frame.input_size, job_model.config.image_size
            embedding = Embedding(embed_hwC, *sizes, job_model.digest)
            output.write_file(f'{image.name}.{output_format}', FORMATS[output_format](embedding))
            return {}

        return encode

    return process_images(Path(out), images, fingerprint, prepare_device, 'embeddings', ImageReport, devices)


def _as_dtype(embed_hwC: np.ndarray, dtype: str, location: str) -> np.ndarray:
    largest = np.abs(embed_hwC).max()
    if not largest <= np.finfo(dtype).max:
        raise SamjaxError(
            f'the embedding of {location} has values up to {largest:g}, too large for {dtype}: give float32'
        )
    return embed_hwC.astype(dtype)


# ---- formats ---------------------------------------------------------------------------------------


def _npz(embedding: Embedding) -> bytes:
    file = io.BytesIO()
    np.savez(file, **vars(embedding))
    return file.getvalue()


def _npy(embedding: Embedding) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(np.moveaxis(embedding.embed_hwC, -1, 0)[None], np.float32))
    return file.getvalue()


FORMATS = {'npz': _npz, 'npy': _npy}
