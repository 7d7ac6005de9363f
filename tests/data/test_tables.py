"""Files of every format are read alike, and every defect is named by file and place."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora_priv.data.tables import Columns, Table, read_table
from fedlora_priv.errors import DataError

BOTH = Columns("sentence", label="label")
FILES = {
    "a.tsv": "sentence\tlabel\nit's \"odd\t1\nline\u2028break\t0\n",
    "a.csv": 'label,sentence\n1,"it\'s ""odd"\n0,line\u2028break\n',
    "a.jsonl": '{"sentence": "it\'s \\"odd", "label": 1}\n\n{"label": 0.0, "sentence": "line\u2028break"}\n',
}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats_agree(tmp_path: Path, name: str, newline: str, mark: str) -> None:
    path = write(tmp_path, name, mark + FILES[name].replace("\n", newline))
    assert read_table(path, BOTH) == Table(["it's \"odd", "line\u2028break"], [1, 0])


def test_labels_are_texts_unless_all_are_whole_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "sentence\tlabel\na\t1\nb\tspam\n")
    assert read_table(path, BOTH).labels == ["1", "spam"]


def test_csv_fields_may_hold_newlines_and_long_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f'sentence,label\n"two\nlines",0\n{"x" * 200_000},1\n')
    texts = read_table(path, BOTH).texts
    assert texts[0] == "two\nlines"
    assert len(texts[1]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.tsv",
            "text\tstars\nok\t1\n",
            "line 2 has no column 'sentence'; the columns are text, stars; set data.text_column",
        ),
        (
            "a.tsv",
            "sentence\tstars\nok\t1\n",
            "no column 'label'; the columns are sentence, stars; set data.label_column",
        ),
        ("a.tsv", "sentence\tlabel\nok\t1\nbad\n", "a.tsv, line 3: 1 columns where the header has 2"),
        ("a.tsv", "sentence\tlabel\nok\t\n", "line 2: column 'label' holds no label"),
        ("a.tsv", "sentence\tlabel\nok\tNaN\n", "line 2: column 'label' holds no label"),
        ("a.tsv", "sentence\tlabel\n", "holds no examples"),
        ("a.tsv", "", "holds no examples"),
        ("a.csv", "", "holds no examples"),
        ("a.jsonl", "\n", "holds no examples"),
        ("a.csv", 'sentence,label\n"open,1\n', "not valid CSV"),
        ("a.csv", "sentence,label\na,b,1\n", "line 2: 3 columns where the header has 2"),
        ("a.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"sentence": "a"}\n', "line 1 has no column 'label'"),
        ("a.jsonl", '{"sentence": "a", "label": null}\n', "holds no label"),
        ("a.jsonl", '{"sentence": "a", "label": NaN}\n', "holds no label"),
        ("a.jsonl", '{"sentence": "a", "label": 0.5}\n', "neither a text nor a whole number"),
        ("a.jsonl", '{"sentence": 7, "label": 1}\n', "column 'sentence' holds no text"),
        ("a.jsonl", '{"sentence": null, "label": 1}\n', "column 'sentence' holds no text"),
        ("a.tsv", b"sentence\tlabel\nok\t1\ncaf\xe9\t0\n", "a.tsv is not UTF-8: byte 23, line 3"),
        ("a.txt", "hello", "a.txt is plain text, which has no column for data.label_column"),
        ("a.md", "hello", "a.md is none of .csv, .jsonl, .tsv, .txt"),
    ],
)
def test_defects_are_named(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, name, content), BOTH)
    assert words in str(caught.value)


def test_errors_quote_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"sentence": "patient is ill", "label": 0.5}\n')
    with pytest.raises(DataError) as caught:
        read_table(path, BOTH)
    assert "patient" not in str(caught.value)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.tsv", BOTH)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_rows_of_plain_text_are_its_paragraphs(tmp_path: Path, newline: str) -> None:
    content = "\n\nFirst:\nSpeak. \n\n \t\n\nAll:\n  No more.\n\nEnd\n".replace("\n", newline)
    table = read_table(write(tmp_path, "play.txt", content), Columns("text"))
    assert table == Table(["First:\nSpeak. ", "All:\n  No more.", "End"])


def test_prompts_are_read_beside_texts_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"ask": "2 + 2?", "say": "4"}\n{"ask": "", "say": "what?"}\n')
    assert read_table(path, Columns("say", prompt="ask")) == Table(["4", "what?"], None, ["2 + 2?", ""])


@pytest.mark.parametrize(
    ("name", "content", "columns", "words"),
    [
        ("a.txt", " \n\n", Columns("text"), "a.txt holds no examples"),
        ("a.txt", "one", Columns("text", prompt="ask"), "no column for data.prompt_column"),
        ("a.csv", "say\nhi\n", Columns("say", prompt="ask"), "no column 'ask'; the columns are say"),
        ("a.jsonl", '{"say": "hi", "ask": 3}\n', Columns("say", prompt="ask"), "column 'ask' holds no text"),
    ],
)
def test_defects_of_rows_for_language_models(
    tmp_path: Path, name: str, content: str, columns: Columns, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, name, content), columns)
    assert words in str(caught.value)
