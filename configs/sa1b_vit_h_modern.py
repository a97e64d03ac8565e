"""ViT-H on SA-1B with the choices of SAM 2's image pre-training (arXiv 2408.00714, appendix C) where they are better.

    samjax train --config configs/sa1b_vit_h_modern.py --workdir DIR --config.train.init_from=runs/mae_h

Reciprocal square root schedule with a linear cool-down instead of steps, so that a run can be extended; clipped
gradients; horizontal flips; lower drop path.
"""

import pathlib

from samjax import config


def get_config():
    c = config.load(pathlib.Path(__file__).with_name('sa1b_vit_h.py'))
    c.model.drop_path = 0.3
    c.data.flip = 'horizontal'
    c.optimizer.lr = 4e-4
    c.optimizer.warmup_steps = 1000
    c.optimizer.milestones = ()
    c.optimizer.timescale = 1000
    c.optimizer.cooldown = (85_000, 90_000)
    c.optimizer.layer_decay = 0.9
    c.optimizer.clip_norm = 0.1
    return c
