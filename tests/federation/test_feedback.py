"""Error feedback in federations: against plain numpy, over losses and crashes; what is kept, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from accounting.audit import audit_files
from fedlora_priv.communication.scales import relative_error
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.errors import ConfigError, FederationError, RunFolderError
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.feedback import Feedback
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.federation.run import run
from fedlora_priv.federation.start import moving
from fedlora_priv.methods import Method, Shared, State
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.rolora import RoLoRA
from protocols.errors import LocalProtocolError
from protocols.packing import unpack

from .paper import LAYOUT, RUN, Killed, Paper, crash, trained
from .test_suspension import Restarting

RANDOM = {"support": "seeded-random-k", "density": 0.25, "value_bits": 16}
TIERS = {"support": "server-topk", "density": 1.0, "densities": [0.2, 0.2, 0.7, 0.7, 0.7], "value_bits": 16}
VOTED = {"support": "voted-topk", "density": 0.25, "value_bits": 16}


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(method: Method, communication: dict[str, Any], mode: str = "secure", **options: Any) -> Paper:
        sections = {
            "federation": {"rounds": 20},
            "communication": {"error_feedback": True} | communication,
            "secure_aggregation": {"mode": mode},
        }
        return on_paper(method, sections, **options)

    return make


def residual_of(small: Paper, client_id: str) -> np.ndarray:
    """What a client owes by its own file, as one vector."""
    stored = Feedback(small.folder / client_id, RUN.hex(), moving(small.method, LAYOUT, 20))._read()
    assert stored is not None
    return np.frombuffer(stored.now.snapshot()[-4 * stored.now.dimension :], "<f4")


class Reference:
    """The same federation in plain numpy, without rounding: what everybody owes, and where the state goes."""

    def __init__(self, small: Paper) -> None:
        self.small, self.shapes = small, moving(small.method, LAYOUT, 20)
        ends = np.cumsum([0] + [int(np.prod(s)) for s in self.shapes.values()]).tolist()
        self.at = {name: slice(a, b) for name, a, b in zip(self.shapes, ends, ends[1:], strict=False)}
        self.owed = {client_id: np.zeros(ends[-1]) for client_id in small.experiment.client_ids}
        self.lengths: list[float] = []

    def follow(self, result: RoundResult, before: State) -> np.ndarray | None:
        """Owe the round's updates, pay what the sums had; return the mean change, None of a lost round."""
        record, method = result.record, self.small.method.at(result.record.round)
        contract, shared = method.contract(LAYOUT), Shared(3, record.round)
        lost = dict(record.lost)
        for client_id, owed in self.owed.items():
            start = method.start(LAYOUT, before, shared)
            if lost.get(client_id) != "train":
                after = trained(client_id, start, contract.trains)
                update = {name: after[name].astype(float) - start[name] for name in contract.uploads}
                self.lengths.append(float(np.sqrt(sum((u**2).sum() for u in update.values()))))
                for name, change in update.items():
                    owed[self.at[name]] += change.ravel()
        if result.summed is None:
            return None
        places = np.concatenate([np.arange(self.at[n].start, self.at[n].stop) for n in contract.uploads])
        moved, paid = np.zeros_like(owed), {c: np.zeros_like(owed) for c in self.owed}
        summed = [entry for entry in record.exchanges if entry.survivors]
        for part, entry in zip(result.summed.parts, summed, strict=True):
            if part.exchange.leg.carries == "votes":
                continue
            channel = part.exchange.values
            here, bound = places[channel.support.indices], channel.quantiser.bounds
            for client_id in entry.survivors:
                sent = np.clip(self.owed[client_id][here], -bound, bound)
                moved[here] += sent / len(entry.survivors)
                unheard = part.exchange.number, lost.get(client_id)
                if unheard not in ((0, "confirm"), (1, "confirm of exchange 1")):
                    paid[client_id][here] = sent
        for client_id, sent in paid.items():
            self.owed[client_id] -= sent
        return moved

    def check(self, rounds: int, tolerance: float) -> list[RoundResult]:
        """Run so many rounds and compare everything after each."""
        results = []
        for _ in range(rounds):
            before = self.small.state.state
            results.append(self.small.round())
            moved = self.follow(results[-1], before)
            after = self.small.state.state
            for name, place in self.at.items():
                wanted = before[name].ravel() + (0 if moved is None else moved[place])
                assert np.abs(after[name].ravel() - wanted).max() <= tolerance, name
            for client_id, owed in self.owed.items():
                assert np.abs(residual_of(self.small, client_id) - owed).max() <= tolerance
        return results


