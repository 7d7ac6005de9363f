"""What an allocation refuses, before a round is proposed.

::

    ConfigError                          (fedlora_priv.errors)
    └── AllocationError                  no allocation of this kind exists for these clients
        ├── NothingFits                  a client cannot train even the least part
        ├── ThinLayer                    a layer or component would have too few clients
        └── PrivateScores                layer scores that are neither of public data nor charged
"""

from __future__ import annotations

from fedlora_priv.errors import ConfigError


class AllocationError(ConfigError):
    """No allocation of this kind exists for these clients and this model."""


class NothingFits(AllocationError):  # noqa: N818 - it names what was met
    """A client cannot train even the least part of the model."""


class ThinLayer(AllocationError):  # noqa: N818 - it names what was met
    """A layer or a component would have too few clients to be summed."""


class PrivateScores(AllocationError):  # noqa: N818 - it names what was met
    """Layer scores that are neither of public data nor charged to a ledger."""
