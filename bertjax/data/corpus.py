"""The embedded corpus: generated paragraphs of facts with questions, in SQuAD v1.1 form.

A paragraph tells several things of one person whose values are all of one kind, in random order, so an answer always
stands among others that look like it. Questions use other words than the statements, and names and values of one part
of the corpus never occur in another part: neither position, nor kind, nor memory answers them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertjax.data.corpus_words import RELATIONS, Relation, all_values
from bertjax.modeldir import write_file_aside

SHARES = {"train": 0.75, "val": 0.08, "eval": 0.17}  # of all names and values
FACTS = 4  # in a paragraph; training paragraphs have from 2 on, because few facts are learned first


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactQuestion:
    """A question with its answer's place in the context."""

    text: str
    answer: str
    answer_start: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactParagraph:
    """`values` are the texts of the answers' kind in the context, one for every question."""

    context: str
    questions: tuple[FactQuestion, ...]
    values: tuple[str, ...]
    subject: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusFiles:
    """SQuAD v1.1 JSON files."""

    train: Path
    val: Path
    eval: Path


def write_corpus(folder: Path, *, seed: int, train: int, val: int, evaluation: int) -> CorpusFiles:
    """Write `train.json`, `val.json` and `eval.json` into `folder`, the same for the same arguments.

    Args:
      train, val, evaluation: numbers of paragraphs, each with one question for every fact.

    Raises:
      UserError, WorkFailed: the folder cannot be written.
    """
    folder = Path(folder)
    files = CorpusFiles(train=folder / "train.json", val=folder / "val.json", eval=folder / "eval.json")
    for part, path, count in (("train", files.train, train), ("val", files.val, val), ("eval", files.eval, evaluation)):
        write_squad(path, make_paragraphs(part, count, seed=seed), prefix=part)
    return files


def write_squad(path: Path, paragraphs: Sequence[FactParagraph], *, prefix: str) -> None:
    """Write paragraphs as SQuAD v1.1 JSON; ids are `prefix-paragraph-question`. Errors as `write_corpus`."""
    entries = []
    for number, paragraph in enumerate(paragraphs):
        questions = [
            {
                "id": f"{prefix}-{number}-{index}",
                "question": question.text,
                "answers": [{"text": question.answer, "answer_start": question.answer_start}],
            }
            for index, question in enumerate(paragraph.questions)
        ]
        entries.append({"context": paragraph.context, "qas": questions})
    content = {"version": "1.1", "data": [{"title": f"Generated facts, {prefix}", "paragraphs": entries}]}
    write_file_aside(path, json.dumps(content) + "\n")


def make_paragraphs(part: str, count: int, *, seed: int) -> list[FactParagraph]:
    """Paragraphs of one part of the corpus ("train", "val" or "eval"), the same for the same arguments."""
    values = part_values(part, seed=seed)
    random = np.random.default_rng((seed, 1 + list(SHARES).index(part)))
    fewest = 2 if part == "train" else FACTS
    return [_make_paragraph(values, int(random.integers(fewest, FACTS + 1)), random) for _ in range(count)]


def part_values(part: str, *, seed: int) -> dict[str, list[str]]:
    """The names and values by kind that only this part of the corpus uses."""
    random, chosen = np.random.default_rng((seed, 0)), {}
    names = list(SHARES)
    ends = np.cumsum([SHARES[name] for name in names])
    index = names.index(part)
    for kind, values in all_values().items():
        order = random.permutation(len(values))
        begin = round(len(values) * ends[index - 1]) if index else 0
        chosen[kind] = [values[i] for i in order[begin : round(len(values) * ends[index])]]
    return chosen


def random_value_answers(paragraphs: Sequence[FactParagraph], *, prefix: str, seed: int) -> dict[str, str]:
    """The baseline that knows each answer's kind and picks any value of that kind in the paragraph, by question id."""
    random = np.random.default_rng(seed)
    return {
        f"{prefix}-{number}-{index}": str(random.choice(paragraph.values))
        for number, paragraph in enumerate(paragraphs)
        for index in range(len(paragraph.questions))
    }


def _make_paragraph(values: dict[str, list[str]], facts: int, random: np.random.Generator) -> FactParagraph:
    kind = str(random.choice(list(RELATIONS)))
    subject, *drawn = (str(name) for name in random.choice(values["person"], facts + 1, replace=False))
    if kind != "person":
        drawn = [str(value) for value in random.choice(values[kind], facts, replace=False)]
    context, questions = "", []
    for value, index in zip(drawn, random.permutation(len(RELATIONS[kind]))[:facts], strict=True):
        relation = RELATIONS[kind][index]
        sentence, at = _state(subject, relation, value, random)
        question = relation.questions[random.integers(len(relation.questions))].replace("{s}", subject)
        questions.append(FactQuestion(text=question, answer=value, answer_start=len(context) + at))
        context += sentence + " "
    return FactParagraph(context=context.rstrip(), questions=tuple(questions), values=tuple(drawn), subject=subject)


def _state(subject: str, relation: Relation, value: str, random: np.random.Generator) -> tuple[str, int]:
    """A sentence that states the fact, and where in it the value begins."""
    template = relation.statements[random.integers(len(relation.statements))].replace("{s}", subject)
    return template.replace("{v}", value), template.index("{v}")
