"""What README.md, CONTRIBUTING.md and docs/ name is there: files, modules, commands, options, tests."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from samjax.cli.main import main
from samjax.config import get_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def found(pattern: str, page: Path) -> list:
    return sorted(set(re.findall(pattern, page.read_text())))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


@every_page
def test_links_lead_somewhere(page):
    for target, anchor in found(r'\]\((?!http)([^)#\s]*)#?([^)\s]*)\)', page):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f'{target}#{anchor}'


@every_page
def test_modules_and_names_can_be_imported(page):
    for module in found(r'python -m ((?:samjax|benchmarks)[\w.]*)', page):
        assert importlib.util.find_spec(module), module
    for module, names in found(r'from (samjax[\w.]*) import ([\w, ]+)', page):
        for name in names.split(','):
            whole = f'{module}.{name.strip()}'
            assert hasattr(importlib.import_module(module), name.strip()) or importlib.util.find_spec(whole), whole


@every_page
def test_options_of_the_config_exist(page):
    sections = '|'.join(get_config().keys())
    options = found(rf'--config\.((?:{sections})(?:\.\w+)*)', page) + found(
        rf'`((?:{sections})\.(?!py`)[a-z]\w*)[`=]', page
    )
    for option in options:
        value = get_config()
        for key in option.split('.'):
            value = value[key]


@every_page
def test_tests_exist(page):
    everything = '\n'.join(path.read_text() for path in (ROOT / 'tests').rglob('test_*.py'))
    for name in found(r'`(?:tests/)?(test_\w+)(?:\.py|\.\.\.)?`', page):
        assert f'def {name}' in everything or list((ROOT / 'tests').rglob(f'{name}.py')), name


def test_commands_have_a_help():
    commands = {name for page in PAGES for name in found(r'(?m)^(?:python -m )?samjax (data \w+|[a-z]+)', page)}
    assert {'data prepare', 'masks', 'preflight'} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), '--help'])
        assert stop.value.code == 0, command
