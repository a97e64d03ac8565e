"""Meta's own PyTorch model as the oracle of the parity tests, and its weights in our model."""

import re
import sys
import types

import jax.numpy as jnp
import torch
from flax import nnx

from samjax.model.sam import Sam, SamConfig

# segment_anything imports these five names of torchvision, and its model calls none of them.
TORCHVISION = {
    'torchvision': (),
    'torchvision.ops': (),
    'torchvision.ops.boxes': ('batched_nms', 'box_area'),
    'torchvision.transforms': (),
    'torchvision.transforms.functional': ('resize', 'to_pil_image'),
}


def import_without_torchvision():
    """segment_anything, imported while stubs stand in for torchvision, which then is as it was."""
    before = {name: sys.modules[name] for name in TORCHVISION if name in sys.modules}
    for name, attributes in TORCHVISION.items():
        sys.modules[name] = types.ModuleType(name)
        for attribute in attributes:
            setattr(sys.modules[name], attribute, None)
    try:
        import segment_anything
        import segment_anything.utils.transforms
    finally:
        for name in TORCHVISION:
            del sys.modules[name]
        sys.modules.update(before)
    return segment_anything


segment_anything = import_without_torchvision()
modeling = segment_anything.modeling


def build(config: SamConfig) -> torch.nn.Module:
    """Meta's Sam with the sizes of `config`, for the frame of `config` even if it is not square."""
    is_global = [(i + 1) % (config.windowed + 1) == 0 for i in range(config.depth)]
    encoder = modeling.ImageEncoderViT(
        img_size=config.image_size[0],
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        out_chans=config.channels,
        norm_layer=lambda channels: torch.nn.LayerNorm(channels, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=[i for i in range(config.depth) if is_global[i]],
    )
    # Its constructor knows square frames only; its forward pass goes by the shapes of these two.
    h, w = config.grid
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, h, w, config.width))
    for block in encoder.blocks:
        if block.window_size == 0:
            head = config.width // config.heads
            block.attn.rel_pos_w = torch.nn.Parameter(torch.zeros(2 * w - 1, head))
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=config.channels,
        image_embedding_size=config.grid,
        input_image_size=config.image_size,
        mask_in_chans=config.mask_channels,
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=config.channels,
        transformer=modeling.TwoWayTransformer(
            depth=config.decoder_depth,
            embedding_dim=config.channels,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp,
        ),
        iou_head_hidden_dim=config.iou_hidden,
    )
    return modeling.Sam(encoder, prompt_encoder, decoder).eval()


