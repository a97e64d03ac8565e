"""The 23 data sets of SAM's zero-shot evaluation (arXiv 2304.02643, appendix D.1, Table 7), and their paths.

    samjax eval --workdir RUN --task suite --suite.root=DIR

`path` is below `root`, in any format of docs/data.md: a folder of images and masks, a JSON of COCO, ..; it may also be
given as --suite.sets.NAME.path=PATH, absolute or tfds:NAME@SPLIT.  Data sets without files are listed as absent.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from samjax.errors import SamjaxError, check_option, one_line


class SuiteSet(NamedTuple):
    """A data set of the suite."""

    path: str  # below the root
    title: str
    source: str  # paper, or where the data set is published
    split: str
    images: int  # that the paper sampled
    masks: int
    sam_minus_ritm: float  # mIoU at a centre click, in points (Fig. 9a)


class SuiteConfig(NamedTuple):
    """The data sets of the suite by name."""

    root: str  # the folder of all data sets
    max_masks: int  # of a larger data set, see `samjax.evaluation.protocol.Interactive`
    sets: dict[str, SuiteSet]

    @classmethod
    def from_config(cls, config: ConfigDict) -> SuiteConfig:
        """Raises SamjaxError if `config` has other options than `get_config`, or `max_masks` is negative."""
        try:
            root, max_masks, entries = config['root'], config['max_masks'], dict(config['sets'].items())
            sets = {name: SuiteSet(**entry) for name, entry in entries.items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise SamjaxError(
                f'the recipe of the suite is not like samjax/evaluation/tasks/suite_sets.py: {one_line(error)}'
            ) from None
        check_option('suite.max_masks', max_masks, lambda n: n >= 0, '0, which is all, or more')
        return cls(root, max_masks, sets)


# name, title, source, split, images and masks that the paper sampled, its mIoU of SAM minus RITM at one click
SETS = (
    ('ppdls', 'PPDLS', 'Minervini et al. 2016, plant phenotyping, leaves', 'all', 182, 2347, 46.9),
    ('bbbc038v1', 'BBBC038v1', 'Caicedo et al. 2019, bbbc.broadinstitute.org/BBBC038', 'train', 227, 10506, 44.7),
    ('doors', 'DOORS', 'Pugliatti and Topputo 2022, boulders', 'DS1', 10000, 10000, 41.1),
    ('timberseg', 'TimberSeg 1.0', 'Fortin et al. 2022, logs', 'all', 220, 2487, 28.9),
    ('ndd20', 'NDD20', 'Trotter et al. 2020, dolphins', 'all', 4402, 6100, 21.1),
    ('lvis', 'LVIS', 'Gupta et al. 2019, lvisdataset.org, version 0.5', 'val', 945, 9642, 18.5),
    ('streets', 'STREETS', 'Snyder and Do 2019, traffic cameras', 'all', 819, 9854, 17.3),
    ('zerowaste_f', 'ZeroWaste-f', 'Bashkirova et al. 2022, waste on a belt', 'train', 2947, 6155, 9.1),
    ('ishape', 'iShape', 'Yang et al. 2021, irregular shapes', 'val', 754, 9742, 8.8),
    ('ade20k', 'ADE20K', 'Zhou et al. 2019, objects and parts', 'val', 302, 10128, 7.8),
    ('ovis', 'OVIS', 'Qi et al. 2022, occluded objects in videos', 'train', 2044, 10011, 7.0),
    (
        *('hypersim', 'Hypersim', 'Roberts et al. 2021, github.com/apple/ml-hypersim'),
        *('Evermotion archinteriors, volumes 1 to 55 without 20, 25, 40, 49', 338, 9445, 6.1),
    ),
    ('ndispark', 'NDISPark', 'Ciampi et al. 2021, parking lots by day and night', 'train', 111, 2577, 2.7),
    ('visor', 'VISOR', 'Darkhalil et al. 2022, epic-kitchens.github.io/VISOR', 'val', 1864, 10141, 1.8),
    ('plittersdorf', 'Plittersdorf', 'Haucke et al. 2022, camera traps', 'train, val and test', 187, 546, 1.5),
    ('egohos', 'EgoHOS', 'Zhang et al. 2022, hands and objects', 'train, Ego4D and THU-READ only', 2940, 9961, 0.8),
    ('ibd', 'IBD', 'Chen et al. 2022, buildings', 'train, 2D', 467, 11953, -0.3),
    ('woodscape', 'WoodScape', 'Yogamani et al. 2019, fisheye cameras', 'set 1', 107, 10266, -0.6),
    ('cityscapes', 'Cityscapes', 'Cordts et al. 2016, cityscapes-dataset.com', 'val, panoptic', 293, 9973, -2.0),
    ('pidray', 'PIDRay', 'Wang et al. 2021, X-ray of baggage', 'test, hard', 3733, 8892, -5.8),
    ('dram', 'DRAM', 'Cohen et al. 2022, paintings', 'test, semantic', 718, 1179, -6.5),
    ('trashcan', 'TrashCan', 'Hong et al. 2020, waste under water', 'train, instances', 5936, 9540, -15.0),
    ('gtea', 'GTEA', 'Fathi et al. 2011, hands', 'train', 652, 1208, -21.4),
)


def get_config() -> ConfigDict:
    """The suite of the paper as options, for `--suite.NAME=VALUE`."""
    c = ConfigDict()
    c.root = '~/data/suite'
    c.max_masks = 10_000  # of a data set with more than 1.5 times as many, random images until this many (Table 7)
    c.sets = ConfigDict()
    for name, *entry in SETS:
        c.sets[name] = ConfigDict(SuiteSet(name, *entry)._asdict())
    return c.lock()
