"""Cost of a training example of SA-1B's size in core-seconds, compared with a straightforward baseline.

    python -m benchmarks.input_pipeline [--examples 64] [--out results.json]

Images have 1500 x 2250 px and 100 masks, of which 64 are sampled; the model input is 1024 x 1024.  For samjax all work
from ArrayRecord to arrays on the device is counted, over all processes: workers, Grain, the copy to the training
process and the transfer.  The baseline reads a JPEG and a JSON per image; pillow decodes and resizes the image,
pycocotools decodes each mask at full size, and pillow resizes it.  It runs in this process alone and needs no copies
between processes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from benchmarks.sa1b_like import noise_image, write_shard
from samjax.config import get_config
from samjax.data import pipeline
from samjax.data.transforms import Sampling
from samjax.distributed import hardware
from samjax.model import flops
from samjax.model.config import SIZES

FRAME = (1024, 1024)
OBJECTS = 64
IMAGES = 24  # distinct; their files stay in the page cache
REPEATS = 5  # measurements, of which the median counts
CHIPS = 256
UTILIZATION = 0.4  # of the peak, as docs/scaling.md assumes
# Virtual CPUs (half a core each) of a host with four chips: Google Cloud's ct4p-hightpu-4t, ct5lp-, ct5p- and ct6e-.
HOST_CPUS = {'TPU v4': 240, 'TPU v5 lite': 112, 'TPU v5': 208, 'TPU v6 lite': 180}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--examples', type=int, default=64, help='per measurement')
    parser.add_argument('--num-workers', type=int, default=1, help='loader processes')
    parser.add_argument('--out', type=Path, metavar='FILE', help='JSON file for the results')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(folder)
        samjax = measure_samjax(folder, options.examples, options.num_workers, REPEATS)
    baseline = measure_baseline(images, options.examples, REPEATS)
    results = {
        'samjax_core_seconds': statistics.median(samjax),
        'baseline_core_seconds': statistics.median(baseline),
        'ratio': statistics.median(baseline) / statistics.median(samjax),
        'samjax_repeats': samjax,
        'baseline_repeats': baseline,
        'cpus': os.cpu_count(),
    }
    print(f'samjax     {results["samjax_core_seconds"]:.3f} core-seconds per example')
    print(f'baseline   {results["baseline_core_seconds"]:.3f}')
    print(f'ratio      {results["ratio"]:.1f}')
    print(*hosts(results['samjax_core_seconds']), sep='\n')
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


def write_images(folder: str) -> list[tuple[bytes, dict]]:
    """Writes a shard like those of SA-1B into `folder` and returns the JPEG and the JSON content of each image."""
    rng = np.random.default_rng(0)
    images = [noise_image(rng) for _ in range(IMAGES)]
    write_shard(Path(folder) / 'sa_000000.tar', images)
    return images


def measure_samjax(folder: str, examples: int, num_workers: int, repeats: int) -> list[float]:
    """Core-seconds per example, of each measurement of `examples` examples."""
    source = pipeline.open_dataset(
        folder, seed=0, image_size=FRAME, length=1, cache=Path(folder) / 'cache', max_invalid_fraction=0.0
    )
    batches = pipeline.train_loader(
        [(source, 1.0)],
        sampling=Sampling(FRAME, OBJECTS, max_area_fraction=0.9, flip='none', scale_jitter=(1.0, 1.0)),
        seed=0,
        batch_size=1,
        num_workers=num_workers,
        prefetch=2,
    )
    for _ in range(8):  # until workers have started and files are open
        jax.block_until_ready(jax.device_put(next(batches)))
    seconds = []
    for _ in range(repeats):
        before = cpu_seconds()
        for _ in range(examples):
            jax.block_until_ready(jax.device_put(next(batches)))
        seconds.append((cpu_seconds() - before) / examples)
    batches.close()
    return seconds


def cpu_seconds() -> float:
    """CPU time of this process and its children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return total


def measure_baseline(images: list[tuple[bytes, dict]], examples: int, repeats: int) -> list[float]:
    """The same for the baseline, whose files are in memory."""
    rng = np.random.default_rng(0)
    files = [(image, json.dumps(content)) for image, content in images]
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        for n in range(examples):
            image, text = files[n % len(files)]
            jax.block_until_ready(jax.device_put(baseline_example(image, text, rng)))
        seconds.append((time.process_time() - before) / examples)
    return seconds


def baseline_example(image: bytes, text: str, rng: np.random.Generator):
    opened = Image.open(io.BytesIO(image)).convert('RGB')
    scale = FRAME[0] / max(opened.size)
    size = round(opened.width * scale), round(opened.height * scale)
    image_HW3 = np.zeros((*FRAME, 3), np.uint8)
    image_HW3[: size[1], : size[0]] = opened.resize(size, Image.Resampling.BILINEAR)
    annotations = json.loads(text)['annotations']
    masks_NHW = np.zeros((OBJECTS, *FRAME), bool)
    for n, i in enumerate(rng.permutation(len(annotations))[:OBJECTS]):
        mask_HW = Image.fromarray(coco.decode(annotations[i]['segmentation']) * np.uint8(255))
        masks_NHW[n, : size[1], : size[0]] = np.asarray(mask_HW.resize(size, Image.Resampling.BILINEAR)) > 127
    return image_HW3, masks_NHW


def hosts(core_seconds: float) -> list[str]:
    """A Markdown table: how busy the loader keeps the hosts of 256 chips that train with one image each."""
    lines = [
        f'| model | chip | step at 40 % of the peak | cores kept busy | hosts needed, of {CHIPS // 4} |',
        '|---|---|---|---|---|',
    ]
    for size in ('vit_b', 'vit_l', 'vit_h'):
        per_image = flops.train_flops(SIZES[size], OBJECTS, get_config().prompts.rounds)
        for kind, cpus in HOST_CPUS.items():
            step = per_image / hardware.CHIPS[kind].peak / UTILIZATION
            busy = CHIPS * core_seconds / step
            lines.append(f'| {size} | {kind} | {step:.3f} s | {busy:.0f} | {math.ceil(busy / (cpus / 2))} |')
    return lines


if __name__ == '__main__':
    main()
