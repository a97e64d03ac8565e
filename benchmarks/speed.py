"""Speed of the model and its training step, beside PyTorch and beside the fastest matrix product of the device.

    python -m benchmarks.speed --out DIR           CPU: encoder, decoder and automatic masks of ViT-B, a small step
    python -m benchmarks.speed --out DIR --full    GPU or TPU: B, L and H with 1 and 8 images, and their training steps

Each case runs in its own process, which then measures the fastest matrix product of its framework and dtype, the
ceiling.  Utilization is the analytic operation count / median seconds / ceiling.  Needs jax, flax and numpy.  A case
whose package is not installed or whose memory runs out is reported as failed.  The input pipeline is measured in
seconds of one core.  Writes speed.json, speed.md and speed.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks import chart

PEERS = 'meta', 'compiled', 'huggingface'  # Meta's modules, the same under torch.compile, transformers with SDPA
NEEDS = {  # packages, by side or row
    'meta': ('segment_anything',),
    'compiled': ('segment_anything',),
    'huggingface': ('transformers',),
    'automatic masks': ('PIL', 'pycocotools', 'scipy', 'ml_collections', 'orbax'),
    'input pipeline': ('PIL', 'pycocotools', 'ml_collections', 'grain', 'tensorflow_datasets'),
}
UNITS = {
    'encoder': 'image',
    'encoder and gradient': 'image',
    'decoder': 'prompt',
    'automatic masks': 'image',
    'input pipeline': 'image',
    'train step': 'object',
    'options': 'object',
    'compilation': 'object',
}
SA1B = '1500 x 2250 px'  # images of benchmarks.input_pipeline
EXAMPLES = 32  # of the input pipeline per measurement
PROMPT_BATCH_SIZE = 64  # more prompts are decoded in several batches
ROUNDS = 11  # of clicks in a training step
MATMULS = ((4096, 768, 3072), (2048, 2048, 2048))  # rows, inner, columns
LARGE_MATMULS = ((8192, 8192, 8192), (16384, 4096, 4096))  # also measured on accelerators
CPU_IMAGE_SIZE = {'options': 512, 'compilation': 256}  # side of the model input, px: less time and memory on a CPU
# Changes of a training step, one at a time.  The first row is the reference: all 8 objects at once, losses at 'input'.
OPTIONS = (
    'remat=none',
    'remat=matmuls',
    'remat=attention',
    'remat=full',
    'objects_per_chunk=4',
    'objects_per_chunk=1',
    'resolution=low_res',
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table."""

    row: str  # key of UNITS
    side: str
    size: str  # key of samjax.model.config.SIZES, or size of the image
    dtype: str
    count: int  # images, prompts, or objects of the image in a training step
    repeats: int  # measurements

    def title(self) -> str:
        return f'{self.row}, {self.size}, {self.dtype}, {self.count} {UNITS[self.row]}{"s" * (self.count > 1)}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder for the results')
    parser.add_argument('--full', action='store_true', help='the cases for a GPU or TPU')
    parser.add_argument('--rows', default='', metavar='A,B', help=f'only these of: {", ".join(UNITS)}')
    parser.add_argument(
        '--repeats', type=int, default=5, metavar='N', help='measurements per case; the median is reported'
    )
    parser.add_argument('--case', help=argparse.SUPPRESS)  # JSON of the case that this process measures
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(Case(**json.loads(options.case)))))
        return
    cases = accelerator_cases(options.repeats) if options.full else cpu_cases(options.repeats)
    cases = [case for case in cases if not options.rows or case.row in options.rows.split(',')]
    results, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        for number, case in enumerate(cases):
            result = dataclasses.asdict(case) | {'title': case.title()} | run_in_subprocess(case, cache)
            results.append(result)
            if options.out:
                write(results, options.out)
            elapsed = time.perf_counter() - start
            left = elapsed / (number + 1) * (len(cases) - number - 1)
            text = result['failed'] if 'failed' in result else f'{result["seconds"]:.4g} s'
            print(
                f'{number + 1}/{len(cases)} {case.title()}, {case.side}: {text} ({left / 60:.0f} min left)', flush=True
            )
    print(chart.markdown(results))


