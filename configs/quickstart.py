"""A small SAM on synthetic scenes, trained from scratch on the CPU of a laptop.

samjax train --config configs/quickstart.py --workdir runs/quickstart
"""

from ml_collections import ConfigDict

from samjax import config


def get_config() -> ConfigDict:
    c = config.get_config()
    c.model.size = 'vit_xxs'
    c.model.image_size = (128, 128)
    c.model.dtype = 'float32'
    c.model.drop_path = 0.0
    c.model.dropout = 0.0
    c.model.remat = 'none'
    c.data.max_objects = 8
    c.data.num_workers = 1
    c.data.synthetic_eval_images = 50
    c.prompts.rounds = 5
    c.prompts.objects_per_chunk = 4
    c.loss.iou = 4.0  # few steps: learn from the IoU of all masks, with a higher weight
    c.loss.iou_supervision = 'all'
    c.optimizer.name = 'muon'
    c.optimizer.lr = 6e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.milestones = ()
    c.optimizer.cooldown = (300, 1000)
    c.optimizer.weight_decay = 0.01
    c.optimizer.b2 = 0.98
    c.optimizer.layer_decay = 1.0
    c.optimizer.clip_norm = 1.0
    c.train.batch_size = 4
    c.train.num_steps = 1000
    c.train.log_every = 20
    c.train.save_every = 400
    c.train.eval_every = 500
    c.train.eval_max_images = 20
    c.train.eval_max_objects = 4
    c.eval.prompt_batch_size = 16
    return c
