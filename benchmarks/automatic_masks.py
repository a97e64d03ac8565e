"""Time of automatic mask generation with samjax and with segment-anything, with the same weights and settings.

    python -m benchmarks.automatic_masks [--size vit_b] [--repeats 3] [--height 1024 --width 1024] [--crops 0]

Weights are random, so the thresholds are set such that half of the masks pass the threshold of predicted IoU, and about
100 of these pass that of stability.  NMS removes none, as all random masks have the same box.  Each side runs in its
own process, whose peak memory is reported.  Prints a table with the seconds of each stage, and a line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import time

import numpy as np

SIDES = 'samjax', 'meta'
NUM_MASKS = 100  # masks per image that pass the thresholds


def main() -> None:
    options = make_parser().parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    results = {}
    for side in options.sides.split(','):
        command = [sys.executable, '-m', 'benchmarks.automatic_masks', *sys.argv[1:], '--side', side]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[side] = json.loads(text.splitlines()[-1])
    print(f'{"":12}{"s/image":>10}{"masks":>8}{"GiB":>8}   stages, s')
    for side, result in results.items():
        stages = ', '.join(f'{name} {seconds:.2f}' for name, seconds in result['stages'].items())
        print(f'{side:12}{result["seconds"]:10.2f}{result["masks"]:8}{result["gib"]:8.2f}   {stages}')
    if len(results) == 2:
        print(f'ratio {results["meta"]["seconds"] / results["samjax"]["seconds"]:.2f}')
    print(json.dumps({'options': vars(options), **results}))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='vit_b', help='row of samjax.model.config.SIZES')
    parser.add_argument('--repeats', type=int, default=3, help='measurements, after one that does not count')
    parser.add_argument('--height', type=int, default=1024, help='of the image, px')
    parser.add_argument('--width', type=int, default=1024, help='of the image, px')
    parser.add_argument('--points', type=int, default=32, help='points per side')
    parser.add_argument('--batch', type=int, default=64, help='points per batch')
    parser.add_argument('--crops', type=int, default=0, help='layers of crops')
    parser.add_argument('--sides', default=','.join(SIDES), help='default: %(default)s')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)  # the side that this process measures
    return parser


def run(options) -> dict:
    """Median seconds per image of `options.side`, in total and for each stage."""
    import jax

    from samjax.convert.weights import to_states
    from samjax.inference.automatic.generator import AmgConfig
    from samjax.inference.predictor import Predictor
    from samjax.model.config import SIZES
    from samjax.parity import verify

    config = SIZES[options.size]
    arrays = random_arrays(config)
    predictor = Predictor(config, *jax.device_put(to_states(arrays, config)))
    rng = np.random.default_rng(1)
    image_HW3 = verify.random_image(rng, options.height, options.width)
    amg_config = AmgConfig(points_per_side=options.points, points_per_batch=options.batch, crop_n_layers=options.crops)
    amg_config = dataclasses.replace(amg_config, **thresholds(predictor, image_HW3, amg_config))
    timer = collections.Counter()
    if options.side == 'samjax':
        generate = samjax_generator(predictor, amg_config, timer)
    else:
        generate = meta_generator(config, arrays, amg_config, timer)
    del predictor
    seconds, records = [], []
    for number in range(1 + options.repeats):
        if number == 1:
            timer.clear()
        start = time.perf_counter()
        records = generate(image_HW3)
        seconds.append(time.perf_counter() - start)
    return {
        'seconds': float(np.median(seconds[1:])),
        'all': seconds,
        'masks': len(records),
        'gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        'stages': {name: value / options.repeats for name, value in timer.items()},
        'settings': dataclasses.asdict(amg_config),
    }


def random_arrays(config) -> dict[str, np.ndarray]:
    """Random weights by their path, scaled such that logits spread over several units."""
    import jax
    from flax import nnx

    from samjax.model.sam import Sam

    state = nnx.state(jax.jit(lambda: nnx.state(Sam(config, nnx.Rngs(0))))())
    arrays = {'/'.join(map(str, path)): np.array(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
    rng = np.random.default_rng(0)
    for path, array in arrays.items():
        if 'rel_' in path or 'pos_embed' in path:
            array[...] = rng.normal(0, 0.02, array.shape)
        if 'mask_heads' in path and 'kernel' in path:
            array *= 4
        if 'token_to_image' in path and '/w_' in path:
            array *= 3
        if 'iou_head' in path and 'bias' in path and array.shape == (4,):
            array += 0.5  # so that the threshold is above 0
    return arrays


def thresholds(predictor, image_HW3, config) -> dict[str, float]:
    """Thresholds of predicted IoU, stability and NMS, from a smaller grid of points on the image."""
    from samjax.inference.automatic.generator import AutomaticMaskGenerator

    coarse = {'points_per_side': min(16, config.points_per_side), 'crop_n_layers': 0, 'box_nms_thresh': 1.0}
    loose = dataclasses.replace(config, pred_iou_thresh=0.0, stability_score_thresh=0.0, **coarse)
    candidates = AutomaticMaskGenerator(predictor, loose).candidates(image_HW3)
    iou_N = np.array([candidate.predicted_iou for candidate in candidates])
    stability_N = np.array([candidate.stability_score for candidate in candidates])
    min_iou = np.median(iou_N)
    fraction = NUM_MASKS / config.points_per_side**2 / 3 / np.mean(iou_N > min_iou)
    min_stability = np.quantile(stability_N[iou_N > min_iou], max(1 - fraction, 0))
    return {
        'pred_iou_thresh': float(min_iou),
        'stability_score_thresh': float(min_stability),
        'box_nms_thresh': 1.0,
    }


def samjax_generator(predictor, config, timer):
    """A function image -> records that adds the seconds of each stage to `timer`."""
    import jax

    from samjax.inference.automatic.generator import AutomaticMaskGenerator

    generator = AutomaticMaskGenerator(predictor, config)
    encode, encode_crop = predictor.encode, generator._encode_crop

    def timed_encode(images):
        with timed(timer, 'encode'):
            return jax.block_until_ready(encode(images))

    def timed_encode_crop(image_HW3, crop):
        before = timer['encode']
        with timed(timer, 'score'):
            encoded = encode_crop(image_HW3, crop)
            jax.block_until_ready(encoded.proposals)
        timer['score'] -= timer['encode'] - before
        return encoded

    def generate(image_HW3):
        before = timer['encode'] + timer['score']
        with timed(timer, 'decode'):
            records = generator.generate(image_HW3)
        timer['decode'] -= timer['encode'] + timer['score'] - before
        return records

    predictor.encode, generator._encode_crop = timed_encode, timed_encode_crop
    return generate


def meta_generator(config, arrays, amg_config, timer):
    """The same with segment-anything's generator."""
    import torch

    from samjax.parity import meta

    sam = meta.with_arrays(arrays, config).to('cuda' if torch.cuda.is_available() else 'cpu')
    samjax_only = 'max_mask_fraction', 'drop_small_masks'
    arguments = {name: value for name, value in dataclasses.asdict(amg_config).items() if name not in samjax_only}
    generator = meta.automatic_mask_generator(sam, **arguments)
    for owner, name, stage in (
        (generator.predictor, 'set_image', 'encode'),
        (sam.mask_decoder, 'forward', 'decode'),
        (sam, 'postprocess_masks', 'upscale'),
    ):
        setattr(owner, name, timed(timer, stage)(getattr(owner, name)))

    def generate(image_HW3):
        before = sum(timer.values()) - timer['rest']
        with timed(timer, 'rest'):
            records = generator.generate(image_HW3)
        timer['rest'] -= sum(timer.values()) - timer['rest'] - before
        return records

    return generate


@contextlib.contextmanager
def timed(timer, stage: str):
    start = time.perf_counter()
    yield
    timer[stage] += time.perf_counter() - start


if __name__ == '__main__':
    main()
