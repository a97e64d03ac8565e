"""Mutation testing: changes the code in one position at a time, as a careless edit would, and sees whether tests fail.

    python tests/mutations.py --count 100 --out /tmp/mutations.jsonl
    python tests/mutations.py --count 100 --out /tmp/mutations.jsonl --again

Draws the mutations with a seed, evenly from the areas of `AREAS`; applies each to a copy of the tree, runs the tests of
its module there until one fails, and adds a line to the file: file, line, before, after, and the test that failed, or
'survived'.  A second call continues; with --again those that survived meet all tests of their area.  pytest does not
collect this file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from samjax.storage.progress import format_duration  # noqa: E402

# Modules below samjax/, and tests below tests/ that should notice, the quickest first
AREAS = {
    'losses': ('training/losses', 'training/test_losses training/test_options'),
    'click simulation': ('training/click_simulation', 'training/test_click_simulation training/test_options'),
    'step': (
        'training/step training/compiled_step',
        'training/test_compiled_step training/test_step training/test_options distributed/test_sharding',
    ),
    'optimizer': (
        'training/optimizer model/param_rules model/params',
        'training/test_optimizer model/test_params training/test_options',
    ),
    'sharding': (
        'distributed/sharding distributed/map distributed/processes',
        'distributed/test_map distributed/test_processes distributed/test_sharding',
    ),
    'checkpoints': (
        'training/checkpoints checkpoints/run checkpoints/orbax_io',
        'training/test_checkpoints training/test_loop',
    ),
    'loop': (
        'training/loop training/batches training/metric_logger',
        'training/test_metric_logger training/test_loop training/test_options',
    ),
    'model': (
        'model/encoders/vit model/mask_decoder model/prompt_encoder model/layers model/sam model/attention/chunked '
        'model/attention/dense model/attention/tpu model/flops model/encoders/vit_training',
        'model/test_layers model/test_flops model/test_params model/test_vit model/test_parity model/test_attention',
    ),
    'data': (
        'data/transforms data/pipeline data/formats/folder data/formats/coco data/formats/sa1b data/formats/coco_json '
        'data/formats/label_image data/formats/detect data/records/prepare data/records/shard_writer data/synthetic '
        'images/open images/file images/encoded_image',
        'data/test_transforms data/test_coco_json data/test_coco data/test_folder data/test_sa1b data/test_pipeline '
        'data/test_synthetic data/test_prepare data/test_sampling_check data/test_data_to_step images/test_open '
        'images/test_encoded_image images/test_readers data/test_label_image',
    ),
    'masks': (
        'masks/rle masks/resize masks/boxes masks/iou masks/packing masks/regions',
        'masks/test_rle masks/test_resize masks/test_boxes masks/test_iou masks/test_packing masks/test_regions',
    ),
    'predictor': (
        'inference/predictor inference/prompts inference/frame inference/load',
        'inference/test_prompts inference/test_predictor inference/test_load evaluation/test_sam_segmenter',
    ),
    'conversion': (
        'convert/convert convert/weights convert/key_map convert/torch_file convert/torch_pickle convert/huggingface '
        'convert/files '
        'model/encoders/vit_checkpoints',
        'convert/test_convert convert/test_files convert/test_torch_pickle',
    ),
    'evaluation': (
        'evaluation/protocol evaluation/clicks evaluation/sam_segmenter evaluation/metrics/statistics '
        'evaluation/metrics/average_precision evaluation/metrics/boundaries evaluation/tasks/interactive '
        'evaluation/tasks/instances evaluation/tasks/proposals evaluation/tasks/edges evaluation/baselines',
        'evaluation/test_statistics evaluation/test_clicks evaluation/test_protocol evaluation/test_average_precision '
        'evaluation/test_boundaries evaluation/test_boundaries_exact evaluation/test_baselines evaluation/test_tasks '
        'evaluation/test_sam_segmenter evaluation/test_edges evaluation/test_interactive evaluation/test_evaluate',
    ),
    'automatic masks': (
        'inference/automatic/generator inference/automatic/propose inference/automatic/crops',
        'inference/test_crops inference/test_generator',
    ),
    'jobs': (
        'jobs/embeddings jobs/generate_masks jobs/image_collection jobs/mask_formats jobs/output_folder',
        'jobs/test_mask_formats jobs/test_output_folder jobs/test_image_collection jobs/test_embeddings '
        'jobs/test_generate_masks',
    ),
    'preflight': (
        'preflight/collectives preflight/compile_ahead',
        'preflight/test_collectives preflight/test_compile_ahead',
    ),
    'command line': (
        'cli/common cli/predict cli/data cli/evaluate cli/train cli/masks cli/embed cli/check_dataset cli/main config '
        'storage/atomic storage/progress',
        'test_package storage cli',
    ),
}

# Of modules without a test file of their name
TESTED_BY = {
    'param_rules': 'test_params', 'run': 'test_checkpoints', 'orbax_io': 'test_checkpoints', 'sam': 'test_parity',
    'mask_decoder': 'test_parity', 'prompt_encoder': 'test_parity', 'vit_training': 'test_params',
    'chunked': 'test_attention', 'dense': 'test_attention', 'tpu': 'test_attention', 'detect': 'test_folder',
    'shard_writer': 'test_prepare', 'file': 'test_readers', 'frame': 'test_predictor', 'instances': 'test_tasks',
    'proposals': 'test_tasks', 'propose': 'test_generator',
}  # fmt: skip
SLOW = (  # tests that wait for survivors
    'sam_trains_ten_and_ten', 'rematerialization', 'gradient_accumulation', 'stopping_the_gradient', 'dropout_and',
    'bfloat16_is', 'loss_falls', 'step_on_eight', 'kernels_compile', 'small_model_fits', 'killed_at_random',
)  # fmt: skip

EXCHANGED = (
    'min max, minimum maximum, argmin argmax, any all, floor ceil, sum mean, zeros ones, zeros_like ones_like, '
    'height width, h w, H W, top left, bottom right, row column, rows columns, first last, x y, x0 y0, x1 y1, '
    'x0 x1, start stop, low high, before after, params buffers, b1 b2, POSITIVE NEGATIVE, MULTIMASK SINGLE_MASK, '
    'BOX_TOP_LEFT BOX_BOTTOM_RIGHT, DATA FSDP, FSDP TENSOR, focal dice, process_index process_count, psum pmean, '
    'vstack hstack, update setdefault, append extend, removeprefix removesuffix, ascending descending, w_h h_w, '
    'score area, norm1 norm2, floor round, rint floor'
)
WEAKER = {'float32': 'bfloat16', 'float64': 'float32', 'int64': 'int32', 'int32': 'int16', 'uint16': 'uint8'}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.Pow: ast.Mult,
}  # fmt: skip
IDENTITY = {'stop_gradient', 'sorted', 'abs', 'clip', 'astype', 'nan_to_num', 'checkpoint_name', 'resolve', 'copy'}


class Mutation(NamedTuple):
    area: str
    file: str
    line: int
    kind: str
    start: int  # of the text that is replaced, in bytes of the file
    end: int
    before: str
    after: str


def changed(node: ast.AST, **fields) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def with_item(items: list, index: int, item) -> list:
    return [*items[:index], item, *items[index + 1 :]]


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand for `node`, each with the kind of the change."""
    pairs = [pair.split() for pair in EXCHANGED.split(', ')]
    others = [(a, b) for a, b in pairs] + [(b, a) for a, b in pairs]
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield 'comparison', changed(node, ops=with_item(node.ops, i, COMPARISONS[type(op)]()))
        case ast.BinOp(left, op, right):
            if type(op) in OPERATORS and not isinstance(left, ast.Constant | ast.JoinedStr):
                yield 'operator', changed(node, op=OPERATORS[type(op)]())
            if isinstance(op, ast.Mult | ast.BitAnd | ast.Add | ast.Sub):
                yield 'operand dropped', left
                if isinstance(op, ast.Mult | ast.BitAnd | ast.Add):
                    yield 'operand dropped', right
        case ast.BoolOp(op, values):
            yield 'and/or', changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield 'operand dropped', rest[0] if len(rest) == 1 else changed(node, values=rest)
        case ast.UnaryOp(ast.Not() | ast.Invert() | ast.USub(), operand):
            yield 'negation', operand
        case ast.Constant(bool()):
            yield 'constant', ast.Constant(not node.value)
        case ast.Constant(int()):
            yield 'constant', ast.Constant(node.value + 1)
            if node.value > 0:
                yield 'constant', ast.Constant(node.value - 1)
        case ast.Constant(float()):
            yield 'constant', ast.Constant(2 * node.value or 1.0)
        case ast.IfExp(_, body, orelse):
            yield 'condition', body
            yield 'condition', orelse
        case ast.Subscript(value, ast.Slice(lower, upper, _)) if lower or upper:
            yield 'slice dropped', value
        case ast.Tuple(elts, _) if len(elts) == 2 and ast.dump(elts[0]) != ast.dump(elts[1]):
            yield 'pair exchanged', changed(node, elts=elts[::-1])
        case ast.Dict(_, values) if len(values) > 1:
            yield 'values exchanged', changed(node, values=[values[1], values[0], *values[2:]])
        case ast.Name(name) | ast.Attribute(_, name):
            field = 'id' if isinstance(node, ast.Name) else 'attr'
            for a, b in others:
                if name == a:
                    yield 'name exchanged', changed(node, **{field: b})
            if name in WEAKER:
                weaker = WEAKER[name].replace(
                    'bfloat16', 'float16' if ast.unparse(node).startswith('np.') else 'bfloat16'
                )
                yield 'dtype', changed(node, **{field: weaker})
        case ast.Call(func, args, keywords):
            for i in range(len(keywords)):
                yield 'argument dropped', changed(node, keywords=keywords[:i] + keywords[i + 1 :])
            if len(args) > 1:
                yield 'arguments exchanged', changed(node, args=[args[1], args[0], *args[2:]])
                yield 'argument dropped', changed(node, args=args[:-1])
            if args and getattr(func, 'attr', getattr(func, 'id', '')) in IDENTITY:
                yield 'call dropped', args[0] if getattr(func, 'attr', '') not in ('astype', 'resolve') else func.value
            if getattr(func, 'attr', '') == 'where' and len(args) == 3:
                yield 'call dropped', args[1]
        case ast.comprehension(_, _, [_, *_], _):
            yield 'filter dropped', changed(node, ifs=[])
        case ast.If(_, _, []):
            yield 'statement dropped', ast.Pass()
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            yield 'statement dropped', ast.Pass()
        case ast.Assign([ast.Name(name)], value) if any(
            isinstance(n, ast.Name) and n.id == name for n in ast.walk(value)
        ):
            yield 'statement dropped', ast.Pass()


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that decide what the code does: no messages, annotations, documentation or imports."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Raise | ast.JoinedStr | ast.arg | ast.AnnAssign | ast.Import | ast.ImportFrom):
            continue
        yield child
        yield from nodes(child)


