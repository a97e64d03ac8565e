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
    c.optimizer.milestones = (1400, 1700)
    c.train.steps = 1800
    return c
