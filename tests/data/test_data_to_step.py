"""From a tar shard like those of SA-1B to a training step; every mask is where pycocotools and the rule put it."""

import json
import zlib

import jax
import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import sparse
from tiny import TX, make_step

from benchmarks.sa1b_like import noise_image, write_shard
from samjax.data import pipeline
from samjax.data.transforms import Sampling, frame_size
from samjax.masks.packing import unpack_rows
from samjax.training import step

OPTIONS = {
    'seed': 0,
    'num_workers': 0,
    'prefetch': 1,
}


def sampling(frame, max_objects):
    return Sampling(frame, max_objects, max_area_fraction=1.0, flip='none', scale_jitter=(1.0, 1.0))


@pytest.fixture(scope='module')
def shard(tmp_path_factory, real_data):
    """Three images of BSDS500 and two synthetic ones of SA-1B's size, one upright; and their annotations."""
    folder = real_data('bsds500/val')
    rng = np.random.default_rng(0)
    images = [noise_image(rng), noise_image(rng, 2250, 1500)]
    for file in sorted(folder.glob('*.jpg'))[:3]:
        images.append((file.read_bytes(), json.loads(file.with_suffix('.json').read_text())))
    folder = tmp_path_factory.mktemp('shard')
    write_shard(folder / 'sa_000000.tar', images)
    return folder, [content['annotations'] for _, content in images]


def overlaps(n, length):
    """Sparse (n, length): the overlap of pixel q of n and pixel p of `length`, where a line has n * length."""
    edges = np.unique(np.concatenate([np.arange(n + 1) * length, np.arange(length + 1) * n]))
    start, size = edges[:-1], np.diff(edges)
    return sparse.coo_array((size, (start // length, start // n)), (n, length)).tocsr()


def expected_by_the_rule(rle, frame):
    """A mask of the frame by pycocotools' decode at full size: a pixel is in it if at least half of its area is."""
    mask_HW = coco.decode(rle).astype(np.int64)
    H, W = mask_HW.shape
    h, w = frame_size(H, W, frame)
    framed_HW = np.zeros(frame, bool)
    framed_HW[:h, :w] = 2 * (overlaps(h, H) @ mask_HW @ overlaps(w, W).T) >= H * W
    return framed_HW


def digests(masks_NHW):
    return sorted(zlib.crc32(np.packbits(mask_HW).tobytes()) for mask_HW in masks_NHW)


def test_shard_to_batch_to_step(shard, tmp_path, tiny_config):
    folder, annotations = shard
    source = pipeline.open_dataset(
        str(folder), seed=0, image_size=(1, 1), length=1, cache=tmp_path / 'cache', max_invalid_fraction=0.0
    )
    assert [example.name for example in source] == [f'sa_000000.tar/sa_{number}' for number in range(5)]
    for example, expected in zip(source, annotations, strict=True):
        assert [rle['counts'].decode() for rle in example.rles] == [
            annotation['segmentation']['counts'] for annotation in expected
        ]

    max_objects = max(map(len, annotations))
    assert min(map(len, annotations)) > 30
    frame = (1024, 1024)
    batches = pipeline.train_loader([(source, 1.0)], sampling=sampling(frame, max_objects), batch_size=5, **OPTIONS)
    batch = next(batches)
    batches.close()
    expected = [[expected_by_the_rule(a['segmentation'], frame) for a in of_image] for of_image in annotations]
    expected = sorted(digests(mask_HW for mask_HW in of_image if mask_HW.any()) for of_image in expected)
    sampled = [
        digests(mask_HW for mask_HW, valid in zip(masks_NHW, valid_N, strict=True) if valid)
        for masks_NHW, valid_N in zip(np.array(unpack_rows(batch.packed_masks_BNVW, 1024)), batch.valid_BN, strict=True)
    ]
    assert sorted(sampled) == expected

    batches = pipeline.train_loader(
        [(source, 1.0)], sampling=sampling(tiny_config.image_size, 4), batch_size=2, **OPTIONS
    )
    state = step.init_state(tiny_config, TX, 0)
    state, metrics = jax.jit(make_step(tiny_config))(state, next(batches))
    batches.close()
    assert np.isfinite(metrics['loss'])
    assert int(state.step) == 1
    assert int(metrics['skipped']) == 0
