"""`eval.py`: one task of the paper's evaluation on one model, and what is left of it.

folder/results.json   scores, config, digests of checkpoint and data, software
folder/table.md       the tables
folder/report.html    tables, figures and pictures in one page that needs no other file
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from samjax.distributed.map import UNFINISHED
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import open_eval_model
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.report import html
from samjax.evaluation.tasks.edges import edges
from samjax.evaluation.tasks.instances import instances
from samjax.evaluation.tasks.interactive import file_name, interactive
from samjax.evaluation.tasks.proposals import proposals
from samjax.evaluation.tasks.suite import suite

TASKS = {
    'interactive': interactive,  # clicks on the objects of one set
    'suite': suite,  # the same on the 23 sets of the paper
    'edges': edges,  # BSDS500's boundary benchmark
    'proposals': proposals,  # AR@1000 on COCO or LVIS
    'instances': instances,  # AP on COCO or LVIS, from a detector's boxes
}
PACKAGES = ('jax', 'flax', 'orbax-checkpoint', 'numpy', 'scipy', 'pillow', 'pycocotools')


def evaluate(config: ConfigDict, workdir: str, task: str, options: EvalOptions) -> tuple[str, Path]:
    """Runs a task on the newest checkpoint in `workdir`; goes on if the same was interrupted.

    Returns the tables as text and the folder of the files.
    Raises SamjaxError if the task is unknown, or the checkpoint or what the task needs is not there.
    """
    if task not in TASKS:
        raise SamjaxError(f'--task={task} is unknown: choose one of {", ".join(TASKS)}')
    eval_model = open_eval_model(workdir, config)
    folder = folder_of(config, workdir, task)
    found = TASKS[task](eval_model, options, folder)
    text = html.markdown(found.tables)
    if jax.process_index() == 0:
        facts = {
            'task': task,
            'scores': found.scores,
            'data': found.data,
            'step': eval_model.step,
            'checkpoint': eval_model.digest,
            'max_images': options.max_images,
            'max_objects': options.max_objects,
            'config': json.loads(config.to_json()),
            'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
            'python': platform.python_version(),
            'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind} of {jax.process_count()} processes',
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'results.json').write_text(json.dumps(_plain(facts), indent=2) + '\n')
        (folder / 'table.md').write_text(text)
        title, subtitle = f'{task}: {workdir}', f'step {eval_model.step}, checkpoint {eval_model.digest}'
        rest = html.Facts('Facts', {name: value for name, value in facts.items() if name != 'scores'})
        html.write(folder / 'report.html', title, subtitle, [*found.sections(), rest])
        for unfinished in folder.rglob(UNFINISHED):
            shutil.rmtree(unfinished)
    return text, folder


def folder_of(config: ConfigDict, workdir: str, task: str) -> Path:
    """Where the files of a task lie."""
    if task == 'suite':
        return Path(workdir) / 'eval' / 'suite'
    data = file_name('_'.join(Path(config.data.eval_path).parts[-2:]))
    return Path(workdir) / 'eval' / (data if task == 'interactive' else f'{task}_{data}')


def _plain(value):
    """JSON has no NaN: null stands for what cannot be said."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
