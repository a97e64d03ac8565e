"""`samjax.load`: the same predictor from every form of a checkpoint."""

import jax
import numpy as np
import pytest

from samjax.convert.convert import convert
from samjax.errors import SamjaxError
from samjax.inference.load import load


@pytest.fixture(scope='module')
def forms(model, tmp_path_factory):
    """A run with each of the files and folders that were converted from it."""
    folder = tmp_path_factory.mktemp('forms')
    paths = [model]
    for source, name in (('', 'sam.pth'), ('', 'sam.safetensors'), ('sam.pth', 'run')):
        paths.append(str(folder / name))
        convert(str(folder / source) if source else model, paths[-1], None, None, False)
    return paths


def test_every_form_gives_the_same_model(forms):
    first, *others = (load(path) for path in forms)
    for other in others:
        assert other.config == first.config
        jax.tree.map(np.testing.assert_array_equal, other.model[1:], first.model[1:])


def test_activations_in_another_type(forms):
    assert load(forms[1]).dtype == 'float32'
    assert load(forms[1], 'bfloat16').dtype == 'bfloat16'


def test_nothing_there_is_named():
    with pytest.raises(SamjaxError, match='nowhere.pth does not exist'):
        load('nowhere.pth')
