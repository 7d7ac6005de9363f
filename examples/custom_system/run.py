"""A whole federation in processes of its own: ``python -m examples.custom_system.run FOLDER``.

By default one client is killed (kill -9) when it is about to mask, and another is killed when it is about to
confirm and started again: it goes on from its state on disk.
"""

from __future__ import annotations

from examples.custom_system.launch import run_federation

if __name__ == "__main__":
    run_federation(
        __doc__,
        server="examples.custom_system.server",
        client="examples.custom_system.client",
        wait_option="--grace-s",
    )