def write(results: list[dict], folder: Path) -> None:
    """Writes speed.json, speed.md and speed.svg with the results so far."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {'date': date.today().isoformat(), 'command': ' '.join(['python -m benchmarks.speed', *sys.argv[1:]])}
    (folder / 'speed.json').write_text(json.dumps(header | {'results': results}, indent=1))
    (folder / 'speed.md').write_text(f'`{header["command"]}`, {header["date"]}\n\n{chart.markdown(results)}')
    (folder / 'speed.svg').write_text(chart.svg(results))


def cpu_cases(repeats: int) -> list[Case]:
    """Cases that take a CPU of two cores 35 minutes."""
    encoder, decoder = ('samjax', *PEERS), ('samjax', 'meta')
    return [
        *(Case('encoder', side, 'vit_b', dtype, 1, repeats) for dtype in ('float32', 'bfloat16') for side in encoder),
        *(Case('encoder and gradient', side, 'vit_b', 'float32', 1, min(repeats, 3)) for side in ('samjax', 'meta')),
        *(Case('decoder', side, 'vit_b', 'float32', count, repeats) for count in (1, 64) for side in decoder),
        *(Case('train step', side, 'vit_xs', 'float32', 8, repeats) for side in ('samjax', 'meta')),
        *(Case('automatic masks', side, 'vit_b', 'float32', 1, 1) for side in ('samjax', 'meta')),
        *(Case('input pipeline', side, SA1B, 'uint8', 1, repeats) for side in ('samjax', 'baseline')),
        *(Case('options', side, 'vit_b', 'float32', 8, min(repeats, 3)) for side in OPTIONS),
        *(Case('compilation', side, 'vit_h', 'bfloat16', 64, 1) for side in ('cold', 'cached')),
    ]


def accelerator_cases(repeats: int) -> list[Case]:
    """Cases for an accelerator with 80 GiB, about half an hour."""
    sides, sizes = ('samjax', *PEERS), ('vit_b', 'vit_l', 'vit_h')
    return [
        *(Case('encoder', side, size, 'bfloat16', n, repeats) for size in sizes for n in (1, 8) for side in sides),
        *(Case('encoder and gradient', side, size, 'bfloat16', 1, repeats) for size in sizes for side in sides),
        *(Case('decoder', side, 'vit_b', 'bfloat16', n, repeats) for n in (1, 64, 1024) for side in ('samjax', 'meta')),
        *(Case('train step', side, size, 'bfloat16', 64, repeats) for size in sizes for side in ('samjax', 'meta')),
        *(Case('automatic masks', side, size, 'float32', 1, repeats) for size in sizes for side in ('samjax', 'meta')),
        *(Case('input pipeline', side, SA1B, 'uint8', 1, repeats) for side in ('samjax', 'baseline')),
        *(Case('options', side, 'vit_h', 'bfloat16', 8, repeats) for side in OPTIONS),
        *(Case('compilation', side, 'vit_h', 'bfloat16', 64, 1) for side in ('cold', 'cached')),
    ]


def run_in_subprocess(case: Case, cache: str) -> dict:
    """The result of `run` in a new process, or under the key `failed` why there is none."""
    packages = [package for key in (case.row, case.side) if key in NEEDS for package in NEEDS[key]]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return {'failed': f'{missing[0]} is not installed'}
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    if case.row == 'compilation':  # the second case uses the cache that the first wrote
        environment |= {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    command = [sys.executable, '-m', 'benchmarks.speed', '--case', json.dumps(dataclasses.asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    is_memory = any(word in process.stderr for word in ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory'))
    last_line = (process.stderr.strip().splitlines() or ['no message'])[-1]
    return {'failed': 'out of memory' if is_memory or process.returncode == -9 else last_line[:120]}


def run(case: Case) -> dict:
    """Median, minimum and maximum seconds of a case, its operations, the ceiling, and the peak of memory."""
    if case.row == 'compilation':
        import jax

        step, init, batch = training_step(case)
        start = time.perf_counter()
        step.lower(jax.eval_shape(init), batch).compile()
        return {'seconds': time.perf_counter() - start}
    if case.row == 'automatic masks':
        return time_automatic_masks(case)
    if case.row == 'input pipeline':
        return time_input_pipeline(case)
    is_peer = case.side in PEERS
    framework = Torch(case.dtype) if is_peer else Jax(case.dtype)
    start = time.perf_counter()
    function = (torch_function if is_peer else jax_function)(case, framework)
    function()
    first = time.perf_counter() - start
    seconds = []
    for _ in range(case.repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    peak = framework.peak_bytes()  # before the matrices of the ceiling are allocated
    return summary(seconds) | {
        'first': first,  # seconds to build, compile and run once
        'flops': operations(case),
        'ceiling': framework.ceiling(),
        'gib': peak / 2**30,
        'device': framework.device,
        'version': framework.version,
    }


def summary(seconds: list[float]) -> dict[str, float]:
    return {'seconds': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def time_automatic_masks(case: Case) -> dict:
    """Automatic mask generation on an image of 1024 x 1024 px with 32 x 32 points, from pixels to records."""
    from benchmarks import automatic_masks

    words = ['--side', case.side, '--size', case.size, '--repeats', str(case.repeats)]
    result = automatic_masks.run(automatic_masks.make_parser().parse_args(words))
    return summary(result['all'][1:]) | {'gib': result['gib']}


def time_input_pipeline(case: Case) -> dict:
    """Core-seconds for an image and its masks, from ArrayRecord to the device."""
    from benchmarks import input_pipeline

    with tempfile.TemporaryDirectory() as folder:
        images = input_pipeline.write_images(folder)
        if case.side == 'samjax':
            seconds = input_pipeline.measure_samjax(folder, EXAMPLES, 1, case.repeats)
        else:
            seconds = input_pipeline.measure_baseline(images, EXAMPLES, case.repeats)
    return summary(seconds)


def operations(case: Case) -> float:
    """Counted by formula; those of the decoder are of the paper's definition."""
    from samjax.model import flops
    from samjax.model.config import SIZES

    config = SIZES[case.size]
    if case.row == 'decoder':
        return 2.0 * case.count * flops.decoder_macs(config, tokens=7, mask_prompt=False, masks=3)
    if case.row in ('train step', 'options'):
        return flops.train_flops(model_config(case), case.count, ROUNDS)
    return 2.0 * case.count * flops.encoder_macs(config) * (3 if case.row == 'encoder and gradient' else 1)


