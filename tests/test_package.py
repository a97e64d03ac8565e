"""samjax as a package: what `import samjax` gives and costs, and what a wheel holds."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

import samjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGING = 'pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'


def test_names_are_imported_when_they_are_used():
    from samjax.inference.automatic.generator import AutomaticMaskGenerator
    from samjax.inference.load import load
    from samjax.inference.predictor import Predictor
    from samjax.model.config import SamConfig
    from samjax.model.sam import Sam

    expected = {AutomaticMaskGenerator, load, Predictor, Sam, SamConfig, samjax.__version__}
    assert {getattr(samjax, name) for name in samjax.__all__} == expected
    assert set(samjax.__all__) <= set(dir(samjax))
    with pytest.raises(AttributeError, match="module 'samjax' has no attribute 'Sim'"):
        samjax.Sim  # noqa: B018


def test_import_is_light():
    code = (
        'import sys, time; start = time.perf_counter(); import samjax; seconds = time.perf_counter() - start\n'
        'print(sorted({"jax", "numpy", "flax", "PIL"} & set(sys.modules)), seconds)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules, seconds = done.stdout.rsplit(maxsplit=1)
    assert modules == '[]'
    assert float(seconds) < 0.2


def test_wheel_holds_samjax_and_nothing_else(tmp_path):
    """Built from a copy, as setuptools writes beside the sources."""
    source, wheels = tmp_path / 'source', tmp_path / 'wheels'
    source.mkdir()
    for name in ('samjax', 'configs', 'tests', 'train.py', *PACKAGING):
        (source / name).symlink_to(ROOT / name)
    wheels.mkdir()
    code = f'from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, check=True)
    (path,) = wheels.iterdir()
    with zipfile.ZipFile(path) as wheel:
        files = set(wheel.namelist())
        info = f'samjax-{samjax.__version__}.dist-info'
        metadata = wheel.read(f'{info}/METADATA').decode()
        entry_points = wheel.read(f'{info}/entry_points.txt').decode()
    assert {file.split('/')[0] for file in files} == {'samjax', info}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / 'samjax').rglob('*.py')}
    assert {file for file in files if file.endswith('.py')} == modules
    assert 'samjax/py.typed' in files
    assert f'{info}/licenses/LICENSE' in files
    assert 'samjax = samjax.cli.main:main' in entry_points
    assert 'License-Expression: Apache-2.0' in metadata
    for requirement in ('jax>=0.10', 'jax[cuda12]; extra == "cuda"', 'jax[tpu]; extra == "tpu"', 'apache-beam>=2.60;'):
        assert f'Requires-Dist: {requirement}' in metadata
