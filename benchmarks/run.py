"""Measure what this project costs, each figure beside its limit or its baseline in the same run.

Run it with ``make bench``. Machines are shared and noisy, so read the ratios; the seconds only say where they
come from. Every figure is the best of several repetitions.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols.packing import pack, unpack
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import run_session
from protocols.secagg.mask import Mask, add_masks
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended

MILLION = 1 << 20
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, its cost, what it is held against, and that cost."""

    what: str
    seconds: float
    against: str
    reference_s: float

    def line(self) -> str:
        """Return the line as Markdown."""
        ratio = self.seconds / self.reference_s
        return (
            f"| {self.what} | {self.seconds * 1000:,.1f} ms | {self.against} | "
            f"{self.reference_s * 1000:,.1f} ms | {ratio:.2f} |"
        )


def best(action: Callable[[], object], repetitions: int = 5) -> float:
    """Return the least CPU seconds of one call; CPU time, because neighbours on the machine cost wall time."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def masks() -> Iterator[Row]:
    """Ten masks over a million values against the keystream and the addition alone."""
    vector = np.zeros(MILLION, np.uint32)
    keys = [SecretStream().bytes(32) for _ in range(10)]
    ours = best(lambda: add_masks(vector, [Mask(key) for key in keys]))
    yield Row("10 masks over 2^20 uint32, added", ours, "AES-256-CTR and add, nothing else", best(_limit))


def _limit() -> None:
    """Make and add ten keystreams in cache-sized chunks, as fast as this machine can through OpenSSL."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)
    total = np.zeros(CHUNK_BYTES // 4, np.uint32)
    stream = np.frombuffer(out, np.uint32, count=CHUNK_BYTES // 4)
    for _ in range(10):
        encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        for _ in range(4 * MILLION // CHUNK_BYTES):
            encryptor.update_into(zeros, out)
            np.add(total, stream, out=total)


def encoding() -> Iterator[Row]:
    """Quantising and packing a million values against one copy of them."""
    values = np.random.default_rng(0).normal(size=MILLION).astype(np.float32)
    quantiser = Quantiser(5.0, 8, 5)
    ring = quantiser.quantise(values, SecretStream())
    packed = pack(ring, quantiser.modulus_bits)
    copy = best(lambda: [values.copy() for _ in range(20)]) / 20
    for what, action in (
        ("stochastic rounding, 2^20 values to 8 bits", lambda: quantiser.quantise(values, SecretStream())),
        ("packing 2^20 values to 11 bits", lambda: pack(ring, quantiser.modulus_bits)),
        ("unpacking them", lambda: unpack(packed, quantiser.modulus_bits, MILLION)),
    ):
        yield Row(what, best(action), "one copy of the vector", copy)


def sessions() -> Iterator[Row]:
    """A whole session, clients and server together, against the same without a loss."""
    whole = best(lambda: _session(5, 40_000, {}), 3)
    yield Row(
        "session, 5 clients × 40k, one lost",
        best(lambda: _session(5, 40_000, {"c1": "mask"}), 3),
        "none lost",
        whole,
    )
    yield Row(
        "session, 50 clients × 40k, none lost", best(lambda: _session(50, 40_000, {}), 1), "5 clients", whole
    )


def _session(n: int, d: int, dropouts: dict[str, str]) -> NDArray[np.uint32]:
    """Run one session in this process and return its sum."""
    names = tuple(f"c{i}" for i in range(n))
    identities = {name: Identity.generate() for name in names}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    sizes, quantiser, context = recommended(n, max_colluders=1), Quantiser(1.0, 8, n), bytes(32)
    parameters = SessionParameters(
        session_id=os.urandom(32), round=1, exchange=0, roster=names, max_colluders=1, quorum=sizes.quorum,
        threshold=sizes.threshold, min_survivors=sizes.min_survivors, degree=sizes.degree, vector_length=d,
        modulus_bits=quantiser.modulus_bits, bound=quantiser.levels, context=context,
    )  # fmt: skip
    clients = {
        name: SecAggClient(
            client_id=name, identity=identities[name], roster=roster, policy=ClientPolicy(),
            guard=MemoryGuard(), context=context,
        )
        for name in names
    }  # fmt: skip
    vectors = {name: np.ones(d, np.uint32) for name in names}
    server = SecAggServer(parameters=parameters, roster=roster)
    return run_session(clients, server, vectors, dropouts).sum  # type: ignore[arg-type]


def training() -> Iterator[Row]:
    """A DP-SGD step against the plain step on the same microbatches, on a random encoder of MiniLM's shape."""
    import torch
    from transformers import BertConfig, BertModel

    from fedlora_priv.adapters import read_state, trainable_parameters
    from fedlora_priv.modeling import LoraSettings, attach_lora
    from fedlora_priv.pooling import MeanPoolingClassifier
    from fedlora_priv.training import PrivateTrainer, TokenisedExamples
    from fedlora_priv.training.batching import collate, microbatches
    from fedlora_priv.training.losses import example_losses

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    lora = LoraSettings(("query", "value"), rank=8)
    model = attach_lora(MeanPoolingClassifier(BertModel(config), 2), lora, 0)
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(5, 30_000, length).astype(np.int64) for length in rng.integers(8, 56, 64))
    examples = TokenisedExamples(ids, rng.integers(0, 2, 64).astype(np.int64), 0)
    trainer, start = PrivateTrainer(model), read_state(model)

    def private() -> None:
        trainer.train(
            examples, start, steps=1, sample_rate=1.0, planned_batch_size=64, noise_multiplier=1.0, clip_norm=1.0,
            learning_rate=0.1, stream=SecretStream(), max_tokens_per_microbatch=1024,
        )  # fmt: skip

    parameters = list(trainable_parameters(model).values())

    def plain() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        for indices in microbatches(examples.lengths(), 1024):
            part = examples.subset(indices)
            batch, labels = collate(part, torch.device("cpu")), torch.from_numpy(part.labels)
            (example_losses(model(**batch).logits, labels, batch).sum() / 64).backward()
        torch.optim.SGD(parameters, lr=0.1).step()

    private()
    yield Row(
        "DP-SGD step, 64 texts, LoRA on q and v",
        best(private, 3),
        "plain step, same microbatches",
        best(plain, 3),
    )


def main() -> None:
    """Print the table, and the machine it is of."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; CPU time\n")
    print("| what | cost | against | its cost | ratio |\n|---|---|---|---|---|")
    for section in (masks, encoding, sessions, training):
        for row in section():
            print(row.line(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
