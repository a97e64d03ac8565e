"""The real models against Meta's code: random weights, images of many shapes, a thousand prompts of every kind."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch

from samjax.errors import SamjaxError
from samjax.model.config import SIZES
from samjax.parity import meta, verify

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    'size', ['vit_b', pytest.param('vit_l', marks=pytest.mark.large), pytest.param('vit_h', marks=pytest.mark.large)]
)
def test_converted_model_predicts_like_the_original(tmp_path, size):
    """In a process of its own: this one compiles without optimisation."""
    torch.save(oracle.randomize(oracle.build(SIZES[size]), 0, gain=1.0).state_dict(), tmp_path / 'sam.pth')
    arguments = ['convert', tmp_path / 'sam.pth', tmp_path / 'run', '--verify']
    environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
    process = subprocess.run(
        [sys.executable, '-m', 'samjax', *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    print(process.stdout)
    figures = r'embedding .*\| (\S+) of .*\nlogits .*\| (\S+) \(standard deviation (\S+)\)\nIoU scores .*\| (\S+)\n'
    embedding, logits, spread, iou = map(float, re.search(figures, process.stdout).groups())
    mask_iou, same, prompts = re.search(r'mean IoU (\S+); .* in (\S+)% of (\S+) prompts', process.stdout).groups()
    assert embedding <= 1e-4
    assert logits <= 1e-3
    assert spread > 1  # the weights are such that a wrong detail would show
    assert iou <= 1e-3
    assert float(mask_iou) >= 0.9999
    assert float(same) >= 99.9
    assert int(prompts.replace(',', '')) >= 1000


def test_without_the_original_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'segment_anything', None)
    with pytest.raises(SamjaxError, match='segment_anything is not installed: run pip install torch segment-anything'):
        meta.package()


def test_frames_that_are_not_square_have_no_original():
    with pytest.raises(SamjaxError, match='square model inputs only'):
        verify.verify({}, SIZES['test'])


def test_torchvision_is_as_it_was_before():
    before = {name: sys.modules.get(name) for name in meta.TORCHVISION}
    meta.package()
    assert {name: sys.modules.get(name) for name in meta.TORCHVISION} == before


def test_kinds_cover_every_prompt():
    assert {points for points, _, _ in verify.KINDS} == set(range(10))
    assert {(box, mask) for _, box, mask in verify.KINDS} == {(a, b) for a in (False, True) for b in (False, True)}
    assert np.all([points or box for points, box, _ in verify.KINDS])
