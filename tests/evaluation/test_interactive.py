import csv
import math
import pathlib

import numpy as np
import pytest

from samjax.data.synthetic import Scenes
from samjax.evaluation import protocol
from samjax.evaluation.protocol import Interactive
from samjax.evaluation.tasks import interactive

ROOT = pathlib.Path(__file__).parents[2]


class Shifted:
    """Knows every mask of the only image, and answers with the first ones, some columns to the right."""

    def __init__(self, name, example, columns):
        self.name, self.columns = name, columns
        self.truth_NHW = protocol.decode_masks(example.rles)
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
    interactive = Interactive(source, (1, 3), 'center', 64, 1, 1, 0, 0, 0)
    segmenters = [Shifted('sam', source[0], 2), Shifted('flood fill', source[0], 9)]
    return {segmenter.name: interactive.measure([segmenter]) for segmenter in segmenters}


def test_report_writes_every_file(tmp_path, outcomes):
    interactive.write(tmp_path, outcomes)
    scores, flood = (dict(outcomes[name].values()) for name in ('sam', 'flood fill'))
    assert scores['miou@3'] == 1
    assert scores['oracle@1'] == 1 > scores['miou@1'] > flood['miou@1']
    assert math.isnan(scores['iou_spearman@1'])  # every prediction is 0.9
    masks = len(outcomes['sam'].rows)
    with (tmp_path / 'masks.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * masks
    mean = np.mean([float(line['iou_1_clicks']) for line in lines[:masks]])
    assert mean == pytest.approx(scores['miou@1'], abs=1e-4)
    for name in ('curve.png', 'slots_sam.png', 'slots_flood_fill.png'):
        assert (tmp_path / name).stat().st_size > 1000
    names = {kind: [path.name for path in (tmp_path / kind / 'sam').iterdir()] for kind in interactive.KINDS}
    assert names['overlays'] == ['00_scene-0-0.png']
    assert names['best'][0].startswith('00_iou_')
    assert names['worst'][0] <= names['best'][0]


def test_pictures_of_an_earlier_report_go(tmp_path, outcomes):
    interactive.write(tmp_path, outcomes)
    interactive.write(tmp_path, {'flood fill': outcomes['flood fill']})
    assert sorted(path.name for path in tmp_path.glob('*.png')) == ['curve.png', 'slots_flood_fill.png']
    assert [path.name for path in (tmp_path / 'overlays').iterdir()] == ['flood_fill']


def test_table_of_scores(outcomes):
    table = interactive.score_table(outcomes)
    assert table.header == ['', 'miou@1', 'miou@3', 'oracle@1', 'box', 'iou_spearman', 'masks']
    assert [row[0] for row in table.rows] == ['sam', 'flood fill']
    assert table.rows[0][2] == 1
    assert table.rows[0][-1] == len(outcomes['sam'].rows)
