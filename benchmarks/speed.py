"""How fast the model and its training step are, beside PyTorch and beside what the device multiplies matrices with.

    python -m benchmarks.speed --out DIR           a CPU: ViT-B's encoder, decoder and masks of everything, a small step
    python -m benchmarks.speed --out DIR --full    a GPU or TPU: B, L and H, one image and eight, and their steps

Every case runs in a process of its own, which measures the best matrix product of its framework and type after it;
utilisation is analytic operations / median seconds / that.  Needs jax, flax and numpy; where a peer's package is
missing, or what reads images and writes masks, the row says so, as it does when memory runs out.  Seconds of the input
pipeline are of one core.  Writes speed.json, speed.md and speed.svg.
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

PEERS = 'original', 'compiled', 'huggingface'  # Meta's modules, the same under torch.compile, transformers with SDPA
NEEDS = {  # packages, by side or row
    'original': ('segment_anything',),
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
SA1B = '1500 x 2250 px'  # of benchmarks.input_pipeline
EXAMPLES = 32  # of the input pipeline in a round
OBJECTS_AT_ONCE = 64  # prompts; more of them are answered in turns
ROUNDS = 11  # of clicks in a training step
MATMULS = ((4096, 768, 3072), (2048, 2048, 2048))  # and on accelerators
LARGE_MATMULS = ((8192, 8192, 8192), (16384, 4096, 4096))
ON_CPU = {'options': 512, 'compilation': 256}  # px of the frame, as a CPU has neither time nor memory for more
# Of a step, one at a time; the first is what the others are compared with, with all 8 objects at once at 'frame'.
OPTIONS = (
    'remat=none',
    'remat=matmuls',
    'remat=attention',
    'remat=full',
    'objects_per_chunk=4',
    'objects_per_chunk=1',
    'resolution=low',
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the table."""

    row: str  # of UNITS
    side: str
    size: str  # of samjax.model.sam.SIZES, or of the picture
    dtype: str
    count: int  # images, prompts, or objects of the one image that is trained with
    rounds: int  # of measurement

    def title(self) -> str:
        return f'{self.row}, {self.size}, {self.dtype}, {self.count} {UNITS[self.row]}{"s" * (self.count > 1)}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='folder for the results')
    parser.add_argument('--full', action='store_true', help='the table of an accelerator')
    parser.add_argument('--rows', default='', help='only these, separated by commas')
    parser.add_argument('--rounds', type=int, default=5, help='of which the median counts')
    parser.add_argument('--case', help='used by itself')
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(Case(**json.loads(options.case)))))
        return
    cases = full_cases(options.rounds) if options.full else small_cases(options.rounds)
    cases = [case for case in cases if not options.rows or case.row in options.rows.split(',')]
    results, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        for number, case in enumerate(cases):
            found = dataclasses.asdict(case) | {'title': case.title()} | in_own_process(case, cache)
            results.append(found)
            if options.out:
                write(results, options.out)
            passed = time.perf_counter() - start
            left = passed / (number + 1) * (len(cases) - number - 1)
            said = found.get('failed') or f'{found["seconds"]:.4g} s'
            print(
                f'{number + 1}/{len(cases)} {case.title()}, {case.side}: {said} ({left / 60:.0f} min left)', flush=True
            )
    print(chart.markdown(results))


