"""Every option of samjax, with unit and reason.  Other configs start from this one and change a few lines.

    python train.py --config configs/default.py --workdir /tmp/sam --config.data.path=/data/sa1b

The values are the paper's (arXiv 2304.02643) for ViT-B where it gives one.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # parameters, data order, prompts, dropout

    # Model
    c.model = ConfigDict()
    c.model.size = 'vit_b'  # a row of samjax.model.sam.SIZES
    c.model.image_size = (1024, 1024)  # height, width of the model frame in px; multiples of the row's patch
    c.model.dtype = 'bfloat16'  # of activations; parameters, softmax, LayerNorm and losses stay float32
    c.model.drop_path = 0.6  # at the last block, linear from 0 at the first
    c.model.dropout = 0.1  # of the mask decoder's sub-layers
    c.model.remat = 'full'  # of an encoder block computed again in the backward pass; 'attention' and 'matmuls' keep
    # more in memory and 'none' everything: see samjax.model.image_encoder.REMAT

    # Data
    c.data = ConfigDict()
    c.data.path = 'scenes'  # images with masks in any layout of docs/data.md, or 'scenes' for drawn ones
    c.data.mix = ()  # more of them: ((path, weight), ..); weight 10: each image is shown 10 times as often as one of
    # data.path (paper, 7.6: masks by people are oversampled so)
    c.data.eval_path = 'scenes'  # the same for evaluation
    c.data.cache = '~/.cache/samjax'  # where they are prepared as ArrayRecord
    c.data.max_bad_share = 0.01  # of images that may be unreadable before preparation stops
    c.data.max_objects = 64  # masks sampled per image and step
    c.data.max_area = 0.9  # masks over this share of the image are left out (paper, appendix A)
    c.data.flip = 'none'  # or 'horizontal', or 'any' of the eight symmetries of a square (microscopy, aerial)
    c.data.jitter = (1.0, 1.0)  # least and greatest random size relative to the frame; (0.1, 2.0) is large-scale jitter
    # (paper, appendix A: for training on masks by people only)
    c.data.workers = 4  # loader processes; 0 reads in the training process
    c.data.prefetch = 2  # batches each worker prepares ahead
    c.data.train_images = 100_000  # of 'scenes' only
    c.data.eval_images = 200  # of 'scenes' only

    # Interactive simulation (paper, appendix A)
    c.prompts = ConfigDict()
    c.prompts.rounds = 11  # 1 point or box, rounds - 3 clicks on errors, 2 rounds without a new prompt
    c.prompts.box_probability = 0.5  # that the first prompt is a box
    c.prompts.box_noise = 'gaussian'  # or 'uniform'
    c.prompts.box_noise_share = 0.1  # of the box side: standard deviation, or half-width of 'uniform'
    c.prompts.box_noise_max = 20.0  # px of the model frame
    c.prompts.detach_mask = False  # cut the gradient through the logits fed back as mask prompt
    c.prompts.object_chunk = 8  # objects per image simulated at once; bounds memory

    # Loss
    c.loss = ConfigDict()
    c.loss.focal = 20.0
    c.loss.dice = 1.0
    c.loss.iou = 1.0
    c.loss.focal_alpha = 0.25
    c.loss.focal_gamma = 2.0
    c.loss.resolution = 'frame'  # logits are upsampled to the model frame; 'low' takes the masks down instead
    c.loss.padding = 'exclude'  # or 'include' the padded part of the frame
    c.loss.iou_supervision = 'selected'  # the lowest-loss mask only, or 'all'

    # Optimiser
    c.optimizer = ConfigDict()
    c.optimizer.name = 'adamw'  # or 'muon': orthogonalised updates of matrices, AdamW for the rest
    c.optimizer.lr = 8e-4  # peak
    c.optimizer.warmup = 250  # steps, linear
    c.optimizer.milestones = (120_000, 173_333)  # steps at which lr is divided by 10
    c.optimizer.timescale = 0  # steps; lr falls with 1 / sqrt(1 + steps after warm-up / timescale); 0 never
    c.optimizer.cooldown = (0, 0)  # (first, last) step between which lr falls linearly to 0; (0, 0) never
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.1
    c.optimizer.decay = 'kernels'  # no decay on norms, biases, embeddings, positions; or 'all'
    c.optimizer.layer_decay = 0.6  # lr factor from one encoder block to the one before
    c.optimizer.clip = 0.0  # global gradient norm; 0 leaves gradients as they are

    # Devices: see samjax.sharding for what the axes mean.  The product is the number of devices; 0 is chosen.
    c.mesh = ConfigDict()
    c.mesh.data = 0  # 0: what the other two leave
    c.mesh.fsdp = 0  # 0: the devices along a side of a TPU slice, or in a process, as far as they divide the width
    c.mesh.tensor = 1

    # Training
    c.train = ConfigDict()
    c.train.init = ''  # folder of a run or converted checkpoint to start from; '' draws the parameters from the seed
    c.train.steps = 180_000
    c.train.batch = 128  # images per step, over all devices
    c.train.turns = 1  # in which each device works on its images, a part of them at a time; bounds memory
    c.train.log_every = 50  # steps
    c.train.save_every = 1000  # steps
    c.train.keep = 3  # newest checkpoints kept
    c.train.max_skipped = 10  # steps in a row that may be skipped for a loss or gradient that is not finite
    c.train.profile = (0, 0)  # (first, last) step of a profiler trace in WORKDIR/profile; (0, 0) none
    c.train.eval_every = 5000  # steps

    # Evaluation
    c.eval = ConfigDict()
    c.eval.clicks = (1, 2, 3, 5, 9)  # mIoU is reported after this many clicks
    c.eval.first_click = 'center'  # or 'random'
    c.eval.object_batch = 64  # prompts answered at once, on each device; bounds memory
    c.eval.devices = 0  # of each process that work, each on images of its own; 0 is all
    c.eval.max_images = 0  # during training; 0 is all
    c.eval.max_objects = 0  # per image during training; 0 is all
    c.eval.pictures = 8  # images drawn
    c.eval.grid = 64  # clicks along each side of an image, for the task proposals
    return c.lock()
