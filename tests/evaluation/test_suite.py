"""The suite runs on the data sets that are present, lists the others, and each data set has the same weight."""

from pathlib import Path

import numpy as np
import pytest
from samples import content, mask, random_image, write
from tiny import tiny_eval_model

from samjax.errors import SamjaxError
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks import suite_sets
from samjax.evaluation.tasks.suite import suite

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """Two of the sets: one with three images of one object, one with an image of four."""
    for n in range(3):
        masks = [mask(3 + n, 4, 14, 20 + n)]
        write(tmp_path / 'sets' / 'bbbc038v1', f'a{n}', '.png', random_image(n), content(masks))
    masks = [mask(2 + k, 3, 9 + k, 15) for k in range(4)]
    write(tmp_path / 'sets' / 'gtea', 'b', '.png', random_image(9), content(masks))
    return tmp_path / 'sets'


def run(tmp_path, params, root, **changes):
    config = suite_sets.get_config()
    config.root = str(root)
    for name, value in changes.items():
        config[name] = value
    model = tiny_eval_model(params, cache=tmp_path / 'cache')
    return suite(model, EvalOptions(suite=config, baselines=('untrained',)), tmp_path / 'out')


def test_config_has_the_sets_of_the_paper():
    config = suite_sets.get_config()
    assert len(config.sets) == 23
    assert sum(entry.masks for entry in config.sets.values()) == 172_653
    assert sum(entry.sam_minus_ritm > 0 for entry in config.sets.values()) == 16


def test_present_sets_are_scored_and_the_others_listed(tmp_path, params, root):
    result = run(tmp_path, params, root)
    assert list(result.scores['sets']) == ['bbbc038v1', 'gtea']
    assert result.scores['sets']['bbbc038v1']['sam']['masks'] == 3
    assert result.scores['sets']['gtea']['untrained']['masks'] == 4
    assert len(result.scores['absent']) == 21
    by_set = [result.scores['sets'][name]['sam']['miou@1'] for name in ('bbbc038v1', 'gtea')]
    assert result.scores['mean']['sam']['miou@1'] == np.mean(by_set)
    table, _, absent = result.tables
    assert [row[0] for row in table.rows[:3]] == ['BBBC038v1', 'GTEA', 'mean of 2']
    assert table.rows[-1][:1] == ['SAM ViT-H, as published, mean of 23']
    assert absent.title == 'Absent: 21 of 23 sets'
    assert absent.rows[0][-1] == str(root / 'ppdls')
    for figure in result.figures:
        assert figure.file.stat().st_size > 1000
    assert (tmp_path / 'out' / 'gtea' / 'masks.csv').exists()


def test_large_sets_are_sampled_by_masks(tmp_path, params, root):
    result = run(tmp_path, params, root, max_masks=1)
    assert result.scores['sets']['bbbc038v1']['sam']['images'] == 1
    assert result.scores['sets']['gtea']['sam']['masks'] == 4  # of one image


def test_no_set_at_all(tmp_path, params):
    with pytest.raises(
        SamjaxError, match='nowhere has none of the 23 sets: put them where samjax/.*suite_sets.py says'
    ):
        run(tmp_path, params, tmp_path / 'nowhere')
