"""Flower's ``flwr supernode register`` for several keys, by one process: importing it takes longer than ten keys do.

Called as ``python -m fedlora_priv.deploy.admission CONNECTION KEY...``; prints what Flower's command prints with
``--format json`` for each key, one after the other, and ends where that ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(connection: str, keys: Sequence[str]) -> None:
    """Admit the public keys in these files at a SuperLink that Flower's configuration names."""
    from flwr.cli.app import app

    for key in keys:
        app(("supernode", "register", key, connection, "--format", "json"), standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
