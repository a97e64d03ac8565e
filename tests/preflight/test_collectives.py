import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.preflight import collectives
from samjax.preflight.collectives import Collective

# Text, most of it from programs compiled for TPUs, shortened.


def program(*entry: str, others: str = '') -> str:
    """Instructions of the entry, after `others`, computations that they call."""
    lines = '\n'.join(f'  {line}' for line in entry)
    return f'HloModule jit_f, num_partitions=8\n{others}\nENTRY %main (x: f32[]) -> f32[] {{\n{lines}\n}}\n'


@pytest.mark.parametrize(
    ('groups', 'size'),
    [
        ('{{0,1,2,3,4,5,6,7}}', 8),
        ('{{0,1},{2,3},{4,5},{6,7}}', 2),
        ('{}', 8),
        ('[2,4]<=[8]', 4),
        ('[4,2]<=[2,4]T(1,0)', 2),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0'}", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", 4),
    ],
)
def test_groups(groups, size):
    text = program(
        '%x = bf16[128,1280]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[8,1]<=[8]}',
        '%all-gather.4 = bf16[1024,1280]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), channel_id=1, '
        f'replica_groups={groups}, dimensions={{0}}, use_global_device_ids=true',
        'ROOT %copy.3 = bf16[1024,1280]{1,0:T(8,128)(2,1)} copy(%all-gather.4)',
    )
    assert collectives.read(text) == [Collective('all-gather', 1, (size - 1) * 128 * 1280 * 2, 0)]


@pytest.mark.parametrize(
    ('kind', 'received'),
    [
        ('all-gather', 3 * 1000),
        ('all-reduce', 2 * 750),
        ('reduce-scatter', 750),
        ('all-to-all', 750),
        ('collective-permute', 1000),
    ],
)
def test_bytes_received_by_one_of_four(kind, received):
    text = program(
        '%x = f32[10,25]{1,0} parameter(0)',
        f'ROOT %y = f32[10,25]{{1,0}} {kind}(%x), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}',
    )
    assert collectives.read(text) == [Collective(kind, 1, received, 0)]


@pytest.mark.parametrize(
    ('array', 'size'),
    [('pred[7]', 7), ('s4[6]', 3), ('bf16[2,3]', 12), ('f8e4m3fn[5]', 5), ('c64[2]', 16), ('f32[]', 4)],
)
def test_bytes_of_arrays(array, size):
    text = program(
        f'%x = {array} parameter(0)',
        f'ROOT %y = {array} collective-permute(%x), source_target_pairs={{{{0,1}},{{1,0}}}}',
    )
    assert collectives.read(text) == [Collective('collective-permute', 1, size, 0)]