# --- against plain numpy -------------------------------------------------------------------------------


def dropped(*losses: tuple[int, str, Any, int]) -> list[Dropout]:
    return [Dropout(round=r, client_id=c, phase=phase, exchange=x) for r, c, phase, x in losses]


@pytest.mark.parametrize(
    ("method", "communication", "dropouts"),
    [
        # Round 1 loses a client before it uploads, round 2 is lost, in round 3 one is summed and does not hear of it.
        (FFALoRA(), RANDOM, dropped((1, "client-2", "share", 0), (2, "client-1", "mask", 0),
                                    (2, "client-4", "mask", 0), (3, "client-5", "confirm", 0))),
        (RoLoRA(), RANDOM, dropped((2, "client-3", "mask", 0), (3, "client-1", "reveal", 0))),
        # A band is lost while round 2 goes on: its coordinates are owed, and no others.
        (FFALoRA(), TIERS, dropped((1, "client-2", "mask", 0), (2, "client-5", "mask", 1), (2, "client-4", "mask", 1))),
        (FedIT(), VOTED, dropped((2, "client-1", "mask", 0))),
    ],
    ids=["random, with losses", "factors in turn", "tiers", "voted"],
)  # fmt: skip
def test_a_federation_with_feedback_is_the_plain_one(
    paper: Callable[..., Paper], method: Method, communication: dict[str, Any], dropouts: list[Dropout]
) -> None:
    small = paper(method, communication, dropouts=dropouts)
    results = Reference(small).check(4, tolerance=1e-4)  # steps are of some 1e-5
    lost = [r.record.round for r in results if r.summed is None]
    assert lost == ([2] if len(dropouts) == 4 else [])
    if communication is TIERS:
        assert [len(r.summed.parts) for r in results if r.summed] == [2, 1, 2, 2]


def test_nothing_is_lost_over_all_rounds_to_the_last_bit_that_float32_has(
    paper: Callable[..., Paper],
) -> None:
    """With three bits, where rounding is most of what travels: all updates = all that was sent, as read off the wire,
    and one residual."""
    small = paper(FFALoRA(), RANDOM | {"value_bits": 4}, "insecure")
    wanted: dict[str, Any] = {c.client_id: 0.0 for c in small.clients}
    sent: dict[str, Any] = dict(wanted)
    uploads: dict[str, bytes] = {}

    class Reading(LocalEngine):
        def exchange(self, messages: Any, step: Step) -> Any:
            answers = super().exchange(messages, step)
            if step.phase == "upload":
                uploads.update({c: wire.decode(a).blobs["body"] for c, a in answers.items()})
            return answers

    small.use(Reading(small.clients))
    for number in range(1, 6):
        state, channel = small.state.state, small.server.task(small.state).first.values
        small.round()
        for client_id, body in uploads.items():
            after = trained(client_id, state, frozenset({"B", "head"}))
            wanted[client_id] += np.concatenate(
                [(after[n] - state[n]).ravel().astype(float) for n in channel.shapes]
            )
            bits, k = channel.quantiser.modulus_bits, len(channel.support)
            ring = unpack(body, bits, k).astype(int)
            values = np.zeros(channel.support.dimension)
            signed = ring - (ring >= 2 ** (bits - 1)) * 2**bits
            values[channel.support.indices] = (
                signed * channel.quantiser.bounds.astype(float) / channel.quantiser.levels
            )
            sent[client_id] += values
            owed = residual_of(small, client_id)
            assert np.abs(wanted[client_id] - sent[client_id] - owed).max() <= 1e-6 * number
    assert all(np.abs(s).max() > 0 for s in sent.values())


@pytest.mark.parametrize("value_bits", [16, 3])
def test_what_is_owed_stays_within_the_lemmas_bound(paper: Callable[..., Paper], value_bits: int) -> None:
    """G·s/(1-s) of `protocols.feedback`, over more rounds than a residual takes to settle.

    What is left out of a vector is, in the mean, 1 - k/d of its energy and what rounding and clipping take of the rest.
    """
    small = paper(FFALoRA(), RANDOM | {"value_bits": value_bits}, "insecure")
    reference = Reference(small)
    norms = []
    for _ in range(14):
        before = small.state.state
        reference.follow(small.round(), before)
        norms.append(max(np.linalg.norm(residual_of(small, c.client_id)) for c in small.clients))
    longest, kept = max(reference.lengths), RANDOM["density"] * (1 - relative_error(value_bits))
    s = float(np.sqrt(1 - kept))
    assert max(norms) <= longest * s / (1 - s)
    # Random directions add up like sqrt(rounds): without anything sent it would be twice what it is.
    assert norms[-1] < 0.75 * longest * np.sqrt(len(norms))
    assert norms[-1] > 0.8 * longest


