"""The training stream is a function of seed and step: not of workers, processes or interruptions."""

import json
import os
import signal
import time
from typing import NamedTuple

import grain
import jax
import numpy as np
import pytest
from pycocotools import mask as coco

from samjax.data import pipeline
from samjax.data.example import Example
from samjax.data.formats.read_options import ReadOptions
from samjax.data.synthetic import Scenes
from samjax.data.transforms import Sampling
from samjax.errors import SamjaxError
from samjax.images.encoded_image import EncodedImage
from samjax.structs import Batch

FRAME = (8, 12)


class Numbered(NamedTuple):
    """`count` images of 8 x 5 px whose first pixel is their number, with 9 one-pixel masks each."""

    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = EncodedImage.from_array(np.full((8, 5, 3), index, np.uint8))
        masks_HWN = np.asfortranarray(np.eye(40, 9, dtype=np.uint8).reshape(8, 5, 9))
        return Example(str(index), image, coco.encode(masks_HWN))


class Witness(Numbered):
    """Writes into the image whether the process that reads it has started JAX."""

    def __getitem__(self, index):
        from jax._src import xla_bridge

        started = xla_bridge.backends_are_initialized()
        return (
            super()
            .__getitem__(index)
            ._replace(image=EncodedImage.from_array(np.full((8, 12, 3), int(started), np.uint8)))
        )


class Broken(Numbered):
    """Cannot be read."""

    def __getitem__(self, index):
        raise OSError('the disk is gone')


class Deadly(Numbered):
    """Its reader is killed at an image, as if memory had run out; `once` is a file that marks that it was."""

    def __new__(cls, count, once):
        made = super().__new__(cls, count)
        made.once = once
        return made

    def __getnewargs__(self):
        return self.count, self.once

    def __getitem__(self, index):
        if index == 5 and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Slow(Numbered):
    """Takes its time."""

    def __getitem__(self, index):
        time.sleep(0.5)
        return super().__getitem__(index)


