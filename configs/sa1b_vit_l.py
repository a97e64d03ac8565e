"""The paper's run of ViT-L on SA-1B (arXiv 2304.02643, appendix A), from MAE's weights.

    samjax convert mae_pretrain_vit_large.pth runs/mae_l
    samjax train --config configs/sa1b_vit_l.py --workdir DIR --config.train.init_from=runs/mae_l

128 images per step, as on the paper's 128 GPUs, 180k steps; see docs/scaling.md for slices where it fits, and hours.
"""

import pathlib

from samjax import config


def get_config():
    c = config.load(pathlib.Path(__file__).with_name('sa1b_vit_b.py'))
    c.model.size = 'vit_l'
    c.model.drop_path = 0.4
    c.optimizer.lr = 4e-4
    c.optimizer.layer_decay = 0.8
    return c
