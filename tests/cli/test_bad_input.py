"""Bad input: one clear line, the documented exit code, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounting.ledger import Ledger

Prepare = Callable[[Path, Path], list[str]]
"""(scratch folder, tiny model) → overrides."""


def overrides(*values: str) -> Prepare:
    return lambda scratch, model: list(values)


def one_file(content: bytes) -> Prepare:
    def prepare(scratch: Path, model: Path) -> list[str]:
        (scratch / "rows.tsv").write_bytes(content)
        return [f'data.source="{scratch / "rows.tsv"}"', "data.evaluation_examples=1"]

    return prepare


def strange_folder(scratch: Path, model: Path) -> list[str]:
    (scratch / "mine").mkdir()
    (scratch / "mine" / "thesis.txt").write_text("precious")
    return [f'experiment.output="{scratch / "mine"}"']


def output_is_a_file(scratch: Path, model: Path) -> list[str]:
    (scratch / "occupied").write_text("x")
    return [f'experiment.output="{scratch / "occupied"}/run"']


def damaged_model(change: Callable[[Path], None]) -> Prepare:
    """Overrides that name a changed copy of the tiny model."""

    def prepare(scratch: Path, model: Path) -> list[str]:
        copy = Path(shutil.copytree(model, scratch / "model"))
        change(copy)
        return [f'model.source="{copy}"']

    return prepare


def not_a_number(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("attention.self.value.weight"))
    weights[name] = weights[name] * float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_padding_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "pad_token"}))


def undeclared_label(scratch: Path, model: Path) -> list[str]:
    return [
        *one_file(b"sentence\tlabel\ngood\t1\nbad\t0\nodd\t7\n")(scratch, model),
        'data.labels=["0", "1"]',
    ]


WHOLE = ("communication.support=dense", "communication.density=1.0")
MODELLING = ("model.task=language-modelling", 'lora.target_modules="all-linear"')

BAD: dict[str, tuple[Prepare, int, str]] = {
    "unknown key": (overrides("privacy.epsilonn=2"), 2, "epsilon"),
    "wrong type": (overrides('federation.rounds="three"'), 2, "rounds"),
    "epsilon 0": (overrides("privacy.epsilon=0"), 2, "epsilon"),
    "epsilon negative": (overrides("privacy.epsilon=-1"), 2, "epsilon"),
    "delta too large": (overrides("privacy.delta=0.01"), 2, "not below 1/400"),
    "epsilon out of reach": (overrides("privacy.epsilon=1e-12"), 2, "epsilon"),
    "fewer clients than the quorum": (
        overrides("federation.clients=2", "secure_aggregation.max_colluders=2"), 2, "quorum",
    ),
    "no such target module": (overrides('lora.target_modules=["qwery"]'), 2, "query"),
    "LoRA on embeddings": (overrides('lora.target_modules=["word_embeddings"]'), 2, "word_embeddings"),
    "DoRA": (overrides("lora.use_dora=true"), 2, "DP-SGD"),
    "mode not built": (overrides('privacy.mode="distributed"'), 2, "not built yet"),
    "batch larger than the data": (
        overrides("training.batch_size=200"), 2, "training.batch_size = 200 is above the 80 examples of client-1",
    ),
    "empty client": (overrides("federation.clients=450", "training.batch_size=1"), 3, "client"),
    "no such label column": (overrides('data.label_column="stars"'), 3, "stars"),
    "not UTF-8": (one_file(b"sentence\tlabel\nna\xefve\t1\nbad\t0\n"), 3, "UTF-8"),
    "one label only": (one_file(b"sentence\tlabel\ngood\t1\nfine\t1\nnice\t1\n"), 3, "label"),
    "no rows": (one_file(b"sentence\tlabel\n"), 3, "rows.tsv"),
    "no such data": (overrides('data.source="/no/such/rows.tsv"'), 3, "/no/such/rows.tsv"),
    "no such model": (overrides('model.source="/no/such/model"'), 3, "/no/such/model"),
    "hub without a network": (overrides('model.source="nobody/nothing"'), 3, "local folder"),
    "a label that is not declared": (undeclared_label, 3, "1 label besides the 2"),
    "rows longer than the model": (overrides("model.max_length=33"), 2, "33 is above the 32 positions"),
    "weights that are not numbers": (damaged_model(not_a_number), 2, "NaN in its weights"),
    "a tokenizer without padding": (damaged_model(no_padding_token), 2, "neither a padding nor an end-of-sequence"),
    "an encoder asked for the next token": (overrides(*MODELLING), 2, "causal language model"),
    "labels for a language model": (overrides(*MODELLING, 'data.labels=["0", "1"]'), 2, "no labels"),
    "prompts for a classifier": (overrides("data.prompt_column=ask"), 2, "no effect on classification"),
    "no such prompt column": (overrides(*MODELLING, "data.prompt_column=ask"), 3, "no column 'ask'"),
    "a device that is not there": (overrides("training.device=cuda:63"), 2, "cuda:63"),
    "ghost clipping of recomputed layers": (
        overrides("training.per_example=ghost", "training.gradient_checkpointing=true"), 2, "recomputed activations",
    ),
    "ranks for other clients than there are": (
        overrides("federation.method=flexlora", "lora.ranks=[2, 1]"), 2, "2 ranks for 5 clients",
    ),
    "a rank above the matrix": (overrides(*WHOLE, "federation.method=fra", "lora.rank=33"), 2, "33"),
    "a rank above the matrix, without training A": (
        overrides("federation.method=fedsvd", "lora.rank=33"), 2, "33",
    ),
    "a hybrid without its second phase": (
        overrides(*WHOLE, "federation.method=hybrid", "aggregation.switch_round=9"), 2, "one of its phases has none",
    ),
    "sketches in part": (overrides("federation.method=fra"), 2, "mean nothing in part"),
    "an option of another method": (overrides("aggregation.products=exact"), 2, "no effect with federation.method"),
    "a folder of somebody else's files": (strange_folder, 6, "no run folder"),
    "output under a file": (output_is_a_file, 6, "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_its_exit_code(
    case: str,
    fedlora: Callable[..., Any],
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    prepare, code, names = BAD[case]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = [part for value in prepare(scratch, tiny_model) for part in ("--set", value)]
    ran = fedlora("run", experiment_file(), *arguments)
    assert ran.code == code, ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert names in ran.err
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    if case.startswith("a folder"):
        assert (scratch / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("run", "/no/such.toml"), 2), (("audit", "/no/such/run"), 6), (("report", "/no/such/run"), 6)],
)
def test_a_path_that_is_not_there(fedlora: Callable[..., Any], arguments: tuple[str, ...], code: int) -> None:
    ran = fedlora(*arguments)
    assert (ran.code, ran.err.count("\n")) == (code, 1)


def test_the_doctor_refuses_an_experiment_as_its_run_would(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    (changed,) = damaged_model(not_a_number)(tmp_path / "scratch", tiny_model)
    file = experiment_file()
    answers = [fedlora(command, file, "--set", changed) for command in ("run", "doctor")]
    assert {ran.code for ran in answers} == {2}
    assert {ran.err for ran in answers} == {answers[0].err}
    assert "NaN in its weights" in answers[0].err


def test_a_report_that_breaks_the_schema(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"schema_version": 1}))
    (tmp_path / "ledger.jsonl").write_text("")
    ran = fedlora("audit", tmp_path)
    assert ran.code == 6
    assert ran.err.count("\n") == 1


def test_a_full_disk_keeps_the_last_checkpoint(
    fedlora: Callable[..., Any],
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills up at the second checkpoint; once there is room, the same command finishes the run."""
    import errno
    import os

    real, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    ran = fedlora("run", experiment_file())
    assert ran.code == 6
    assert "No space left on device" in ran.err
    assert ran.err.count("\n") == 1
    monkeypatch.setattr(os, "fsync", real)
    run, kept = (
        (tmp_path / "run" / "run.json").read_bytes(),
        list((tmp_path / "run" / "checkpoints").glob("*.npz")),
    )
    assert kept
    assert fedlora("run", experiment_file()).code == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == run  # the same run went on