@torch.no_grad()
def randomize(sam: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draws every parameter and the Fourier matrix anew, biases and scales of norms included.

    Gains are above one, so that logits spread over several units and a wrong detail shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in sam.modules():
        for name, array in module.named_parameters(recurse=False):
            if array.ndim == 1:
                mean, std = (1.0, 0.3) if name == 'weight' else (0.0, 0.3)  # scale of a norm, bias
            elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                mean, std = 0.0, 1.5 * array[0].numel() ** -0.5
            elif isinstance(module, torch.nn.ConvTranspose2d):
                mean, std = 0.0, 1.5 * array.shape[0] ** -0.5
            else:
                mean, std = 0.0, 0.7  # embeddings, tokens, positions
            array.normal_(mean, std, generator=generator)
    matrix = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix.normal_(generator=generator)
    return sam


def same(x, like):
    return x


def first(x, like):
    return x[0]


def linear(x, like):
    return x.T


def conv(x, like):
    return x.permute(2, 3, 1, 0)


def conv1x1(x, like):
    return x[:, :, 0, 0].T


def deconv(x, like):
    return x.permute(2, 3, 0, 1)


def heads_in(x, like):
    return x.T.unflatten(1, like[1:])


def heads_bias(x, like):
    return x.unflatten(0, like)


def heads_out(x, like):
    return x.T.unflatten(0, like[:-1])


# torch key (its dots are plain dots), our path, transform; keys that share a path are stacked.
TABLE = (
    ('image_encoder.pos_embed', 'image_encoder/pos_embed', first),
    ('image_encoder.patch_embed.proj.weight', 'image_encoder/patch_embed/kernel', conv),
    ('image_encoder.patch_embed.proj.bias', 'image_encoder/patch_embed/bias', same),
    (
        r'image_encoder.blocks.(\d+).norm([12]).weight',
        r'image_encoder/blocks/\1/norm\2/scale',
        same,
    ),
    (r'image_encoder.blocks.(\d+).norm([12]).bias', r'image_encoder/blocks/\1/norm\2/bias', same),
    (
        r'image_encoder.blocks.(\d+).attn.qkv.weight',
        r'image_encoder/blocks/\1/attention/w_qkv_DsAE',
        heads_in,
    ),
    (
        r'image_encoder.blocks.(\d+).attn.qkv.bias',
        r'image_encoder/blocks/\1/attention/b_qkv_sAE',
        heads_bias,
    ),
    (
        r'image_encoder.blocks.(\d+).attn.rel_pos_([hw])',
        r'image_encoder/blocks/\1/attention/rel_\2_RE',
        same,
    ),
    (
        r'image_encoder.blocks.(\d+).attn.proj.weight',
        r'image_encoder/blocks/\1/attention/w_out_AED',
        heads_out,
    ),
    (
        r'image_encoder.blocks.(\d+).attn.proj.bias',
        r'image_encoder/blocks/\1/attention/b_out_D',
        same,
    ),
    (
        r'image_encoder.blocks.(\d+).mlp.lin1.weight',
        r'image_encoder/blocks/\1/mlp/layers/0/kernel',
        linear,
    ),
    (
        r'image_encoder.blocks.(\d+).mlp.lin1.bias',
        r'image_encoder/blocks/\1/mlp/layers/0/bias',
        same,
    ),
    (
        r'image_encoder.blocks.(\d+).mlp.lin2.weight',
        r'image_encoder/blocks/\1/mlp/layers/1/kernel',
        linear,
    ),
    (
        r'image_encoder.blocks.(\d+).mlp.lin2.bias',
        r'image_encoder/blocks/\1/mlp/layers/1/bias',
        same,
    ),
    ('image_encoder.neck.0.weight', 'image_encoder/neck/project_DC', conv1x1),
    ('image_encoder.neck.1.weight', 'image_encoder/neck/norm1/scale', same),
    ('image_encoder.neck.1.bias', 'image_encoder/neck/norm1/bias', same),
    ('image_encoder.neck.2.weight', 'image_encoder/neck/smooth_33CC', conv),
    ('image_encoder.neck.3.weight', 'image_encoder/neck/norm2/scale', same),
    ('image_encoder.neck.3.bias', 'image_encoder/neck/norm2/bias', same),
    (
        'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix',
        'prompt_encoder/fourier_2F',
        same,
    ),
    ('prompt_encoder.point_embeddings.[0-3].weight', 'prompt_encoder/label_embed_4C', same),
    ('prompt_encoder.not_a_point_embed.weight', 'prompt_encoder/not_a_point_C', first),
    ('prompt_encoder.no_mask_embed.weight', 'prompt_encoder/no_mask_C', first),
    ('prompt_encoder.mask_downscaling.0.weight', 'prompt_encoder/mask_conv1/kernel', conv),
    ('prompt_encoder.mask_downscaling.0.bias', 'prompt_encoder/mask_conv1/bias', same),
    ('prompt_encoder.mask_downscaling.1.weight', 'prompt_encoder/mask_norm1/scale', same),
    ('prompt_encoder.mask_downscaling.1.bias', 'prompt_encoder/mask_norm1/bias', same),
    ('prompt_encoder.mask_downscaling.3.weight', 'prompt_encoder/mask_conv2/kernel', conv),
    ('prompt_encoder.mask_downscaling.3.bias', 'prompt_encoder/mask_conv2/bias', same),
    ('prompt_encoder.mask_downscaling.4.weight', 'prompt_encoder/mask_norm2/scale', same),
    ('prompt_encoder.mask_downscaling.4.bias', 'prompt_encoder/mask_norm2/bias', same),
    ('prompt_encoder.mask_downscaling.6.weight', 'prompt_encoder/mask_conv3/kernel', conv),
    ('prompt_encoder.mask_downscaling.6.bias', 'prompt_encoder/mask_conv3/bias', same),
    ('mask_decoder.iou_token.weight', 'mask_decoder/iou_token_1C', same),
    ('mask_decoder.mask_tokens.weight', 'mask_decoder/mask_tokens_4C', same),
    (
        r'mask_decoder.transformer.layers.(\d+).self_attn.([qkv])_proj.weight',
        r'mask_decoder/transformer/blocks/\1/self_attention/w_\2_CAE',
        heads_in,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).self_attn.([qkv])_proj.bias',
        r'mask_decoder/transformer/blocks/\1/self_attention/b_\2_AE',
        heads_bias,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).self_attn.out_proj.weight',
        r'mask_decoder/transformer/blocks/\1/self_attention/w_out_AEC',
        heads_out,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).self_attn.out_proj.bias',
        r'mask_decoder/transformer/blocks/\1/self_attention/b_out_C',
        same,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).cross_attn_(token_to_image|image_to_token).([qkv])_proj.weight',
        r'mask_decoder/transformer/blocks/\1/\2/w_\3_CAE',
        heads_in,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).cross_attn_(token_to_image|image_to_token).([qkv])_proj.bias',
        r'mask_decoder/transformer/blocks/\1/\2/b_\3_AE',
        heads_bias,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).cross_attn_(token_to_image|image_to_token).out_proj.weight',
        r'mask_decoder/transformer/blocks/\1/\2/w_out_AEC',
        heads_out,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).cross_attn_(token_to_image|image_to_token).out_proj.bias',
        r'mask_decoder/transformer/blocks/\1/\2/b_out_C',
        same,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).norm([1-4]).weight',
        r'mask_decoder/transformer/blocks/\1/norm\2/scale',
        same,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).norm([1-4]).bias',
        r'mask_decoder/transformer/blocks/\1/norm\2/bias',
        same,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).mlp.lin1.weight',
        r'mask_decoder/transformer/blocks/\1/mlp/layers/0/kernel',
        linear,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).mlp.lin1.bias',
        r'mask_decoder/transformer/blocks/\1/mlp/layers/0/bias',
        same,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).mlp.lin2.weight',
        r'mask_decoder/transformer/blocks/\1/mlp/layers/1/kernel',
        linear,
    ),
    (
        r'mask_decoder.transformer.layers.(\d+).mlp.lin2.bias',
        r'mask_decoder/transformer/blocks/\1/mlp/layers/1/bias',
        same,
    ),
    (
        'mask_decoder.transformer.final_attn_token_to_image.([qkv])_proj.weight',
        r'mask_decoder/transformer/final_attention/w_\1_CAE',
        heads_in,
    ),
    (
        'mask_decoder.transformer.final_attn_token_to_image.([qkv])_proj.bias',
        r'mask_decoder/transformer/final_attention/b_\1_AE',
        heads_bias,
    ),
    (
        'mask_decoder.transformer.final_attn_token_to_image.out_proj.weight',
        'mask_decoder/transformer/final_attention/w_out_AEC',
        heads_out,
    ),
    (
        'mask_decoder.transformer.final_attn_token_to_image.out_proj.bias',
        'mask_decoder/transformer/final_attention/b_out_C',
        same,
    ),
    (
        'mask_decoder.transformer.norm_final_attn.weight',
        'mask_decoder/transformer/final_norm/scale',
        same,
    ),
    (
        'mask_decoder.transformer.norm_final_attn.bias',
        'mask_decoder/transformer/final_norm/bias',
        same,
    ),
    ('mask_decoder.output_upscaling.0.weight', 'mask_decoder/upscale1/kernel', deconv),
    ('mask_decoder.output_upscaling.0.bias', 'mask_decoder/upscale1/bias', same),
    ('mask_decoder.output_upscaling.1.weight', 'mask_decoder/upscale_norm/scale', same),
    ('mask_decoder.output_upscaling.1.bias', 'mask_decoder/upscale_norm/bias', same),
    ('mask_decoder.output_upscaling.3.weight', 'mask_decoder/upscale2/kernel', deconv),
    ('mask_decoder.output_upscaling.3.bias', 'mask_decoder/upscale2/bias', same),
    (
        r'mask_decoder.output_hypernetworks_mlps.([0-3]).layers.(\d+).weight',
        r'mask_decoder/mask_heads/\1/layers/\2/kernel',
        linear,
    ),
    (
        r'mask_decoder.output_hypernetworks_mlps.([0-3]).layers.(\d+).bias',
        r'mask_decoder/mask_heads/\1/layers/\2/bias',
        same,
    ),
    (
        r'mask_decoder.iou_prediction_head.layers.(\d+).weight',
        r'mask_decoder/iou_head/layers/\1/kernel',
        linear,
    ),
    (
        r'mask_decoder.iou_prediction_head.layers.(\d+).bias',
        r'mask_decoder/iou_head/layers/\1/bias',
        same,
    ),
)


