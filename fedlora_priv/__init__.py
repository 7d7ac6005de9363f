"""Federated LoRA fine-tuning with DP-SGD and secure aggregation: the server only ever sees a sum.

train → clip and noise → choose coordinates → quantise → mask → sum → unmask → combine → account.
"""

__version__ = "0.1.0"
