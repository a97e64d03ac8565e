"""The paper's run of ViT-B on SA-1B (arXiv 2304.02643, appendix A): the default options, from MAE's weights.

    samjax convert mae_pretrain_vit_base.pth runs/mae_b
    samjax train --config configs/sa1b_vit_b.py --workdir DIR --config.train.init_from=runs/mae_b

128 images per step, as on the paper's 128 GPUs, 180k steps; see docs/scaling.md for slices where it fits, and hours.
"""

from samjax import config


def get_config():
    c = config.get_config()
    c.model.remat = 'matmuls'  # with one image per chip they fit on every TPU, see docs/scaling.md
    c.data.path = '/data/sa1b/train'
    c.data.eval_path = '/data/sa1b/val'  # held-out tar shards
    return c
