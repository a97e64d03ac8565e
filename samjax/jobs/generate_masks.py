"""Masks of everything in many images, in files: shared out over devices and processes, and resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from samjax.convert import convert, weights
from samjax.errors import SamjaxError
from samjax.inference.automatic.generator import AmgConfig, AutomaticMaskGenerator
from samjax.inference.predictor import Predictor
from samjax.jobs import mask_formats
from samjax.jobs import output_folder as outputs
from samjax.jobs.image_collection import ImageCollection, LoadedImage, find_images
from samjax.jobs.mask_formats import FORMATS
from samjax.jobs.output_folder import OutputFolder, ProcessImage
from samjax.model.params import digest


@dataclasses.dataclass(frozen=True)
class Report(outputs.Report):
    """What became of the images, and what was found in them."""

    without: int  # images in which no mask was found
    masks: int

    @classmethod
    def figures(cls, answers: Sequence[dict]) -> dict:
        counts = [answer['masks'] for answer in answers]
        return {'without': counts.count(0), 'masks': sum(counts)}


def masks(inputs: Sequence[str], model: str, out: Path, form: str, settings: AmgConfig, devices: int = 0) -> Report:
    """Writes the masks of all images as `form`, one of `FORMATS`, and a report; goes on where an earlier call stopped.

    inputs: see `find_images`; model: what `samjax convert` reads; devices: of each process, 0 is all.
    Images that cannot be read are left out and named in the report.

    Raises:
        SamjaxError: an input or the model cannot be read, no image is good, `out` holds something else or lies within
            an input, another process writes to it, or the disk or the device's memory is full.
    """
    if form not in FORMATS:
        raise SamjaxError(f'the format {form!r} is not known: choose one of {", ".join(FORMATS)}')
    images = find_images(inputs)
    for text in inputs:
        if Path(out).resolve().is_relative_to(Path(text).expanduser().resolve()):
            raise SamjaxError(f'{out} lies in {text}, where the images are: choose another folder for --out')
    arrays, config, _ = convert.read(Path(model), force=False)
    states = convert.to_states(arrays, config)
    size = [weights.size_name(config), *config.image_size]
    stamp = _stamp(images, {'size': size, 'digest': digest(states[0])}, settings, form)

    def look_on(device: jax.Device, output: OutputFolder) -> ProcessImage:
        predictor = Predictor(config, *jax.device_put(states, device))
        return _looker(images, AutomaticMaskGenerator(predictor, settings, output_mode='coco_rle'), form, output)

    return outputs.process_images(
        Path(out), images, stamp, look_on, 'masks', Report, devices, _finish if form == 'coco' else None
    )


def _finish(output: OutputFolder, answers: Sequence[dict]) -> None:
    mask_formats.write_instances(output, [None if 'cause' in answer else answer for answer in answers])


def _stamp(images: ImageCollection, model: dict, settings: AmgConfig, form: str) -> dict:
    """What the files depend on."""
    chosen = dataclasses.asdict(settings)
    del chosen['points_per_batch']  # may be lowered in between, if memory is short
    return {'images': images.digest, 'model': model, 'settings': chosen, 'format': form}


def _looker(
    images: ImageCollection, generator: AutomaticMaskGenerator, form: str, output: OutputFolder
) -> ProcessImage:
    def look(place: int, loaded: LoadedImage) -> dict:
        try:
            records = generator.generate(loaded.image_HW3)
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise SamjaxError(
                f'{images.place(place)}: the memory of the device is full: give fewer --points-per-batch than '
                f'{generator.settings.points_per_batch}, and the same command goes on'
            ) from error
        file = mask_formats.write(form, output, place, loaded, records)
        return {'file': file, 'size': loaded.image_HW3.shape[:2], 'masks': len(records)}

    return look
