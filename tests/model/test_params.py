"""samjax.model.params: every parameter of every size has exactly one rule and one name in checkpoints; digests."""

import jax
import numpy as np
import pytest
from flax import nnx

from samjax.convert import key_map
from samjax.model import params
from samjax.model.config import SIZES
from samjax.model.param_rules import LAST_LAYER, ParamRule
from samjax.model.params import ParamRules


def paths(tree):
    """Path as names -> array of shapes."""
    return {params.path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('size', SIZES)
def test_every_parameter_has_one_rule_that_fits_its_shape_and_names_in_checkpoints(size):
    config = SIZES[size]
    _, shapes, buffers = params.abstract_state(config)
    rules, depth = ParamRules(config), config.encoder.depth
    for names, p in paths(shapes).items():
        rule = rules.of(names)
        if rule.matrix is not None:
            axes = rule.matrix.inputs + rule.matrix.outputs
            assert len(set(axes)) == len(axes)
            assert -p.ndim <= min(axes) <= max(axes) < 0, names
        if rule.tensor_axis is not None:
            heads_or_hidden = p.shape[rule.tensor_axis]
            assert heads_or_hidden in (config.encoder.num_heads, 4 * config.encoder.width), names
        if rule.layer is not LAST_LAYER:
            layer = np.asarray(rule.layer)
            assert layer.shape == p.shape[: layer.ndim], names
            assert layer.min() >= 0
            assert layer.max() <= depth
        assert rule.layer is LAST_LAYER or names[0] == params.IMAGE_ENCODER
        assert not rule.fsdp or names[0] == params.IMAGE_ENCODER
    ours = {'/'.join(names) for tree in (shapes, buffers) for names in paths(tree)}
    assert {key.ours for key in key_map.checkpoint_keys(config)} == ours


def test_layers_of_all_blocks_are_numbered_once():
    config = SIZES['vit_b']
    rules = ParamRules(config)
    layers = [
        rules.of((params.IMAGE_ENCODER, kind, 'norm1', 'scale')).layer for kind in ('windowed_blocks', 'global_blocks')
    ]
    assert sorted(np.concatenate([layer.ravel() for layer in layers])) == list(range(1, 13))
    assert rules.num_layers == 14
    assert rules.of((params.IMAGE_ENCODER, 'pos_embed')).layer == 0


def test_parameter_without_a_rule_is_an_error(tiny_config):
    with pytest.raises(LookupError, match='0 rules match the parameter image_encoder/neck/gate'):
        ParamRules(tiny_config).of(('opt_state', '0', 'mu', 'image_encoder', 'neck', 'gate'))
    with pytest.raises(LookupError, match='0 rules match the parameter layer/kernel'):
        ParamRules(tiny_config).of(('layer', 'kernel'))


def test_rules_match_whole_paths():
    assert ParamRule('neck/norm[12]/(scale|bias)').matches('neck/norm1/bias')
    assert not ParamRule('neck/norm[12]/(scale|bias)').matches('neck/norm1/bias_2')


def test_names_of_a_path_with_and_without_its_closing_value():
    key, value = jax.tree_util.DictKey, jax.tree_util.GetAttrKey('value')
    assert params.path_names((key('neck'), key(1), key('scale'), value)) == ('neck', '1', 'scale')
    assert params.path_names((key('neck'), key('scale'))) == ('neck', 'scale')


def test_digest_depends_on_names_shapes_and_values():
    def digest(name, values):
        return params.digest(nnx.State({name: nnx.Param(np.array(values, np.float32))}))

    assert digest('a', [1, 2]) == digest('a', [1, 2])
    assert len({digest('a', [1, 2]), digest('b', [1, 2]), digest('a', [[1, 2]]), digest('a', [1, 3])}) == 4
