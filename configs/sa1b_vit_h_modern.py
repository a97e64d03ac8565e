"""ViT-H on SA-1B with the choices of SAM 2's image pre-training (arXiv 2408.00714, appendix C) where they are better.

    python train.py --config configs/sa1b_vit_h_modern.py --workdir DIR --config.train.init=runs/mae_h

Reciprocal square root schedule with a linear end instead of steps, so that a run can be prolonged; gradients clipped;
left-right flips; lower drop path.
"""

from configs import sa1b_vit_h


def get_config():
    c = sa1b_vit_h.get_config()
    c.model.drop_path = 0.3
    c.data.flip = 'horizontal'
    c.optimizer.lr = 4e-4
    c.optimizer.warmup = 1000
    c.optimizer.milestones = ()
    c.optimizer.timescale = 1000
    c.optimizer.cooldown = (85_000, 90_000)
    c.optimizer.layer_decay = 0.9
    c.optimizer.clip = 0.1
    return c
