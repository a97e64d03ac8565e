"""Regions that people drew in photographs (BSDS500) on a CPU: a small SAM from nothing.

    python train.py --config configs/bsds500.py --workdir runs/bsds500 \
        --config.data.path=DIR/train --config.data.eval_path=DIR/val
"""

from ml_collections import ConfigDict

from configs import bbbc038


def get_config() -> ConfigDict:
    c = bbbc038.get_config()
    c.data.flip = 'horizontal'
    c.optimizer.cooldown = (400, 1200)
    c.train.steps = 1200
    c.train.eval_every = 600
    return c