def test_start_and_done_are_one():
    text = program(
        '%x = bf16[128,1280]{1,0:T(8,128)(2,1)} parameter(0)',
        '%gather-start = (bf16[128,1280]{1,0}, bf16[1024,1280]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8]',
        '%gather-done = bf16[1024,1280]{1,0} all-gather-done(%gather-start)',
        '%permute-start = (bf16[128,1280]{1,0:T(8,128)(2,1)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, '
        'u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}',
        '%permute-done = bf16[128,1280]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%permute-start)',
        '%reduce-start = bf16[128,1280]{1,0} all-reduce-start(%x), replica_groups=[4,2]<=[8], to_apply=%add',
        '%reduce-done = bf16[128,1280]{1,0} all-reduce-done(%reduce-start)',
        '%scatter-start = ((bf16[128,1280]{1,0}), bf16[16,1280]{1,0}) async-start(%x), calls=%scatter',
        'ROOT %scatter-done = bf16[16,1280]{1,0} async-done(%scatter-start), calls=%scatter',
        others="""
%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

%scatter (p: bf16[128,1280]) -> bf16[16,1280] {
  %p = bf16[128,1280]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = bf16[16,1280]{1,0} reduce-scatter(%p), replica_groups=[1,8]<=[8], to_apply=%add
}
""",
    )
    size = 128 * 1280 * 2
    assert collectives.read(text) == [
        Collective('all-gather', 1, 7 * size, 0),
        Collective('all-reduce', 1, size, 0),
        Collective('reduce-scatter', 1, size * 7 // 8, 0),
        Collective('collective-permute', 1, size, 0),
    ]


def test_several_arrays_in_one():
    text = program(
        '%a = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)',
        '%b = f32[64,256]{1,0:T(8,128)S(1)} parameter(1)',
        'ROOT %all-reduce.7 = (bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[64,256]{1,0:T(8,128)S(1)}) '
        "all-reduce(%a, /*index=1*/%b), channel_id=5, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, "
        'use_global_device_ids=true, to_apply=%add.2',
        others='%add.2 (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}',
    )
    assert collectives.read(text) == [Collective('all-reduce', 1, 2 * 7 * (2 * 1024 * 1024 + 4 * 64 * 256) // 8, 0)]


def test_tpu_reduce_scatter():
    text = program(
        '%gradient = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)',
        'ROOT %fusion = bf16[128,1024]{1,0:T(8,128)(2,1)} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.1',
        others="""
%add.1.clone (x.5: bf16[], y.3: bf16[]) -> bf16[] {
  %y.3 = bf16[]{:T(256)} parameter(1)
  %x.5 = bf16[]{:T(256)} parameter(0)
  ROOT %add.3 = bf16[]{:T(256)} add(%x.5, %y.3)
}

%all-reduce-scatter.1 (input: bf16[1024,1024]) -> bf16[128,1024] {
  %input = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=4, \
replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add.1.clone
  %partition-id.2 = u32[] partition-id()
  %constant.14 = u32[] constant(128)
  %multiply.2 = u32[]{:T(128)} multiply(%partition-id.2, %constant.14)
  %constant.15 = u32[] constant(0)
  ROOT %dynamic-slice.3 = bf16[128,1024]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.2, %multiply.2, %constant.15)
}
""",
    )
    assert collectives.read(text) == [Collective('reduce-scatter', 1, 7 * 128 * 1024 * 2, 0)]


def test_tpu_gather_that_other_work_hides():
    gather = (
        "all-gather(%shard), channel_id=8, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={1}, "
        'frontend_attributes={chain_id="0"}, backend_config={"flag_configs":[],"async_collective_fusion_config":'
    )
    text = program(
        '%shard = bf16[128,1024]{1,0} parameter(0)',
        '%start = (bf16[128,1024]{1,0}, bf16[1024,1024]{1,0}, u32[]{:S(2)}) fusion(%shard), kind=kCustom, calls=%first',
        '%work = (bf16[64,64]{1,0}, bf16[1024,1024]{1,0}) fusion(%start), kind=kOutput, calls=%second',
        'ROOT %done = bf16[1024,1024]{1,0} fusion(%work), kind=kCustom, calls=%last',
        others=f"""
%first (shard: bf16[128,1024]) -> (bf16[128,1024], bf16[1024,1024], u32[]) {{
  %shard = bf16[128,1024]{{1,0}} parameter(0)
  %all-gather.19 = bf16[1024,1024]{{1,0}} {gather}{{"flag_start":"-1","flag_end":"-1"}}}}
  ROOT %custom-call.4 = (bf16[128,1024]{{1,0}}, bf16[1024,1024]{{1,0}}, u32[]{{:S(2)}}) custom-call(%all-gather.19), \
custom_call_target="AsyncCollectiveStart"
}}

%second (shard: bf16[128,1024], y: bf16[64,64]) -> (bf16[64,64], bf16[1024,1024]) {{
  %shard = bf16[128,1024]{{1,0}} parameter(0)
  %y = bf16[64,64]{{1,0}} parameter(1)
  %convolution.13 = bf16[64,64]{{1,0}} convolution(%y, %y), dim_labels=bf_io->bf
  %all-gather.21 = bf16[1024,1024]{{1,0}} {gather}{{"flag_start":"2","flag_end":"8"}}}}
  ROOT %tuple.59 = (bf16[64,64]{{1,0}}, bf16[1024,1024]{{1,0}}) tuple(%convolution.13, %all-gather.21)
}}

%last (shard: bf16[128,1024]) -> bf16[1024,1024] {{
  %shard = bf16[128,1024]{{1,0}} parameter(0)
  %all-gather.23 = bf16[1024,1024]{{1,0}} {gather}{{"flag_start":"2","flag_end":"8"}}}}
  ROOT %custom-call.6 = bf16[1024,1024]{{1,0}} custom-call(%shard, %all-gather.23), \
custom_call_target="AsyncCollectiveDone"
}}
""",
    )
    assert collectives.read(text) == [Collective('all-gather', 1, 7 * 128 * 1024 * 2, 0)]


def test_tpu_slices_are_received_by_the_host():
    attributes = (
        'channel_id=1, is_host_transfer=true, '
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}'
    )
    text = program(
        '%x = bf16[128,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)',
        '%after-all = token[] after-all()',
        f'%send = (bf16[128,8,128]{{2,1,0}}, u32[], token[]) send(%x, %after-all), {attributes}',
        f'%recv = (bf16[128,8,128]{{2,1,0}}, u32[], token[]) recv(%after-all), {attributes}',
        f'%send-done = token[] send-done(%send), {attributes}',
        f'%recv-done = (bf16[128,8,128]{{2,1,0}}, token[]) recv-done(%recv), {attributes}',
        'ROOT %y = bf16[128,8,128]{2,1,0} get-tuple-element(%recv-done), index=0',
    )
    assert collectives.read(text) == [Collective('other-slices', 1, 128 * 8 * 128 * 2, 0)]


LOOP = """
%body (state: (s32[], bf16[128,1280])) -> (s32[], bf16[128,1280]) {
  %step = s32[]{:T(128)} constant(STEP)
  %state = (s32[]{:T(128)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[128,1280]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %permute-start = (bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %permute-done = bf16[128,1280]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%permute-start)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %copy.1 = s32[]{:T(128)} copy(%i)
  %next = s32[]{:T(128)} add(%copy.1, %step)
  ROOT %tuple.17 = (s32[]{:T(128)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}) tuple(%next, %permute-done)
}

%condition (state.1: (s32[], bf16[128,1280])) -> pred[] {
  %stop = s32[]{:T(128)} constant(STOP)
  %state.1 = (s32[]{:T(128)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %stop), direction=LT
}
"""


def loop(start: str, stop: int, step: int, config: str = '') -> str:
    return program(
        '%x.1 = bf16[128,1280]{1,0:T(8,128)(2,1)S(1)} parameter(0)',
        '%n = s32[]{:T(128)} parameter(1)',
        f'%start = s32[]{{:T(128)}} {start}',
        '%copy.11 = s32[]{:T(128)} copy(%start)',
        '%tuple.19 = (s32[]{:T(128)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}) tuple(%copy.11, %x.1)',
        'ROOT %while.10 = (s32[]{:T(128)}, bf16[128,1280]{1,0:T(8,128)(2,1)S(1)}) while(%tuple.19), '
        f'condition=%condition, body=%body{config}',
        others=LOOP.replace('STOP', str(stop)).replace('STEP', str(step)),
    )


@pytest.mark.parametrize(
    ('start', 'stop', 'step', 'trips'),
    [(0, 7, 1, 7), (0, 4, 2, 2), (3, 8, 2, 3), (-1, 7, 1, 8), (9, 7, 1, 0)],
)
def test_loops_of_constants(start, stop, step, trips):
    rows = collectives.read(loop(f'constant({start})', stop, step))
    assert rows == ([Collective('collective-permute', trips, trips * 128 * 1280 * 2, 0)] if trips else [])


def test_loop_whose_length_the_compiler_knows():
    text = loop('add(%n, %n)', 7, 1, ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}')
    assert collectives.read(text) == [Collective('collective-permute', 5, 5 * 128 * 1280 * 2, 0)]


@pytest.mark.parametrize(
    ('known', 'unknown'),
    [
        ('%start = s32[]{:T(128)} constant(0)', '%start = s32[]{:T(128)} add(%n, %n)'),
        ('%start = s32[]{:T(128)} constant(0)', '%start = f32[]{:T(128)} constant(0.5)'),
        ('%start = s32[]{:T(128)} constant(0)', '%start = s32[]{:T(128)} parameter(2)'),
        ('direction=LT', 'direction=NE'),
        ('add(%copy.1, %step)', 'multiply(%copy.1, %step)'),
        ('add(%copy.1, %step)', 'add(%step, %step)'),
        ('compare(%i.1, %stop)', 'compare(%stop, %i.1)'),
    ],
)
def test_loops_of_unknown_length_count_once(known, unknown):
    text = loop('constant(0)', 7, 1)
    assert known in text
    assert collectives.read(text.replace(known, unknown)) == [Collective('collective-permute', 1, 128 * 1280 * 2, 1)]


def test_condition_of_a_loop_runs_once_more_than_its_body():
    test = '  ROOT %lt'
    reduced = '  %all = s32[]{:T(128)} all-reduce(%i.1), replica_groups=[4,2]<=[8], to_apply=%add\n' + test
    rows = collectives.read(loop('constant(0)', 7, 1).replace(test, reduced))
    assert rows == [Collective('all-reduce', 8, 8 * 4, 0), Collective('collective-permute', 7, 7 * 128 * 1280 * 2, 0)]


def test_every_branch_counts():
    branch = """
%{} (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%p), replica_groups=[4,2]<=[8]
}}
"""
    text = program(
        '%x = f32[8]{0} parameter(0)',
        '%which = s32[] parameter(1)',
        'ROOT %y = f32[8]{0} conditional(%which, %x, %x), branch_computations={%yes, %no}',
        others=branch.format('yes') + branch.format('no'),
    )
    assert collectives.read(text) == [Collective('all-reduce', 2, 2 * 32, 0)]


# Programs compiled for the eight simulated devices.


def compiled(f, sides: dict[str, int]) -> list[Collective]:
    """What `f` of a device's eighth of a float32 (64, 16) sends, on a mesh with these sides."""
    mesh = Mesh(np.array(jax.devices()).reshape(*sides.values()), tuple(sides))
    split = PartitionSpec(tuple(sides))
    f = jax.shard_map(f, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, split))
    return collectives.read(jax.jit(f).lower(x).compile().as_text())


SHARD = 64 * 16 * 4 // 8  # bytes
ROUND = [(i, (i + 1) % 8) for i in range(8)]


@pytest.mark.parametrize(
    ('f', 'kind', 'received'),
    [
        (lambda x: jax.lax.psum(x, 'x'), 'all-reduce', 2 * 7 * SHARD // 8),
        (lambda x: jax.lax.all_gather(x, 'x'), 'all-gather', 7 * SHARD),
        (lambda x: jax.lax.psum_scatter(x, 'x', tiled=True), 'reduce-scatter', 7 * SHARD // 8),
        (lambda x: jax.lax.all_to_all(x, 'x', 1, 0, tiled=True), 'all-to-all', 7 * SHARD // 8),
        (lambda x: jax.lax.ppermute(x, 'x', ROUND), 'collective-permute', SHARD),
    ],
)
def test_programs(f, kind, received):
    assert compiled(f, {'x': 8}) == [Collective(kind, 1, received, 0)]


def test_nothing_is_sent():
    assert compiled(lambda x: 2 * x, {'x': 8}) == []


def test_groups_of_a_mesh_with_two_axes():
    sides = {'y': 2, 'x': 4}
    assert compiled(lambda x: jax.lax.psum(x, 'x'), sides) == [Collective('all-reduce', 1, 2 * 3 * SHARD // 4, 0)]
    assert compiled(lambda x: jax.lax.psum(x, 'y'), sides) == [Collective('all-reduce', 1, 2 * 1 * SHARD // 2, 0)]
    assert compiled(lambda x: jax.lax.psum(x, ('y', 'x')), sides) == [
        Collective('all-reduce', 1, 2 * 7 * SHARD // 8, 0)
    ]


def test_loops_of_programs():
    def f(x):
        def inner(i, x):
            return jax.lax.ppermute(x, 'x', ROUND) + i

        def outer(x, _):
            return jax.lax.fori_loop(2, 5, inner, x) + jax.lax.psum(x, 'x'), None

        x, _ = jax.lax.scan(outer, x, None, length=7)
        return jax.lax.psum_scatter(jax.lax.all_gather(x, 'x', tiled=True), 'x', tiled=True)

    assert compiled(f, {'x': 8}) == [
        Collective('all-gather', 1, 7 * SHARD, 0),
        Collective('all-reduce', 7, 7 * 2 * 7 * SHARD // 8, 0),
        Collective('reduce-scatter', 1, 7 * SHARD, 0),
        Collective('collective-permute', 21, 21 * SHARD, 0),
    ]


def test_loop_that_data_ends():
    def f(x):
        return jax.lax.while_loop(
            lambda x: jax.lax.pmax(x.max(), 'x') < 9, lambda x: jax.lax.ppermute(x, 'x', ROUND), x
        )

    assert compiled(f, {'x': 8}) == [
        Collective('all-reduce', 1, 2 * 7 * 4 // 8, 1),
        Collective('collective-permute', 1, SHARD, 1),
    ]
