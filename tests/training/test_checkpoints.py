"""samjax.training.checkpoints: saved states come back, damage is reported, and a good checkpoint is never lost."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from samjax.checkpoints import run
from samjax.config import RENAMED, get_config
from samjax.distributed import sharding
from samjax.errors import SamjaxError
from samjax.model.config import from_options
from samjax.model.layers import Buffer
from samjax.training.checkpoints import Checkpoints
from samjax.training.step import TrainState, init_state

ROOT = pathlib.Path(__file__).parents[2]
TX = optax.adam(1e-3)


MESH = sharding.make_mesh(sharding.MeshConfig(data=0, fsdp=0, tensor=1), width=16, heads=2)


def replicated():
    return sharding.replicated(MESH)


def on_mesh(shapes):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()), shapes)


def tiny_config(**changes):
    """samjax/config.py with the model of SIZES['test']; changes as {'train.num_steps': 3}."""
    config = get_config()
    config.update_from_flattened_dict({'model.size': 'test', 'model.image_size': (32, 48)} | changes)
    return config


def abstract_state(config):
    """The shapes of a state: those of a real one are many, so one kernel, one bias and a buffer stand for the model."""

    def init():
        params = nnx.State({'layer': {'kernel': nnx.Param(jnp.ones((64, config.data.max_objects)))}})
        params['layer']['bias'] = nnx.Param(jnp.ones(3))
        buffers = nnx.State({'fixed': Buffer(jnp.ones((2, 5)))})
        return TrainState(jnp.int32(0), params, buffers, TX.init(params), jnp.int32(0))

    return on_mesh(jax.eval_shape(init))


def abstract_sam(config):
    """The shapes of a real state."""
    init = functools.partial(init_state, from_options(**config.model)[0], TX, config.seed)
    return on_mesh(jax.eval_shape(init))


def filled(abstract, step):
    """A state of numbers that differ from step to step and that no compression makes small."""
    leaves, tree = jax.tree.flatten(abstract)
    rng = np.random.default_rng(step)
    arrays = [(1000 * rng.normal(size=x.shape)).astype(x.dtype) for x in leaves]
    state = jax.tree.unflatten(tree, jax.device_put(arrays, [x.sharding for x in leaves]))
    return dataclasses.replace(state, step=jnp.int32(step))


def state_at(step, config):
    return filled(abstract_state(config), step)


class Position:
    """Stands for the data: knows how much of it is gone."""

    def __init__(self, taken=0):
        self.taken = taken

    def get_state(self):
        return {'taken': self.taken}

    def set_state(self, state):
        self.taken = state['taken']


def save(workdir, state, data, config, keep):
    """Writes a checkpoint to the end."""
    with contextlib.closing(Checkpoints(str(workdir), keep, config)) as checkpoints:
        checkpoints.save(state, data)
        checkpoints.wait()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_state_and_data_come_back(tmp_path):
    config = tiny_config()
    saved = state_at(3, config)
    checkpoints = Checkpoints(str(tmp_path), 2, config)
    assert checkpoints.latest is None
    checkpoints.save(saved, Position(3))
    checkpoints.close()

    checkpoints, data = Checkpoints(str(tmp_path), 2, config), Position()
    restored = checkpoints.restore(abstract_state(config), data)
    assert_same(saved, restored)
    assert data.taken == 3
    assert {x.sharding for x in jax.tree.leaves(restored)} == {replicated()}


def test_newest_checkpoints_are_kept(tmp_path):
    config = tiny_config()
    checkpoints = Checkpoints(str(tmp_path), 2, config)
    for step in (1, 2, 3, 3):
        checkpoints.save(state_at(step, config), Position(step))
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']


def test_params_are_loaded_without_the_optimizer_state(tmp_path):
    config = tiny_config()
    saved = filled(abstract_sam(config), 3)
    save(tmp_path, saved, Position(), config=config, keep=2)
    shutil.rmtree(tmp_path / 'checkpoints' / '3' / 'opt_state')
    (tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp').mkdir()  # another process is just saving
    params, buffers, step = run.restore_params(str(tmp_path), config)
    assert step == 3
    assert_same(saved.params, params)
    assert_same(saved.buffers, buffers)


def test_config_comes_back_from_the_workdir(tmp_path):
    config = tiny_config(**{'optimizer.milestones': ()})
    Checkpoints(str(tmp_path), 2, config)
    assert run.read_config(str(tmp_path)) == config


def test_evaluating_an_empty_workdir_is_refused(tmp_path):
    with pytest.raises(SamjaxError, match='holds no checkpoint: name the --workdir'):
        run.restore_params(str(tmp_path), tiny_config())
    with pytest.raises(SamjaxError, match='holds no config.json of a run'):
        run.read_config(str(tmp_path))
    Checkpoints(str(tmp_path), 2, tiny_config())
    with pytest.raises(SamjaxError, match='holds no complete checkpoint'):
        run.restore_params(str(tmp_path), tiny_config())


def test_workdir_of_another_config_is_refused(tmp_path):
    save(tmp_path, state_at(1, tiny_config()), Position(), config=tiny_config(), keep=2)
    other = tiny_config(**{'seed': 1, 'optimizer.lr': 1e-5, 'train.num_steps': 7})
    with pytest.raises(SamjaxError) as raised:
        Checkpoints(str(tmp_path), 2, other)
    assert str(raised.value) == (
        f'{tmp_path} belongs to a run with another config (optimizer.lr is 0.0008 there and 1e-05 here; '
        f'seed is 0 there and 1 here): choose another --workdir, or give the same options'
    )
    assert run.read_config(str(tmp_path)) == tiny_config()


def test_run_that_saved_nothing_may_start_again_with_other_options(tmp_path):
    Checkpoints(str(tmp_path), 2, tiny_config())
    Checkpoints(str(tmp_path), 2, tiny_config(seed=1))
    assert run.read_config(str(tmp_path)).seed == 1


def test_lengths_and_evaluation_may_change(tmp_path):
    save(tmp_path, state_at(1, tiny_config()), Position(), config=tiny_config(), keep=2)
    longer = {
        'train.num_steps': 7,
        'train.log_every': 1,
        'train.save_every': 1,
        'train.eval_every': 1,
        'train.max_to_keep': 1,
    }
    places = {
        'data.eval_path': 'x',
        'data.cache': 'y',
        'data.num_workers': 0,
        'data.prefetch': 1,
        'eval.num_visualizations': 1,
    }
    Checkpoints(str(tmp_path), 2, tiny_config(**longer, **places))
    assert run.read_config(str(tmp_path)).train.num_steps == 7


def test_option_that_did_not_exist_then_has_its_default(tmp_path):
    save(tmp_path, state_at(1, tiny_config()), Position(), config=tiny_config(), keep=2)
    path = tmp_path / 'config.json'
    old = json.loads(path.read_text())
    del old['loss']['dice']
    path.write_text(json.dumps(old))
    Checkpoints(str(tmp_path), 2, tiny_config())
    path.write_text(json.dumps(old))
    with pytest.raises(SamjaxError, match='loss.dice is 1.0 there and 2.0 here'):
        Checkpoints(str(tmp_path), 2, tiny_config(**{'loss.dice': 2.0}))


def test_run_saved_with_the_old_names_of_options_opens(tmp_path):
    saved = tiny_config(**{'train.batch_size': 4, 'loss.resolution': 'low_res', 'optimizer.milestones': (7, 8)})
    old = json.loads(saved.to_json())
    names = {new: before for before, new in RENAMED.items()}
    for new, before in names.items():
        (section, key), (old_section, old_key) = new.split('.'), before.split('.')
        old[old_section][old_key] = old[section].pop(key)
    old['loss']['resolution'] = 'low'
    (tmp_path / 'config.json').write_text(json.dumps(old))
    assert run.read_config(str(tmp_path)) == saved


def test_checkpoint_of_another_size_is_refused(tmp_path):
    save(tmp_path, filled(abstract_sam(tiny_config()), 3), Position(), config=tiny_config(), keep=2)
    other = tiny_config(**{'model.size': 'vit_xxs', 'model.image_size': (64, 64)})
    (tmp_path / 'config.json').unlink()
    message = (
        r"checkpoint .*/3 holds a 'test' for \(32, 48\) px and the config asks for a 'vit_xxs' for \(64, 64\) px "
        r'\(.* is \(.*\) there and \(.*\) here\): set --config.model.size'
    )
    with pytest.raises(SamjaxError, match=message):
        run.restore_params(str(tmp_path), other)
    with pytest.raises(SamjaxError, match=message):
        Checkpoints(str(tmp_path), 2, other).restore(abstract_sam(other), Position())


@pytest.mark.parametrize('unfinished', ['9.orbax-checkpoint-tmp', '9.orbax-checkpoint-tmp-1700000000000000'])
def test_half_written_checkpoint_is_not_picked_up(tmp_path, unfinished):
    config = tiny_config()
    saved = state_at(3, config)
    save(tmp_path, saved, Position(3), config, keep=3)
    folder = tmp_path / 'checkpoints'
    shutil.copytree(folder / '3', folder / unfinished)
    shutil.rmtree(folder / unfinished / 'opt_state')
    (folder / unfinished / 'commit_success.txt').unlink(missing_ok=True)

    checkpoints = Checkpoints(str(tmp_path), 3, config)
    assert checkpoints.latest == 3
    assert_same(saved, checkpoints.restore(abstract_state(config), Position()))


KILLED = """
import os, sys
sys.path[:0] = [{root!r}, *({root!r} + '/tests' + folder for folder in ('', '/support', '/training'))]
import conftest, test_checkpoints as t
from samjax.training.checkpoints import Checkpoints
from samjax.errors import SamjaxError