def write(results: list[dict], folder: Path) -> None:
    """speed.json, speed.md and speed.svg, of what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {'date': date.today().isoformat(), 'command': ' '.join(['python -m benchmarks.speed', *sys.argv[1:]])}
    (folder / 'speed.json').write_text(json.dumps(about | {'results': results}, indent=1))
    (folder / 'speed.md').write_text(f'`{about["command"]}`, {about["date"]}\n\n{chart.markdown(results)}')
    (folder / 'speed.svg').write_text(chart.svg(results))


def small_cases(rounds: int) -> list[Case]:
    """Minutes on a CPU."""
    encoder, decoder = ('ours', *PEERS), ('ours', 'original')
    return [
        *(Case('encoder', side, 'vit_b', dtype, 1, rounds) for dtype in ('float32', 'bfloat16') for side in encoder),
        *(Case('encoder and gradient', side, 'vit_b', 'float32', 1, min(rounds, 3)) for side in ('ours', 'original')),
        *(Case('decoder', side, 'vit_b', 'float32', count, rounds) for count in (1, 64) for side in decoder),
        *(Case('train step', side, 'vit_xs', 'float32', 8, rounds) for side in ('ours', 'original')),
        *(Case('automatic masks', side, 'vit_b', 'float32', 1, 1) for side in ('ours', 'original')),
        *(Case('input pipeline', side, SA1B, 'uint8', 1, rounds) for side in ('ours', 'straightforward')),
        *(Case('options', side, 'vit_b', 'float32', 8, min(rounds, 3)) for side in OPTIONS),
        *(Case('compilation', side, 'vit_h', 'bfloat16', 64, 1) for side in ('cold', 'cached')),
    ]


def full_cases(rounds: int) -> list[Case]:
    """What an accelerator with 80 GiB does in about half an hour."""
    sides, sizes = ('ours', *PEERS), ('vit_b', 'vit_l', 'vit_h')
    return [
        *(Case('encoder', side, size, 'bfloat16', n, rounds) for size in sizes for n in (1, 8) for side in sides),
        *(Case('encoder and gradient', side, size, 'bfloat16', 1, rounds) for size in sizes for side in sides),
        *(
            Case('decoder', side, 'vit_b', 'bfloat16', n, rounds)
            for n in (1, 64, 1024)
            for side in ('ours', 'original')
        ),
        *(Case('train step', side, size, 'bfloat16', 64, rounds) for size in sizes for side in ('ours', 'original')),
        *(Case('automatic masks', side, size, 'float32', 1, rounds) for size in sizes for side in ('ours', 'original')),
        *(Case('input pipeline', side, SA1B, 'uint8', 1, rounds) for side in ('ours', 'straightforward')),
        *(Case('options', side, 'vit_h', 'bfloat16', 8, rounds) for side in OPTIONS),
        *(Case('compilation', side, 'vit_h', 'bfloat16', 64, 1) for side in ('cold', 'cached')),
    ]


def in_own_process(case: Case, cache: str) -> dict:
    """What `run` says of a case, or why it could not be run."""
    needed = [name for what in (case.row, case.side) if what in NEEDS for name in NEEDS[what]]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return {'failed': f'{missing[0]} is not installed'}
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    if case.row == 'compilation':  # the second of them finds what the first one left
        environment |= {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    command = [sys.executable, '-m', 'benchmarks.speed', '--case', json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    memory = any(word in done.stderr for word in ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory'))
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return {'failed': 'out of memory' if memory or done.returncode == -9 else last[:120]}


def run(case: Case) -> dict:
    """Median, least and greatest seconds of a case, its operations, the ceiling, and the peak of memory."""
    if case.row == 'compilation':
        import jax

        step, init, batch = training(case)
        start = time.perf_counter()
        step.lower(jax.eval_shape(init), batch).compile()
        return {'seconds': time.perf_counter() - start}
    if case.row == 'automatic masks':
        return masks_of_everything(case)
    if case.row == 'input pipeline':
        return examples(case)
    torch_side = case.side in PEERS
    framework = Torch(case.dtype) if torch_side else Jax(case.dtype)
    start = time.perf_counter()
    once = (theirs if torch_side else ours)(case, framework)
    once()
    first = time.perf_counter() - start
    seconds = []
    for _ in range(case.rounds):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    peak = framework.peak()  # before there are matrices for the ceiling
    return summary(seconds) | {
        'first': first,  # building, compiling and running once
        'flops': operations(case),
        'ceiling': framework.ceiling(),
        'gib': peak / 2**30,
        'device': framework.device,
        'version': framework.version,
    }


def summary(seconds: list[float]) -> dict[str, float]:
    return {'seconds': statistics.median(seconds), 'least': min(seconds), 'greatest': max(seconds)}


def masks_of_everything(case: Case) -> dict:
    """Of an image of 1024 x 1024 px with 32 x 32 clicks, from pixels to records."""
    from benchmarks import automatic_masks

    side = ['--side', case.side, '--size', case.size, '--rounds', str(case.rounds)]
    found = automatic_masks.run(automatic_masks.arguments().parse_args(side))
    return summary(found['all'][1:]) | {'gib': found['gib']}


def examples(case: Case) -> dict:
    """Seconds of a core for an image and its masks, from ArrayRecord to the device."""
    from benchmarks import input_pipeline

    with tempfile.TemporaryDirectory() as folder:
        pictures = input_pipeline.pictures(folder)
        if case.side == 'ours':
            seconds = input_pipeline.measure_ours(folder, EXAMPLES, 1, case.rounds)
        else:
            seconds = input_pipeline.measure_plain(pictures, EXAMPLES, case.rounds)
    return summary(seconds)


def operations(case: Case) -> float:
    """Analytic; of the decoder those of the paper's definition."""
    from samjax.model import flops
    from samjax.model.config import SIZES

    config = SIZES[case.size]
    if case.row == 'decoder':
        return 2.0 * case.count * flops.decoder_macs(config, tokens=7, mask_prompt=False, masks=3)
    if case.row in ('train step', 'options'):
        return flops.train_flops(our_config(case), case.count, ROUNDS)
    return 2.0 * case.count * flops.encoder_macs(config) * (3 if case.row == 'encoder and gradient' else 1)