def loader(source, **changes):
    options = {
        'seed': 0,
        'batch_size': 4,
        'num_workers': 0,
        'prefetch': 1,
        'process_index': 0,
        'process_count': 1,
    }
    sampling = {'max_objects': 3, 'max_area_fraction': 0.9, 'flip': 'none', 'scale_jitter': (1.0, 1.0)}
    sampling |= {name: changes.pop(name) for name in sampling if name in changes}
    sources = source if isinstance(source, list) else [(source, 1.0)]
    return pipeline.train_loader(sources, sampling=Sampling(FRAME, **sampling), **(options | changes))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def numbers(batches):
    return [int(n) for batch in batches for n in batch.image_BHW3[:, 0, 0, 0]]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for pair in zip(batches, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_train_loader_makes_padded_batches():
    batch = next(loader(Numbered(10), max_objects=12))
    assert isinstance(batch, Batch)
    assert batch.image_BHW3.shape == (4, 8, 12, 3)
    assert batch.image_BHW3.dtype == np.uint8
    assert batch.packed_masks_BNVW.shape == (4, 12, 1, 12)
    assert batch.packed_masks_BNVW.dtype == np.uint8
    assert batch.valid_BN.tolist() == [[True] * 9 + [False] * 3] * 4
    assert batch.size_B2.tolist() == [[8, 5]] * 4
    assert batch.size_B2.dtype == np.int32
    assert not batch.packed_masks_BNVW[..., 5:].any()
    np.testing.assert_array_equal(batch.packed_masks_BNVW.any((2, 3)), batch.valid_BN)


def test_train_loader_shows_every_image_once_per_epoch_in_new_order():
    seen = numbers(take(loader(Numbered(12)), 9))
    epochs = [seen[:12], seen[12:24], seen[24:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_train_loader_depends_on_the_seed():
    same, again, other = (take(loader(Numbered(12), seed=s), 3) for s in (5, 5, 6))
    assert_equal(same, again)
    assert numbers(same) != numbers(other)


def test_train_loader_samples_other_masks_in_the_next_epoch():
    first, second = take(loader(Numbered(1), batch_size=1), 2)
    assert (first.packed_masks_BNVW != second.packed_masks_BNVW).any()


def test_train_loader_repeats_a_source_smaller_than_the_batch():
    assert sorted(numbers(take(loader(Numbered(3), batch_size=6), 2))) == [
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        1,
        2,
        2,
        2,
        2,
    ]
    assert numbers(take(loader(Numbered(1), batch_size=2), 2)) == [0] * 4


def test_two_processes_split_each_batch_and_together_make_the_whole():
    whole = take(loader(Numbered(12)), 6)
    halves = [take(loader(Numbered(12), process_index=index, process_count=2), 6) for index in (0, 1)]
    first_epoch = [set(numbers(half[:3])) for half in halves]
    assert first_epoch[0].isdisjoint(first_epoch[1])
    assert first_epoch[0] | first_epoch[1] == set(range(12))
    joined = [jax.tree.map(lambda *x: np.concatenate(x), *pair) for pair in zip(*halves, strict=True)]
    assert_equal(joined, whole)


def test_two_processes_stay_in_step_when_the_source_is_odd():
    halves = [take(loader(Numbered(7), batch_size=2, process_index=index, process_count=2), 7) for index in (0, 1)]
    both = sorted(numbers(halves[0]) + numbers(halves[1]))
    assert both == sorted(list(range(7)) * 2)


@pytest.mark.parametrize(('num_workers', 'later'), [(0, 0), (2, 2), (2, 0)])
def test_resume_in_the_middle_of_an_epoch(num_workers, later):
    source = Numbered(12)
    expected = take(loader(source), 8)
    batches = loader(source, num_workers=num_workers, prefetch=2)
    assert_equal(take(batches, 5), expected[:5])
    state = json.loads(json.dumps(batches.get_state()))
    batches.close()
    resumed = loader(source, num_workers=later)
    resumed.set_state(state)
    assert_equal(take(resumed, 3), expected[5:])
    assert resumed.get_state() == {'taken': 8}
    resumed.close()


def test_state_counts_what_was_taken_not_what_was_prefetched():
    batches = loader(Numbered(12), prefetch=4)
    assert batches.get_state() == {'taken': 0}
    expected = take(batches, 4)
    batches.set_state({'taken': 1})
    assert batches.get_state() == {'taken': 1}
    assert_equal(take(batches, 3), expected[1:])


def test_state_goes_through_a_checkpoint(tmp_path):
    batches = loader(Numbered(12))
    take(batches, 2)
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(tmp_path, item=batches)
    expected = take(batches, 2)
    assert_equal(take(handler.restore(tmp_path, item=loader(Numbered(12))), 2), expected)


def test_workers_do_not_start_jax():
    jax.devices()  # as in training
    batches = loader(Witness(4), num_workers=1)
    assert numbers(take(batches, 1)) == [0] * 4
    batches.close()
    assert numbers(take(loader(Witness(4)), 1)) == [1] * 4


def test_an_error_in_a_worker_reaches_the_loop():
    batches = loader(Broken(12), num_workers=1)
    with pytest.raises(OSError, match='the disk is gone'):
        next(batches)
    batches.close()


def test_workers_that_die_are_started_again_and_no_image_is_lost(tmp_path, capsys):
    expected = take(loader(Numbered(12), batch_size=1), 14)
    batches = loader(Deadly(12, tmp_path / 'once'), batch_size=1, num_workers=2)
    assert_equal(take(batches, 14), expected)
    batches.close()
    assert 'data workers died (by signal SIGKILL); starts them again (attempt 1)' in capsys.readouterr().err


def test_workers_that_die_again_and_again_are_an_error():
    batches = loader(Deadly(12, None), batch_size=1, num_workers=1)
    with pytest.raises(
        SamjaxError, match=r'data workers died 3 times at batch \d+, .*: lower --config.data.num_workers'
    ):
        take(batches, 14)


def test_waiting_long_for_data_makes_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, 'POLL_INTERVAL', 0.1)
    monkeypatch.setattr(pipeline, 'WARNING_INTERVAL', 1)
    take(loader(Slow(12)), 1)
    assert 'warning: batch 0 is not there after 1 s: is the storage slow' in capsys.readouterr().err


def test_train_loader_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match='train.batch_size is 5, it must be a positive multiple of the 2'):
        loader(Numbered(12), batch_size=5, process_count=2)
    with pytest.raises(SamjaxError, match='train.batch_size is 0'):
        loader(Numbered(12), batch_size=0)
    with pytest.raises(SamjaxError, match="data.flip 'up' is not known: set it to one of none, horizontal, any"):
        loader(Numbered(12), flip='up')
    for scale_jitter in ((0.0, 1.0), (2.0, 1.0), (1.0,)):
        with pytest.raises(SamjaxError, match=r'data.scale_jitter is \(.*: set it to \(minimum, maximum\)'):
            loader(Numbered(12), scale_jitter=scale_jitter)
    with pytest.raises(SamjaxError, match=r'the list of weights in data.mix is \[0.0\]: set it to numbers over 0'):
        loader([(Numbered(12), 1.0), (Numbered(3), 0.0)])
    with pytest.raises(SamjaxError, match='data.prefetch is 0: set it to at least 1'):
        loader(Numbered(12), prefetch=0)


def test_train_loader_asks_jax_which_process_this_is():
    assert_equal(
        take(loader(Numbered(12), process_index=None, process_count=None), 2),
        take(loader(Numbered(12)), 2),
    )


def test_open_dataset_makes_scenes_or_opens_a_path(monkeypatch):
    options = {'seed': 7, 'image_size': (64, 96), 'length': 3, 'cache': 'c', 'max_invalid_fraction': 0.5}
    scenes = pipeline.open_dataset('scenes', **options)
    assert isinstance(scenes, Scenes)
    assert len(scenes) == 3
    assert scenes[0].image.pixels().shape == (64, 96, 3)
    monkeypatch.setattr(pipeline, 'open_records', lambda *args: args)
    assert pipeline.open_dataset('some/path', **options) == ('some/path', 'c', 0.5, ReadOptions())


class Twin(Numbered):
    """Like `Numbered`, but with 100 added to the numbers."""

    def __getitem__(self, index):
        image = EncodedImage.from_array(np.full((8, 5, 3), 100 + index, np.uint8))
        return super().__getitem__(index)._replace(image=image)


def test_mixed_sources_come_by_weight_and_each_goes_through_its_own_epochs():
    """12 images with weight 1 and 4 with weight 6 are 12 to 24: a third and two thirds."""
    seen = numbers(take(loader([(Numbered(12), 1.0), (Twin(4), 6.0)]), 18))
    first, second = [n for n in seen if n < 100], [n for n in seen if n >= 100]
    assert (len(first), len(second)) == (24, 48)
    assert sorted(first[:12]) == sorted(first[12:]) == list(range(12))
    for epoch in range(12):
        assert sorted(second[4 * epoch : 4 * epoch + 4]) == [100, 101, 102, 103]
    thirds = [sum(n < 100 for n in seen[start : start + 12]) for start in range(0, 72, 12)]
    assert set(thirds) == {4}  # evenly, not in blocks


def test_mixed_sources_depend_on_the_seed_and_not_on_workers_or_processes():
    sources = [(Numbered(12), 1.0), (Twin(4), 2.5)]
    expected = take(loader(sources), 4)
    batches = loader(sources, num_workers=2)
    assert_equal(take(batches, 4), expected)
    batches.close()
    halves = [take(loader(sources, process_index=index, process_count=2), 4) for index in (0, 1)]
    assert_equal([jax.tree.map(lambda *x: np.concatenate(x), *pair) for pair in zip(*halves, strict=True)], expected)
    assert numbers(take(loader(sources, seed=1), 4)) != numbers(expected)


def test_mixed_sources_of_one_size_have_orders_of_their_own():
    seen = numbers(take(loader([(Numbered(12), 1.0), (Twin(12), 1.0)]), 6))
    first, second = [n for n in seen if n < 100], [n - 100 for n in seen if n >= 100]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


@pytest.mark.parametrize(('num_workers', 'later'), [(1, 3), (3, 2)])
def test_two_processes_resume_in_the_middle_of_an_epoch_with_other_workers(num_workers, later):
    """Together they have read each image once at the end of the epoch."""
    source, seen = Numbered(12), []
    for index in (0, 1):
        process = {'process_index': index, 'process_count': 2}
        batches = loader(source, num_workers=num_workers, **process)
        seen.append(numbers(take(batches, 2)))
        state = batches.get_state()
        batches.close()
        resumed = loader(source, num_workers=later, **process)
        resumed.set_state(state)
        seen[-1] += numbers(take(resumed, 1))
        resumed.close()
    assert set(seen[0]).isdisjoint(seen[1])
    assert sorted(seen[0] + seen[1]) == list(range(12))
