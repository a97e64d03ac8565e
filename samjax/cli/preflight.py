"""`samjax preflight`: whether the training step of a config fits a TPU pod, which need not be there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from samjax.cli import common

# Compile for TPUs, and search for none; the type only keeps the compiler from asking for it.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v4-8',
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.make_parser(
        'preflight',
        'Compiles the training step for a TPU topology on this machine and prints memory, network and hours. The exit '
        'code is 2 if it does not fit. Needs pip install "samjax[tpu]".',
    )
    common.add_config(parser, 'the options of samjax/config.py')
    parser.add_argument('--topology', required=True, help='chips of a slice: v5e:16x16, v6e:16x16, v5p:8x8x4, v4:8x8x4')
    parser.add_argument('--slices', type=int, default=1, metavar='N', help='how many such slices work together')
    parser.add_argument('--save', metavar='FILE', help='write the compiled step, for jax.experimental')
    options = common.parse(parser, argv, configs=['config'])
    with common.one_line_errors():
        config = common.read_config(options.config, options.changes['config'])
        os.environ |= ENVIRONMENT  # before JAX is imported
        from samjax.preflight.compile_ahead import preflight

        report = preflight(config, options.topology, options.slices, options.save)
    print(*report.lines(), sep='\n')
    if report.refusal is not None:
        sys.exit(2)
