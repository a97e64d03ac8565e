"""Masks of everything in an image, ours and segment-anything's, with the same weights and settings, in one run.

    python -m benchmarks.automatic_masks [--size vit_b] [--rounds 3] [--height 1024 --width 1024] [--crops 0]

Weights are random, so thresholds are set such that half of the masks pass the one of predicted IoU and about 100 of
these the one of stability; none is suppressed, as all random masks have the same box.  Each side runs in a process of
its own, whose peak memory counts.  Prints a table with the seconds of each stage and a line of JSON.
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

SIDES = 'ours', 'original'
ATTENTION_OUTPUT = 100  # masks of an image that stay


def main() -> None:
    options = arguments().parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    found = {}
    for side in options.sides.split(','):
        command = [sys.executable, '-m', 'benchmarks.automatic_masks', *sys.argv[1:], '--side', side]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[side] = json.loads(text.splitlines()[-1])
    print(f'{"":12}{"s/image":>10}{"masks":>8}{"GiB":>8}   stages, s')
    for side, one in found.items():
        stages = ', '.join(f'{name} {seconds:.2f}' for name, seconds in one['stages'].items())
        print(f'{side:12}{one["seconds"]:10.2f}{one["masks"]:8}{one["gib"]:8.2f}   {stages}')
    if len(found) == 2:
        print(f'ratio {found["original"]["seconds"] / found["ours"]["seconds"]:.2f}')
    print(json.dumps({'options': vars(options), **found}))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='vit_b')
    parser.add_argument('--rounds', type=int, default=3, help='after one that is not counted')
    parser.add_argument('--height', type=int, default=1024)
    parser.add_argument('--width', type=int, default=1024)
    parser.add_argument('--points', type=int, default=32, help='clicks per side')
    parser.add_argument('--batch', type=int, default=64, help='clicks at once')
    parser.add_argument('--crops', type=int, default=0, help='layers of crops')
    parser.add_argument('--sides', default=','.join(SIDES))
    parser.add_argument('--side', choices=SIDES, help='used by itself')
    return parser


def run(options) -> dict:
    """Median seconds of an image, and where they went, of one side."""
    import jax

    from samjax.convert.convert import to_states
    from samjax.inference.automatic.generator import AmgConfig
    from samjax.inference.predictor import Predictor
    from samjax.model.sam import SIZES
    from samjax.parity import verify

    config = SIZES[options.size]
    arrays = random_arrays(config)
    predictor = Predictor(config, *jax.device_put(to_states(arrays, config)))
    rng = np.random.default_rng(1)
    image_HW3 = verify.blotches(rng, options.height, options.width)
    settings = AmgConfig(points_per_side=options.points, points_per_batch=options.batch, crop_n_layers=options.crops)
    settings = dataclasses.replace(settings, **thresholds(predictor, image_HW3, settings))
    timer = collections.Counter()
    generate = ours(predictor, settings, timer) if options.side == 'ours' else original(config, arrays, settings, timer)
    del predictor
    seconds, records = [], []
    for number in range(1 + options.rounds):
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
        'stages': {name: value / options.rounds for name, value in timer.items()},
        'settings': dataclasses.asdict(settings),
    }


def random_arrays(config) -> dict[str, np.ndarray]:
    """Our path -> array, such that logits spread over several units."""
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
            array += 0.5  # thresholds below 0 would mean none
    return arrays


def thresholds(predictor, image_HW3, settings) -> dict[str, float]:
    """Of predicted IoU, of stability and of boxes, by a smaller grid of clicks on an image."""
    from samjax.inference.automatic.generator import AutomaticMaskGenerator

    rough = {'points_per_side': min(16, settings.points_per_side), 'crop_n_layers': 0, 'box_nms_thresh': 1.0}
    loose = dataclasses.replace(settings, pred_iou_thresh=0.0, stability_score_thresh=0.0, **rough)
    found = AutomaticMaskGenerator(predictor, loose).judged(image_HW3)
    iou_N, stability_N = np.array([one.iou for one in found]), np.array([one.stability for one in found])
    least = np.median(iou_N)
    share = ATTENTION_OUTPUT / settings.points_per_side**2 / 3 / np.mean(iou_N > least)
    stable = np.quantile(stability_N[iou_N > least], max(1 - share, 0))
    return {'pred_iou_thresh': float(least), 'stability_score_thresh': float(stable), 'box_nms_thresh': 1.0}


def ours(predictor, settings, timer):
    """A function of an image; adds seconds to `timer`."""
    import jax

    from samjax.inference.automatic.generator import AutomaticMaskGenerator

    generator = AutomaticMaskGenerator(predictor, settings)
    encode, look = predictor.encode, generator._look

    def timed_encode(images):
        with timed(timer, 'encode'):
            return jax.block_until_ready(encode(images))

    def timed_look(*crop):
        before = timer['encode']
        with timed(timer, 'judge'):
            found = jax.block_until_ready(look(*crop))
        timer['judge'] -= timer['encode'] - before
        return found

    def generate(image_HW3):
        before = timer['encode'] + timer['judge']
        with timed(timer, 'draw'):
            records = generator.generate(image_HW3)
        timer['draw'] -= timer['encode'] + timer['judge'] - before
        return records

    predictor.encode, generator._look = timed_encode, timed_look
    return generate


def original(config, arrays, settings, timer):
    """The same of segment-anything's generator."""
    import torch

    from samjax.parity import meta

    sam = meta.with_arrays(arrays, config).to('cuda' if torch.cuda.is_available() else 'cpu')
    own = 'max_mask_fraction', 'drop_small_masks'
    arguments = {name: value for name, value in dataclasses.asdict(settings).items() if name not in own}
    generator = meta.generator(sam, **arguments)
    for owner, name, stage in (
        (generator.predictor, 'set_image', 'encode'),
        (sam.mask_decoder, 'forward', 'decode'),
        (sam, 'postprocess_masks', 'enlarge'),
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
