"""Results of an interrupted evaluation are used again only by one that would make the same."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.io
from samples import random_image
from tiny import tiny_eval_model

from samjax.data.formats.read_options import ReadOptions
from samjax.data.synthetic import Scenes
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks import edges, instances, interactive, proposals
from samjax.images.open import ImageOptions


class Stop(Exception):
    """Holds the fingerprint that a journal was opened with."""


@pytest.fixture
def fingerprint(monkeypatch, tmp_path):
    """A function of a task and its arguments: the fingerprint of its journal, as JSON; nothing is predicted."""

    def stop(folder, fingerprint):
        raise Stop(json.dumps(fingerprint, sort_keys=True))

    for module in (edges, instances, interactive, proposals):
        monkeypatch.setattr(module, 'ResultJournal', stop)

    def find(task, *arguments):
        with pytest.raises(Stop) as stopped:
            task(*arguments)
        return str(stopped.value)

    return find


@pytest.fixture
def model(params, data):
    return tiny_eval_model(params, path=data / 'truth.json')


@pytest.fixture
def data(tmp_path):
    """Four images with a box each in a JSON, two files of other boxes, and edges of the same images."""
    images, annotations = [], []
    for n in range(4):
        random_image(n, 20, 30).save(tmp_path / f'{n}.png')
        images.append({'id': n, 'file_name': f'{n}.png', 'height': 20, 'width': 30})
        annotations.append({'id': n + 1, 'image_id': n, 'category_id': 1, 'bbox': [2, 3, 9, 8], 'area': 72,
                            'iscrowd': 0, 'segmentation': [[2, 3, 11, 3, 11, 11, 2, 11]]})  # fmt: skip
        boundary = np.empty((1, 1), [('Boundaries', 'O')])
        boundary[0, 0]['Boundaries'] = np.eye(20, 30, dtype=np.uint8)
        truth = np.empty((1, 1), 'O')
        truth[0, 0] = boundary
        scipy.io.savemat(tmp_path / f'{n}.mat', {'groundTruth': truth})
    categories = [{'id': 1, 'name': 'a'}]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    for name, score in (('a', 0.5), ('b', 0.6)):
        boxes = [{'image_id': 0, 'category_id': 1, 'bbox': [2, 3, 9, 8], 'score': score}]
        (tmp_path / f'{name}.json').write_text(json.dumps(boxes))
    return tmp_path


def all_differ(fingerprints):
    return all(a != b for a, b in itertools.combinations(fingerprints, 2))


def other_models(model):
    """Models that predict otherwise, or read images otherwise."""
    read = ReadOptions(image=ImageOptions((0.0, 4095.0)))
    return [
        dataclasses.replace(model, digest='other'),
        dataclasses.replace(model, dtype='bfloat16'),
        dataclasses.replace(model, sam=dataclasses.replace(model.sam, image_size=(48, 48))),
        dataclasses.replace(model, data=dataclasses.replace(model.data, read_options=read)),
    ]


def test_proposals(model, data, fingerprint):
    some, options = EvalOptions(max_images=2), EvalOptions()
    finer = dataclasses.replace(model, config=dataclasses.replace(model.config, points_per_side=5))
    found = [fingerprint(proposals.proposals, m, options, data) for m in (model, *other_models(model), finer)]
    found += [fingerprint(proposals.proposals, m, some, data) for m in (model, dataclasses.replace(model, seed=9))]
    random_image(9, 20, 30).save(data / '3.png')
    assert all_differ([*found, fingerprint(proposals.proposals, model, options, data)])


def test_instances(model, data, fingerprint):
    a, b = (EvalOptions(boxes=str(data / name)) for name in ('a.json', 'b.json'))
    found = [fingerprint(instances.instances, m, a, data) for m in (model, *other_models(model))]
    found += [fingerprint(instances.instances, model, options, data) for options in (b, a._replace(max_images=2))]
    assert all_differ(found)


def test_edges(model, data, fingerprint):
    options = EvalOptions(ground_truth=str(data))
    model = dataclasses.replace(model, data=dataclasses.replace(model.data, path=str(data)))
    found = [fingerprint(edges.edges, m, options, data) for m in (model, *other_models(model))]
    found.append(fingerprint(edges.edges, model, options._replace(max_images=2), data))
    random_image(9, 20, 30).save(data / '3.png')
    assert all_differ([*found, fingerprint(edges.edges, model, options, data)])


def test_interactive(model, data, fingerprint):
    source = Scenes(0, 2, (32, 48))

    def find(model, source=source, name='sam', max_masks=0, **options):
        arguments = model, {name: []}, source, 'scenes', data, EvalOptions(**options), max_masks
        return fingerprint(interactive.evaluate_all, *arguments)

    config = model.config
    others = [
        dataclasses.replace(model, config=dataclasses.replace(config, clicks=(1, 2))),
        dataclasses.replace(model, config=dataclasses.replace(config, first_click='random')),
        dataclasses.replace(model, seed=9),
    ]
    found = [find(m) for m in (model, *other_models(model)[:3], *others)]
    found += [find(model, max_images=2), find(model, max_objects=2), find(model, max_masks=2)]
    found += [find(model, source=Scenes(1, 2, (32, 48))), find(model, name='flood')]
    assert all_differ(found)
