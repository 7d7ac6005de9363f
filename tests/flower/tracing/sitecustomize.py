"""Found first on PYTHONPATH by every Python process of a `fleet`: tells whom it calls and what it opens of some folder.

`calls.tsv` gets a line for each connection or name that is looked up, `opened.tsv` for each file opened below
$FLEET_WATCH. The processes of Flower's apps are traced further; nothing else of any process is changed.
"""

import os
import sys

FOLDER, WATCH, NAME = (os.environ.get(name, "") for name in ("FLEET_TRACE", "FLEET_WATCH", "FLEET_PARTY"))


def note(file: str, *values: object) -> None:
    """Append a line; whole lines of several processes do not mix."""
    line = "\t".join([NAME, *map(str, values)]) + "\n"
    out = os.open(os.path.join(FOLDER, file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # noqa: PTH118 - imports nothing
    os.write(out, line.encode())
    os.close(out)


def hook(event: str, values: tuple) -> None:
    """Note what matters of Python's audit events."""
    if event == "socket.connect":
        address = values[1]
        note("calls.tsv", *(address[:2] if isinstance(address, tuple) else ("unix", address)))
    elif event == "socket.getaddrinfo":
        note("calls.tsv", *values[:2])
    elif event == "open" and WATCH and str(values[0]).startswith(WATCH):
        note("opened.tsv", values[0])


if FOLDER:
    sys.addaudithook(hook)
    if "fedlora_priv.deploy.app" in sys.orig_argv:
        from tests.flower.traced import install

        install(sys.orig_argv[sys.orig_argv.index("fedlora_priv.deploy.app") + 1])