def test_masked_and_unmasked_feedback_give_the_same_integers(paper: Callable[..., Paper]) -> None:
    secure, plain = (paper(FedIT(), RANDOM | {"value_bits": 4}, mode) for mode in ("secure", "insecure"))
    for _ in range(3):
        masked, unmasked = secure.round(), plain.round()
        assert masked.summed is not None
        assert unmasked.summed is not None
        assert_array_equal(masked.summed.parts[0].ring_sum, unmasked.summed.parts[0].ring_sum)
    for client_id in secure.experiment.client_ids:
        assert residual_of(secure, client_id).any()
        assert_array_equal(residual_of(secure, client_id), residual_of(plain, client_id))


# --- crashes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 14, 17, 22])
def test_a_round_that_a_crash_cut_off_anywhere_owes_its_update_once(
    paper: Callable[..., Paper], at: int
) -> None:
    """All processes end after that many messages of round 2, of 25: some clients have trained, sent or confirmed."""
    whole, broken = (paper(FFALoRA(), RANDOM | {"value_bits": 4}) for _ in range(2))
    whole.round()
    broken.round()
    crash(broken, at)
    for _ in range(2):
        whole.round()
        assert broken.round().record.aborted is None
    assert broken.trainings == whole.trainings
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    for client_id in whole.experiment.client_ids:
        assert_array_equal(residual_of(whole, client_id), residual_of(broken, client_id))


@pytest.mark.parametrize("write", [1, 2])
def test_a_client_that_dies_while_it_remembers_owes_what_it_owed_before(
    paper: Callable[..., Paper], monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """One client's disk takes nothing at the first or the second time that a round writes; the file is the old one."""
    small = paper(FFALoRA(), RANDOM)
    small.round()
    file, real, left = small.folder / "client-3" / f"residual-{RUN.hex()}.npz", Feedback._write, write
    old = file.read_bytes()

    def full(feedback: Feedback, owed: Any) -> None:
        nonlocal left
        left -= feedback._path == file
        if left <= 0 and feedback._path == file:
            raise RunFolderError("no space")
        real(feedback, owed)

    monkeypatch.setattr(Feedback, "_write", full)
    with pytest.raises(RunFolderError):
        small.round()
    assert (file.read_bytes() == old) == (write == 1)
    monkeypatch.undo()
    reference = Reference(small)
    small.live()
    small.round()
    assert small.trainings == 10
    stored = Feedback(file.parent, RUN.hex(), reference.shapes)._read()
    assert stored is not None
    assert stored.round == 2


@pytest.mark.parametrize("communication", [RANDOM, TIERS, VOTED], ids=["random", "tiers", "voted"])
def test_a_process_for_every_message_owes_the_same(
    paper: Callable[..., Paper], communication: dict[str, Any]
) -> None:
    alive, restarting = (paper(FFALoRA(), communication) for _ in range(2))
    restarting.use(Restarting(restarting))
    for _ in range(2):
        alive.round()
        assert restarting.round().record.aborted is None
    for name, array in alive.state.state.items():
        assert_array_equal(array, restarting.state.state[name])
    for client_id in alive.experiment.client_ids:
        assert_array_equal(residual_of(alive, client_id), residual_of(restarting, client_id))


# --- what is kept --------------------------------------------------------------------------------------


def test_the_residual_is_for_its_owner_alone_and_goes_with_the_run(paper: Callable[..., Paper]) -> None:
    small = paper(FFALoRA(), RANDOM)
    small.round()
    client, file = small.clients[0], small.folder / "client-1" / f"residual-{RUN.hex()}.npz"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "0." not in repr(client._feedback._owed)
    statement = wire.decode(client.handle(wire.encode(wire.Message(wire.CLOSE))))
    assert statement.kind == wire.STATEMENT
    assert not file.exists()
    assert wire.decode(client.handle(wire.encode(wire.Message(wire.CLOSE)))).kind == wire.STATEMENT


def test_another_run_owes_nothing_of_this_one(tmp_path: Path) -> None:
    shapes = {"a": (3,)}
    one, other = (Feedback(tmp_path, run, shapes) for run in ("aa", "bb"))
    one.begin(1, {"a": np.ones(3, np.float32)}, "row 0 of the ledger")
    other.begin(1, {"a": np.zeros(3, np.float32)}, "row 1 of the ledger")
    assert_array_equal(one.owed("row 0")["a"], np.ones(3))
    assert_array_equal(other.owed("row 1")["a"], np.zeros(3))


def test_only_what_a_ledger_row_covers_is_owed(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path, "aa", {"a": (3,)})
    with pytest.raises(LocalProtocolError, match="name the ledger event"):
        feedback.begin(1, {"a": np.ones(3, np.float32)}, "")
    with pytest.raises(LocalProtocolError, match="NaN"):
        feedback.begin(1, {"a": np.full(3, np.nan, np.float32)}, "row 0 of the ledger")
    with pytest.raises(FederationError, match="before a round"):
        feedback.owed("row 0 of the ledger")
    with pytest.raises(FederationError, match="was not kept"):
        feedback.resume(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "dimension", "nothing"])
