"""What accelerators can do: peak operations, memory and network of TPUs, peak operations of GPUs."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak numbers of a TPU chip, which bound the time of a step from below."""

    peak: float  # bf16 operations/s
    usable: float  # bytes of HBM that a program may take: what its compiler allows
    bandwidth: float  # bytes/s from HBM
    network: float  # bytes/s from all neighbours together, in a full torus that uses all dimensions


# By jax's `device_kind`, of whole chips: the two cores of a v4 or v5p are one device.  From the tables of
# docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.  `network` is half of a chip's bidirectional bandwidth, which is
# a pod's all-reduce bandwidth by its chips: for v4 only that is given.  `usable` is from messages of libtpu 0.0.42.
CHIPS = {
    'TPU v4': Chip(275e12, 30.75 * 2**30, 1200e9, 1.1e15 / 4096),  # of 32 GiB
    'TPU v5 lite': Chip(197e12, 15.75 * 2**30, 819e9, 200e9),  # v5e, of 16 GiB
    'TPU v5': Chip(459e12, 95.74 * 2**30, 2765e9, 600e9),  # v5p
    'TPU v6 lite': Chip(918e12, 31.25 * 2**30, 1638e9, 400e9),  # v6e, of 32 GiB
}
CHIPS['TPU v5p'] = CHIPS['TPU v5']  # the name in older runtimes

# bf16 operations/s by `device_kind`, without sparsity; from NVIDIA's data sheets of A100, H100 and H200.
PEAK = {kind: chip.peak for kind, chip in CHIPS.items()} | {
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA A100-PCIE-40GB': 312e12,
    'NVIDIA A100 80GB PCIe': 312e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H100 NVL': 835e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H200': 989e12,
}


def peak(device_kind: str) -> float | None:
    """bf16 operations/s of a device, None for one that is not in the table."""
    return PEAK.get(device_kind)
