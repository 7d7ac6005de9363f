"""Found first on PYTHONPATH by every process of a `fleet`: traces Flower's app processes, leaves all others alone."""

import os
import sys

if "fedlora_priv.deploy.app" in sys.orig_argv and "FLEET_TRACE" in os.environ:
    from tests.flower.traced import install

    install(sys.orig_argv[sys.orig_argv.index("fedlora_priv.deploy.app") + 1])
