"""A small Chinese BERT of piccolo's kind: what the forgetting benchmark can fine-tune in minutes.

512 positions, trained by the recipe's own losses:

    python -m benchmarks.small_bert --vocabulary vocab.txt --out FOLDER
        --pairs FILE:QUERY:PASSAGE... --scored FILE:LEAST:MOST... --texts FILE

Random weights at first, 4 layers of 256 numbers; a few minutes on two cores. Texts (documents with
empty lines between them, gzipped) give pairs of a sentence and what surrounds it (the inverse cloze
task, Lee et al. 2019), so that all 512 positions are trained.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.learner import Learner
from stella_ray.learn.mixing import ExampleStream, Mixture
from stella_ray.learn.recipe import AnchorSettings, ComputeSettings, OptimizerSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.learn.trainee import Trainee


def main() -> None:
    """Make the folder and train it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--vocabulary", type=Path, required=True, help="a WordPiece vocab.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", required=True)
    parser.add_argument("--scored", nargs="*", default=[])
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        untrained = Path(scratch) / "untrained"
        write_untrained(untrained, options.vocabulary, options.layers, options.hidden)
        train(untrained, options, Path(scratch))


def write_untrained(folder: Path, vocabulary: Path, layers: int, hidden: int) -> None:
    """A BERT of random weights that pools by the mean."""
    with vocabulary.open(encoding="utf-8") as file:
        words = [line.rstrip("\n") for line in file]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(folder)
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(types.items())
    ]
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    prompts = {"query": "查询: ", "passage": "结果: "}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def clozes(path: Path, out: Path) -> Path:
    """A pair for each document: its middle sentence, and up to 510 characters around it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        documents = file.read().split("\n\n")
    with out.open("w", encoding="utf-8") as made:
        for document in documents:
            sentences = re.findall(r"[^。！？\n]+[。！？]?", document[:540])
            if len(sentences) < 4:
                continue
            query = sentences.pop(len(sentences) // 2).strip()
            row = {"query": query, "passage": "".join(sentences)[:510]}
            made.write(json.dumps(row, ensure_ascii=False) + "\n")
    return out


def train(folder: Path, options: argparse.Namespace, scratch: Path) -> None:
    """InfoNCE over the pairs and CoSENT over the scored ones, one type a step."""
    spec = find_encoder(EncoderSettings(path=str(folder), max_tokens=512))
    sources = []
    pairs = list(options.pairs)
    if options.texts:
        pairs.append(f"{clozes(options.texts, scratch / 'clozes.jsonl')}:query:passage")
    for number, item in enumerate(pairs):
        path, query, passage = item.rsplit(":", 2)
        sources.append(
            ExampleSource(
                name=f"pairs-{number}",
                kind="pairs",
                files=[path],
                query_column=query,
                passage_column=passage,
                batch_size=options.batch,
            )
        )
    for number, item in enumerate(options.scored):
        path, least, most = item.rsplit(":", 2)
        sources.append(
            ExampleSource(
                name=f"scored-{number}",
                kind="scored",
                files=[path],
                query_column="sentence1",
                passage_column="sentence2",
                lowest_score=float(least),
                highest_score=float(most),
                batch_size=options.batch,
                loss_factor=0.04,  # CoSENT's sum beside InfoNCE's mean; piccolo2's factor
            )
        )
    prefixes = spec.query_prefix, spec.passage_prefix
    streams = [
        ExampleStream(one, open_examples(one, scratch / "cache"), 0, *prefixes) for one in sources
    ]
    trainee = Trainee(spec, ComputeSettings())
    optimizer = OptimizerSettings(steps=options.steps, learning_rate=options.rate, warmup=0.1)
    free = Anchor(trainee.parameters.items(), AnchorSettings(importance="none", strength=0))
    learner = Learner(trainee, Mixture(streams, 0), optimizer, free, seed=0)
    for step in range(options.steps):
        report = learner.step(step)
        if step % 20 == 0 or step == options.steps - 1:
            print(f"step {step}: {report.source}, loss {report.loss:.3f}", flush=True)
    print(trainee.save(options.out))


if __name__ == "__main__":
    main()
