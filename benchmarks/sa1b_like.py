"""Synthetic images with masks like those of SA-1B: 1500 x 2250 px, a hundred masks of all sizes, in a tar shard.

    python -m benchmarks.sa1b_like DIR 50

writes DIR/sa_000000.tar with 50 of them.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIDES = (0.01, 0.5)  # minimum and maximum square root of a mask's fraction of the image, log-uniform in between


def noise_image(
    rng: np.random.Generator, height: int = 1500, width: int = 2250, count: int = 100
) -> tuple[bytes, dict]:
    """A JPEG, of about 0.9 MB at full size, and the content of its JSON with `count` masks."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 30 + 1, width // 30 + 1, 3), np.uint8))
    image_HW3 = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    image_HW3 = image_HW3 + rng.integers(-12, 13, image_HW3.shape, np.int16)
    annotations = []
    for number in range(count):
        mask_HW = blob(rng, height, width)
        if number % 4 == 0:
            image_HW3[mask_HW > 0] = 0.7 * image_HW3[mask_HW > 0] + 0.3 * rng.integers(0, 256, 3)
        annotations.append(as_annotation(number, mask_HW))
    file = io.BytesIO()
    Image.fromarray(image_HW3.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    image = {'image_id': 0, 'width': width, 'height': height, 'file_name': 'sa_0.jpg'}
    return file.getvalue(), {'image': image, 'annotations': annotations}


def as_annotation(number: int, mask_HW: np.ndarray) -> dict:
    """An entry of SA-1B's JSON for a uint8 mask in column order."""
    rle, (height, width) = coco.encode(mask_HW), mask_HW.shape
    return {
        'id': number,
        'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
        'bbox': coco.toBbox(rle).tolist(),
        'area': int(mask_HW.sum()),
        'predicted_iou': 0.9,
        'stability_score': 0.95,
        'crop_box': [0, 0, width, height],
        'point_coords': [[1.0, 1.0]],
    }


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask with a wavy outline, uint8 [H, W] in column order."""
    radius = np.exp(rng.uniform(*np.log(SIDES))) * np.sqrt(height * width / np.pi)
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    top, left = (int(max(0, middle - 2 * radius)) for middle in (y, x))
    bottom, right = int(min(height, y + 2 * radius + 1)), int(min(width, x + 2 * radius + 1))
    rows, columns = np.ogrid[top:bottom, left:right]
    angle_hw = np.arctan2(rows - y, columns - x)
    reach_hw = np.ones_like(angle_hw)
    for wave in range(2, 8):
        reach_hw += rng.normal(0, 0.25 / wave) * np.cos(wave * angle_hw + rng.uniform(0, 2 * np.pi))
    mask_HW = np.zeros((height, width), np.uint8, order='F')
    mask_HW[top:bottom, left:right] = np.hypot(rows - y, columns - x) < radius * reach_hw.clip(0.2, 1.9)
    return mask_HW


def write_shard(file: Path, images: list[tuple[bytes, dict]], first: int = 0) -> None:
    """Writes a tar file of sa_{first}.jpg, sa_{first}.json, and so on.  images: JPEG, JSON of each."""
    with tarfile.open(file, 'w') as tar:
        for number, (image, content) in enumerate(images, first):
            for suffix, data in (('.jpg', image), ('.json', json.dumps(content).encode())):
                member = tarfile.TarInfo(f'sa_{number}{suffix}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


if __name__ == '__main__':
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_shard(folder / 'sa_000000.tar', [noise_image(rng) for _ in range(count)])
