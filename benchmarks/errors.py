"""What goes wrong with the programs that are compared."""


class ContenderError(Exception):
    """A contender did not do its work; the message ends with what it said."""
