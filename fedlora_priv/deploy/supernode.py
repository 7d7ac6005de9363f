"""Flower's SuperNode, and one line more where it ends for a reason that somebody can act on.

Flower says that a node could not be activated; whose key or clock that is, and what to do, is said here. It is called
as ``python -m fedlora_priv.deploy.supernode`` with the arguments of ``flower-supernode``.
"""

from __future__ import annotations

import logging
import re
import sys

_EXIT = re.compile(r"Exit Code: (\d+)\n(.*)", re.DOTALL)
_NOT_ADMITTED, _NOT_AUTHENTICATED = "[code: 2004]", "401 "
"""What Flower 1.41 answers to a key that nobody registered, and to a signature or a clock that it does not take."""


def explained(text: str) -> str | None:
    """Return one line that says what to do about what Flower logs when it ends; None for any other text.

    >>> explained("Exit Code: 305\\nFailed to initialize.\\n[code: 2004] Failed to activate SuperNode.")[:43]
    "the server has not admitted this node's key"
    """
    found = _EXIT.match(text)
    if found is None:
        return None
    reason = " ".join(found[2].partition("\n\nFor more information")[0].split())
    if _NOT_ADMITTED in reason:
        return (
            "the server has not admitted this node's key; whoever runs it calls 'fedlora server admit', then start "
            "this node again; if that was done, the home is not the one whose card was deployed"
        )
    if _NOT_AUTHENTICATED in reason:
        return (
            "the server takes neither this node's signature nor its time; set this machine's clock, then start it "
            "again"
        )
    return f"the SuperNode has ended (Flower's exit code {found[1]}): {reason}"


class _Explaining(logging.Handler):
    """Prints the line beside Flower's own."""

    def emit(self, record: logging.LogRecord) -> None:
        line = explained(record.getMessage())
        if line is not None:
            print(f"error: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Be Flower's SuperNode."""
    from flwr.supernode.cli import flower_supernode

    logging.getLogger("flwr").addHandler(_Explaining(logging.ERROR))
    flower_supernode()


if __name__ == "__main__":
    main()
