"""The commands of docs/production.md exist, and so does each variable that the page sets.

`make production-test` runs them.
"""

import re
import shlex

import pytest

from ml.settings import environment_variables
from tests.support import production_page

PROGRAMS = ("nightscore", "airflow", "mlflow")
BLOCKS = production_page.all_blocks()


def _commands() -> list[list[str]]:
    """The words of each command of our programs, without variables before it."""
    lines = [
        re.sub(r"^(\w+=\S+ )+", "", line.strip())
        for block in BLOCKS
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    return [
        # A number, as ports are.
        shlex.split(re.sub(r"\$\{[^}]*\}", "1", line))
        for line in lines
        if line.split(" ")[0] in PROGRAMS
    ]


def _variables() -> set[str]:
    prefixes = r"(?:AIRFLOW_|NIGHTSCORE_|AWS_|MLFLOW_)"
    return {name for block in BLOCKS for name in re.findall(rf"\b{prefixes}\w+(?==)", block.text)}


def test_the_page_has_commands_of_each_program():
    assert {words[0] for words in _commands()} == set(PROGRAMS)


def test_each_command_of_nightscore_has_the_options_that_the_page_gives():
    from ml.cli import command

    for _, *words in filter(lambda words: words[0] == "nightscore", _commands()):
        found = command().commands[words.pop(0)]
        while words and words[0] in getattr(found, "commands", ()):
            found = found.commands[words.pop(0)]
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} - options == set()


@pytest.mark.slow
def test_each_command_of_airflow_has_the_options_that_the_page_gives():
    from airflow.cli.cli_parser import get_parser

    for _, *words in filter(lambda words: words[0] == "airflow", _commands()):
        assert get_parser().parse_args(words).func  # otherwise it ends the process


def test_each_variable_of_nightscore_is_documented():
    ours = {name for name in _variables() if name.startswith(("NIGHTSCORE_", "AWS_"))}
    page = (production_page.PAGE.parent / "configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page)) | environment_variables()
    assert len(ours) > 8
    assert ours - documented == set()


@pytest.mark.slow
def test_each_variable_of_airflow_is_an_option_of_its_configuration():
    from airflow.configuration import conf

    known = {
        f"AIRFLOW__{section}__{option}".upper()
        for section, description in conf.configuration_description.items()
        for option in description["options"]
    }
    named = {name for name in _variables() if name.startswith("AIRFLOW__")}
    assert len(named) > 10
    assert named - known == set()
