"""Annotated regions of natural images (BSDS500) on a CPU: a small SAM, trained from scratch.

    samjax train --config configs/bsds500.py --workdir runs/bsds500 \
        --config.data.path=DIR/train --config.data.eval_path=DIR/val
"""

import pathlib

from ml_collections import ConfigDict

from samjax import config


def get_config() -> ConfigDict:
    c = config.load(pathlib.Path(__file__).with_name('bbbc038.py'))
    c.data.flip = 'horizontal'
    c.optimizer.cooldown = (400, 1200)
    c.train.num_steps = 1200
    c.train.eval_every = 600
    return c
