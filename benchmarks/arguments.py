"""Options of studies, read as those of the command line are: bad input is one line that says what to do."""

from __future__ import annotations

import argparse
from typing import NoReturn

__all__ = ["ArgumentParser"]


class ArgumentParser(argparse.ArgumentParser):
    """That of the standard library, without the usage before its error.

    Example:
        >>> ArgumentParser(prog="study").parse_args([])
        Namespace()
    """

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line.

        Args:
            message: what is wrong.
        """
        self.exit(2, f"{message[:1].upper()}{message[1:].rstrip('.')}. See `{self.prog} --help`.\n")
