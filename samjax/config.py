"""Every option of training and evaluation, with unit and reason, and how a recipe file is read.

    samjax train --config configs/quickstart.py --workdir /tmp/sam --config.data.path=/data/sa1b

A recipe is a Python file with a function `get_config` that starts from the one here, or from another recipe, and
changes a few lines.  The defaults are the paper's (arXiv 2304.02643) for ViT-B where it gives a value.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import traceback
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from samjax.errors import SamjaxError, one_line


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # parameters, data order, prompts, dropout

    # Model
    c.model = ConfigDict()
    c.model.size = 'vit_b'  # a key of samjax.model.config.SIZES
    c.model.image_size = (1024, 1024)  # height, width of the model input in px; multiples of the model's patch size
    c.model.dtype = 'bfloat16'  # of activations; parameters, softmax, LayerNorm and losses stay float32
    c.model.drop_path = 0.6  # rate at the last encoder block, linear from 0 at the first
    c.model.dropout = 0.1  # rate in the mask decoder's sub-layers
    c.model.remat = 'full'  # the backward pass recomputes all activations of encoder blocks; 'attention' and 'matmuls'
    # store some of them, 'none' stores all: see samjax.model.encoders.vit.REMAT

    # Data
    c.data = ConfigDict()
    c.data.path = 'scenes'  # images with masks in any format of docs/data.md, or 'scenes' for synthetic ones
    c.data.mix = ()  # more data sets: ((path, weight), ..); weight 10: each image is shown 10 times as often as an
    # image of data.path (paper, 7.6: manually annotated masks are oversampled this way)
    c.data.eval_path = 'scenes'  # like data.path, for evaluation
    c.data.cache = '~/.cache/samjax'  # folder where data sets are prepared as ArrayRecord
    c.data.layout = ''  # 'sa1b', 'coco', 'labelme' or 'folder'; '' is the one by which most images have masks
    c.data.images = ''  # folder of the images relative to each path, if it is not recognized by its name
    c.data.masks = ''  # folder of the mask files, likewise
    c.data.mask_kind = 'auto'  # what a mask file is: 'binary', 'labels' or 'soft'; 'auto' decides by what it holds
    c.data.bit_depth_range = ()  # (low, high): values shown as black and white in images of more than 8 bits per
    # channel; () refuses such images
    c.data.max_pixels = 178_956_970  # of an image, height x width; larger ones are refused
    c.data.max_invalid_fraction = 0.01  # of images; preparation stops if more are unreadable
    c.data.max_objects = 64  # masks sampled per image and step
    c.data.max_area_fraction = 0.9  # of the image area; larger masks are not sampled (paper, appendix A)
    c.data.flip = 'none'  # or 'horizontal', or 'any' of the eight symmetries of a square (microscopy, aerial images)
    c.data.scale_jitter = (1.0, 1.0)  # (min, max) of a random size relative to the model input; (0.1, 2.0) is
    # large-scale jitter (paper, appendix A: only for training on manually annotated masks)
    c.data.num_workers = 4  # loader processes; 0 reads in the training process
    c.data.prefetch = 2  # batches each worker prepares ahead
    c.data.synthetic_train_images = 100_000  # of 'scenes' only
    c.data.synthetic_eval_images = 200  # of 'scenes' only

    # Interactive simulation (paper, appendix A)
    c.prompts = ConfigDict()
    c.prompts.rounds = 11  # 1 point or box, rounds - 3 clicks on errors, 2 rounds without a new prompt
    c.prompts.box_probability = 0.5  # that the first prompt is a box
    c.prompts.box_noise = 'gaussian'  # or 'uniform'
    c.prompts.box_noise_fraction = 0.1  # of the box side: standard deviation, or half-width of 'uniform'
    c.prompts.box_noise_max = 20.0  # px of the model input
    c.prompts.stop_mask_gradient = False  # True: no gradient through the logits fed back as mask prompt
    c.prompts.objects_per_chunk = 8  # objects per image simulated at once; bounds memory

    # Loss
    c.loss = ConfigDict()
    c.loss.focal = 20.0
    c.loss.dice = 1.0
    c.loss.iou = 1.0
    c.loss.focal_alpha = 0.25
    c.loss.focal_gamma = 2.0
    c.loss.resolution = 'input'  # logits are upsampled to the model input; 'low_res': masks are downsampled instead
    c.loss.padding = 'exclude'  # or 'include' the padded part of the model input
    c.loss.iou_supervision = 'selected'  # of the mask with the lowest loss only; 'all': of all masks

    # Optimizer
    c.optimizer = ConfigDict()
    c.optimizer.name = 'adamw'  # or 'muon': orthogonalized updates of matrices, AdamW for the rest
    c.optimizer.lr = 8e-4  # peak
    c.optimizer.warmup_steps = 250  # linear
    c.optimizer.milestones = (120_000, 173_333)  # steps at which lr is divided by 10
    c.optimizer.timescale = 0  # steps; lr decays as 1 / sqrt(1 + steps after warm-up / timescale); 0: no such decay
    c.optimizer.cooldown = (0, 0)  # (first, last) step between which lr falls linearly to 0; (0, 0): none
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.1
    c.optimizer.weight_decay_on = 'kernels'  # not norms, biases, embeddings and positions; 'all': these too
    c.optimizer.layer_decay = 0.6  # lr factor from one encoder block to the one before
    c.optimizer.clip_norm = 0.0  # maximum of the global gradient norm; 0: no clipping

    # Devices: see samjax.distributed.sharding for the axes.  Their product is the number of devices.
    c.mesh = ConfigDict()
    c.mesh.data = 0  # 0: what the other two leave
    c.mesh.fsdp = 0  # 0: devices along the longest side of a TPU slice, or in a process, as far as they divide width
    c.mesh.tensor = 1

    # Training
    c.train = ConfigDict()
    c.train.init_from = ''  # checkpoint that `samjax convert` reads, to start from; '' draws parameters from the seed
    c.train.num_steps = 180_000
    c.train.batch_size = 128  # images per step, over all devices
    c.train.grad_accum_steps = 1  # parts of a batch that a device processes one after another; bounds memory
    c.train.log_every = 50  # steps
    c.train.save_every = 1000  # steps
    c.train.max_to_keep = 3  # newest checkpoints kept
    c.train.max_skipped = 10  # consecutive steps that may be skipped because loss or gradient is not finite
    c.train.profile_steps = (0, 0)  # (first, last) step of a profiler trace in WORKDIR/profile; (0, 0): none
    c.train.eval_every = 5000  # steps
    c.train.eval_max_images = 0  # evaluated during training; 0: all
    c.train.eval_max_objects = 0  # per image, evaluated during training; 0: all

    # Evaluation
    c.eval = ConfigDict()
    c.eval.clicks = (1, 2, 3, 5, 9)  # mIoU is reported after this many clicks
    c.eval.first_click = 'center'  # or 'random'
    c.eval.prompt_batch_size = 64  # prompts decoded at once on each device; bounds memory
    c.eval.devices = 0  # used by each process; images are distributed over them; 0: all
    c.eval.num_visualizations = 8  # images drawn with their masks
    c.eval.points_per_side = 64  # of the point grid of the task `proposals`
    return c.lock()


# Names that options had before version 0.2.  They are refused with the new name; runs saved with them still open.
RENAMED = {
    'data.max_bad_share': 'data.max_invalid_fraction',
    'data.max_area': 'data.max_area_fraction',
    'data.jitter': 'data.scale_jitter',
    'data.workers': 'data.num_workers',
    'data.train_images': 'data.synthetic_train_images',
    'data.eval_images': 'data.synthetic_eval_images',
    'prompts.box_noise_share': 'prompts.box_noise_fraction',
    'prompts.detach_mask': 'prompts.stop_mask_gradient',
    'prompts.object_chunk': 'prompts.objects_per_chunk',
    'optimizer.warmup': 'optimizer.warmup_steps',
    'optimizer.decay': 'optimizer.weight_decay_on',
    'optimizer.clip': 'optimizer.clip_norm',
    'train.init': 'train.init_from',
    'train.steps': 'train.num_steps',
    'train.batch': 'train.batch_size',
    'train.turns': 'train.grad_accum_steps',
    'train.keep': 'train.max_to_keep',
    'train.profile': 'train.profile_steps',
    'eval.object_batch': 'eval.prompt_batch_size',
    'eval.grid': 'eval.points_per_side',
    'eval.pictures': 'eval.num_visualizations',
    'eval.max_images': 'train.eval_max_images',
    'eval.max_objects': 'train.eval_max_objects',
}
RENAMED_VALUES = {'loss.resolution': {'frame': 'input', 'low': 'low_res'}}


def load(path: str | os.PathLike) -> ConfigDict:
    """The locked options of the recipe at `path`: those of `get_config`, all and no others.

    Raises:
        SamjaxError: the recipe cannot be read, see `read_recipe`, or has other options.
    """
    config = read_recipe(path)
    options, known = flatten(config.to_dict()), flatten(get_config().to_dict())
    if unknown := options.keys() - known.keys():
        refuse_renamed(min(unknown))
        raise SamjaxError(f'the recipe {path} sets an option that does not exist: {min(unknown)}')
    if missing := known.keys() - options.keys():
        raise SamjaxError(f'the recipe {path} lacks the option {min(missing)}: begin with samjax.config.get_config()')
    return config


def read_recipe(path: str | os.PathLike) -> ConfigDict:
    """What the function `get_config` of the Python file at `path` returns, locked.

    Raises:
        SamjaxError: there is no such file, it or `get_config` fails, or there is no such function or no such result.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        problem = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise SamjaxError(f'the recipe {path} {problem}: name a Python file with a function get_config')
    with _recipe_errors(path):
        recipe_function = runpy.run_path(path).get('get_config')
    if not callable(recipe_function):
        raise SamjaxError(f'the recipe {path} has no function get_config: see samjax/config.py for an example')
    with _recipe_errors(path):
        config = recipe_function()
    if not isinstance(config, ConfigDict):
        raise SamjaxError(
            f'get_config of the recipe {path} returns {type(config).__name__} instead of a ConfigDict: see '
            'samjax/config.py for an example'
        )
    return config.lock()


