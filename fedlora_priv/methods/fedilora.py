"""FediLoRA: factors of unequal ranks, each component averaged over the clients that have it.

Source: the FediLoRA code. With rₖ the rank of client k and Kⱼ the survivors with rₖ > j,

    row j of A = mean over Kⱼ of row j of Aₖ,    column j of B = mean over Kⱼ of column j of Bₖ

so that a client of small rank does not pull the others' last components towards zero, as padding with zeros would.
Linear, and as inexact as FedIT: the product of the means is not the mean of the products.

It is FedIT in parts (`fedlora_priv.methods.partial`). Ours: the factors of a client whose scaling α/rₖ is another
one are written in the federation's before they are averaged. Not taken over: its editing of layers for a client's
own use.
"""

from __future__ import annotations

from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.partial import Partial


class FediLoRA(Partial):
    """Average of each component of A and B over those who have it, and of the head.

    Args:
        own: the layout of this client's own model; None for the server, or where all ranks are the same.
        trains: names of the modules that this client trains; None for all of them, and for the server.
    """

    def __init__(self, own: Layout | None = None, trains: frozenset[str] | None = None) -> None:
        super().__init__(FedIT(), own, trains)
        self.name, self.title, self.source = "fedilora", "FediLoRA (unequal ranks by component)", "code"
