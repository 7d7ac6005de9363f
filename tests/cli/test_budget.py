"""`fedlora budget`: what is spent, what is left, what several clients may claim; nothing is changed by looking."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
from accounting.pricing import epsilon
from fedlora_priv.config import Experiment
from fedlora_priv.federation.plans import plan_clients
from fedlora_priv.federation.standings import refusals

ROUND = PoissonGaussian(4.0, 0.05, 5, 1.0)
REPOSITORY = Path(__file__).parents[2]


def spend(path: Path, client_id: str, rounds: int, *, run: str = "ab", dataset_id: str = "notes") -> Path:
    """A client's ledger after some rounds, the last of them never committed."""
    opening = {"client_id": client_id, "dataset_id": dataset_id, "partition_id": "iid", "public": False}
    with Ledger.open(path, **opening) as ledger:
        for number in range(rounds):
            reservation = ledger.reserve(ROUND, round=number, run=run)
            if number < rounds - 1:
                ledger.commit(reservation)
    return path


@pytest.mark.parametrize("noise", [0.009, 1e-9, 5e-324])
def test_a_row_of_hardly_any_noise_is_one_line_and_not_a_crash(
    fedlora: Callable[..., Any], tmp_path: Path, noise: float
) -> None:
    """Nobody plans such a row; somebody may have written one."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(
        path, client_id="client-1", dataset_id="notes", partition_id="iid", public=False
    ) as ledger:
        ledger.reserve(PoissonGaussian(noise, 0.05, 5, 1.0), round=0, run="ab")
    said = fedlora("budget", str(path))
    assert said.code != 0
    assert f"a noise multiplier of {noise:g} has no price: 0.01 is the least" in said.err
    assert "defect" not in said.err


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Private data in three hands, of which nothing needs to exist to ask about budgets."""
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path / "home"))
    values: dict[str, Any] = {
        "experiment": {"name": "hospitals", "output": str(tmp_path / "run")},
        "data": {
            "source": str(tmp_path / "notes.tsv"), "dataset_id": "notes", "labels": ["0", "1"],
            "declared_examples_per_client": 1000,
        },
        "federation": {"clients": 3, "rounds": 4},
        "training": {"batch_size": 50},
        "privacy": {"epsilon": 1.0, "lifetime_epsilon": 2.0, "delta": 1e-5},
    }  # fmt: skip
    path = tmp_path / "experiment.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def home(tmp_path: Path, client_id: str) -> Path:
    return tmp_path / "home" / "clients" / client_id / "ledger.sqlite"


