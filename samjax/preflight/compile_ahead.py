"""Preflight: compiles the training step of a config for described TPUs, and reports memory, network and time.

TPU's compiler runs on any machine (`pip install "jax[tpu]"`); its verdict about memory is the one of the pod itself.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import time

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable, topologies
from ml_collections import ConfigDict

from samjax.distributed import hardware, sharding
from samjax.errors import SamjaxError
from samjax.model import flops
from samjax.preflight import collectives
from samjax.storage.progress import format_duration
from samjax.structs import Batch
from samjax.training.compiled_step import CompiledTrainStep, build
from samjax.training.loop import check_options

UTILIZATIONS = (0.3, 0.4, 0.5)
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PreflightReport:
    """What the training step needs of each device of a pod, per step unless stated otherwise."""

    chip: str  # jax's `device_kind`
    chips: int
    mesh: dict[str, int]
    images: int  # on a chip, or on the group of chips along the mesh axis 'tensor'
    parameters: int
    compile_seconds: float
    arguments: int  # bytes: parameters, optimizer state and batch
    peak: int | None  # bytes of memory at most, arguments included; None: unknown, as the step does not fit
    refusal: str | None  # the compiler's message, if the step does not fit
    step_flops: float  # of all chips
    sent: list[collectives.Collective]
    steps: int  # of the whole run
    remat: str
    grad_accum_steps: int
    objects_per_chunk: int

    def lines(self) -> list[str]:
        """The report in words."""
        spec = hardware.CHIPS[self.chip]
        group = 'chip' if self.mesh['tensor'] == 1 else f'{self.mesh["tensor"]} chips'
        per_chip = self.step_flops / self.chips
        floor = per_chip / spec.peak
        bytes_sent = sum(row.bytes for row in self.sent if row.kind != collectives.OTHER_SLICES)
        lines = [
            f'{self.chips} x {self.chip}, mesh {" x ".join(f"{k} {v}" for k, v in self.mesh.items())}, '
            f'{self.images} image(s) per {group}, compiled in {self.compile_seconds:.0f} s',
            f'parameters   {self.parameters:,}',
        ]
        if self.refusal is None:
            lines += [
                f'memory       {self.peak / GIB:.2f} of {spec.usable / GIB:.2f} GiB per chip at most, '
                f'{self.arguments / GIB:.2f} of it parameters, optimizer state and batch',
            ]
            lines += [
                f'{row.kind:<12} {row.bytes / GIB:.3f} GiB received per chip in {row.count} operation(s)'
                + (f'; {row.unknown_loops} in loops of unknown length, counted once' if row.unknown_loops else '')
                for row in self.sent
            ]
            lines.append(
                f'network      {bytes_sent / spec.network:.3f} s if nothing else happened, '
                f'{bytes_sent / spec.network / floor:.0%} of the computation'
            )
        lines.append(
            f'computation  {self.step_flops / 1e12:.0f} TFLOP per step, {per_chip / 1e12:.1f} per chip: '
            f'{floor:.3f} s at peak'
        )
        hours = ', '.join(
            f'{format_duration(floor / fraction * self.steps)} at {fraction:.0%}' for fraction in UTILIZATIONS
        )
        lines.append(f'whole run    {self.steps:,} steps: {hours} utilization')
        lines.append(self.verdict())
        return lines

    def verdict(self) -> str:
        """Whether it fits, and what to change."""
        if self.refusal is None:
            return 'fits'
        remedies = []
        if self.remat != 'full':
            remedies.append("--config.model.remat='full'")
        if self.objects_per_chunk > 1:
            remedies.append(f'--config.prompts.objects_per_chunk={self.objects_per_chunk // 2}')
        if self.images > self.grad_accum_steps:
            remedies.append(f'--config.train.grad_accum_steps={self.images}')
        if self.images > 1:
            remedies.append(
                f'--config.train.batch_size={self.images * self.chips // self.mesh["tensor"] // 2} (or more chips)'
            )
        remedies = remedies or ['a chip with more memory']
        return f'DOES NOT FIT ({self.refusal}): try {", then ".join(remedies)}'


def preflight(config: ConfigDict, topology: str, slices: int, save: str | None) -> PreflightReport:
    """Compiles the training step of `config` for `slices` of `topology`, such as 'v5e:16x16'.

    save: a file for the compiled step, which JAX of the same version can load.

    Raises:
        SamjaxError: the topology is not known, or the config does not fit it.
    """
    check_options(config)
    devices = describe(topology, slices)
    train_step = build(config, devices)
    batch = abstract_batch(config, train_step)
    begun = time.perf_counter()
    lowered = train_step.step.lower(train_step.state, batch)
    compiled, refusal, peak = None, None, None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = out_of_memory(str(error))
        if refusal is None:
            raise
    seconds = time.perf_counter() - begun
    arguments, sent = bytes_per_device((train_step.state, batch)), []
    if compiled is not None:
        memory = compiled.memory_analysis()
        arguments, peak = memory.argument_size_in_bytes, memory.peak_memory_in_bytes
        sent = collectives.read(compiled.as_text())
        if save:
            with open(save, 'wb') as file:
                pickle.dump(serialize_executable.serialize(compiled), file)
    images = config.train.batch_size * train_step.mesh.shape['tensor'] // train_step.mesh.size
    per_image = flops.train_flops(train_step.model, config.data.max_objects, config.prompts.rounds)
    return PreflightReport(
        chip=devices[0].device_kind,
        chips=train_step.mesh.size,
        mesh=dict(train_step.mesh.shape),
        images=images,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(train_step.state.params)),
        compile_seconds=seconds,
        arguments=arguments,
        peak=peak,
        refusal=refusal,
        step_flops=per_image * config.train.batch_size,
        sent=sent,
        steps=config.train.num_steps,
        remat=config.model.remat,
        grad_accum_steps=config.train.grad_accum_steps,
        objects_per_chunk=config.prompts.objects_per_chunk,
    )


def describe(topology: str, slices: int) -> list:
    """The devices of a described topology.  Raises SamjaxError if it is not known or the compiler is not installed."""
    try:
        more = {'num_slices': slices} if slices > 1 else {}
        if topology.startswith('v4:'):
            more['chip_config_name'] = 'megacore'  # the two cores of a chip are one device
        return topologies.get_topology_desc(platform='tpu', topology_name=topology, **more).devices
    except ModuleNotFoundError as error:
        raise SamjaxError(f'{error.name} is not installed: pip install "jax[tpu]"') from None
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split('\n')[0]
        raise SamjaxError(
            f'the topology {topology!r} cannot be described ({reason}): write it as v5e:16x16, v6e:16x16, v5p:8x8x4 '
            f'or v4:8x8x4, and install TPU\'s compiler by pip install "jax[tpu]"'
        ) from None


def abstract_batch(config: ConfigDict, compiled: CompiledTrainStep) -> Batch:
    """Shapes and shardings of a batch."""
    b, n, (h, w) = config.train.batch_size, config.data.max_objects, config.model.image_size
    images = sharding.batch_sharding(compiled.mesh)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=images)

    return Batch(
        image_BHW3=array((b, h, w, 3), jnp.uint8),
        packed_masks_BNVW=array((b, n, -(-h // 8), w), jnp.uint8),
        valid_BN=array((b, n), bool),
        size_B2=array((b, 2), jnp.int32),
    )


def bytes_per_device(tree) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def out_of_memory(message: str) -> str | None:
    """'18.0G of 15.7G' from the compiler's message, None if it is about something else than memory."""
    if 'RESOURCE_EXHAUSTED' not in message:
        return None
    match = re.search(r'Used ([\d.]+\w) of ([\d.]+\w)|\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)', message)
    return f'{match[1] or match[3]} of {match[2] or match[4]}' if match else message.strip().split('\n')[0]
