"""A small finished federation, on disk as its members would have left it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accounting import contract as contracts
from accounting import masking
from accounting import report as reports
from accounting.adaptive_clip import AdaptiveClip
from accounting.anchor import Anchor, ledger_head, make_anchor, signed_bytes
from accounting.chain import Chain
from accounting.entries import Entry, Row
from accounting.events import NonPrivate, PoissonGaussian, PrivateEvent
from accounting.ledger import Ledger
from accounting.planning import Plan, plan
from accounting.private_audit import AttemptRecord, CountRecord, StepRecord
from accounting.rows import RECORDED_AS, Partition
from accounting.versions import library_versions

RUN = "ab" * 16
DIMENSION = 3000  # noised coordinates in a private audit file
MASKS = {"mode": "secure", "min_survivors": 2}
CODE = {"code_sha256": "c0de" * 16, "fedlora_priv": "0.1.0"}


class Signer:
    """An Ed25519 identity that signs as the protocol's identities do."""

    def __init__(self, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, label: bytes, payload: bytes) -> bytes:
        return self._key.sign(signed_bytes(label, payload))


@dataclass
class Federation:
    """A report with the rows it follows from, open to forgery."""

    report: dict[str, Any]
    rows: dict[str, list[Row]]
    signers: dict[str, Signer] = field(repr=False)
    private: dict[str, tuple[AttemptRecord, ...]] = field(repr=False)
    partition: Partition = field(repr=False)

    @property
    def roster(self) -> dict[str, bytes]:
        """The pinned keys."""
        return {client_id: signer.public_key for client_id, signer in self.signers.items()}

    @property
    def lines(self) -> list[str]:
        """The exported ledgers."""
        return [row.to_line() for rows in self.rows.values() for row in rows]

    def rebuild(self, client_id: str, entries: list[Entry]) -> None:
        """Replace a client's chain by one with these entries, hashes recomputed, anchor untouched."""
        old = self.rows[client_id][0]
        chain = Chain(old.client_id, old.dataset_id)
        for entry in entries:
            # Straight into the list: a forger is not bound by the rules.
            chain.rows.append(Row(old.client_id, old.dataset_id, len(chain.rows), chain.head, entry))
        self.rows[client_id] = chain.rows

    def anchor_again(self, client_id: str, signer: Signer | None = None) -> None:
        """Sign the chain as it is now, with the client's own key or another, and put that into the report."""
        rows = self.rows[client_id]
        by = signer or self.signers[client_id]
        last = rows[-1]
        fresh = make_anchor(
            client_id, last.dataset_id, last.digest, len(rows), sign=by.sign, public_key=by.public_key
        )
        others = [value for value in self.report["anchors"] if value["client_id"] != client_id]
        self.report["anchors"] = [*others, fresh.to_json()]
        self.report["ledger_head"] = ledger_head(map(Anchor.from_json, self.report["anchors"]))


PLAN: dict[str, Any] = {
    "target_epsilon": 0.5,
    "delta": 1e-5,
    "declared_examples": 1000,
    "planned_batch_size": 20,
    "rounds": 3,
    "steps_per_round": 4,
    "retry_rounds": 1,
    "clip_norm": 1.0,
}


def make_plans(clients: int = 3, adaptive_clip: AdaptiveClip | None = None) -> dict[str, Plan]:
    names = [f"client-{k}" for k in range(1, clients + 1)]
    return {name: plan(client_id=name, adaptive_clip=adaptive_clip, **PLAN) for name in names}


def reserve(ledger: Ledger, event: PrivateEvent, number: int, exchanges: int) -> int:
    """A reservation of a round, which names what the method lets leave in it."""
    digest = contracts.round_digest(make_method(exchanges), number)
    return ledger.reserve(event, round=number, run=RUN, recorded={contracts.RECORDED_AS: digest})


def play_round(
    ledger: Ledger,
    client_plan: Plan,
    number: int,
    generator: np.random.Generator,
    *,
    exchanges: list[dict[str, str | None]],
    clip_norm: float,
) -> AttemptRecord:
    """What a client's ledger sees of a round that works; returns what its private audit file does."""
    reservation = reserve(ledger, client_plan.round_event(clip_norm), number, len(exchanges))
    record = honest_record(client_plan, number, reservation, generator, clip_norm)
    ledger.commit(reservation, private_audit=record.digest)
    for index, exchange in enumerate(exchanges):
        session, announced = exchange["session_id"], exchange["announced"]
        ledger.release(reservation, session=session, exchange=index, announced=announced)
        if len(exchanges) > 1:
            transcript = exchange["transcript"]
            ledger.release(
                reservation, session=session, transcript=transcript, exchange=index, announced=announced
            )
    return record


