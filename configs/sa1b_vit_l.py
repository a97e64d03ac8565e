"""The paper's run of ViT-L on SA-1B (arXiv 2304.02643, appendix A), from MAE's weights.

    python -m samjax convert mae_pretrain_vit_large.pth runs/mae_l
    python train.py --config configs/sa1b_vit_l.py --workdir DIR --config.train.init=runs/mae_l

128 images per step, as on the paper's 128 GPUs, 180k steps; see docs/scaling.md for slices it fits and their hours.
"""

from configs import sa1b_vit_b


def get_config():
    c = sa1b_vit_b.get_config()
    c.model.size = 'vit_l'
    c.model.drop_path = 0.4
    c.optimizer.lr = 4e-4
    c.optimizer.layer_decay = 0.8
    return c
