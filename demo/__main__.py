"""Open a page in the browser to play with a model.

    python -m demo --checkpoint output/quickstart

Draws images of classes and shows how they come about, step by step and scale by scale; edits images under a mask. The
page is for this machine alone, unless --host says otherwise, and loads nothing from elsewhere. Ctrl-C ends it.
"""

from collections.abc import Sequence

from demo.options import DemoArgs
from runtime.command import run
from runtime.config import parse_flags


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "python -m demo", __doc__, DemoArgs)
    from demo.serve import serve  # takes seconds to import

    serve(args)


def command() -> None:
    """``checkerboard-demo``."""
    run(main)


if __name__ == "__main__":
    command()