def shapes(sam: Sam) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter and buffer of our model."""
    return {'/'.join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(sam))}


def locate(key: str):
    """(our path, transform) of a torch key; the table must have exactly one row for it."""
    rows = []
    for pattern, path, transform in TABLE:
        match = re.fullmatch(pattern.replace('.', r'\.'), key)
        if match:
            rows.append((match.expand(path), transform))
    assert len(rows) == 1, f'{key} fits {len(rows)} rows of the table'
    return rows[0]


def translate(state_dict: dict, ours: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Torch weights by our paths and in our shapes; uses every key once and sets every path."""
    parts = {}
    for key, value in state_dict.items():
        path, transform = locate(key)
        assert path in ours, f'{key} goes to {path}, which our model lacks'
        parts.setdefault(path, []).append(transform(value, ours[path]))
    result = {path: torch.cat(values) if len(values) > 1 else values[0] for path, values in parts.items()}
    assert result.keys() == ours.keys(), f'never set: {sorted(ours.keys() - result.keys())}'
    for path, value in result.items():
        assert tuple(value.shape) == ours[path], f'{path} has shape {ours[path]}, torch {tuple(value.shape)}'
    return result


def port(torch_sam: torch.nn.Module, config: SamConfig) -> Sam:
    """Our Sam with the weights of `torch_sam`."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Sam(config, nnx.Rngs(0))))
    arrays = translate(torch_sam.state_dict(), shapes(nnx.merge(graphdef, state)))
    leaves = [
        (path, leaf.replace(jnp.array(arrays['/'.join(map(str, path))].numpy())))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