class Jax:
    """What is measured of JAX."""

    def __init__(self, dtype: str):
        import jax

        self.dtype = dtype
        self.device = f'{jax.devices()[0].device_kind} ({jax.default_backend()}, {os.cpu_count()} cores)'
        self.version = f'jax {jax.__version__}'

    def ceiling(self) -> float:
        """Operations per second of the best matrix product."""
        import jax
        import jax.numpy as jnp

        product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))

        def drawn(*shape):
            return jax.random.normal(jax.random.key(0), shape, self.dtype).block_until_ready()

        large = () if jax.default_backend() == 'cpu' else LARGE_MATMULS
        return best(lambda x, y: product(x, y).block_until_ready(), drawn, MATMULS + large)

    def peak(self) -> int:
        """Bytes."""
        import jax

        found = jax.devices()[0].memory_stats()
        return found['peak_bytes_in_use'] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Torch:
    """What is measured of PyTorch."""

    def __init__(self, dtype: str):
        import torch

        torch.set_num_threads(os.cpu_count())
        self.on = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.dtype = getattr(torch, dtype)
        self.device = torch.cuda.get_device_name() if self.on == 'cuda' else f'cpu ({os.cpu_count()} cores)'
        self.version = f'torch {torch.__version__}'

    def wait(self) -> None:
        import torch

        if self.on == 'cuda':
            torch.cuda.synchronize()

    def ceiling(self) -> float:
        """Operations per second of the best matrix product."""
        import torch

        def product(x, y):
            x @ y
            self.wait()

        large = () if self.on == 'cpu' else LARGE_MATMULS
        return best(product, lambda *shape: torch.randn(shape, dtype=self.dtype, device=self.on), MATMULS + large)

    def peak(self) -> int:
        """Bytes."""
        import torch

        on_gpu = self.on == 'cuda'
        return (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )


def best(product: Callable, drawn: Callable, shapes) -> float:
    """The most operations per second of `product` for matrices of these shapes."""
    found = []
    for rows, between, columns in shapes:
        x, y = drawn(rows, between), drawn(between, columns)
        product(x, y)
        for _ in range(5):
            start = time.perf_counter()
            product(x, y)
            found.append(2.0 * rows * between * columns / (time.perf_counter() - start))
    return max(found)


