"""Nuclei in microscopy images (BBBC038) on a CPU: a small SAM from nothing.

    python train.py --config configs/bbbc038.py --workdir runs/bbbc038 \
        --config.data.path=DIR/train --config.data.eval_path=DIR/val
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.model.size = 'vit_xs'
    c.model.image_size = (256, 256)
    c.data.flip = 'any'
    c.data.max_objects = 4
    c.optimizer.cooldown = (1300, 4000)
    c.train.batch = 2
    c.train.steps = 4000
    c.train.save_every = 500
    c.train.eval_every = 2000
    c.eval.object_batch = 32
    return c