class Jax:
    """Device, version, fastest matrix product and peak of memory of JAX."""

    def __init__(self, dtype: str):
        import jax

        self.dtype = dtype
        self.device = f'{jax.devices()[0].device_kind} ({jax.default_backend()}, {os.cpu_count()} cores)'
        self.version = f'jax {jax.__version__}'

    def ceiling(self) -> float:
        """Operations per second of the fastest matrix product."""
        import jax
        import jax.numpy as jnp

        product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))

        def random_matrix(*shape):
            return jax.random.normal(jax.random.key(0), shape, self.dtype).block_until_ready()

        large = () if jax.default_backend() == 'cpu' else LARGE_MATMULS
        return best_rate(lambda x, y: product(x, y).block_until_ready(), random_matrix, MATMULS + large)

    def peak_bytes(self) -> int:
        import jax

        memory = jax.devices()[0].memory_stats()
        return memory['peak_bytes_in_use'] if memory else peak_bytes_of_process()


class Torch:
    """Device, version, fastest matrix product and peak of memory of PyTorch."""

    def __init__(self, dtype: str):
        import torch

        torch.set_num_threads(os.cpu_count())
        self.kind = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.dtype = getattr(torch, dtype)
        self.device = torch.cuda.get_device_name() if self.kind == 'cuda' else f'cpu ({os.cpu_count()} cores)'
        self.version = f'torch {torch.__version__}'

    def wait(self) -> None:
        import torch

        if self.kind == 'cuda':
            torch.cuda.synchronize()

    def ceiling(self) -> float:
        """Operations per second of the fastest matrix product."""
        import torch

        def product(x, y):
            x @ y
            self.wait()

        large = () if self.kind == 'cpu' else LARGE_MATMULS
        return best_rate(
            product, lambda *shape: torch.randn(shape, dtype=self.dtype, device=self.kind), MATMULS + large
        )

    def peak_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() if self.kind == 'cuda' else peak_bytes_of_process()


def peak_bytes_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def best_rate(product: Callable, random_matrix: Callable, shapes) -> float:
    """The highest number of operations per second of `product` for matrices of these shapes."""
    rates = []
    for rows, inner, columns in shapes:
        x, y = random_matrix(rows, inner), random_matrix(inner, columns)
        product(x, y)
        for _ in range(5):
            start = time.perf_counter()
            product(x, y)
            rates.append(2.0 * rows * inner * columns / (time.perf_counter() - start))
    return max(rates)