def honest_record(
    client_plan: Plan, number: int, reservation: int, generator: np.random.Generator, clip_norm: float
) -> AttemptRecord:
    """What a trainer that does as it says would note, drawn by numpy rather than by this package."""
    steps = []
    for _ in range(client_plan.steps_per_round):
        size = int(generator.binomial(client_plan.declared_examples, client_plan.sample_rate))
        stddev = client_plan.noise_multiplier * clip_norm
        noise = generator.normal(scale=stddev, size=DIMENSION)
        longest, largest = clip_norm * (1 - 1e-6) if size else 0.0, float(abs(noise).max())
        digest = hashlib.sha256(noise).hexdigest()[:16]
        norms = (longest, 0.3 * size * longest, float(noise @ noise), largest)
        if client_plan.adaptive_clip is None:
            steps.append(StepRecord(size, size, 0, *norms, digest))
            continue
        unclipped = int(generator.binomial(size, 0.3))
        noised = unclipped - size / 2 + generator.normal(scale=client_plan.adaptive_clip.count_noise_stddev)
        count = CountRecord(clip_norm, unclipped, float(noised))
        steps.append(StepRecord(size, size - unclipped, 0, *norms, digest, count))
        clip_norm = next_clip_norm(client_plan, count)
    return AttemptRecord(
        client_plan.client_id,
        RUN,
        number,
        reservation,
        client_plan.declared_examples,
        DIMENSION,
        tuple(steps),
    )


def next_clip_norm(client_plan: Plan, count: CountRecord) -> float:
    """The rule of Andrew et al., written out once more."""
    rule = client_plan.adaptive_clip
    assert rule is not None
    share = count.noised / client_plan.planned_batch_size + 0.5
    moved = count.clip_norm * float(np.exp(-rule.learning_rate * (share - rule.target_quantile)))
    return float(np.clip(moved, rule.smallest_clip_norm, rule.largest_clip_norm))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Made once; tests change copies of it."""
    return make_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def finished(original: Federation) -> Federation:
    """Three clients, three rounds: client-2 is lost in round 2, client-3 re-masks in round 3."""
    return copied(original)


def copied(original: Federation) -> Federation:
    """One that can be forged without harm to others."""
    rows = {client_id: list(rows) for client_id, rows in original.rows.items()}
    return replace(original, report=copy.deepcopy(original.report), rows=rows, private=dict(original.private))


@pytest.fixture(scope="session")
def original_of_two_exchanges(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Made once, as `original`, by a method of two exchanges."""
    return make_federation(tmp_path_factory.mktemp("exchanges"), exchanges=2)


@pytest.fixture
def exchanged(original_of_two_exchanges: Federation) -> Federation:
    """As `finished`, with two exchanges in each round, all confirmed."""
    return copied(original_of_two_exchanges)


@pytest.fixture
def signer() -> Signer:
    """A key that no roster knows."""
    return Signer(99)


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens ledgers in one file, and closes them."""
    opened: list[Ledger] = []

    def open_one(**changes: Any) -> Ledger:
        settings = {"client_id": "client-1", "dataset_id": "reviews", "partition_id": "iid", "public": False}
        opened.append(Ledger.open(tmp_path / "ledger.sqlite", **{**settings, **changes}))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def filled(open_ledger: Callable[..., Ledger], tmp_path: Path) -> Path:
    """The file of a closed ledger: opening row, then (reserve, commit) three times."""
    with open_ledger() as ledger:
        for number in range(3):
            event = PoissonGaussian(2.0, 0.05, 10, 1.0)
            ledger.commit(ledger.reserve(event, round=number, run=RUN))
    return tmp_path / "ledger.sqlite"


def make_exchange(number: int, index: int) -> dict[str, str | None]:
    """One exchange of a round as the report lists it."""
    announced = f"{index:02x}{number:062x}" if index else None
    return {
        "session_id": f"{index:02x}{number:030x}",
        "transcript": f"{index:02x}{number:062x}",
        "announced": announced,
    }


def make_method(exchanges: int = 1) -> dict[str, Any]:
    """A method whose later exchanges send B's range and corange, in every planned round alike."""
    travels = [{"lora_B": 128}, {"range": 64}, {"projected": 64}][:exchanges]
    announced = [{}, {"basis": 64}, {"basis": 64}][:exchanges]
    contract = {
        "rounds": [1, 2, 3], "name": "test", "title": "A test", "trains": ["B"], "stays_home": [],
        "changes_base": False, "exact": True, "weights": "uniform", "may_stop_early": False,
        "exchanges": [
            {"announced": told, "travels": sent} for told, sent in zip(announced, travels, strict=True)
        ],
        "round_dimension": sum(sum(sent.values()) for sent in travels),
        "noised": {f"client-{k}": DIMENSION for k in (1, 2, 3)},
        "noise": "linear", "leaks": "the sum over survivors", "notes": [],
    }  # fmt: skip
    return {"name": "test", "title": "A test", "contracts": [contract]}


