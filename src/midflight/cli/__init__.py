"""The command line: one file a command, thin.

A command is a module ``midflight.cli.<name>`` with

- ``HELP: str``: what it does, for its ``--help``: paragraphs of plain text (filled for the terminal);
- ``EXAMPLES: str`` (optional): command lines, each with a line of explanation;
- ``EXIT_STATUS: str`` (optional): where the common meaning (0, 1, 2, 3) needs more words;
- ``add_arguments(parser: argparse.ArgumentParser) -> None``: its options. ``--json`` and ``--quiet`` are there already;
- ``run(args: argparse.Namespace, out: Output) -> int``: does the work and returns the exit status.

and a line in ``main.COMMANDS``. Only the module of the command that was asked for is imported, and heavy imports
belong inside ``run``. ``run`` prints through ``out`` alone (see ``output.py``) and raises ``MidflightError`` for
everything that a user can cause; ``main`` turns that into one line and the exit status.
"""