def jax_function(case: Case, framework: Jax) -> Callable[[], None]:
    """A function that runs the case once with samjax and waits for the result."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from samjax.model.attention.by_platform import BY_PLATFORM
    from samjax.model.params import abstract_state, init_params
    from samjax.model.runtime import Runtime
    from samjax.structs import MULTIMASK, NOT_A_POINT, POSITIVE, Prompts

    if case.row in ('train step', 'options'):
        step, init, batch = training_step(case)
        state, batch = init(), jax.device_put(batch)

        def update():
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch))

        return update

    config = model_config(case)
    runtime = Runtime(case.dtype, attention=BY_PLATFORM[jax.default_backend()])
    graphdef = abstract_state(config, runtime=runtime)[0]
    params, buffers = jax.jit(lambda: init_params(config, 0))()
    params = jax.tree.map(lambda x: x.astype(case.dtype), params)
    n = min(case.count, PROMPT_BATCH_SIZE)
    images = jnp.asarray(random_images(config.image_size, case.count if case.row != 'decoder' else 1))
    size_B2 = jnp.asarray([config.image_size] * len(images), jnp.int32)

    embed_shape = len(images), *config.embedding_size, config.embed_dim
    weight_BhwC = jax.random.normal(jax.random.key(1), embed_shape, case.dtype)

    def encode(params, images):
        return nnx.merge(graphdef, params, buffers).encode(images, size_B2)

    def gradient(params, images):
        return jax.grad(lambda params: (encode(params, images) * weight_BhwC).astype(jnp.float32).sum())(params)

    def decode(params, embed_BhwC, points_BNP2):
        labels_BNP = jnp.tile(jnp.asarray([POSITIVE, NOT_A_POINT]), (*points_BNP2.shape[:2], 1))
        return nnx.merge(graphdef, params, buffers).decode(embed_BhwC, Prompts(points_BNP2, labels_BNP), MULTIMASK)

    if case.row != 'decoder':
        compiled = jax.jit(encode if case.row == 'encoder' else gradient)
        return lambda: jax.block_until_ready(compiled(params, images))
    embed_BhwC, compiled = jax.jit(encode)(params, images), jax.jit(decode)
    points_BNP2 = jnp.asarray(random_points(config.image_size, n))[None]

    def decode_all():
        for _ in range(case.count // n):
            jax.block_until_ready(compiled(params, embed_BhwC, points_BNP2))

    return decode_all


def torch_function(case: Case, framework: Torch) -> Callable[[], None]:
    """A function that runs the case once with a peer and waits for the result."""
    import torch

    from samjax.model.config import SIZES
    from samjax.parity import meta

    config = SIZES[case.size]
    if case.row == 'train step':
        from benchmarks import torch_step

        return torch_step.build(
            config,
            simulation(),
            loss_config(),
            random_batch(config, case.count),
            seed=0,
            device=framework.kind,
            dtype=framework.dtype,
        )

    sam = huggingface_sam(config) if case.side == 'huggingface' else meta.build(config)
    sam = sam.to(framework.kind, torch.float32 if case.row == 'decoder' else framework.dtype)
    pixels_BHW3 = random_images(config.image_size, 1 if case.row == 'decoder' else case.count)
    pixels_B3HW = torch.tensor(np.moveaxis(pixels_BHW3, 3, 1), device=framework.kind).to(framework.dtype) / 128 - 1
    weight_BChw = torch.randn(
        len(pixels_B3HW), config.embed_dim, *config.embedding_size, dtype=framework.dtype, device=framework.kind
    )
    encoder = torch.compile(sam.image_encoder) if case.side == 'compiled' else sam.image_encoder

    def encode():
        with torch.no_grad():
            encoder(pixels_B3HW)
        framework.wait()

    def gradient():
        sam.zero_grad()
        (encoder(pixels_B3HW) * weight_BChw).float().sum().backward()
        framework.wait()

    if case.row != 'decoder':
        return encode if case.row == 'encoder' else gradient
    n = min(case.count, PROMPT_BATCH_SIZE)
    points_N12 = torch.tensor(random_points(config.image_size, n)[:, :1], device=framework.kind)
    labels_N1 = torch.ones(n, 1, device=framework.kind)
    embed_1Chw = torch.zeros(1, config.embed_dim, *config.embedding_size, device=framework.kind)
    autocast = torch.autocast(framework.kind, framework.dtype, enabled=case.dtype != 'float32')  # positions: float32

    def decode_all():
        with torch.no_grad(), autocast:
            for _ in range(case.count // n):
                sparse, dense = sam.prompt_encoder(points=(points_N12, labels_N1), boxes=None, masks=None)
                sam.mask_decoder(embed_1Chw, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
        framework.wait()

    return decode_all


def huggingface_sam(config):
    """The image encoder of transformers, as the method `image_encoder`, its name in Meta's code."""
    import torch
    from transformers import SamVisionConfig, SamVisionModel

    vision = SamVisionConfig(
        hidden_size=config.encoder.width,
        num_hidden_layers=config.encoder.depth,
        num_attention_heads=config.encoder.num_heads,
        image_size=config.image_size[0],
        patch_size=config.encoder.patch_size,
        output_channels=config.embed_dim,
        window_size=config.encoder.window_size,
        global_attn_indexes=[i for i, is_global in enumerate(config.encoder.is_global) if is_global],
        mlp_dim=4 * config.encoder.width,
    )
    vision._attn_implementation = 'sdpa'

    class ImageEncoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SamVisionModel(vision)

        def image_encoder(self, pixels_B3HW):
            return self.model(pixels_B3HW).last_hidden_state

    return ImageEncoder().eval()


