"""Nuclei in microscopy images (BBBC038) on a CPU: a small SAM, trained from scratch.

    samjax train --config configs/bbbc038.py --workdir runs/bbbc038 \
        --config.data.path=DIR/train --config.data.eval_path=DIR/val
"""

import pathlib

from ml_collections import ConfigDict

from samjax import config


def get_config() -> ConfigDict:
    c = config.load(pathlib.Path(__file__).with_name('quickstart.py'))
    c.model.size = 'vit_xs'
    c.model.image_size = (256, 256)
    c.data.flip = 'any'
    c.data.max_objects = 4
    c.optimizer.cooldown = (1300, 4000)
    c.train.batch_size = 2
    c.train.num_steps = 4000
    c.train.save_every = 500
    c.train.eval_every = 2000
    c.eval.prompt_batch_size = 32
    return c