@contextlib.contextmanager
def _recipe_errors(path: str) -> Iterator[None]:
    """Turns whatever the code of a recipe raises into a SamjaxError with the line of the recipe."""
    try:
        yield
    except SamjaxError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f'the recipe {path}' if line is None else f'the recipe {path}, line {line},'
        reason = error.msg if isinstance(error, SyntaxError) else one_line(error)
        in_config_dict = 'ml_collections' in traceback.extract_tb(error.__traceback__)[-1].filename
        if in_config_dict and isinstance(error, (AttributeError, KeyError)):
            raise unknown_option(error, where) from None
        raise SamjaxError(f'{where} fails: {type(error).__name__}: {reason}') from None


def unknown_option(error: Exception, source: str) -> SamjaxError:
    """The error about an option that `source` sets and that does not exist, from what ml_collections raised."""
    reason: object = error
    while isinstance(reason, (AttributeError, KeyError)):
        reason = reason.args[0]
    reason, _, others = str(reason).partition(' Other fields present')  # which are printed with all they hold
    key = reason.split('"')[1] if others else reason.strip("'")
    renamed = [new for old, new in RENAMED.items() if old.rpartition('.')[2] == key]
    now = f' (now called {" or ".join(renamed)})' if renamed else ''
    return SamjaxError(f'{source} sets an option that does not exist: {" ".join(reason.split())}{now}')


def refuse_renamed(option: str) -> None:
    """Raises SamjaxError, which says the new name, if `option` is the name of an option before version 0.2."""
    if option in RENAMED:
        raise SamjaxError(f'the option {option} is now called {RENAMED[option]}: write --config.{RENAMED[option]}')


def from_saved(options: Mapping) -> ConfigDict:
    """The locked options of a run from its config.json; lists become tuples, names before version 0.2 the new ones.

    Options that did not exist when the run was saved have their defaults.
    """
    config = get_config()
    with config.unlocked():
        for name, value in flatten(options).items():
            if name in RENAMED:
                name = RENAMED[name]
            if name in RENAMED_VALUES and value in RENAMED_VALUES[name]:
                value = RENAMED_VALUES[name][value]
            *sections, option = name.split('.')
            section = config
            for key in sections:
                section = section[key]
            section[option] = _as_tuples(value)
    return config


def flatten(options: Mapping) -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    flat = {}
    for key, value in options.items():
        flat |= {f'{key}.{k}': v for k, v in flatten(value).items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