def test_a_ledger_is_shown_and_not_changed(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    path = spend(tmp_path / "ledger.sqlite", "client-1", 3)
    spend(path, "client-1", 2, run="cd")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    ran = fedlora("budget", path, "--limit", "1", "--json")
    assert (ran.code, ran.err) == (0, "")
    (ledger,) = json.loads(ran.out)["ledgers"]
    assert (ledger["charges"], ledger["uncommitted"], ledger["steps"]) == (5, 2, 25)
    assert ledger["epsilon"] == epsilon([ROUND] * 5, 1e-5)
    assert [run["epsilon"] for run in ledger["runs"]] == [
        epsilon([ROUND] * 3, 1e-5),
        epsilon([ROUND] * 2, 1e-5),
    ]
    left = ledger["rounds_left"]
    assert epsilon([ROUND] * (5 + left), 1e-5) <= 1 < epsilon([ROUND] * (6 + left), 1e-5)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_the_table_says_the_same(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    path = spend(tmp_path / "ledger.sqlite", "client-1", 3)
    ran = fedlora("budget", path, "--limit", "1")
    assert ran.code == 0
    for words in (
        "client-1",
        "3 (1 open)",
        f"{epsilon([ROUND] * 3, 1e-5):.4f}",
        "charged in full",
        "k) is unknown",
    ):
        assert words in ran.out


def test_several_ledgers_are_merged(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    one, two = spend(tmp_path / "1" / "ledger.sqlite", "client-1", 3), tmp_path / "2" / "ledger.sqlite"
    spend(two, "client-2", 5)
    export = tmp_path / "client-1.jsonl"
    opening = {"client_id": "client-1", "dataset_id": "notes", "partition_id": "iid", "public": False}
    with Ledger.open(one, **opening) as ledger:
        export.write_text(ledger.export_jsonl())

    def federation(*options: object) -> dict[str, Any]:
        ran = fedlora("budget", two.parent, export, one, "--json", *options)
        assert ran.code == 0, ran.err
        claims = json.loads(ran.out)["federation"]
        assert [claim["view"] for claim in claims] == ["server", "released-model", "colluding-clients"]
        return dict(claims[0])

    assert federation()["epsilon"] == epsilon([ROUND] * 5, 1e-5)  # client-1's copy is recognised
    assert federation("--overlapping")["epsilon"] == epsilon([ROUND] * 8, 1e-5)
    person = federation("--rows-each", "2")
    assert (person["rows_each"], person["epsilon"] > 2 * federation()["epsilon"]) == (2, True)
    assert "overlapping" in fedlora("budget", one, two).out


def test_an_experiment_names_ledgers_limit_and_round(
    fedlora: Callable[..., Any], experiment: Path, tmp_path: Path
) -> None:
    spend(home(tmp_path, "client-2"), "client-2", 3)
    spend(home(tmp_path, "client-3"), "client-3", 3, dataset_id="letters")
    ran = fedlora("budget", experiment, "--json")
    assert ran.code == 0, ran.err
    answered = json.loads(ran.out)
    assert (answered["limit"], answered["delta"]) == (2.0, 1e-5)
    assert answered["nothing_spent"] == ["client-1", "client-3"]  # another dataset has its own budget
    (ledger,) = answered["ledgers"]
    loaded = Experiment.load(experiment)
    planned = plan_clients(loaded, dict.fromkeys(loaded.client_ids, 1000))["client-2"].round_event()
    left = ledger["rounds_left"]
    spent = [ROUND] * 3
    assert epsilon([*spent, *[planned] * left], 1e-5) <= 2 < epsilon([*spent, *[planned] * (left + 1)], 1e-5)
    assert "no ledger here" in fedlora("budget", experiment).out


def test_a_plan_knows_which_ledger_would_refuse_it(experiment: Path, tmp_path: Path) -> None:
    loaded = Experiment.load(experiment)
    plans = plan_clients(loaded, dict.fromkeys(loaded.client_ids, 1000))
    spend(home(tmp_path, "client-1"), "client-1", 40)
    assert refusals(loaded, plans) == {}
    found = refusals(Experiment.load(experiment, ["privacy.lifetime_epsilon=1.0"]), plans)
    assert found.keys() == {"client-1"}
    assert "above the budget of 1" in found["client-1"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # a run that has begun is not refused by itself
    assert refusals(Experiment.load(experiment, ["privacy.lifetime_epsilon=1.0"]), plans) == {}
    public = Experiment.load(experiment, ["data.public=true"])
    assert refusals(public, plans) == {}


# --- bad input ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"{}\n", "row 0"),
        (b'{"schema":1', "row 0: is torn"),
        (b'{"schema":9}\n', "schema 9"),
    ],
)
def test_what_is_no_ledger_is_one_line(
    fedlora: Callable[..., Any], tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    ran = fedlora("budget", path)
    assert (ran.code, len(ran.err.splitlines())) == (6, 1)
    assert words in ran.err
    assert path.read_bytes() == content


def test_targets_that_hold_nothing_are_refused(
    fedlora: Callable[..., Any], tmp_path: Path, experiment: Path
) -> None:
    ran = fedlora("budget", tmp_path / "nowhere.sqlite")
    assert (ran.code, "No such file" in ran.err) == (6, True)
    (tmp_path / "empty").mkdir()
    ran = fedlora("budget", tmp_path / "empty")
    assert (ran.code, "there is no ledger in" in ran.err) == (6, True)
    ran = fedlora("budget", experiment, tmp_path)
    assert (ran.code, "asked about alone" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--delta", "2"], "delta must be at least 1e-09 and below 1"),
        (["--limit", "-1"], "limit must be finite and above 0"),
        (["--rows-each", "0"], "rows-each must be 1 or more"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line(
    fedlora: Callable[..., Any], tmp_path: Path, options: list[str], words: str
) -> None:
    ran = fedlora("budget", spend(tmp_path / "ledger.sqlite", "client-1", 2), *options)
    assert ran.code == 2, ran.err
    assert words in ran.err


def test_ledgers_that_contradict_each_other_are_refused(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    one, two = (
        spend(tmp_path / "a.sqlite", "client-1", 2),
        spend(tmp_path / "b.sqlite", "client-1", 2, run="cd"),
    )
    ran = fedlora("budget", one, two)
    assert (ran.code, "row 1" in ran.err, "rolled back" in ran.err) == (6, True, True)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    path = spend(tmp_path / "ledger.sqlite", "client-1", 1)
    script = (
        "import sys\nfrom fedlora_priv.cli import app\n"
        f"app(['budget', {str(path)!r}, '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'opacus', 'peft', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["ledgers"][0]["charges"] == 1