def mutations_of(area: str, file: str) -> Iterator[Mutation]:
    text = (ROOT / file).read_text()
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(text)
    for function in ast.walk(tree):  # annotations of results, and decorators, stay
        if isinstance(function, ast.FunctionDef):
            function.returns, function.decorator_list = None, []
    for node in nodes(tree):
        for kind, new in replacements(node):
            at = node if hasattr(node, 'lineno') else node.target  # a comprehension has no position of its own
            start = starts[at.lineno - 1] + at.col_offset
            end_node = node if hasattr(node, 'lineno') else node.ifs[-1]
            end = starts[end_node.end_lineno - 1] + end_node.end_col_offset
            if hasattr(node, 'lineno'):
                after = ast.unparse(new)
            else:
                after = f'{ast.unparse(node.target)} in {ast.unparse(node.iter)}'
            if isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.Attribute | ast.Constant | ast.Call):
                after = f'({after})'
            before = text.encode()[start:end].decode()
            yield Mutation(area, file, at.lineno, kind, start, end, before, after)


def mutated(text: bytes, mutation: Mutation) -> bytes:
    return text[: mutation.start] + mutation.after.encode() + text[mutation.end :]


def is_change(mutation: Mutation) -> bool:
    """Whether it gives valid Python that is not the same."""
    text = (ROOT / mutation.file).read_bytes()
    try:
        return ast.dump(ast.parse(mutated(text, mutation))) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def draw(count: int, seed: int, areas: list[str]) -> list[Mutation]:
    """Mutations in an order that any `count` shares: of each area in turn, of a random file and kind."""
    rng, drawn = random.Random(seed), []
    left = {}
    for area in areas:
        modules = AREAS[area][0].split()
        left[area] = {module: list(mutations_of(area, f'samjax/{module}.py')) for module in modules}
    while len(drawn) < count and any(any(found.values()) for found in left.values()):
        for by_module in left.values():
            modules = [module for module, found in by_module.items() if found]
            if not modules:
                continue
            weights = [len(by_module[module]) ** 0.5 for module in modules]
            found = by_module[rng.choices(modules, weights)[0]]
            kind = rng.choice(sorted({mutation.kind for mutation in found}))
            mutation = rng.choice([mutation for mutation in found if mutation.kind == kind])
            found.remove(mutation)
            if is_change(mutation):
                drawn.append(mutation)
    return drawn[:count]


