"""`samjax predict`: the masks of one object in an image, printed and written to files."""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from samjax.cli import common
from samjax.errors import SamjaxError
from samjax.images.open import DEFAULT, ImageOptions, read_image
from samjax.inference.load import load
from samjax.inference.predictor import MaskPrediction
from samjax.inference.prompts import Prompt, PromptWarning
from samjax.jobs import embeddings
from samjax.masks import rle
from samjax.storage import atomic
from samjax.visualization.overlays import draw_prediction


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'predict', 'Prints the masks of the object at the prompts, best first, and writes them to files.'
    )
    parser.add_argument('image', nargs='?', help='JPEG, PNG, WebP, BMP, TIFF or GIF file of 8 bits per channel')
    parser.add_argument('--model', required=True, metavar='PATH', help=common.MODEL_HELP)
    parser.add_argument(
        '--embedding',
        metavar='FILE.npz',
        help='of `samjax embed`: the image is then not encoded, and needed for overlays only',
    )
    parser.add_argument('--point', metavar='X,Y', type=_numbers(2), action='append', default=[], help='on the object')
    parser.add_argument('--negative', metavar='X,Y', type=_numbers(2), action='append', default=[], help='not on it')
    parser.add_argument(
        '--box', metavar='X0,Y0,X1,Y1', type=_numbers(4), action='append', default=[], help='around it, in px'
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        action='append',
        default=[],
        help='x.json: all masks as COCO RLE; mask.png or x_mask.png: the best one, 0 and 255; other .png: an overlay; '
        'may be repeated; refused if the file exists',
    )
    common.add_image_options(parser)
    options = common.parse(parser, argv)
    with common.one_line_errors():
        points = options.point + options.negative
        if len(options.box) > 1:
            raise SamjaxError(f'--box is given {len(options.box)} times: an object has one box, give one')
        prompt = Prompt(
            np.array(points, np.float64) if points else None,
            np.array([1] * len(options.point) + [0] * len(options.negative), np.int32) if points else None,
            np.array(options.box[0], np.float64) if options.box else None,
        )
        for line in predict(
            options.image, options.embedding, options.model, prompt, options.out, common.image_options(options)
        ):
            print(line)


def predict(
    image: str | None,
    embedding: str | None,
    model: str,
    prompt: Prompt,
    out: Sequence[str],
    image_options: ImageOptions = DEFAULT,
) -> list[str]:
    """Writes the files of `out` and returns a line per mask, the one with the highest predicted IoU first.

    One point or one box is ambiguous and gets three masks; more get one (arXiv 2304.02643, appendix A).

    Args:
        image: path of an image file, needed for overlays only if `embedding` is the path of its file of `samjax embed`.
        out: paths; the suffix and stem of each, in any letter case, decide what is written, see `samjax predict
            --help`.

    Raises:
        SamjaxError: there is no prompt or it lies outside the image, a file cannot be read or written, exists, is
            named twice or is of an unknown kind, or the embedding is of another model or of an image of another size.
    """
    if image is None and embedding is None:
        raise SamjaxError('there is no image: name one, or the --embedding of one')
    if prompt.points_K2 is None and prompt.box_4 is None:
        raise SamjaxError('there is no prompt: give --point x,y or --box x0,y0,x1,y1')
    paths = [pathlib.Path(name) for name in out]
    for n, path in enumerate(paths):
        if path.suffix.lower() not in ('.json', '.png'):
            raise SamjaxError(f'{path} is neither a .json nor a .png file: choose another name for --out')
        if image is None and _is_overlay(path):
            raise SamjaxError(f'{path} would show the image: name that too, or give x_mask.png or x.json')
        if path.resolve() in [other.resolve() for other in paths[:n]]:
            raise SamjaxError(f'{path} is named twice: choose another name for one --out')
        atomic.refuse_existing(path)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise SamjaxError(f'{path} cannot be written to {folder}: choose another folder for --out')
    image_HW3 = None if image is None else read_image(image, image_options)
    encoded = None if embedding is None else embeddings.read(pathlib.Path(embedding))
    height, width = encoded.original if image_HW3 is None else image_HW3.shape[:2]
    if encoded and encoded.original != (height, width):
        expected = '{1} x {0} px'.format(*encoded.original)
        raise SamjaxError(
            f'{embedding} is of an image of {expected}, and {image} has {width} x {height} px: name its own image'
        )
    for kind, points in (('point', prompt.points_K2), ('corner of the box', prompt.box_4)):
        for x, y in () if points is None else points.reshape(-1, 2):
            if not (0 <= x <= width and 0 <= y <= height):
                raise SamjaxError(
                    f'the {kind} {x:g},{y:g} is outside the image of {width} x {height} px: give x from 0 to {width} '
                    f'and y from 0 to {height}'
                )
    predictor = load(model)
    if encoded is None:
        predictor.set_image(image_HW3)
    else:
        try:
            predictor.set_embedding(encoded)
        except SamjaxError as error:
            raise SamjaxError(f'{embedding} cannot be used: {error}') from None
    is_ambiguous = (0 if prompt.points_K2 is None else len(prompt.points_K2)) + (prompt.box_4 is not None) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', PromptWarning)
        prediction = MaskPrediction(
            *predictor.predict(prompt.points_K2, prompt.labels_K, prompt.box_4, multimask_output=is_ambiguous)
        )
    for warning in caught:
        print(f'warning: {warning.message}', file=sys.stderr)
    order_M = np.argsort(-prediction.iou_predictions_M, kind='stable')
    for path in paths:
        _write(path, image_HW3, prompt, prediction, order_M)
    lines = []
    for m in order_M:
        annotation = _annotation(prediction, m)
        x, y, width, height = annotation['bbox']
        lines.append(
            f'mask {m + 1}: predicted IoU {annotation["predicted_iou"]:.3f}, {annotation["area"]:,} px, '
            f'box {x:g},{y:g} to {x + width:g},{y + height:g}'
        )
    return lines + [f'wrote {name}' for name in out]


def _write(path: pathlib.Path, image_HW3, prompt: Prompt, prediction: MaskPrediction, order_M: np.ndarray) -> None:
    with atomic.new_path(path) as unfinished:
        if path.suffix.lower() == '.json':
            annotations = [_annotation(prediction, m) for m in order_M]
            unfinished.write_text(json.dumps({'masks': annotations}, indent=2) + '\n')
        elif _is_overlay(path):
            draw_prediction(unfinished, image_HW3, prompt, prediction)
        else:
            Image.fromarray(prediction.masks_MHW[order_M[0]].astype(np.uint8) * 255).save(unfinished, 'PNG')


def _is_overlay(path: pathlib.Path) -> bool:
    stem = path.stem.lower()
    return path.suffix.lower() == '.png' and stem != 'mask' and not stem.endswith('_mask')


def _annotation(prediction: MaskPrediction, m: int) -> dict:
    """Mask m as an annotation of SA-1B."""
    encoded = rle.encode(prediction.masks_MHW[m])
    return {
        'segmentation': rle.as_text(encoded),
        'bbox': coco_mask.toBbox(encoded).tolist(),
        'area': int(coco_mask.area(encoded)),
        'predicted_iou': float(prediction.iou_predictions_M[m]),
    }


def _numbers(count: int) -> Callable[[str], list[float]]:
    """A parser of `count` finite numbers with commas between them."""

    def parse(text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split(',')]
        except ValueError:
            numbers = []
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            example = ','.join(['30', '20', '80', '60'][:count])
            raise argparse.ArgumentTypeError(
                f'{text!r} is not {count} numbers with commas between them, as in {example}'
            )
        return numbers

    return parse
