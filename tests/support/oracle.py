"""Meta's own PyTorch model as the oracle of the parity tests, and its weights in our model."""

import jax
import numpy as np
import torch
from flax import nnx

from samjax.convert import weights
from samjax.convert.weights import to_states
from samjax.model.config import SamConfig
from samjax.model.params import abstract_state
from samjax.model.sam import Sam
from samjax.parity import meta

segment_anything = meta.package()
modeling = segment_anything.modeling
build = meta.build


@torch.no_grad()
def randomize(sam: torch.nn.Module, seed: int, gain: float = 1.5) -> torch.nn.Module:
    """Draws every parameter and the Fourier matrix anew, biases and scales of norms included.

    A gain above one spreads the logits over several units, so that a wrong detail shows.  In a deep encoder it also
    blows up rounding: with 1.5 torch's float32 ViT-B is 1.3e-4 of a standard deviation from its own float64.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in sam.modules():
        for name, array in module.named_parameters(recurse=False):
            if array.ndim == 1:
                mean, std = (1.0, 0.3) if name == 'weight' else (0.0, 0.3)  # scale of a norm, bias
            elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                mean, std = 0.0, gain * array[0].numel() ** -0.5
            elif isinstance(module, torch.nn.ConvTranspose2d):
                mean, std = 0.0, gain * array.shape[0] ** -0.5
            else:
                mean, std = 0.0, 0.7  # embeddings, tokens, positions
            array.normal_(mean, std, generator=generator)
    matrix = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix.normal_(generator=generator)
    return sam


def port(torch_sam: torch.nn.Module, config: SamConfig) -> Sam:
    """Our Sam with the weights of `torch_sam`."""
    state = {key: value.numpy() for key, value in torch_sam.state_dict().items()}
    arrays, _ = weights.from_torch(weights.META, state, config, 'the oracle', force=False)
    return nnx.merge(abstract_state(config)[0], *jax.device_put(to_states(arrays, config)))


def greedy_nms(boxes_N4, scores_N, iou_threshold: float) -> list[int]:
    """Non-maximum suppression by its definition, one box after the other: indices of the boxes that stay, best first.

    Of boxes with equal scores the first is taken first, as torchvision's stable sort does.  In float32, as there.
    """
    boxes = [[np.float32(side) for side in box] for box in boxes_N4]
    remaining, kept = list(range(len(boxes))), []
    while remaining:
        best = remaining[0]
        for n in remaining:
            if scores_N[n] > scores_N[best]:
                best = n
        kept.append(best)
        remaining = [n for n in remaining if n != best and not _iou(boxes[best], boxes[n]) > iou_threshold]
    return kept


def _iou(a, b) -> np.float32:
    """Of two boxes x0, y0, x1, y1; 0 if neither has an area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, np.float32(0)) * max(height, np.float32(0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else np.float32(0)


def batched_nms(boxes_N4, scores_N, categories_N, iou_threshold: float):
    """`torchvision.ops.batched_nms` for boxes of a single category."""
    assert not categories_N.any()
    return torch.tensor(greedy_nms(boxes_N4.tolist(), scores_N.tolist(), iou_threshold), dtype=torch.int64)
