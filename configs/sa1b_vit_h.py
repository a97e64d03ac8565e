"""The paper's run of ViT-H on SA-1B (arXiv 2304.02643, appendix A), from MAE's weights.

    python -m samjax convert mae_pretrain_vit_huge.pth runs/mae_h
    python train.py --config configs/sa1b_vit_h.py --workdir DIR --config.train.init=runs/mae_h

256 images per step, as on the paper's 256 GPUs, where it took 68 hours; 90k steps.  See docs/scaling.md for slices it
fits and their hours.
"""

from configs import sa1b_vit_b


def get_config():
    c = sa1b_vit_b.get_config()
    c.model.size = 'vit_h'
    c.model.drop_path = 0.4
    c.optimizer.layer_decay = 0.8
    c.optimizer.milestones = (60_000, 86_666)
    c.train.batch = 256
    c.train.steps = 90_000
    return c