def ours(case: Case, framework: Jax) -> Callable[[], None]:
    """A function that does the work of the case once and waits for it."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from samjax.model.attention.by_platform import BY_PLATFORM
    from samjax.model.params import abstract_state, init_params
    from samjax.structs import MULTIMASK, NOT_A_POINT, POSITIVE, Prompts

    if case.row in ('train step', 'options'):
        step, init, batch = training(case)
        state, batch = init(), jax.device_put(batch)

        def descend():
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch))

        return descend

    config = dataclasses.replace(our_config(case), attend=BY_PLATFORM[jax.default_backend()])
    graphdef = abstract_state(config)[0]
    params, buffers = jax.jit(lambda: init_params(config, 0))()
    params = jax.tree.map(lambda x: x.astype(case.dtype), params)
    n = min(case.count, OBJECTS_AT_ONCE)
    images = jnp.asarray(drawn_images(config.image_size, case.count if case.row != 'decoder' else 1))
    size_B2 = jnp.asarray([config.image_size] * len(images), jnp.int32)

    weight_BhwC = jax.random.normal(jax.random.key(1), (len(images), *config.embedding_size, config.embed_dim), case.dtype)

    def encode(params, images):
        return nnx.merge(graphdef, params, buffers).encode(images, size_B2)

    def gradient(params, images):
        return jax.grad(lambda params: (encode(params, images) * weight_BhwC).astype(jnp.float32).sum())(params)

    def decode(params, embed_BhwC, points_BNP2):
        labels_BNP = jnp.tile(jnp.asarray([POSITIVE, NOT_A_POINT]), (*points_BNP2.shape[:2], 1))
        return nnx.merge(graphdef, params, buffers).decode(embed_BhwC, Prompts(points_BNP2, labels_BNP), MULTIMASK)

    if case.row != 'decoder':
        program = jax.jit(encode if case.row == 'encoder' else gradient)
        return lambda: jax.block_until_ready(program(params, images))
    embed_BhwC, program = jax.jit(encode)(params, images), jax.jit(decode)
    points_BNP2 = jnp.asarray(drawn_clicks(config.image_size, n))[None]

    def turns():
        for _ in range(case.count // n):
            jax.block_until_ready(program(params, embed_BhwC, points_BNP2))

    return turns


def theirs(case: Case, framework: Torch) -> Callable[[], None]:
    """The same of a peer."""
    import torch

    from samjax.model.config import SIZES

    config = SIZES[case.size]
    if case.row == 'train step':
        from benchmarks import torch_step

        sizes = {'seed': 0, 'device': framework.on, 'dtype': framework.dtype}
        return torch_step.build(config, simulation(), loss_options(), drawn_batch(config, case.count), **sizes)

    sam = hugging_face(config) if case.side == 'huggingface' else original(config)
    sam = sam.to(framework.on, torch.float32 if case.row == 'decoder' else framework.dtype)
    pixels_BHW3 = drawn_images(config.image_size, 1 if case.row == 'decoder' else case.count)
    pixels_B3HW = torch.tensor(np.moveaxis(pixels_BHW3, 3, 1), device=framework.on).to(framework.dtype) / 128 - 1
    weight_BChw = torch.randn(
        len(pixels_B3HW), config.embed_dim, *config.embedding_size, dtype=framework.dtype, device=framework.on
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
    n = min(case.count, OBJECTS_AT_ONCE)
    points_N12 = torch.tensor(drawn_clicks(config.image_size, n)[:, :1], device=framework.on)
    labels_N1 = torch.ones(n, 1, device=framework.on)
    embed_1Chw = torch.zeros(1, config.embed_dim, *config.embedding_size, device=framework.on)
    half = torch.autocast(framework.on, framework.dtype, enabled=case.dtype != 'float32')  # positions stay float32

    def turns():
        with torch.no_grad(), half:
            for _ in range(case.count // n):
                sparse, dense = sam.prompt_encoder(points=(points_N12, labels_N1), boxes=None, masks=None)
                sam.mask_decoder(embed_1Chw, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
        framework.wait()

    return turns


def original(config):
    """Meta's model."""
    from samjax.parity import meta

    return meta.build(config)


