"""Eight simulated devices, strict ranks, and a tiny model and batch for every test."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
# TPU's compiler is to look for no TPU.
os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v4-8'}
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
# Compile faster; tests run little.
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
if version('jaxlib').startswith(('0.10.', '0.11.')):  # later ones have no such option, and abort at an unknown one
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)  # which programs compiled for described TPUs cannot be read from

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Processes that tests start share compiled functions.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(Path(__file__).parents[1] / '.pytest_cache/xla')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

import numpy as np
import pytest
from tiny import tiny_run_config

from samjax.checkpoints import run
from samjax.masks.packing import pack_rows
from samjax.model.config import SIZES, from_options
from samjax.model.params import init_params
from samjax.structs import Batch

LONGEST_FIRST = ('test_verify', 'test_faults', 'test_step', 'test_sharding')


def pytest_collection_modifyitems(config, items):
    """The files that take longest come first, so that no process of several is left alone with them at the end."""
    if not hasattr(config, 'workerinput'):  # a single process
        return
    rank = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank[item.path.stem] if item.path.stem in rank else len(rank))


@pytest.fixture(scope='module', autouse=True)
def clear_compiled_functions():
    """Compiled functions map memory, and Linux allows a process 65,530 maps: all tests together would need more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope='session')
def real_data():
    """A function of a name: that folder of images with masks by people, which CI must have."""

    def find(name):
        folder = Path(__file__).parents[1] / '../shared/data' / name
        if not folder.exists():
            message = f'{folder.resolve()} is missing'
            pytest.fail(message) if os.environ.get('CI') == 'true' else pytest.skip(message)
        return folder

    return find


@pytest.fixture(scope='session')
def params():
    """Parameters and buffers of `tiny_run_config`, all random, as none must stay at zero."""
    shapes = jax.eval_shape(lambda: init_params(from_options(**tiny_run_config().model)[0], 0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope='session')
def model(tmp_path_factory, params):
    """A folder with these parameters, as `samjax convert` writes one."""
    folder = tmp_path_factory.mktemp('model')
    run.save_params(str(folder), tiny_run_config(), *params)
    return str(folder)


@pytest.fixture
def tiny_config():
    """A SAM of 24 thousand parameters with a non-square 32 x 48 frame, 4 x 6 grid and 16 x 24 masks."""
    return SIZES['test']


@pytest.fixture
def tiny_batch():
    """Two images in a 32 x 48 frame: one full width, one narrower; three rectangles, the last object is padding."""
    rng = np.random.default_rng(0)
    size_B2 = np.array([[32, 48], [32, 30]], np.int32)
    image_BHW3 = rng.integers(0, 256, (2, 32, 48, 3), np.uint8)
    image_BHW3[1, :, 30:] = 0
    masks_BNHW = np.zeros((2, 2, 32, 48), bool)
    masks_BNHW[0, 0, 4:20, 6:30] = True
    masks_BNHW[0, 1, 10:14, 40:46] = True
    masks_BNHW[1, 0, 8:30, 2:12] = True
    valid_BN = np.array([[True, True], [True, False]])
    return Batch(image_BHW3, pack_rows(masks_BNHW), valid_BN, size_B2)