def test_a_damaged_residual_says_what_to_do(tmp_path: Path, damage: str) -> None:
    feedback = Feedback(tmp_path, "aa", {"a": (3,)})
    feedback.begin(1, {"a": np.ones(3, np.float32)}, "row 0 of the ledger")
    (file,) = tmp_path.iterdir()
    if damage != "dimension":
        file.write_bytes(file.read_bytes()[: 100 if damage == "cut" else 0])
    again = Feedback(tmp_path, "aa", {"a": (4 if damage == "dimension" else 3,)})
    with pytest.raises(RunFolderError, match="delete that file"):
        again.begin(2, {"a": np.ones(3, np.float32)}, "row 1 of the ledger")


@pytest.mark.parametrize("method", ["fra", "fedsvd", "hybrid", "flexlora", "fedex"])
def test_feedback_needs_coordinates_that_stay(experiment_file: Callable[..., Path], method: str) -> None:
    whole = {"support": "dense", "density": 1.0, "value_bits": 16, "error_feedback": True}
    with pytest.raises(ConfigError, match="error feedback does not go with"):
        Experiment.load(experiment_file(federation={"method": method}, communication=whole))


def test_feedback_needs_every_coordinate_to_come_one_day(experiment_file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="exploration above 0"):
        Experiment.load(experiment_file(communication={"error_feedback": True, "exploration": 0.0}))
    Experiment.load(experiment_file(communication={"error_feedback": True, "exploration": 0.01}))


# --- a whole run ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_with_feedback_and_masked_starts_survives_its_death_and_an_audit(
    experiment_file: Callable[..., Path], silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(name: str) -> Any:
        path = experiment_file(
            experiment={"output": str(tmp_path / name)},
            federation={"rounds": 3},
            training={"deterministic_noise": True},
            communication={"density": 0.25, "value_bits": 4, "error_feedback": True, "download_density": 0.1},
        )
        return run(Experiment.load(path), progress=silent)

    whole, real = outcome("whole"), LocalEngine.exchange

    def dying(engine: LocalEngine, messages: Any, step: Step) -> Any:
        if step == Step(2, "reveal"):
            raise Killed
        return real(engine, messages, step)

    with monkeypatch.context() as dies:
        dies.setattr(LocalEngine, "exchange", dying)
        with pytest.raises(Killed):
            outcome("broken")
    assert list((tmp_path / "broken").rglob("residual-*"))
    broken = outcome("broken")
    states = []
    for one in (whole, broken):
        assert one.problem is None
        assert not list(one.folder.rglob("residual-*"))
        stored = checkpoint.load(one.folder / "checkpoints")
        assert stored is not None
        states.append(stored[0].state)
        # All is well but that noise which anybody can repeat protects nobody, and says so.
        assert failed(one.folder / "report.json") == [13]
    for name, array in states[0].items():
        assert_array_equal(array, states[1][name])
    report = json.loads((broken.folder / "report.json").read_text())
    assert any("what earlier rounds left out" in output["what"] for output in report["outputs"])
    _, contract = report["method"]["contracts"]  # of the whole first round, and of those after it
    assert len(contract["notes"]) == 2
    contract["notes"].pop()  # the clients' ledgers have recorded that there was feedback, and masked starts
    forged = tmp_path / "report.json"
    forged.write_text(json.dumps(report))
    assert set(failed(forged, broken.folder / "ledger.jsonl")) > {13}


def failed(report: Path, ledger: Path | None = None) -> list[int]:
    """The checks that an audit fails."""
    verdicts = audit_files(report, ledger or report.with_name("ledger.jsonl"))
    return [verdict.check for verdict in verdicts if verdict.status == "FAIL"]
