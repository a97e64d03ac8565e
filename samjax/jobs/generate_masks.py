"""Automatic masks of many images, in files: distributed over devices and processes, and resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax

from samjax.errors import SamjaxError
from samjax.images.open import DEFAULT, ImageOptions
from samjax.inference.automatic.generator import AmgConfig, AutomaticMaskGenerator
from samjax.jobs import mask_formats
from samjax.jobs.image_collection import LoadedImage, find_images
from samjax.jobs.mask_formats import FORMATS
from samjax.jobs.model import JobModel
from samjax.jobs.output_folder import ImageReport, OutputFolder, ProcessImage, process_images


@dataclasses.dataclass(frozen=True)
class MaskReport(ImageReport):
    """What a command did with its images, and the masks in them."""

    num_without_masks: int  # valid images
    num_masks: int

    KEYS: ClassVar[Mapping[str, str]] = {
        **ImageReport.KEYS,
        'num_without_masks': 'without',
        'num_masks': 'masks',
    }

    @classmethod
    def counts(cls, results: Sequence[dict]) -> dict:
        counts = [result['masks'] for result in results]
        return {'num_without_masks': counts.count(0), 'num_masks': sum(counts)}


def generate_masks(
    inputs: Sequence[str],
    model: str,
    out: Path,
    output_format: str,
    config: AmgConfig,
    devices: int = 0,
    image_options: ImageOptions = DEFAULT,
) -> MaskReport:
    """Writes the automatic masks of all images, and a report; resumes an earlier call that was interrupted.

    inputs: see `find_images`; model: path of what `samjax convert` reads; output_format: one of `FORMATS`; devices:
    number for each process, 0 for all.
    Images that cannot be read are left out and named in the report.

    Raises:
        SamjaxError: an input or the model cannot be read, no image is valid, `out` holds something else or is within
            an input, another process writes to it, or the disk or the memory of a device is full.
    """
    if output_format not in FORMATS:
        raise SamjaxError(f'the format {output_format!r} is not known: choose one of {", ".join(FORMATS)}')
    images = find_images(inputs, image_options)
    for text in inputs:
        if Path(out).resolve().is_relative_to(Path(text).expanduser().resolve()):
            raise SamjaxError(f'{out} is within {text}, where the images are: choose another folder for --out')
    job_model = JobModel.read(Path(model))
    settings = dataclasses.asdict(config)
    del settings['points_per_batch']  # does not change the masks, and may be lowered if memory is short
    fingerprint = {
        'images': images.digest,
        'model': job_model.fingerprint,
        'settings': settings,
        'format': output_format,
    }

    def prepare_device(device: jax.Device, output: OutputFolder) -> ProcessImage:
        generator = AutomaticMaskGenerator(job_model.predictor(device), config, output_mode='coco_rle')

        def generate(index: int, image: LoadedImage) -> dict:
            try:
                records = generator.generate(image.image_HW3)
            except jax.errors.JaxRuntimeError as error:
                if 'RESOURCE_EXHAUSTED' not in str(error):
                    raise
                raise SamjaxError(
                    f'{images.location(index)}: the memory of the device is full: give fewer --points-per-batch than '
                    f'{config.points_per_batch}, then the same command continues'
                ) from error
            file = mask_formats.write(output_format, output, index, image, records)
            return {'file': file, 'size': image.image_HW3.shape[:2], 'masks': len(records)}

        return generate

    finish = _write_instances if output_format == 'coco' else None
    return process_images(Path(out), images, fingerprint, prepare_device, 'masks', MaskReport, devices, finish)


def _write_instances(output: OutputFolder, results: Sequence[dict]) -> None:
    mask_formats.write_instances(output, [None if 'cause' in result else result for result in results])
