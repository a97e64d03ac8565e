"""The paper's run of ViT-H on SA-1B (arXiv 2304.02643, appendix A), from MAE's weights.

    samjax convert mae_pretrain_vit_huge.pth runs/mae_h
    samjax train --config configs/sa1b_vit_h.py --workdir DIR --config.train.init_from=runs/mae_h

256 images per step, as on the paper's 256 GPUs, where it took 68 hours; 90k steps.  See docs/scaling.md for slices
where it fits and their hours.
"""

import pathlib

from samjax import config


def get_config():
    c = config.load(pathlib.Path(__file__).with_name('sa1b_vit_b.py'))
    c.model.size = 'vit_h'
    c.model.drop_path = 0.4
    c.optimizer.layer_decay = 0.8
    c.optimizer.milestones = (60_000, 86_666)
    c.train.batch_size = 256
    c.train.num_steps = 90_000
    return c