def make_federation(
    folder: Path, adaptive_clip: AdaptiveClip | None = None, exchanges: int = 1
) -> Federation:
    plans, rounds, rows, anchors = make_plans(adaptive_clip=adaptive_clip), [], {}, []
    private: dict[str, tuple[AttemptRecord, ...]] = {}
    held = {client_id: tuple(range(1000 * k, 1000 * (k + 1))) for k, client_id in enumerate(plans)}
    partition, generator = Partition("reviews", held), np.random.default_rng(4)
    signers = {client_id: Signer(k) for k, client_id in enumerate(plans, start=1)}
    for number in (1, 2, 3):
        survivors = [client_id for client_id in plans if (client_id, number) != ("client-2", 2)]
        lost = [{"client_id": "client-2", "phase": "mask"}] if number == 2 else []
        rounds.append(
            {
                "round": number,
                "survivors": survivors,
                "lost": lost,
                "refused": [],
                "exchanges": [make_exchange(number, index) for index in range(exchanges)],
                "certificate": None,
            }
        )
    for client_id, client_plan in plans.items():
        with Ledger.open(
            folder / "ledger.sqlite",
            client_id=client_id,
            dataset_id="reviews",
            partition_id="iid-3-0",
            public=True,
            versions={
                **library_versions(),
                **CODE,
                "noise_source": reports.OS_KEYED_AES_CTR,
                "plan_sha256": client_plan.digest(),
                RECORDED_AS: partition.digest(client_id),
                masking.RECORDED_AS: masking.masks_digest(MASKS),
            },
        ) as ledger:
            records, clip_norm = [], client_plan.clip_norm
            for entry in rounds:
                if client_id not in entry["survivors"]:
                    reserve(ledger, client_plan.round_event(clip_norm), entry["round"], exchanges)
                    continue
                number, several = entry["round"], entry["exchanges"]
                records.append(
                    play_round(ledger, client_plan, number, generator, exchanges=several, clip_norm=clip_norm)
                )
                if (count := records[-1].steps[-1].count) is not None:
                    clip_norm = next_clip_norm(client_plan, count)
            if client_id == "client-3":
                ledger.release(ledger.charges(run=RUN, round=3)[0].reservation, session="f" * 32)
                ledger.note(NonPrivate("its number of rows", "weights"), run=RUN)
            rows[client_id], private[client_id] = list(ledger.rows()), tuple(records)
            signer = signers[client_id]
            anchors.append(ledger.anchor(sign=signer.sign, public_key=signer.public_key))
    document = reports.build(
        run=RUN,
        experiment={
            "name": "test",
            "config_sha256": "0" * 64,
            "start_weights": {"base": "a public model", "from_run": None},
        },
        method=make_method(exchanges),
        plans=plans.values(),
        rows=[row for chain in rows.values() for row in chain],
        anchors=anchors,
        rounds=rounds,
        metrics={"accuracy_before": 0.5, "accuracy_after": 0.75, "evaluated_on": "a public held-out split"},
        bytes={"uploaded_per_client": {"client-1": 1000}},
        randomness={
            "noise_source": reports.OS_KEYED_AES_CTR,
            "sampling_source": reports.OS_KEYED_AES_CTR,
            "deterministic": False,
        },
        outputs=[
            {"what": "accuracy", "covered_by": "public"},
            {"what": "its number of rows", "covered_by": "NonPrivate"},
        ],
        versions={**library_versions(), **CODE},
        secure_aggregation=dict(MASKS),
    )
    return Federation(document, rows, signers, private, partition)
