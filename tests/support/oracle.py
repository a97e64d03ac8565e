"""Meta's own PyTorch model as the oracle of the parity tests, and its weights in our model."""

import jax
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
    arrays = weights.from_torch(weights.META, state, config, 'the oracle', force=False)
    return nnx.merge(abstract_state(config)[0], *jax.device_put(to_states(arrays, config)))