config = t.tiny_config()
checkpoints = Checkpoints({workdir!r}, 3, config)
checkpoints.save(t.state_at(3, config), t.Position(3))
checkpoints.wait()
{trouble}
try:
    checkpoints.save(t.state_at(9, config), t.Position(9))
    checkpoints.wait()
except SamjaxError as error:
    sys.exit(f'error: {{error}}')
"""
# The process dies between writing the files and giving the folder its number.
DIES = """
from orbax.checkpoint._src.path import atomicity
async def die(*args, **kwargs): os._exit(17)
for name in ('AtomicRenameTemporaryPath', 'CommitFileTemporaryPath'):
    getattr(atomicity, name).finalize = die
"""
# No file may grow beyond 4 kB: the system refuses the write as it does on a full disk.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


def run_with_trouble(workdir, trouble):
    code = KILLED.format(root=str(ROOT), workdir=str(workdir), trouble=trouble)
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)


def assert_step_3_is_whole(workdir):
    config = tiny_config()
    checkpoints, data = Checkpoints(str(workdir), 3, config), Position()
    assert checkpoints.latest == 3
    assert_same(state_at(3, config), checkpoints.restore(abstract_state(config), data))
    assert data.taken == 3
    assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['3']  # nothing is left behind


def test_killed_while_saving_keeps_the_previous(tmp_path):
    process = run_with_trouble(tmp_path, DIES)
    assert process.returncode == 17, process.stderr
    assert len(list((tmp_path / 'checkpoints').iterdir())) == 2
    assert_step_3_is_whole(tmp_path)


def test_full_disk_while_saving_keeps_the_previous(tmp_path):
    process = run_with_trouble(tmp_path, FULL)
    assert process.returncode == 1
    assert re.fullmatch(
        rf'error: checkpoint {tmp_path}/checkpoints/9 cannot be written \(.*File too large.*\): '
        r'raise the limit on the size of files .ulimit -f. and run the same command, it continues from step 3\n',
        process.stderr,
    )
    assert_step_3_is_whole(tmp_path)


def test_damaged_checkpoint_is_named(tmp_path):
    config = tiny_config()
    save(tmp_path, state_at(3, config), Position(), config=config, keep=3)
    for path in (tmp_path / 'checkpoints' / '3' / 'params').rglob('d/*'):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SamjaxError, match=r'checkpoint .*/3 cannot be read \(.*\): remove that folder'):
        Checkpoints(str(tmp_path), 3, config).restore(abstract_state(config), Position())
    assert (tmp_path / 'checkpoints' / '3').is_dir()


def cut_short(folder):
    for path in folder.rglob('d/*'):
        path.write_bytes(path.read_bytes()[:100])


def remove_a_file(folder):
    next(folder.rglob('d/*')).unlink()


def empty_the_position(folder):
    for path in (folder / 'data').iterdir():
        path.write_text('')


@pytest.mark.parametrize('damage', [cut_short, remove_a_file, empty_the_position, shutil.rmtree])
def test_damaged_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path, capsys, damage):
    config = tiny_config()
    for step in (3, 9):
        save(tmp_path, state_at(step, config), Position(step), config, keep=3)
    damage(tmp_path / 'checkpoints' / '9' / ('params' if damage is shutil.rmtree else ''))
    checkpoints, data = Checkpoints(str(tmp_path), 3, config), Position()
    assert_same(state_at(3, config), checkpoints.restore(abstract_state(config), data))
    assert data.taken == 3
    assert re.search(
        rf'warning: checkpoint {tmp_path}/checkpoints/9 cannot be read \(.*\): .*; '
        rf'moved to {tmp_path}/unreadable/9, continues from step 3\n',
        capsys.readouterr().err,
    )
    # The run goes on to step 9 and saves it again.
    checkpoints.save(state_at(9, config), Position(9))
    checkpoints.wait()
    assert_same(state_at(9, config), Checkpoints(str(tmp_path), 3, config).restore(abstract_state(config), data))