def tests_of(mutation: Mutation, tree: Path, wide: bool) -> list[str]:
    """The test file of the module, if it has one, and if `wide` the others of its area after it."""
    of_module = TESTED_BY.get(Path(mutation.file).stem, f'test_{Path(mutation.file).stem}')
    names = sorted(AREAS[mutation.area][1].split(), key=lambda name: not name.endswith(of_module))
    if names[0].endswith(of_module) and not wide:
        names = names[:1]
    return [f'tests/{name}' if (tree / 'tests' / name).is_dir() else f'tests/{name}.py' for name in names]


def run_tests(tree: Path, mutation: Mutation, wide: bool, limit: float) -> str:
    """The first test that fails, 'time limit', 'no test could run', or 'survived'."""
    paths = os.pathsep.join(map(str, (tree.parent, tree, tree / 'tests/support')))
    environment = os.environ | {'PYTHONPATH': paths, 'PYTHONDONTWRITEBYTECODE': '1'}
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '--tb=no', '-p', 'compiled_before']
    slow = ['sam_trains_ten_and_ten'] if wide else SLOW
    command += ['-k', f'not ({" or ".join(slow)})']
    with tempfile.TemporaryFile('w+') as out:
        process = subprocess.Popen(
            [*command, *tests_of(mutation, tree, wide)],
            cwd=tree,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return 'time limit'
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        failed = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - |$)', out.read(), re.M)
    if process.returncode == 0:
        return 'survived'
    return failed[1] if failed else 'no test could run'


