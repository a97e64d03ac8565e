"""The options in the folder of a run."""

import json

import pytest
from tiny import tiny_run_config

from samjax.checkpoints import run
from samjax.errors import SamjaxError


@pytest.fixture
def saved(tmp_path):
    run.write_config(str(tmp_path), tiny_run_config())
    assert run.read_config(str(tmp_path)) == tiny_run_config()
    return tmp_path / 'config.json'


@pytest.mark.parametrize(
    'data', [b'', b'{', b'[]', b'1', b'{"seed": "x"}', b'{"model": {"size": 3}}', b'\xff', b'[' * 10**5]
)
def test_damaged_config(saved, data):
    saved.write_bytes(data)
    with pytest.raises(
        SamjaxError, match=r'config.json is damaged \(.+\): restore it, or choose|holds no config.json of a run: name'
    ):
        run.read_config(str(saved.parent))


def test_option_that_does_not_exist(saved):
    content = json.loads(saved.read_text())
    content['model']['sizes'] = content['model'].pop('size')
    saved.write_text(json.dumps(content))
    with pytest.raises(
        SamjaxError, match=r"config.json has options that do not exist, such as 'model.sizes': restore it"
    ):
        run.read_config(str(saved.parent))
