import csv
import math
import pathlib

import numpy as np
import pytest

from samjax.data.synthetic import Scenes
from samjax.evaluation.eval_config import EvalConfig
from samjax.evaluation.protocol import Interactive, decode_masks
from samjax.evaluation.tasks import interactive

ROOT = pathlib.Path(__file__).parents[2]


class Shifted:
    """Knows every mask of the only image, and predicts the first ones, shifted to the right."""

    def __init__(self, name, example, columns):
        self.name, self.columns = name, columns
        self.truth_NHW = decode_masks(example.rles)
        self.predicted_iou = (0.4, 0.9, 0.1)

    def set_image(self, image_HW3):
        pass

    def predict(self, points_NP2, labels_NP, previous):
        slots = 3 if labels_NP.shape[1] == 1 or 2 in labels_NP else 1
        shifts = [np.roll(self.truth_NHW[: len(points_NP2)], s * self.columns, 2) for s in range(slots)]
        masks_NMHW = np.stack(shifts, 1)
        return masks_NMHW, np.tile(self.predicted_iou[:slots], (len(points_NP2), 1)), None


@pytest.fixture
def results():
    source = Scenes(0, 1, (64, 96))
    protocol = Interactive(source, EvalConfig((1, 3), 'center', 64, 1, 1, 4), seed=0, num_extremes=1)
    segmenters = [Shifted('sam', source[0], 2), Shifted('flood fill', source[0], 9)]
    return {segmenter.name: protocol.run([segmenter]) for segmenter in segmenters}


def test_report_writes_every_file(tmp_path, results):
    interactive.write(tmp_path, results)
    scores, flood = (dict(results[name].values()) for name in ('sam', 'flood fill'))
    assert scores['miou@3'] == 1
    assert scores['oracle@1'] == 1 > scores['miou@1'] > flood['miou@1']
    assert math.isnan(scores['iou_spearman@1'])  # every prediction is 0.9
    masks = len(results['sam'].objects)
    with (tmp_path / 'masks.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * masks
    mean = np.mean([float(line['iou_1_clicks']) for line in lines[:masks]])
    assert mean == pytest.approx(scores['miou@1'], abs=1e-4)
    for name in ('curve.png', 'slots_sam.png', 'slots_flood_fill.png'):
        assert (tmp_path / name).stat().st_size > 1000
    folders = {gallery: tmp_path / gallery / 'sam' for gallery in interactive.GALLERIES}
    names = {gallery: [path.name for path in folder.iterdir()] for gallery, folder in folders.items()}
    assert names['overlays'] == ['00_scene-0-0.png']
    assert names['best'][0].startswith('00_iou_')
    assert names['worst'][0] <= names['best'][0]


def test_images_of_an_earlier_report_are_removed(tmp_path, results):
    interactive.write(tmp_path, results)
    interactive.write(tmp_path, {'flood fill': results['flood fill']})
    assert sorted(path.name for path in tmp_path.glob('*.png')) == ['curve.png', 'slots_flood_fill.png']
    assert [path.name for path in (tmp_path / 'overlays').iterdir()] == ['flood_fill']


def test_table_of_scores(results):
    table = interactive.score_table(results)
    assert table.header == ['', 'miou@1', 'miou@3', 'oracle@1', 'box', 'iou_spearman', 'masks']
    assert [row[0] for row in table.rows] == ['sam', 'flood fill']
    assert table.rows[0][2] == 1
    assert table.rows[0][-1] == len(results['sam'].objects)
