"""Fine-tune a sentence classifier with a Hugging Face `Trainer`, privately: ``python -m examples.huggingface_trainer``.

Without options it takes the demo's encoder and film reviews; ``--data`` takes a folder with train.tsv and dev.tsv,
columns sentence and label (such as SST-2's), ``--model`` a folder with a BERT-like encoder. The rows of dev.tsv, or
every tenth film review, are taken as public: they are never trained on, and say how good the model is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from accounting.ledger import Ledger
from fedlora_priv.data.assets import MINILM, MOVIE_SNIPPETS, fetch
from fedlora_priv.data.sources import read_movie_snippets
from fedlora_priv.data.tables import Columns, read_table
from fedlora_priv.errors import FedloraError
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training.huggingface import PrivacyCallback

Texts = tuple[list[str], list[int]]
Row = dict[str, Any]


def read(folder: Path | None) -> tuple[Texts, Texts]:
    """Return the private and the public texts, with their labels."""
    if folder is not None:
        tables = [
            read_table(folder / name, Columns("sentence", "label")) for name in ("train.tsv", "dev.tsv")
        ]
        private, public = ((table.texts, [int(label) for label in table.labels or []]) for table in tables)
        return private, public
    [file] = MOVIE_SNIPPETS.files
    texts, labels = read_movie_snippets(fetch(MOVIE_SNIPPETS, print) / file)
    order = np.random.default_rng(1).permutation(len(texts))
    held_out, rest = order[::10], np.delete(order, np.s_[::10])
    return ([texts[i] for i in rest], [labels[i] for i in rest]), (
        [texts[i] for i in held_out], [labels[i] for i in held_out]
    )  # fmt: skip


def main() -> None:
    options = arguments()
    source = options.model or fetch(MINILM, print)
    tokenizer = AutoTokenizer.from_pretrained(source)
    private, public = ([
        {"input_ids": ids, "label": label}
        for ids, label in zip(tokenizer(texts, truncation=True, max_length=64)["input_ids"], labels, strict=True)
    ] for texts, labels in read(options.data))  # fmt: skip

    torch.manual_seed(1)
    model = get_peft_model(
        MeanPoolingClassifier.from_pretrained(str(source), num_labels=2),
        LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    trainer: Any = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output), max_steps=options.steps, per_device_train_batch_size=options.batch,
            learning_rate=options.learning_rate, lr_scheduler_type="constant", weight_decay=0, optim="adamw_torch",
            save_steps=20, logging_steps=20, per_device_eval_batch_size=64, dataloader_pin_memory=False,
            report_to=[], disable_tqdm=True,
        ),
        train_dataset=private,
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip

    def accuracy() -> float:
        predicted = trainer.predict(public).predictions.argmax(axis=1)
        return float(np.mean(predicted == [row["label"] for row in public]))

    options.output.mkdir(parents=True, exist_ok=True)
    with Ledger.open(
        options.output / "ledger.sqlite",  # for private data: outside of what is thrown away, one for each data set
        client_id="me", dataset_id="reviews", partition_id="all", public=True,
    ) as ledger:  # fmt: skip
        privacy = PrivacyCallback(
            ledger=ledger, epsilon=options.epsilon, delta=1e-5, declared_examples=len(private)
        )
        privacy.attach(trainer)
        print(f"accuracy before: {accuracy():.3f} on {len(public)} public rows")
        trainer.train()
        print(f"accuracy after:  {accuracy():.3f}")
        print(privacy.spent())
    trainer.save_model(str(options.output / "adapter"))


def arguments() -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train.tsv and dev.tsv; default: film reviews")
    parser.add_argument("--model", type=Path, help="folder with an encoder; default: all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, default=Path("runs/huggingface"))
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=512, help="expected size of a Poisson batch")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except FedloraError as error:  # one line that says what is wrong and what to do
        raise SystemExit(str(error)) from None