def copied_tree(folder: Path) -> Path:
    """A copy of the repository below `folder`, and a plugin: programs that do not change are compiled once."""
    skipped = shutil.ignore_patterns('.git', '.venv*', 'runs', '__pycache__', '.pytest_cache', '.ruff_cache')
    shutil.copytree(ROOT, folder / ROOT.name, ignore=skipped, symlinks=True)
    for beside in ROOT.parent.glob('shared'):
        (folder / beside.name).symlink_to(beside)
    (folder / 'compiled_before.py').write_text(
        'import jax\n'
        f'jax.config.update("jax_compilation_cache_dir", {str(folder / "xla")!r})\n'
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)\n'
    )
    return folder / ROOT.name


def key(mutation: Mutation) -> str:
    return f'{mutation.file}:{mutation.line} {mutation.kind}: {mutation.before} -> {mutation.after}'


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--count', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--areas', default=','.join(AREAS), help=f'some of: {", ".join(AREAS)}')
    parser.add_argument('--out', type=Path, required=True, help='JSON lines; what is in it is not run again')
    parser.add_argument(
        '--again', action='store_true', help='run those that survived again, with all tests of their area'
    )
    parser.add_argument('--limit', type=float, default=600, help='s for the tests of a mutation, then it is killed')
    parser.add_argument('--list', action='store_true', help='only print the mutations')
    args = parser.parse_args(argv)
    drawn = draw(args.count, args.seed, args.areas.split(','))
    if args.list:
        print(*map(key, drawn), sep='\n')
        return
    verdicts = {}
    if args.out.exists():
        for line in args.out.read_text().splitlines():
            verdict = json.loads(line)
            verdicts[verdict['mutation']] = verdict
    left = [m for m in drawn if key(m) not in verdicts or args.again and verdicts[key(m)]['failed'] == 'survived']
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder))
        for number, mutation in enumerate(left):
            original = (tree / mutation.file).read_bytes()
            (tree / mutation.file).write_bytes(mutated(original, mutation))
            start = time.monotonic()
            failed = run_tests(tree, mutation, args.again, args.limit)
            (tree / mutation.file).write_bytes(original)
            line = original[: mutation.start].decode().count('\n')
            verdict = {
                'mutation': key(mutation),
                'area': mutation.area,
                'line': original.decode().split('\n')[line].strip(),
                'seconds': round(time.monotonic() - start),
                'failed': failed,
            }
            with args.out.open('a') as file:
                file.write(json.dumps(verdict) + '\n')
            verdicts[key(mutation)] = verdict
            each = (time.monotonic() - begun) / (number + 1)
            print(f'{number + 1}/{len(left)}, {format_duration(each * (len(left) - number - 1))} left: '
                  f'{failed} | {key(mutation)}', flush=True)  # fmt: skip
    survived = [verdicts[key(m)] for m in drawn if verdicts[key(m)]['failed'] == 'survived']
    print(f'{len(drawn) - len(survived)} of {len(drawn)} killed', *(v['mutation'] for v in survived), sep='\n')


if __name__ == '__main__':
    main()
