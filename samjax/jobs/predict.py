"""One image, one object pointed at: its masks on the screen and in files."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco

from samjax.convert.convert import open_predictor
from samjax.errors import SamjaxError
from samjax.inference.predictor import Embedding, MaskPrediction, Predictor, Prompt
from samjax.jobs import embeddings
from samjax.masks import rle
from samjax.visualization import pictures


def predict(
    image: str | None,
    model: str,
    points: list[list[float]],
    labels: list[int],
    box: list[float] | None,
    out: list[str],
    embedding: str | None = None,
) -> list[str]:
    """Writes the files of `out` and returns a line per mask, the one with the highest predicted IoU first.

    One point or one box is ambiguous and gets three masks; more get one (arXiv 2304.02643, appendix A).

    points: (x, y) in px; labels: 1 or 0 for each; box: x0, y0, x1, y1; out: see `samjax predict --help`; embedding: a
    file of `samjax embed`, with which the image is needed for overlays only.

    Raises:
        SamjaxError: nothing is pointed at, a file cannot be read or written, its kind is unknown, or the embedding is
            of another model or of an image of another size.
    """
    if image is None and embedding is None:
        raise SamjaxError('there is nothing to look at: name an image, or an --embedding of one')
    if not points and box is None:
        raise SamjaxError('nothing is pointed at: give --point x,y or --box x0,y0,x1,y1')
    for name in out:
        if pathlib.Path(name).suffix not in ('.json', '.png'):
            raise SamjaxError(f'{name} is neither a .json nor a .png file: choose another name for --out')
        if image is None and _is_overlay(pathlib.Path(name)):
            raise SamjaxError(f'{name} would show the image: name that too, or give x_mask.png or x.json')
    image_HW3 = None if image is None else read_image(image)
    encoded = None if embedding is None else embeddings.read(pathlib.Path(embedding))
    height, width = encoded.original if image_HW3 is None else image_HW3.shape[:2]
    if encoded and encoded.original != (height, width):
        there, here = '{1} x {0} px'.format(*encoded.original), f'{width} x {height} px'
        raise SamjaxError(f'{embedding} is of an image of {there}, and {image} has {here}: name its own image')
    for x, y in [*points, *([box[:2], box[2:]] if box else [])]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise SamjaxError(f'{x:g},{y:g} is outside the image of {width} x {height} px')
    prompt = Prompt(
        np.array(points, np.float64) if points else None,
        np.array(labels, np.int32) if points else None,
        None if box is None else np.array(box, np.float64),
    )
    ambiguous = len(points) + (box is not None) == 1
    predictor = open_predictor(model)
    if encoded is None:
        predictor.set_image(image_HW3)
    else:
        _set(predictor, encoded, embedding)
    said = prompt.points_K2, prompt.labels_K, prompt.box_4
    prediction = MaskPrediction(*predictor.predict(*said, multimask_output=ambiguous))
    order = np.argsort(-prediction.iou_M, kind='stable')
    for name in out:
        _write(pathlib.Path(name), image_HW3, prompt, prediction, order)
    lines = []
    for m in order:
        record = _record(prediction, m)
        x, y, width, height = record['bbox']
        lines.append(
            f'mask {m + 1}: predicted IoU {record["predicted_iou"]:.3f}, {record["area"]:,} px, '
            f'box {x:g},{y:g} to {x + width:g},{y + height:g}'
        )
    return lines + [f'wrote {name}' for name in out]


def _set(predictor: Predictor, encoded: Embedding, path: str) -> None:
    try:
        predictor.set_embedding(encoded)
    except SamjaxError as error:
        raise SamjaxError(f'{path} cannot be used: {error}') from None


def read_image(path: str) -> np.ndarray:
    """uint8 RGB, upright.  Raises SamjaxError if the file is missing or no whole image."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except FileNotFoundError:
        raise SamjaxError(f'{path} does not exist: name an image file') from None
    except (OSError, ValueError) as error:
        raise SamjaxError(f'{path} is no whole image ({error}): name another file') from None


def _write(path: pathlib.Path, image_HW3, prompt: Prompt, prediction: MaskPrediction, order: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.json':
        records = {'masks': [_record(prediction, m) for m in order]}
        path.write_text(json.dumps(records, indent=2) + '\n')
    elif _is_overlay(path):
        pictures.prediction(path, image_HW3, prompt, prediction)
    else:
        Image.fromarray(prediction.masks_MHW[order[0]].astype(np.uint8) * 255).save(path)


def _is_overlay(path: pathlib.Path) -> bool:
    return path.suffix == '.png' and path.stem != 'mask' and not path.stem.endswith('_mask')


def _record(prediction: MaskPrediction, m: int) -> dict:
    """A mask as SA-1B's JSON has it."""
    mask = rle.encode(prediction.masks_MHW[m])
    return {
        'segmentation': rle.as_text(mask),
        'bbox': coco.toBbox(mask).tolist(),
        'area': int(coco.area(mask)),
        'predicted_iou': float(prediction.iou_M[m]),
    }
