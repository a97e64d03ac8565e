"""What the files of `embed` and `masks` depend on: an interrupted job is continued only by one that writes the same."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
from samples import random_image

from samjax.images.open import DEFAULT, ImageOptions
from samjax.inference.automatic.generator import PRESETS, AmgConfig
from samjax.jobs import embeddings, generate_masks
from samjax.jobs.model import JobModel
from samjax.model.config import SIZES

OTHERS = {
    int: lambda value: value + 1,
    float: lambda value: value - 0.01 if value else 0.01,
    bool: lambda value: not value,
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder with an image; models are read and images processed by functions that only note the fingerprint."""
    (tmp_path / 'in').mkdir()
    random_image(0).save(tmp_path / 'in' / 'a.png')
    for module in (embeddings, generate_masks):
        monkeypatch.setattr(module, 'process_images', lambda out, images, fingerprint, *_: fingerprint)
        read = SimpleNamespace(read=lambda path: JobModel(SIZES[path.name], None, None, f'digest of {path.name}'))
        monkeypatch.setattr(module, 'JobModel', read)
    return tmp_path / 'in'


def all_differ(fingerprints):
    texts = [json.dumps(fingerprint, sort_keys=True) for fingerprint in fingerprints]
    return all(a != b for a, b in itertools.combinations(texts, 2))


def test_embeddings(inputs):
    def find(model='test', output_format='npz', dtype='float32', options=DEFAULT):
        out = inputs.parent / 'out'
        return embeddings.write_embeddings([str(inputs)], model, out, output_format, dtype, 0, options)

    found = [find(), find('vit_xs'), find(output_format='npy'), find(dtype='float16')]
    found.append(find(options=ImageOptions((0.0, 4095.0))))
    random_image(1).save(inputs / 'a.png')
    assert all_differ([*found, find()])


def test_masks(inputs):
    def find(model='test', output_format='sa1b', config=PRESETS['original'], options=DEFAULT):
        out = inputs.parent / 'out'
        return generate_masks.generate_masks([str(inputs)], model, out, output_format, config, 0, options)

    found = [find(), find('vit_xs'), *(find(output_format=name) for name in ('coco', 'png', 'overlay'))]
    found.append(find(options=ImageOptions((0.0, 4095.0))))
    for field in dataclasses.fields(AmgConfig):
        value = getattr(PRESETS['original'], field.name)
        other = dataclasses.replace(PRESETS['original'], **{field.name: OTHERS[type(value)](value)})
        if field.name == 'points_per_batch':  # changes no mask
            assert find(config=other) == find()
        else:
            found.append(find(config=other))
    random_image(1).save(inputs / 'a.png')
    assert all_differ([*found, find()])
