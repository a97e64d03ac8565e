"""Collectives of a compiled program, read from its optimized HLO text (`compiled.as_text()`).

HLO is a list of computations, which are lists of instructions, some of which run other computations:

    %body (state: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
      %weights = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%shard), replica_groups={{0,1,2,3}}, dimensions={0}
      ROOT %next = (s32[], bf16[8,64]{1,0:T(8,128)(2,1)}) tuple(%i, %x)
    }
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

OTHER_SLICES = 'other-slices'  # a kind of its own: over the network of the data centre, which is slower
# Bytes that each of n devices receives for each byte of its operand.
RECEIVED = {
    'all-gather': lambda n: n - 1,
    'all-reduce': lambda n: 2 * (n - 1) / n,  # a reduce-scatter and an all-gather of the sums
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1,
    OTHER_SLICES: lambda n: 1,
}


class Collective(NamedTuple):
    """All collectives of a kind, while a program runs once."""

    kind: str  # a key of RECEIVED
    count: int  # how many are run
    bytes: int  # that one device receives; of arrays, without the padding of their layouts
    unknown_loops: int  # loops around them that do not say how often they run; their bodies count as run once


class Instruction(NamedTuple):
    """`ROOT %name = type op(inside), attributes`."""

    is_root: bool
    type: str
    op: str
    inside: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return names(self.inside)

    @property
    def bytes(self) -> float:
        """Of an array, or of all arrays of a tuple."""
        arrays = re.findall(r'(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]', self.type)
        return sum(int(bits or 8) / 8 * math.prod(map(int, re.findall(r'\d+', sides))) for bits, sides in arrays)


Computation = dict[str, Instruction]  # by name


def read(hlo: str) -> list[Collective]:
    """A row for each kind that occurs.  All branches of a conditional count as run."""
    computations = parse(hlo)
    devices = math.prod(map(int, re.findall(r'(?:num_partitions|replica_count)=(\d+)', hlo.partition('\n')[0])))
    counts, received = collections.Counter(), collections.Counter()
    unknown = collections.defaultdict(frozenset)

    def run(name: str, times: int, unknown_loops: frozenset[str]) -> None:
        computation = computations[name]
        for label, instruction in computation.items():
            kind = collective(instruction, name, computation)
            if kind is not None:
                arrays = [instruction] if kind == OTHER_SLICES else map(computation.get, instruction.operands)
                n = group_size(instruction.attributes, devices)
                counts[kind] += times
                received[kind] += times * sum(array.bytes for array in arrays) * RECEIVED[kind](n)
                unknown[kind] |= unknown_loops
            elif instruction.op == 'while':
                condition, body = re.search(r'condition=%([\w.-]+), body=%([\w.-]+)', instruction.attributes).groups()
                trips = trip_count(instruction, computation, computations[condition], computations[body])
                loops = unknown_loops if trips is not None else unknown_loops | {label}
                run(condition, times * (1 if trips is None else trips + 1), loops)
                run(body, times * (1 if trips is None else trips), loops)
            else:
                for called in calls(instruction):
                    run(called, times, unknown_loops)

    run('ENTRY', 1, frozenset())
    return [
        Collective(kind, counts[kind], round(received[kind]), len(unknown[kind])) for kind in RECEIVED if counts[kind]
    ]


def parse(hlo: str) -> dict[str, Computation]:
    """The computations by name; that of the whole program is 'ENTRY'."""
    computations: dict[str, Computation] = {}
    for line in hlo.splitlines():
        if head := re.match(r'(ENTRY )?%([\w.-]+) \(.*\{$', line):
            computation = computations['ENTRY' if head[1] else head[2]] = {}
        elif parts := re.match(r'\s+(ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(.*)', line):
            is_root, name, *rest = parts.groups()
            computation[name] = Instruction(is_root is not None, *rest)
    return computations


def names(text: str) -> list[str]:
    return re.findall(r'%([\w.-]+)', text)


def calls(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs; those of a pair of -start and -done run once."""
    if instruction.op.endswith(('-update', '-done')):
        return []
    called = re.findall(r'(?:calls|to_apply|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)', instruction.attributes)
    return names(' '.join(called))


def collective(instruction: Instruction, name: str, computation: Computation) -> str | None:
    """The kind of collective that an instruction is or starts, if any, in the computation of that name.

    TPUs have forms of their own.  A reduce-scatter is a computation `all-reduce-scatter` of an all-reduce and a slice.
    A collective that runs during other work stands in each of the computations that do this work, and in one that
    starts it.  What comes from other slices is received by the host.
    """
    if instruction.op == 'recv-done' and 'xla_megascale_runtime' in instruction.attributes:
        return OTHER_SLICES
    kind = instruction.op.removesuffix('-start')
    in_pieces = 'async_collective_fusion_config' in instruction.attributes
    if kind not in RECEIVED or (in_pieces and not starts_collective(computation)):
        return None
    return 'reduce-scatter' if name.startswith('all-reduce-scatter') else kind


def starts_collective(computation: Computation) -> bool:
    return any('custom_call_target="AsyncCollectiveStart"' in i.attributes for i in computation.values())


def group_size(attributes: str, devices: int) -> int:
    """How many devices exchange with one another, from one of the ways to write `replica_groups`."""
    if mesh := re.search(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}', attributes):  # mesh['x'=2,'y'=8] {'x','y':(1)4}
        sides = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sides[axis]) for axis, part in axes)
    if iota := re.search(r'replica_groups=\[\d+,(\d+)\]<=', attributes):  # [2,8]<=[16] or [2,8]<=[8,2]T(1,0)
        return int(iota[1])
    if groups := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):  # {{0,1},{2,3}}
        return len(groups[1].split(','))
    return devices  # {}: all


def trip_count(loop: Instruction, around: Computation, condition: Computation, body: Computation) -> int | None:
    """How often a loop runs, if the compiler says so or it is `for (i = start; i < stop; i += step)` of constants."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    state, test, next_state = source(around, loop.operands[0]), root(condition), root(body)
    if (state.op, test.op, next_state.op) != ('tuple', 'compare', 'tuple') or 'direction=LT' not in test.attributes:
        return None
    i, stop = (source(condition, operand) for operand in test.operands)
    position = index(i)
    if position is None:
        return None
    start, next_i = source(around, state.operands[position]), source(body, next_state.operands[position])
    if next_i.op != 'add':
        return None
    same_i, step = (source(body, operand) for operand in next_i.operands)
    numbers = start, stop, step
    if index(same_i) != position or not all(n.op == 'constant' and re.fullmatch(r'-?\d+', n.inside) for n in numbers):
        return None
    return len(range(*(int(n.inside) for n in numbers)))


def index(instruction: Instruction) -> int | None:
    """Which element of a tuple an instruction takes, if it does."""
    match = re.match(r', index=(\d+)', instruction.attributes)
    return int(match[1]) if match and instruction.op == 'get-tuple-element' else None


def root(computation: Computation) -> Instruction:
    """What a computation returns."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


def source(computation: Computation, name: str) -> Instruction:
    """The instruction that a value comes from, through copies."""
    instruction = computation[name]
    while instruction.op in ('copy', 'copy-start', 'copy-done', 'bitcast'):
        instruction = computation[instruction.operands[0]]
    return instruction
