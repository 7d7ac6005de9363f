"""What an experiment trains and evaluates on, and what it may not look at."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.data import hub, sources
from fedlora_priv.data.sources import Dataset, load_source, read_movie_snippets
from fedlora_priv.data.tables import Columns, Table
from fedlora_priv.errors import ConfigError, DataError

ROWS = [(f"text {i}", "ham" if i % 3 else "spam") for i in range(60)]


def experiment(source: Path | str, *overrides: str, public: bool = True) -> Experiment:
    text = f"[experiment]\nname='t'\n[data]\nsource={json.dumps(str(source))}\npublic={str(public).lower()}\n"
    text += "evaluation_examples=10\n" + (
        "" if public else "declared_examples_per_client=64\ndataset_id='mail'\nlabels=['ham', 'spam']\n"
    )
    return Experiment.from_toml(f"{text}[privacy]\nepsilon=1\n", overrides)


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [("sentence", "label"), *rows]), encoding="utf-8")
    return path


def pairs(dataset: Dataset) -> list[tuple[str, str]]:
    assert dataset.labels is not None
    return [
        (text, dataset.label_names[label]) for text, label in zip(dataset.texts, dataset.labels, strict=True)
    ]


def test_a_file_is_split_by_the_public_seed(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    source = load_source(experiment(path))
    assert source.evaluation is not None
    assert (len(source.train), len(source.evaluation)) == (50, 10)
    assert sorted(pairs(source.train) + pairs(source.evaluation)) == sorted(ROWS)
    assert source.train.label_names == ["ham", "spam"]
    assert source.credit == "mail.tsv"

    again = load_source(experiment(path))
    other = load_source(experiment(path, "experiment.seed=1"))
    assert again.evaluation == source.evaluation
    assert other.evaluation != source.evaluation


def test_a_folder_has_its_own_evaluation_split(tmp_path: Path) -> None:
    write_tsv(tmp_path / "train.tsv", ROWS[:40])
    write_tsv(tmp_path / "dev.tsv", ROWS[40:])
    source = load_source(experiment(tmp_path))
    assert source.evaluation is not None
    assert pairs(source.train) == ROWS[:40]
    assert pairs(source.evaluation) == ROWS[40:]


def test_named_files_in_a_folder(tmp_path: Path) -> None:
    write_tsv(tmp_path / "first.tsv", ROWS[:40])
    write_tsv(tmp_path / "second.tsv", ROWS[40:])
    files = ("data.train_file=first.tsv", "data.evaluation_file=second.tsv")
    source = load_source(experiment(tmp_path, *files))
    assert source.evaluation is not None
    assert pairs(source.evaluation) == ROWS[40:]
    with pytest.raises(DataError, match=r"holds no third.tsv"):
        load_source(experiment(tmp_path, "data.train_file=third.tsv"))
    with pytest.raises(DataError, match=r"holds no train.tsv"):
        load_source(experiment(tmp_path))


def test_file_settings_without_a_folder_are_refused(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    for source in (path, "demo:movie-snippets", "owner/name"):
        with pytest.raises(ConfigError, match="name files inside a folder"):
            load_source(experiment(source, "data.train_file=a.tsv"))


def test_private_evaluation_data_is_not_even_read(tmp_path: Path) -> None:
    write_tsv(tmp_path / "train.tsv", ROWS)
    (tmp_path / "dev.tsv").write_bytes(b"\xff broken")
    assert load_source(experiment(tmp_path, public=False)).evaluation is None
    with pytest.raises(DataError, match=r"dev.tsv is not UTF-8"):
        load_source(experiment(tmp_path, "data.evaluation_public=true", public=False))


def test_no_public_evaluation_split_is_cut_from_private_data(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    with pytest.raises(ConfigError, match="cut from private data"):
        load_source(experiment(path, "data.evaluation_public=true", public=False))
    assert len(load_source(experiment(path, public=False)).train) == 60


def test_defects(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    with pytest.raises(DataError, match="leaves nothing of 60 examples"):
        load_source(experiment(path, "data.evaluation_examples=60"))
    with pytest.raises(DataError, match="only one label"):
        load_source(experiment(write_tsv(tmp_path / "one.tsv", [("a", "x"), ("b", "x")])))
    with pytest.raises(DataError, match=r"there is no .*none.tsv"):
        load_source(experiment(tmp_path / "none.tsv"))
    write_tsv(tmp_path / "train.tsv", ROWS)
    write_tsv(tmp_path / "dev.tsv", [("a", "eggs")])
    with pytest.raises(DataError, match="1 label besides the 2 that are known"):
        load_source(experiment(tmp_path))


def test_numeric_labels_keep_their_order(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "n.tsv", [(f"t{i}", str(i)) for i in range(12)])
    source = load_source(experiment(path, "data.evaluation_examples=1"))
    assert source.train.label_names == [str(i) for i in range(12)]


def test_a_dataset_hides_its_rows() -> None:
    dataset = Dataset(["patient A"], [0], ["ill", "well"])
    assert "patient" not in repr(dataset)
    assert dataset.take([0, 0]).texts == ["patient A", "patient A"]


def test_movie_snippets_labels_are_the_sign_of_the_mean_rating(tmp_path: Path) -> None:
    path = tmp_path / "truth.txt"
    path.write_text("1\t2.5\tgood\tindeed\n2\t-0.05\tbad\n3\t0\tneither\n4\t0.0\tneither\n", encoding="utf-8")
    assert read_movie_snippets(path) == (["good\tindeed", "bad"], [1, 0])


def test_demo_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{i}\t{'-' if i % 2 else ''}1.5\tsnippet {i}\n" for i in range(1, 41))
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(sources, "fetch", lambda asset, say: tmp_path)
    source = load_source(experiment("demo:movie-snippets"))
    assert source.evaluation is not None
    assert (len(source.train), len(source.evaluation)) == (30, 10)
    assert source.train.label_names == ["negative", "positive"]
    assert source.train.labels is not None
    assert all(
        (int(text.split()[1]) % 2 == 0) == label
        for text, label in zip(source.train.texts, source.train.labels, strict=True)
    )
    assert "MIT" in source.credit


class Split(dict[str, list[object]]):
    """As much of a hub split as the loader touches: columns by name and their features."""

    def __init__(self, class_names: list[str] | None = None, **columns: list[object]) -> None:
        super().__init__(columns)
        self.column_names = list(columns)
        self.features = {
            name: SimpleNamespace(names=class_names if name == "label" else None) for name in columns
        }


def test_hub_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    splits = {
        "train": Split(["neg", "pos"], sentence=["a", "b"], label=[1, 0]),
        "validation": Split(["neg", "pos"], sentence=["c"], label=[1]),
        "test": Split(["neg", "pos"], sentence=["d"], label=[-1]),
    }
    both = Columns("sentence", label="label")
    monkeypatch.setattr(hub, "_load_splits", lambda *names: asked.append(names) or splits)
    train, evaluation = hub.load("owner/name:part", both, evaluation=True)
    assert asked == [("owner/name", "part")]
    assert train == Table(["a", "b"], ["pos", "neg"])
    assert evaluation == Table(["c"], ["pos"])
    assert hub.load("owner/name", both, evaluation=False)[1] is None
    prompted = Columns("sentence", prompt="sentence")
    assert hub.load("owner/name", prompted, evaluation=False)[0] == Table(["a", "b"], None, ["a", "b"])
    del splits["validation"]
    with pytest.raises(DataError, match="rows have no label"):
        hub.load("owner/name", both, evaluation=True)
    with pytest.raises(DataError, match=r"the columns are sentence, label; set data\.text_column"):
        hub.load("owner/name", Columns("text", label="label"), evaluation=False)


def test_an_unreachable_hub_is_told_quickly_and_names_the_offline_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_api = pytest.importorskip("huggingface_hub")
    pytest.importorskip("datasets")

    def unreachable(self: object, name: str, timeout: float) -> None:
        assert timeout <= 10
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub_api.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(hub_api.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"ConnectionError.*offline, set data.source to a local"):
        load_source(experiment("owner/name"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("imdb", True),
        ("stanfordnlp/sst2", True),
        ("glue:sst2", True),
        ("/data", False),
        ("../up", False),
        ("a/b/c", False),
        ("mail.tsv", False),
        ("", False),
    ],
)
def test_hub_names(source: str, expected: bool) -> None:
    assert hub.is_hub_name(source) is expected


def test_a_swapped_label_column_never_makes_private_texts_into_labels(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    swapped = experiment(path, "data.label_column='sentence'", "data.text_column='label'", public=False)
    with pytest.raises(DataError, match="60 labels besides the 2") as refused:
        load_source(swapped)
    assert "text 1" not in str(refused.value)


def test_declared_labels_fix_the_order_of_the_classes(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mail.tsv", ROWS)
    source = load_source(experiment(path, "data.labels=['spam', 'ham', 'unsure']"))
    assert source.train.label_names == ["spam", "ham", "unsure"]
    assert set(pairs(source.train)) <= set(ROWS)


def modelling(source: Path | str, *overrides: str) -> Experiment:
    return experiment(source, "model.task=language-modelling", *overrides)


def test_a_language_model_reads_paragraphs_and_needs_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text("\n\n".join(f"line {i}\nof the play" for i in range(30)), encoding="utf-8")
    source = load_source(modelling(path))
    assert source.evaluation is not None
    assert (len(source.train), len(source.evaluation)) == (20, 10)
    assert (source.train.labels, source.train.label_names, source.train.prompts) == (None, [], None)
    held = {*source.train.texts, *source.evaluation.texts}
    assert held == {f"line {i}\nof the play" for i in range(30)}
    with pytest.raises(DataError, match="plain text"):
        load_source(experiment(path))


def test_prompts_stay_with_their_texts(tmp_path: Path) -> None:
    rows = [{"ask": f"ask {i}", "say": f"say {i}"} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[0]))
    source = load_source(modelling(tmp_path, "data.text_column=say", "data.prompt_column=ask"))
    assert source.evaluation is not None
    assert source.evaluation.prompts == ["ask 0"]
    taken = source.train.take([7, 3])
    assert (taken.prompts, taken.texts) == (["ask 7", "ask 3"], ["say 7", "say 3"])
    assert "ask" not in repr(taken)


def test_the_demo_text_without_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{i}\t1.5\tsnippet {i}\n" for i in range(1, 41))
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(sources, "fetch", lambda asset, say: tmp_path)
    assert load_source(modelling("demo:movie-snippets")).train.labels is None
