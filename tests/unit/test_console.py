"""What a terminal shows of text that others have written: it is seen, and not obeyed."""

import io
import logging

import pytest

from ml.cli import console

RED, TITLE, C1, TURNED = "\x1b[31m", "\x1b]0;mine\x07", "\x9b31m", "\u202e"
HOSTILE = f"a{RED}b{TITLE}c{C1}d{TURNED}e\r\x08f"
OBEYED = {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\x08"}
SHOWN = r"a\x1b[31mb\x1b]0;mine\x07c\x9b31md\u202ee\r\x08f"


@pytest.fixture
def terminal(monkeypatch):
    """What is printed on a terminal, whose own colours are told apart by its width and theme."""
    file = io.StringIO()
    made = console._Terminal(file=file, force_terminal=True, no_color=True, width=300)
    monkeypatch.setattr(console, "out", made)
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


def test_a_line_of_the_log_is_shown_the_same_way(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        console.show_log()
        logging.getLogger("ml.dataset").info("%s is gone", HOSTILE)
    finally:
        root.handlers[:], root.level = before
    assert capsys.readouterr().err == f"{SHOWN} is gone\n"


def test_letters_of_other_languages_stay_as_they_are():
    assert console.printable("ünïcode 中文 עברית 🙂") == "ünïcode 中文 עברית 🙂"
