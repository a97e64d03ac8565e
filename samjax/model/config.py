"""The architecture of a SAM, the published sizes, and how the options of a run name one of them."""

from __future__ import annotations

import dataclasses

from samjax.errors import SamjaxError, check_option, is_whole
from samjax.model.encoders.vit import ViTConfig
from samjax.model.mask_decoder import MaskDecoderConfig
from samjax.model.runtime import Regularization, Runtime

DTYPES = ('bfloat16', 'float32')  # of activations; float16 would need a scaled loss


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """The architecture of a SAM.

    Raises:
        SamjaxError: the image size is not a multiple of the patch size.
    """

    encoder: ViTConfig
    image_size: tuple[int, int] = (1024, 1024)  # H, W of the model input, px
    embed_dim: int = 256  # C, of image embedding, prompts and mask decoder
    mask_in_chans: int = 16  # hidden channels of the mask prompt
    decoder: MaskDecoderConfig = MaskDecoderConfig()

    def __post_init__(self):
        patch_size = self.encoder.patch_size
        check_option(
            'model.image_size',
            self.image_size,
            lambda size: len(size) == 2 and all(map(is_whole, size)),
            '(height, width) in px, such as (1024, 1024)',
        )
        if any(side <= 0 or side % patch_size for side in self.image_size):
            raise SamjaxError(
                f'model.image_size {tuple(self.image_size)} must be multiples of the patch, {patch_size} px; '
                f'round each side to one.'
            )

    @property
    def embedding_size(self) -> tuple[int, int]:
        """h, w: rows and columns of the image embedding."""
        height, width = self.image_size
        return height // self.encoder.patch_size, width // self.encoder.patch_size

    @property
    def low_res_size(self) -> tuple[int, int]:
        """y, x: pixels of the masks that the decoder predicts."""
        h, w = self.embedding_size
        return 4 * h, 4 * w


def _small(encoder: ViTConfig, image_size: tuple[int, int]) -> SamConfig:
    """For CPUs: finer patches for smaller images, a slimmer decoder."""
    decoder = MaskDecoderConfig(num_heads=4, mlp_dim=256, iou_head_hidden_dim=64)
    return SamConfig(encoder, image_size, embed_dim=64, decoder=decoder)


SIZES = {
    'vit_h': SamConfig(ViTConfig(width=1280, num_stages=4, windowed_per_stage=7, num_heads=16)),
    'vit_l': SamConfig(ViTConfig(width=1024, num_stages=4, windowed_per_stage=5, num_heads=16)),
    'vit_b': SamConfig(ViTConfig(width=768, num_stages=4, windowed_per_stage=2, num_heads=12)),
    'vit_xs': _small(ViTConfig(128, num_stages=1, windowed_per_stage=3, num_heads=2, patch_size=8, window_size=8),
                     image_size=(256, 256)),
    'vit_xxs': _small(ViTConfig(128, num_stages=2, windowed_per_stage=1, num_heads=4, patch_size=8, window_size=8),
                      image_size=(128, 128)),
    'test': SamConfig(
        ViTConfig(16, num_stages=1, windowed_per_stage=1, num_heads=2, patch_size=8, window_size=3),
        image_size=(32, 48), embed_dim=16, mask_in_chans=8,
        decoder=MaskDecoderConfig(num_heads=2, mlp_dim=32, iou_head_hidden_dim=16),
    ),
}  # fmt: skip


def from_options(
    size: str, image_size, dtype: str, drop_path: float, dropout: float, remat: str
) -> tuple[SamConfig, Regularization, Runtime]:
    """The model that the section `model` of a run's options asks for.

    Raises:
        SamjaxError: `size` is no row of `SIZES`, the image size does not fit it, or another option is not possible.
    """
    if size not in SIZES:
        raise SamjaxError(f'model.size {size!r} is not one of {", ".join(SIZES)}.')
    check_option('model.dtype', dtype, lambda name: name in DTYPES, ' or '.join(DTYPES))
    config = dataclasses.replace(SIZES[size], image_size=tuple(image_size))
    return config, Regularization(drop_path, dropout), Runtime(dtype, remat)


def size_name(config: SamConfig) -> str:
    """The name of the row of `SIZES` that `config` is, whatever its image size."""
    return next(n for n, row in SIZES.items() if dataclasses.replace(config, image_size=row.image_size) == row)