def training_step(case: Case):
    """Our training step under jit, a function that initializes its state, and a batch of one image."""
    import jax
    import optax

    from samjax.distributed import sharding
    from samjax.model.params import ParamRules, abstract_state
    from samjax.model.runtime import Runtime
    from samjax.training.step import init_state, summed_gradients, train_step

    config, rounds, loss = model_config(case), simulation(), loss_config()
    remat = 'matmuls' if case.row in ('train step', 'compilation') and case.size != 'vit_xs' else 'none'
    if case.row == 'options':
        name, value = case.side.split('=')
        if name == 'remat':
            remat = value
        if name == 'objects_per_chunk':
            rounds = dataclasses.replace(rounds, objects_per_chunk=int(value))
        if name == 'resolution':
            loss = dataclasses.replace(loss, resolution=value)
    mesh_config, encoder = sharding.MeshConfig(1, 1, 1), config.encoder
    mesh = sharding.make_mesh(mesh_config, encoder.width, encoder.num_heads, jax.devices()[:1])
    runtime = Runtime(case.dtype, remat, attention=sharding.attention(mesh))
    graphdef, params, _ = abstract_state(config, runtime=runtime)
    tx = optax.adamw(1e-4, weight_decay=0.1)
    gradients = functools.partial(summed_gradients, graphdef=graphdef, simulation=rounds, loss=loss)
    gradients = sharding.data_parallel(gradients, params, mesh, ParamRules(config), case.dtype)
    step = functools.partial(train_step, summed_gradients=gradients, tx=tx, loss=loss, seed=0)
    replicated = sharding.replicated(mesh)
    init = jax.jit(functools.partial(init_state, config, tx, 0), out_shardings=replicated)
    return jax.jit(step, out_shardings=replicated, donate_argnums=0), init, random_batch(config, case.count)


def model_config(case: Case):
    """The architecture of a case; on a CPU some have a smaller model input."""
    import jax

    from samjax.model.config import SIZES

    config = SIZES[case.size]
    if jax.default_backend() != 'cpu' or case.row not in CPU_IMAGE_SIZE:
        return config
    return dataclasses.replace(config, image_size=(CPU_IMAGE_SIZE[case.row], CPU_IMAGE_SIZE[case.row]))


def simulation():
    """The click simulation of the paper, as in samjax/config.py."""
    from samjax.training.click_simulation import ClickSimulation

    return ClickSimulation(ROUNDS, 0.5, 'gaussian', 0.1, 20.0, stop_mask_gradient=False, objects_per_chunk=8)


def loss_config():
    """The losses of the paper, as in samjax/config.py."""
    from samjax.training.losses import LossConfig

    return LossConfig(20.0, 1.0, 1.0, 0.25, 2.0, 'input', 'exclude', 'selected')


def random_images(image_size: tuple[int, int], count: int) -> np.ndarray:
    """Noise, uint8 (B, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, *image_size, 3), np.uint8)


def random_points(image_size: tuple[int, int], count: int) -> np.ndarray:
    """float32 (N, 2, 2): a point (x, y) and the position of a padding point."""
    return np.random.default_rng(1).uniform(0, min(image_size), (count, 2, 2)).astype(np.float32)


def random_batch(config, objects: int):
    """An image of noise with discs as masks."""
    from samjax.masks import packing
    from samjax.structs import Batch

    rng, (height, width) = np.random.default_rng(2), config.image_size
    y_N11, x_N11, radius_N11 = (
        rng.uniform(low, high, (objects, 1, 1)) for low, high in ((0, height), (0, width), (9, 60))
    )
    rows_H1, columns_1W = np.ogrid[:height, :width]
    masks_NHW = np.hypot(rows_H1 - y_N11, columns_1W - x_N11) < radius_N11
    valid_BN, size_B2 = np.ones((1, objects), bool), np.array([config.image_size], np.int32)
    return Batch(random_images(config.image_size, 1), packing.pack_rows(masks_NHW[None]), valid_BN, size_B2)


if __name__ == '__main__':
    main()
