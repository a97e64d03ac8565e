import csv
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import default
from samjax import checkpoint, evaluators, report, step
from samjax.data import pipeline
from samjax.data.photo import Photo
from samjax.data.scenes import Scenes
from samjax.errors import SamjaxError
from samjax.evaluators import Interactive
from samjax.model.sam import sam_config

ROOT = pathlib.Path(__file__).parents[1]


class Shifted:
    """Knows every mask of the only image, and answers with the first ones, some columns to the right."""

    def __init__(self, name, example, columns):
        self.name, self.columns = name, columns
        self.truth_NHW = evaluators.decode_masks(example.rles)
        self.expected = (0.4, 0.9, 0.1)

    def set_image(self, image_HW3):
        pass

    def answer(self, points_NP2, labels_NP, previous):
        slots = 3 if labels_NP.shape[1] == 1 or 2 in labels_NP else 1
        shifts = [np.roll(self.truth_NHW[: len(points_NP2)], s * self.columns, 2) for s in range(slots)]
        masks_NMHW = np.stack(shifts, 1)
        return masks_NMHW, np.tile(self.expected[:slots], (len(points_NP2), 1)), None


@pytest.fixture
def outcomes():
    source = Scenes(0, 1, (64, 96))
    interactive = Interactive(source, (1, 3), 'center', 64, 1, 0, 0, 0)
    segmenters = [Shifted('sam', source[0], 2), Shifted('flood fill', source[0], 9)]
    return {segmenter.name: interactive.measure(segmenter) for segmenter in segmenters}


def test_report_writes_every_file(tmp_path, outcomes):
    report.write(tmp_path, outcomes, {'step': 7})
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['step'] == 7
    scores = results['scores']['sam']
    assert scores['miou@3'] == 1
    assert scores['oracle@1'] == 1 > scores['miou@1'] > results['scores']['flood fill']['miou@1']
    assert scores['iou_spearman@1'] is None  # every prediction is 0.9
    masks = len(outcomes['sam'].rows)
    with (tmp_path / 'masks.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * masks
    mean = np.mean([float(line['iou_1_clicks']) for line in lines[:masks]])
    assert mean == pytest.approx(scores['miou@1'], abs=1e-4)
    for name in ('curve.png', 'slots_sam.png', 'slots_flood_fill.png'):
        assert (tmp_path / name).stat().st_size > 1000
    assert [path.name for path in (tmp_path / 'overlays/sam').iterdir()] == ['00_scene-0-0.png']


def test_pictures_of_an_earlier_report_go(tmp_path, outcomes):
    report.write(tmp_path, outcomes, {})
    report.write(tmp_path, {'flood fill': outcomes['flood fill']}, {})
    assert sorted(path.name for path in tmp_path.glob('*.png')) == ['curve.png', 'slots_flood_fill.png']
    assert [path.name for path in (tmp_path / 'overlays').iterdir()] == ['flood_fill']


def test_table_shows_what_cannot_be_said_as_a_dash():
    source = Scenes(0, 1, (64, 96))
    segmenter = Shifted('sam', source[0], 0)
    segmenter.expected = (0.5, 0.5, 0.5)
    lines = report.table({'sam': Interactive(source, (1,), 'center', 64, 0, 0, 0, 0).measure(segmenter)}).split('\n')
    assert lines[1].split()[4] == '-'


def test_table_is_aligned(outcomes):
    lines = report.table(outcomes).split('\n')
    assert lines[0].split() == [*('1', 'click', '3', 'clicks', 'oracle@1', 'box', 'spearman', 'masks')]
    assert [line.split()[0] for line in lines[1:]] == ['sam', 'flood']
    assert lines[2].startswith('flood fill  ')
    assert lines[1].split()[2] == '1.000'
    assert len({len(line) for line in lines}) == 1


def tiny_run_config():
    config = default.get_config()
    config.model.size = 'test'
    config.model.image_size = (32, 48)
    config.data.eval_images = 2
    config.model.dtype = 'float32'
    config.eval.clicks = (1, 3)
    config.eval.object_batch = 3
    config.eval.pictures = 1
    return config


@pytest.fixture
def restored(monkeypatch):
    """A run whose newest checkpoint, of step 12, is random."""
    config = tiny_run_config()
    shapes = jax.eval_shape(lambda: step.init_params(sam_config(**config.model), 0))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    monkeypatch.setattr(checkpoint, 'restore_params', lambda workdir, config: (*drawn, 12))
    return config


def test_evaluation_of_a_run_on_scenes(tmp_path, restored):
    table, folder = report.evaluate(restored, tmp_path, (), max_images=1, max_objects=3)
    assert folder == tmp_path / 'eval' / 'scenes'
    results = json.loads((folder / 'results.json').read_text())
    assert (results['step'], results['data']) == (12, 'scenes')
    assert results['config']['model']['size'] == 'test'
    assert results['scores']['sam']['images'] == 1
    assert results['scores']['sam']['masks'] <= 3
    assert table.split('\n')[1].startswith('sam ')


def test_unknown_baseline_is_named(tmp_path, restored):
    with pytest.raises(SamjaxError, match="'snake' is unknown"):
        report.evaluate(restored, tmp_path, ('snake',), 1, 1)


def test_data_without_objects_is_named(tmp_path, restored, monkeypatch):
    empty = [evaluators.Example('a', Photo.from_array(np.zeros((9, 9, 3), np.uint8)), [])]
    monkeypatch.setattr(pipeline, 'open_set', lambda path, **options: empty)
    with pytest.raises(SamjaxError, match='scenes has no object'):
        report.evaluate(restored, tmp_path, (), 0, 0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--workdir=nowhere'], 'nowhere/config.json does not exist'),
        (['--workdir=run', '--config.eval.clickz=3'], 'the config has no option'),
        (['--workdir=run', '--config.eval.object_batch=3', 'stray'], "'stray' is not an option"),
        (['--workdir=run'], 'run holds no checkpoint'),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path, arguments, message):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/config.json').write_text(tiny_run_config().to_json())
    command = [sys.executable, str(ROOT / 'eval.py'), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