def test_a_damaged_checkpoint_names_itself_and_an_older_one_serves(
    fedlora: Callable[..., Any],
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fedlora_priv.federation import record

    def dies(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(record, "write", dies)
        assert fedlora("run", experiment_file()).code == 130
    other = fedlora("run", experiment_file(), "--set", "privacy.epsilon=7.5")
    assert other.code == 6
    assert "privacy.epsilon was " in other.err
    assert ", is 7.5" in other.err
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    ran = fedlora("run", experiment_file())
    assert ran.code == 6
    assert newest.name in ran.err
    newest.unlink()
    run = (tmp_path / "run" / "run.json").read_bytes()
    assert fedlora("run", experiment_file()).code == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == run
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    # The last round alone was conducted again, from the same start: masked again, not charged again.
    assert [len(entry["remasked"]) for entry in report["rounds"]] == [0, 0, 5]
    assert len({claim["epsilon"] for claim in report["claims"]}) == 1


def test_another_experiment_may_use_a_folder_in_which_nothing_began(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = experiment_file()
    assert fedlora("run", file, "--set", 'lora.target_modules=["nothing"]').code == 2
    assert fedlora("run", file, "--set", "federation.rounds=1").code == 0
    shutil.rmtree(tmp_path / "run")


def test_damaged_homes_are_named_not_called_defects(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    private = {
        "public": False,
        "dataset_id": "tiny",
        "labels": ["0", "1"],
        "declared_examples_per_client": 80,
    }
    home = tmp_path / "home" / "clients" / "client-2"
    home.mkdir(parents=True)
    for name in ("identity.key", "guard.sqlite"):
        (home / name).write_bytes(b"\x01damaged")
        ran = fedlora("run", experiment_file(data=private))
        assert ran.code == 6, ran.err
        assert name in ran.err
        (home / name).unlink()


def drop(rounds: range, *clients: int) -> dict[str, Any]:
    """Lose these clients before `mask` in these rounds."""
    return {
        "dropouts": [
            {"round": number, "client_id": f"client-{i}", "phase": "mask"}
            for number in rounds
            for i in clients
        ]
    }


def test_a_run_without_any_sum_says_so(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = experiment_file(simulate=drop(range(1, 3), 1, 2), federation={"rounds": 2})
    ran = fedlora("run", file)
    assert ran.code == 5
    assert "no round gave a sum" in ran.err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["rounds"][1]["survivors"] == []


def test_a_run_stops_after_three_lost_rounds_instead_of_spending_on(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = experiment_file(simulate=drop(range(2, 8), 1, 2), federation={"rounds": 8})
    ran = fedlora("run", file)
    assert ran.code == 5
    assert "gave no sum" in ran.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["rounds"]) == 4


def test_no_public_file_says_where_things_lie(
    fedlora: Callable[..., Any],
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Path,
) -> None:
    assert fedlora("run", experiment_file(federation={"rounds": 1})).code == 0
    run = tmp_path / "run"
    public = [run / "report.json", run / "report.html", run / "metrics.jsonl", *(run / "adapter").iterdir()]
    for path in public:
        for place in (tiny_model, tiny_data, tmp_path):
            assert str(place).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("plan", "{toml}", "--plot", "page.html"), "--plot goes with --what-if"),
        (("budget", "{folder}", "--set", "privacy.epsilon=2"), "--set goes with an experiment's TOML file"),
        (("audit", "{toml}",), "is an experiment, not a report"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(
    fedlora: Callable[..., Any],
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    line: str,
) -> None:
    paths = {"toml": str(experiment_file()), "folder": str(tmp_path)}
    ran = fedlora(*(argument.format(**paths) for argument in arguments))
    assert (ran.code, line in ran.err) == (2, True), ran.err


def test_of_several_ledgers_the_damaged_one_is_named(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    Ledger.open(
        tmp_path / "ledger.sqlite", client_id="a", dataset_id="d", partition_id="iid", public=True
    ).close()
    (tmp_path / "other.jsonl").write_text("{\n")
    ran = fedlora("budget", tmp_path, tmp_path / "other.jsonl")
    assert ran.code == 6
    assert "other.jsonl: ledger row 0" in ran.err


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", '{"a": "xyz"}'])
def test_a_file_that_is_no_roster_is_named_once(
    fedlora: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    for name in ("report.json", "ledger.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "keys.json").write_text(text)
    ran = fedlora("audit", tmp_path, "--roster", tmp_path / "keys.json")
    assert (ran.code, ran.err.count("keys.json")) == (2, 1), ran.err


def test_a_run_that_diverged_stops_at_once_and_says_why(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = experiment_file(federation={"rounds": 4}, training={"learning_rate": 1e6})
    ran = fedlora("run", file)
    assert ran.code == 5
    assert "training diverged: lower training.learning_rate" in ran.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["rounds"]) == 2, "the first gave a sum, the second was refused by all"


@pytest.mark.parametrize(
    ("budget", "words"), [("50 parsecs", "write 50kB"), ("5kB", "keys, shares and framing alone take")]
)
def test_a_budget_that_cannot_be_is_an_option_that_is_wrong(
    fedlora: Callable[..., Any], experiment_file: Callable[..., Path], budget: str, words: str
) -> None:
    ran = fedlora("plan", experiment_file(), "--upload-budget", budget)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith("error: --upload-budget: ")
    assert words in ran.err
