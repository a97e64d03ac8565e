"""`samjax eval`: a task of the paper's evaluation on the newest checkpoint of a run, and its files.

folder/results.json   scores, config, digests of checkpoint and data, software
folder/table.md       the tables
folder/report.html    tables, figures and images in a file that needs no other file
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
from samjax.storage.atomic import write_text

TASKS = {
    'interactive': interactive,  # clicks on the objects of a data set
    'suite': suite,  # the same on the 23 data sets of the paper
    'edges': edges,  # BSDS500's boundary benchmark
    'proposals': proposals,  # AR@1000 on COCO or LVIS
    'instances': instances,  # AP on COCO or LVIS, from a detector's boxes
}
PACKAGES = ('jax', 'flax', 'orbax-checkpoint', 'numpy', 'scipy', 'pillow', 'pycocotools')


def evaluate(config: ConfigDict, workdir: str, task: str, options: EvalOptions) -> tuple[str, Path]:
    """Runs a task on the newest checkpoint in `workdir`; continues if the same evaluation was interrupted.

    Returns the tables as text and the folder of the files.
    Raises SamjaxError if the task is unknown, or the checkpoint or an input of the task is missing.
    """
    if task not in TASKS:
        raise SamjaxError(f'--task={task} is unknown: choose one of {", ".join(TASKS)}')
    eval_model = open_eval_model(workdir, config)
    folder = output_folder(workdir, task, eval_model.data.path)
    result = TASKS[task](eval_model, options, folder)
    text = html.markdown(result.tables)
    if jax.process_index() == 0:
        facts = {
            'task': task,
            'scores': result.scores,
            'data': result.data,
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
        write_text(folder / 'results.json', json.dumps(_without_nan(facts), indent=2) + '\n')
        write_text(folder / 'table.md', text)
        title, subtitle = f'{task}: {workdir}', f'step {eval_model.step}, checkpoint {eval_model.digest}'
        other_facts = html.Facts('Facts', {name: value for name, value in facts.items() if name != 'scores'})
        html.write(folder / 'report.html', title, subtitle, [*result.sections(), other_facts])
        for unfinished in folder.rglob(UNFINISHED):
            shutil.rmtree(unfinished)
    return text, folder


def output_folder(workdir: str, task: str, data_path: str) -> Path:
    """The folder of the files of a task."""
    if task == 'suite':
        return Path(workdir) / 'eval' / 'suite'
    data = file_name('_'.join(Path(data_path).parts[-2:]))
    return Path(workdir) / 'eval' / (data if task == 'interactive' else f'{task}_{data}')


def _without_nan(value):
    """JSON has no NaN: null stands for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
