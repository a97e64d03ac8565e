"""One image, one object pointed at: its masks on the screen and in files."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax import pictures
from samjax.convert.convert import open_predictor
from samjax.data import rle
from samjax.errors import SamjaxError
from samjax.predictor import Answer, Prompt


def predict(
    image: str, model: str, points: list[list[float]], labels: list[int], box: list[float] | None, out: list[str]
) -> list[str]:
    """Writes the files of `out` and returns a line per mask, the one with the highest predicted IoU first.

    One point or one box is ambiguous and gets three masks; more get one (arXiv 2304.02643, appendix A).

    points: (x, y) in px; labels: 1 or 0 for each; box: x0, y0, x1, y1; out: see `samjax predict --help`.

    Raises:
        SamjaxError: nothing is pointed at, a file cannot be read or written, or its kind is unknown.
    """
    if not points and box is None:
        raise SamjaxError('nothing is pointed at: give --point x,y or --box x0,y0,x1,y1')
    for name in out:
        if pathlib.Path(name).suffix not in ('.json', '.png'):
            raise SamjaxError(f'{name} is neither a .json nor a .png file: choose another name for --out')
    image_HW3 = read_image(image)
    for x, y in [*points, *([box[:2], box[2:]] if box else [])]:
        if not (0 <= x <= image_HW3.shape[1] and 0 <= y <= image_HW3.shape[0]):
            raise SamjaxError(f'{x:g},{y:g} is outside the image of {image_HW3.shape[1]} x {image_HW3.shape[0]} px')
    prompt = Prompt(
        np.array(points, np.float64) if points else None,
        np.array(labels, np.int32) if points else None,
        None if box is None else np.array(box, np.float64),
    )
    ambiguous = len(points) + (box is not None) == 1
    predictor = open_predictor(model)
    [[answer]] = predictor.predict_batch([image_HW3], [[prompt]], multimask_output=ambiguous)
    order = np.argsort(-answer.iou_M, kind='stable')
    for name in out:
        _write(pathlib.Path(name), image_HW3, prompt, answer, order)
    lines = []
    for m in order:
        record = _record(answer, m)
        x, y, width, height = record['bbox']
        lines.append(
            f'mask {m + 1}: predicted IoU {record["predicted_iou"]:.3f}, {record["area"]:,} px, '
            f'box {x:g},{y:g} to {x + width:g},{y + height:g}'
        )
    return lines + [f'wrote {name}' for name in out]


def read_image(path: str) -> np.ndarray:
    """uint8 RGB.  Raises SamjaxError if the file is missing or no whole image."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert('RGB'))
    except FileNotFoundError:
        raise SamjaxError(f'{path} does not exist: name an image file') from None
    except (OSError, ValueError) as error:
        raise SamjaxError(f'{path} is no whole image ({error}): name another file') from None


def _write(path: pathlib.Path, image_HW3, prompt: Prompt, answer: Answer, order: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.json':
        records = {'masks': [_record(answer, m) for m in order]}
        path.write_text(json.dumps(records, indent=2) + '\n')
    elif path.stem == 'mask' or path.stem.endswith('_mask'):
        Image.fromarray(answer.masks_MHW[order[0]].astype(np.uint8) * 255).save(path)
    else:
        pictures.prediction(path, image_HW3, prompt, answer)


def _record(answer: Answer, m: int) -> dict:
    """A mask as SA-1B's JSON has it."""
    mask = rle.encode(answer.masks_MHW[m])
    return {
        'segmentation': rle.as_text(mask),
        'bbox': coco.toBbox(mask).tolist(),
        'area': int(coco.area(mask)),
        'predicted_iou': float(answer.iou_M[m]),
    }
