"""The section that says whose text is trained on, and what about it is public: [data]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedlora_priv.config_base import Section, demo_must_exist

DEMO_DATASETS = ("demo:movie-snippets",)


class DataSection(Section):
    """The text, its labels or prompts, its split over clients, and what about it is public."""

    source: str = Field(
        default="demo:movie-snippets",
        min_length=1,
        description="'demo:movie-snippets' (MIT; Hutto & Gilbert 2014), a local tsv/csv/jsonl file, for language "
        "modelling also a txt file (each paragraph is a row), a local folder with train.* and perhaps dev.*, or a "
        "hub dataset name.",
    )
    train_file: str | None = Field(
        default=None, min_length=1, description="Training file inside a source folder. Default: train.*."
    )
    evaluation_file: str | None = Field(
        default=None,
        min_length=1,
        description="Evaluation file inside a source folder. Default: dev.*, validation.* or test.*; "
        "without any, examples are held out of the training data if that is public.",
    )
    text_column: str = Field(default="sentence", min_length=1, description="Column that holds the text.")
    label_column: str = Field(
        default="label", min_length=1, description="Column that holds the label. Classification only."
    )
    prompt_column: str | None = Field(
        default=None,
        min_length=1,
        description="Column that holds an instruction, for instruction tuning: the model sees it, a newline, and the "
        "text, of which alone the loss is taken. Language modelling only.",
    )
    labels: Annotated[tuple[str, ...] | None, Field(strict=False)] = Field(
        default=None,
        min_length=2,
        description="PUBLIC names of the labels, in the order of the classes; rows with another label are "
        "refused. Required for classification unless the data is public: names found in private rows would be "
        "released.",
    )
    evaluation_examples: int = Field(
        default=1000,
        ge=1,
        description="Examples held out of PUBLIC data for evaluation, drawn by the public seed, where the source "
        "has no evaluation split of its own. From private data nothing is held out.",
    )
    evaluation_public: bool = Field(
        default=False,
        description="Declare the evaluation split public. Otherwise no accuracy or perplexity is reported (unless "
        "all data is public), because one over private rows is a release outside the guarantee.",
    )
    public: bool = Field(
        default=False,
        description="Declare all data public: the report then says that its privacy claim is a simulation.",
    )
    partition: Literal["iid", "dirichlet", "one-label-per-client"] = Field(
        default="iid",
        description="How training examples are split over the clients; disjoint. Only 'iid' needs no labels.",
    )
    dirichlet_alpha: float = Field(
        default=0.5,
        gt=0,
        description="Concentration of the 'dirichlet' partition; smaller is more skewed in labels.",
    )
    dataset_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Public, stable name of the dataset; a client keeps one privacy ledger for each.",
    )
    declared_examples_per_client: int | None = Field(
        default=None,
        ge=1,
        description="PUBLIC number of examples per client, from which sampling rate and noise "
        "are planned. Required unless the data is public: a true private size must not leak.",
    )
    declared_examples: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Field(
        default=(),
        description="Instead of `declared_examples_per_client`: one PUBLIC number for each client, in roster order.",
    )

    @field_validator("source")
    @classmethod
    def _known_demo(cls, source: str) -> str:
        """Refuse a demo dataset that there is not."""
        return demo_must_exist(source, DEMO_DATASETS)

    @property
    def evaluation_may_be_reported(self) -> bool:
        """Whether evaluating releases nothing private: all data, or its evaluation split, is public."""
        return self.public or self.evaluation_public
