"""From a tar shard as SA-1B has them to a training step, with every mask where pycocotools and the rule say it is."""

import json
import zlib

import jax
import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import sparse
from tiny import TX, make_step

from benchmarks.sa1b_like import photograph, write_shard
from samjax.data import pipeline
from samjax.data.transforms import frame_size
from samjax.masks.packing import unpack_rows
from samjax.training import step

LOADER = {'seed': 0, 'max_area': 1.0, 'flip': 'none', 'jitter': (1.0, 1.0), 'workers': 0, 'prefetch': 1}


@pytest.fixture(scope='module')
def shard(tmp_path_factory, real_data):
    """Three photographs of BSDS500 and two generated ones of SA-1B's size, one upright; and their annotations."""
    folder = real_data('bsds500/val')
    rng = np.random.default_rng(0)
    pictures = [photograph(rng), photograph(rng, 2250, 1500)]
    for file in sorted(folder.glob('*.jpg'))[:3]:
        pictures.append((file.read_bytes(), json.loads(file.with_suffix('.json').read_text())))
    folder = tmp_path_factory.mktemp('shard')
    write_shard(folder / 'sa_000000.tar', pictures)
    return folder, [content['annotations'] for _, content in pictures]


def overlaps(n, length):
    """Sparse (n, length): how much pixel q of n and pixel p of `length` share, where a line has n * length."""
    edges = np.unique(np.concatenate([np.arange(n + 1) * length, np.arange(length + 1) * n]))
    start, size = edges[:-1], np.diff(edges)
    return sparse.coo_array((size, (start // length, start // n)), (n, length)).tocsr()


def ruled(rle, frame):
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
    source = pipeline.open_set(
        str(folder), seed=0, image_size=(1, 1), length=1, cache=tmp_path / 'cache', max_invalid_fraction=0.0
    )
    assert [example.name for example in source] == [f'sa_000000.tar/sa_{number}' for number in range(5)]
    for example, expected in zip(source, annotations, strict=True):
        assert [rle['counts'].decode() for rle in example.rles] == [one['segmentation']['counts'] for one in expected]

    most = max(map(len, annotations))
    assert min(map(len, annotations)) > 30
    frame = (1024, 1024)
    batches = pipeline.train_loader([(source, 1.0)], frame=frame, batch=5, max_objects=most, **LOADER)
    batch = next(batches)
    batches.close()
    expected = [[ruled(one['segmentation'], frame) for one in of_image] for of_image in annotations]
    expected = sorted(digests(mask_HW for mask_HW in of_image if mask_HW.any()) for of_image in expected)
    found = [
        digests(mask_HW for mask_HW, valid in zip(masks_NHW, valid_N, strict=True) if valid)
        for masks_NHW, valid_N in zip(np.array(unpack_rows(batch.packed_masks_BNVW, 1024)), batch.valid_BN, strict=True)
    ]
    assert sorted(found) == expected

    batches = pipeline.train_loader([(source, 1.0)], frame=tiny_config.image_size, batch=2, max_objects=4, **LOADER)
    state = step.init_state(tiny_config, TX, 0)
    state, metrics = jax.jit(make_step(tiny_config))(state, next(batches))
    batches.close()
    assert np.isfinite(metrics['loss'])
    assert int(state.step) == 1
    assert int(metrics['skipped']) == 0
