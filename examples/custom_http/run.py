"""The federation of `examples.custom_system`, over HTTP: ``python -m examples.custom_http.run FOLDER``."""

from __future__ import annotations

from examples.custom_system.launch import run_federation

if __name__ == "__main__":
    run_federation(
        __doc__,
        server="examples.custom_http.server",
        client="examples.custom_http.client",
        wait_option="--phase-s",
    )