def hugging_face(config):
    """The image encoder of transformers, under the name that Meta's has."""
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
        global_attn_indexes=list(range(config.encoder.windowed_per_stage, config.encoder.depth, config.encoder.windowed_per_stage + 1)),
        mlp_dim=4 * config.encoder.width,
    )
    vision._attn_implementation = 'sdpa'

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SamVisionModel(vision)

        def image_encoder(self, pixels_B3HW):
            return self.model(pixels_B3HW).last_hidden_state

    return Named().eval()


def training(case: Case):
    """Our training step under jit, a function that draws its state, and a batch of one image."""
    import jax
    import optax

    from samjax.distributed import sharding
    from samjax.model.params import abstract_state
    from samjax.training.step import init_state, summed_gradients, train_step

    config, rounds, loss = our_config(case), simulation(), loss_options()
    if case.row == 'options':
        name, value = case.side.split('=')
        if name == 'objects_per_chunk':
            rounds = dataclasses.replace(rounds, objects_per_chunk=int(value))
        if name == 'resolution':
            loss = dataclasses.replace(loss, resolution=value)
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), config.encoder.width, config.encoder.num_heads, jax.devices()[:1])
    config = dataclasses.replace(config, attend=sharding.attention(mesh))
    graphdef, params, _ = abstract_state(config)
    tx = optax.adamw(1e-4, weight_decay=0.1)
    sums = functools.partial(summed_gradients, graphdef=graphdef, simulation=rounds, loss=loss)
    shared = sharding.data_parallel(sums, params, mesh, config.dtype)
    step = functools.partial(train_step, summed_gradients=shared, tx=tx, loss=loss, seed=0)
    whole = sharding.replicated(mesh)
    init = jax.jit(functools.partial(init_state, config, tx, 0), out_shardings=whole)
    return jax.jit(step, out_shardings=whole, donate_argnums=0), init, drawn_batch(config, case.count)


def our_config(case: Case):
    """The model of a case; training of a large one computes some of it again."""
    import jax

    from samjax.model.config import SIZES

    remat = 'matmuls' if case.row in ('train step', 'compilation') and case.size != 'vit_xs' else 'none'
    if case.side.startswith('remat='):
        remat = case.side.removeprefix('remat=')
    config = dataclasses.replace(SIZES[case.size], dtype=case.dtype, remat=remat)
    if jax.default_backend() != 'cpu' or case.row not in ON_CPU:
        return config
    return dataclasses.replace(config, image_size=(ON_CPU[case.row], ON_CPU[case.row]))


def simulation():
    """The paper's, as in samjax/config.py."""
    from samjax.training.click_simulation import ClickSimulation

    return ClickSimulation(ROUNDS, 0.5, 'gaussian', 0.1, 20.0, stop_mask_gradient=False, objects_per_chunk=8)


def loss_options():
    """The paper's, as in samjax/config.py."""
    from samjax.training.losses import LossConfig

    return LossConfig(20.0, 1.0, 1.0, 0.25, 2.0, 'frame', 'exclude', 'selected')


def drawn_images(frame: tuple[int, int], count: int) -> np.ndarray:
    """Noise, uint8 (B, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, *frame, 3), np.uint8)


def drawn_clicks(frame: tuple[int, int], count: int) -> np.ndarray:
    """float32 (N, 2, 2): a point (x, y) and a second one that is none."""
    return np.random.default_rng(1).uniform(0, min(frame), (count, 2, 2)).astype(np.float32)


def drawn_batch(config, objects: int):
    """One image of noise with discs."""
    from samjax.masks import packing
    from samjax.structs import Batch

    rng, (height, width) = np.random.default_rng(2), config.image_size
    y_N11, x_N11, radius_N11 = (
        rng.uniform(low, high, (objects, 1, 1)) for low, high in ((0, height), (0, width), (9, 60))
    )
    rows_H1, columns_1W = np.ogrid[:height, :width]
    masks_NHW = np.hypot(rows_H1 - y_N11, columns_1W - x_N11) < radius_N11
    valid_BN, size_B2 = np.ones((1, objects), bool), np.array([config.image_size], np.int32)
    return Batch(drawn_images(config.image_size, 1), packing.pack_rows(masks_NHW[None]), valid_BN, size_B2)


if __name__ == '__main__':
    main()
