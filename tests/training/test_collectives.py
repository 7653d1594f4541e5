"""Reading collectives out of compiled programs' text."""

from aesthetic_jax.training.collectives import collectives, stack_gathers, summarize_collectives

# Two loops, one in the other: sampling, which stops by itself, over 28 layers. Forms as XLA prints them for CPU and TPU.
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=16

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%layer (state: (s32[], bf16[28,96,64])) -> (s32[], bf16[28,96,64]) {
  %state = (s32[], bf16[28,96,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %slice = bf16[96,64]{1,0} fusion(%state), kind=kLoop, calls=%cut
  %gathered = bf16[1536,64]{1,0:T(8,128)(2,1)} all-gather(%slice), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}
  ROOT %next = (s32[], bf16[28,96,64]{2,1,0}) tuple(%state, %gathered)
}

%cut (p: bf16[28,96,64]) -> bf16[96,64] {
  ROOT %p = bf16[96,64]{1,0} parameter(0)
}

%fewer (state: (s32[], bf16[28,96,64])) -> pred[] {
  %less = pred[] compare(%i, %n), direction=LT
  ROOT %goes = pred[] and(%less, %more)
}

%counted (state: (s32[], bf16[28,96,64])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %n.1), direction=LT, metadata={op_name="while"}
}

%begins (p: bf16[8,64]) -> bf16[64,64] {
  ROOT %g.1 = bf16[64,64]{1,0} all-gather(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
}

%goes_on (p: bf16[8,64]) -> bf16[64,64] {
  ROOT %g.2 = bf16[64,64]{1,0} all-gather(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
}

%fused (state: bf16[8,64]) -> bf16[64,64] {
  %begun = bf16[64,64]{1,0} fusion(%state), kind=kCustom, calls=%begins
  ROOT %done.1 = bf16[64,64]{1,0} fusion(%begun), kind=kCustom, calls=%goes_on
}

%token (state: (s32[], bf16[28,96,64])) -> (s32[], bf16[28,96,64]) {
  %inner = (s32[], bf16[28,96,64]{2,1,0}) while(%state), body=%layer, backend_config={"known_trip_count":{"n":"28"}}
  ROOT %out = (s32[], bf16[28,96,64]{2,1,0}) tuple(%inner)
}

%all-reduce-scatter.1 (p: f32[1024,64]) -> f32[64,64] {
  %whole = f32[1024,64]{1,0} all-reduce(%p), channel_id=7, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %piece = f32[64,64]{1,0} dynamic-slice(%whole)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %start = (bf16[96,32]{1,0}, bf16[1536,32]{1,0}) all-gather-start(%x), channel_id=2, replica_groups=[1,16]<=[16], dimensions={0}
  %done = bf16[1536,32]{1,0} all-gather-done(%start)
  %stack = f32[28,1536,64]{2,1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}
  %far = f32[100]{0} all-reduce(%x), channel_id=4, replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
  %near = (f32[10]{0}, f32[5]{0}) all-reduce(%x, %x), channel_id=5, replica_groups=[2,8]<=[16], to_apply=%add
  %moved = f32[50]{0} collective-permute(%x), channel_id=6, source_target_pairs={{0,1},{1,0}}
  %scattered = f32[64,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %piece = f32[4,8]{1,0} reduce-scatter(%x), channel_id=8, replica_groups=[1,16]<=[16], dimensions={0}, to_apply=%add
  %three = bf16[8,64]{1,0} while(%x), condition=%counted, body=%fused
  %loop = (s32[], bf16[28,96,64]{2,1,0}) while(%x), condition=%fewer, body=%token
  ROOT %y = f32[8]{0} add(%x, %x)
}
"""


def test_collectives_are_counted_with_their_loops():
    counts, sizes = summarize_collectives(collectives(TEXT, 16, trips=512))
    assert counts == {
        "all-gather": 28 * 512 + 2 + 3,
        "all-reduce": 2,
        "collective-permute": 1,
        "reduce-scatter": 2,
    }
    assert sizes["all-gather"] == 28 * 512 * 1536 * 64 * 2 + 1536 * 32 * 2 + 28 * 1536 * 64 * 4 + 3 * 64 * 64 * 2
    assert sizes["all-reduce"] == 400 + 60
    assert sizes["reduce-scatter"] == 1024 * 64 * 4 + 16 * 4 * 8 * 4
    assert sizes["collective-permute"] == 200


def test_bytes_on_the_wire_and_slices_that_are_crossed():
    found = {each.shapes: each for each in collectives(TEXT, 16, trips=512, per_slice=8)}
    assert found[(1536, 64),].count == 28 * 512
    assert found[(1536, 64),].in_loop
    assert found[(1536, 64),].wire_bytes == 1536 * 64 * 2 * 15 / 16
    assert (found[(64, 64),].count, found[(64, 64),].wire_bytes) == (3, 64 * 64 * 2 * 7 / 8)
    assert found[(28, 1536, 64),].wire_bytes == 28 * 1536 * 64 * 4 * 3 / 4
    assert found[(100,),].wire_bytes == 2 * 400 / 2
    assert [shapes for shapes, each in found.items() if each.across_slices] == [
        ((1536, 32),),
        ((100,),),
        ((1024, 64),),
        ((4, 8),),
        ((1536, 64),),
    ]


def test_gathers_of_whole_stacks_are_found():
    found = collectives(TEXT, 16)
    assert stack_gathers(found, [(28, 1536, 64), (28, 96)]) == [(28, 1536, 64)]
    assert stack_gathers(found, [(28, 1536, 32)]) == []
