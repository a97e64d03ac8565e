"""samjax.preflight.compile_ahead: a small model compiles for a described pod; a misfit is reported with a remedy."""

import dataclasses
import pickle
import re

import jax
import pytest
from jax.experimental import serialize_executable
from stand_in import QUICK, quick

from samjax.cli.common import read_config
from samjax.cli.main import main
from samjax.errors import SamjaxError
from samjax.model import flops
from samjax.model.config import SIZES
from samjax.model.params import abstract_state
from samjax.preflight import compile_ahead
from samjax.preflight.compile_ahead import PreflightReport
from samjax.training.compiled_step import build

REPORT = PreflightReport(
    chip='TPU v5 lite', chips=256, mesh={'data': 16, 'fsdp': 16, 'tensor': 1}, images=4, parameters=641_090_608,
    compile_seconds=100.0, arguments=2**30, peak=7 * 2**30, refusal=None,
    step_flops=256 * 19.7e12, sent=[], steps=90_000, remat='matmuls', grad_accum_steps=1, objects_per_chunk=8,
)  # fmt: skip


def test_report_in_words():
    lines = REPORT.lines()
    assert lines[0] == ('256 x TPU v5 lite, mesh data 16 x fsdp 16 x tensor 1, 4 image(s) per chip, compiled in 100 s')
    assert (
        lines[2] == 'memory       7.00 of 15.75 GiB per chip at most, 1.00 of it parameters, optimizer state and batch'
    )
    assert lines[-3] == 'computation  5043 TFLOP per step, 19.7 per chip: 0.100 s at peak'
    # .1 s / .4 x 90,000 = 6.25 h
    assert '6 h 15 min at 40%' in lines[-2]
    assert lines[-1] == 'fits'


def test_what_does_not_fit_is_said_with_a_mend():
    refused = dataclasses.replace(REPORT, refusal='18.0G of 15.7G', peak=None)
    assert refused.lines()[-1] == (
        "DOES NOT FIT (18.0G of 15.7G): try --config.model.remat='full', then --config.prompts.objects_per_chunk=4, "
        'then --config.train.grad_accum_steps=4, then --config.train.batch_size=512 (or more chips)'
    )
    least = dataclasses.replace(refused, remat='full', objects_per_chunk=1, images=1)
    assert least.verdict().endswith('try a chip with more memory')


@pytest.mark.parametrize(
    ('message', 'said'),
    [
        ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
         'Used 18.40G of 15.75G hbm. Exceeded hbm capacity by 2.65G.', '18.40G of 15.75G'),
        ('RESOURCE_EXHAUSTED: total memory required for HLO temporaries (800.00G) exceeds available HBM (15.75G)',
         '800.00G of 15.75G'),
        ('INTERNAL: something else', None),
    ],
)  # fmt: skip
def test_compiler_messages(message, said):
    assert compile_ahead.out_of_memory(message) == said


def test_unknown_topology_is_named():
    with pytest.raises(SamjaxError, match="the topology 'v9:2x2' cannot be described .*v5e:16x16"):
        compile_ahead.describe('v9:2x2', 1)


@pytest.mark.parametrize('slices', [1, 2])
def test_described_devices_of_slices(slices):
    devices = compile_ahead.describe('v5e:2x4', slices)
    assert len(devices) == 8 * slices
    assert {getattr(device, 'slice_index', 0) for device in devices} == set(range(slices))


def test_small_model_fits_eight_chips(tmp_path, capsys):
    """The command, from options to the saved program."""
    saved = tmp_path / 'step.xla'
    words = ['preflight', '--topology', 'v5e:2x4', '--save', str(saved)]
    main([*words, *(f'--config.{key}={value}' for key, value in QUICK.items())])
    out = capsys.readouterr().out
    assert re.match(r'8 x TPU v5 lite, mesh data 2 x fsdp 4 x tensor 1, 1 image\(s\) per chip, compiled in', out)
    for kind in ('all-gather', 'all-reduce', 'reduce-scatter'):
        assert kind in out
    assert out.endswith('fits\n')
    with saved.open('rb') as file:
        payload, inputs, outputs = pickle.load(file)
    assert len(payload) > 10_000
    assert inputs.num_leaves > 20
    assert callable(serialize_executable.deserialize_and_load)


class Compiled:
    """Stands in for a step, its lowered form and its program."""

    argument_size_in_bytes, peak_memory_in_bytes = 2**20, 3 * 2**20

    def lower(self, state, batch):
        assert batch.image_BHW3.shape == (24, 32, 48, 3)
        assert batch.packed_masks_BNVW.shape == (24, 6, 4, 48)
        assert (batch.valid_BN.shape, batch.size_B2.shape) == ((24, 6), (24, 2))
        assert [str(x.dtype) for x in batch] == ['uint8', 'uint8', 'bool', 'int32']
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return self

    def as_text(self):
        return 'ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n'


def test_report_is_about_the_config(monkeypatch):
    config = quick(
        90,
        **{
            'train.batch_size': 24, 'train.grad_accum_steps': 3, 'data.max_objects': 6, 'model.remat': 'attention',
            'mesh.tensor': 2,
        },
    )  # fmt: skip
    monkeypatch.setattr(compile_ahead, 'build', lambda *args: dataclasses.replace(build(*args), step=Compiled()))
    report = compile_ahead.preflight(config, 'v5e:2x4', 1, None)
    per_image = flops.train_flops(SIZES['test'], 6, config.prompts.rounds)
    params = abstract_state(SIZES['test'])[1]
    assert report == PreflightReport(
        chip=report.chip, chips=8, mesh={'data': 2, 'fsdp': 2, 'tensor': 2}, images=6,
        parameters=sum(x.size for x in jax.tree.leaves(params)), compile_seconds=report.compile_seconds,
        arguments=2**20, peak=3 * 2**20, refusal=None, step_flops=24 * per_image, sent=[], steps=90,
        remat='attention', grad_accum_steps=3, objects_per_chunk=config.prompts.objects_per_chunk,
    )  # fmt: skip


def test_unknown_option_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match='error: the command line sets an option that does not exist: .*modle'):
        main(['preflight', '--topology', 'v5e:2x4', '--config.modle.size=vit_h'])
    with pytest.raises(SystemExit):
        main(['preflight', '--topology', 'v5e:2x4', '--bogus'])


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('vit_b', 93_735_472), ('vit_l', 312_342_832), ('vit_h', 641_090_608), ('vit_h_modern', 641_090_608)],
)
def test_configs_of_the_paper_build_for_a_pod(name, parameters):
    config = read_config(f'configs/sa1b_{name}.py', ['--config.train.batch_size=256'])
    compiled = build(config, compile_ahead.describe('v5e:16x16', 1))
    assert sum(x.size for x in jax.tree.leaves(compiled.state.params)) == parameters
