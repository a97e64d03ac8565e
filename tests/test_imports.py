"""The contracts of pyproject.toml about imports: packages import one way, the model needs only JAX and Flax."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_contracts_about_imports_hold():
    lint_imports = Path(sys.executable).with_name('lint-imports')
    done = subprocess.run([lint_imports, '--no-cache'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_at_most_six_modules_lie_flat():
    assert len(list((ROOT / 'samjax').glob('*.py'))) <= 6
