"""Text from elsewhere on a terminal: its control characters are shown and have no effect."""

import io
import re

import pytest

from ml.cli import console

RED, TITLE, C1, TURNED = "\x1b[31m", "\x1b]0;mine\x07", "\x9b31m", "\u202e"
HOSTILE = f"a{RED}b{TITLE}c{C1}d{TURNED}e\r\x08f"
OBEYED = {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\x08"}
SHOWN = r"a\x1b[31mb\x1b]0;mine\x07c\x9b31md\u202ee\r\x08f"


@pytest.fixture
def terminal(monkeypatch):
    """The output of a terminal without colours."""
    file = io.StringIO()
    fake_terminal = console._Terminal(file=file, force_terminal=True, no_color=True, width=300)
    monkeypatch.setattr(console, "out", fake_terminal)
    return file


def _seen(terminal) -> str:
    # Rich's own commands, of a table's header.
    return terminal.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_a_message_shows_control_characters_and_keeps_its_lines(terminal):
    console.out.print(f"{HOSTILE}\nthe log:\n\tends", markup=False, highlight=False)
    assert _seen(terminal).replace("\t", " ").split("\n")[0] == SHOWN
    assert len(_seen(terminal).splitlines()) == 3
    assert not OBEYED & set(_seen(terminal))


def test_a_cell_cannot_begin_a_line_of_its_own(terminal):
    console.print_table(("key",), [[f"{HOSTILE}\nfake row"], [{"name": C1}], [[TITLE]]])
    assert not OBEYED & set(_seen(terminal))
    assert SHOWN + r"\nfake row" in _seen(terminal)
    assert r"\x9b31m" in _seen(terminal)


def test_markup_in_a_cell_is_text(terminal):
    console.print_table(("key",), [["[red]x[/red] [link=http://x]y[/link]"]])
    assert "[red]x[/red] [link=http://x]y[/link]" in _seen(terminal)


def test_a_row_in_a_pipe_is_a_line_however_wide_it_is(monkeypatch):
    file = io.StringIO()
    piped = console._Terminal(file=file, soft_wrap=True, width=console._UNLIMITED)
    monkeypatch.setattr(console, "out", piped)
    wide = [f"s3://bucket/{'x' * 400}", 1, 2.5, None]
    console.print_table(("uri", "n", "share", "note"), [wide, wide])
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert all("x" * 400 in line for line in lines[2:])


def test_a_row_that_is_wider_than_the_terminal_is_a_line_for_each_value(monkeypatch):
    file = io.StringIO()
    narrow = console._Terminal(file=file, force_terminal=True, no_color=True, width=40)
    monkeypatch.setattr(console, "out", narrow)
    console.print_table(("uri", "n", "share", "note"), [["y" * 30, 1, 2.5, "z" * 30]])
    output = _seen_in(file)
    assert "uri    " + "y" * 30 in output
    assert "note   " + "z" * 30 in output


def _seen_in(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[\d*m", "", file.getvalue())


def test_letters_of_other_languages_stay_as_they_are():
    assert console.printable("ünïcode 中文 עברית 🙂") == "ünïcode 中文 עברית 🙂"
