"""The embedded corpus: generated paragraphs of facts with questions, in SQuAD v1.1 form.

A paragraph states several facts about one person in random order, all with values of one kind, so that an answer stands
among others that look like it. Questions use other words than the statements, and names and values of one part of the
corpus never occur in another part: neither position, nor kind, nor memory answers them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertjax.files import write_file_aside


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact about a person: sentences that state it, and questions about it in other words."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


_PERSON_STARTS = (
    "bal bren cad cor dal dor el fan fer gal gor hal hes il jar jor kel kos lam lor mar mel nad nor ol per "
    "quin ral ros sab sel tam ter ul van ver wil yor zan zel"
)
_PERSON_ENDS = (
    "ba bek da dan dra fa go gus ho ja jin ka kin la lek lis ma mir mon na nek nor pa pia ra rik rosh sa "
    "shi ta tan thu va vek vin wen xa ya zek zo"
)
_PLACE_STARTS = (
    "ash bar black brook clay cold crow deep east elm fair fen fox glen green grim hart haw high holm iron kings lang "
    "long mill moor north oak old raven red rock rush salt sand stone thorn wes white wind wolf"
)
_PLACE_ENDS = (
    "bay borough bridge brook burn bury by church cliff combe cote cross dale den field firth ford gate grove ham "
    "haven heath hill holt hurst land leigh low marsh mere minster mouth pool port ridge side stead ton view ville "
    "wick wood worth"
)
_MONTHS = "January February March April May June July August September October November December"


def _joined(starts: str, ends: str) -> list[str]:
    return [f"{a}{b}".capitalize() for a, b in itertools.product(starts.split(), ends.split())]


def all_values() -> dict[str, list[str]]:
    """Every value by kind, in a fixed order. Subjects are persons."""
    return {
        "person": _joined(_PERSON_STARTS, _PERSON_ENDS),
        "place": _joined(_PLACE_STARTS, _PLACE_ENDS),
        "date": [f"{day} {month}" for month in _MONTHS.split() for day in range(1, 29)],
    }


# The relations of one kind compete in a paragraph, so each needs words that no other of its kind uses.
RELATIONS: dict[str, tuple[Relation, ...]] = {
    "place": (
        Relation(
            statements=("{s} was born in {v}.", "{s} came into the world in {v}."),
            questions=("What is the birthplace of {s}?", "Which town is {s} a native of?"),
        ),
        Relation(
            statements=("{s} went to school in {v}.", "{s} was a pupil in {v}."),
            questions=("Where was {s} educated?", "Which town gave {s} an education?"),
        ),
        Relation(
            statements=("{s} lives in {v}.", "{s} has a house in {v}."),
            questions=("Where does {s} reside?", "Which town is the home of {s}?"),
        ),
        Relation(
            statements=("{s} got married in {v}.", "{s} said yes in {v}."),
            questions=("Where was the wedding of {s}?", "Which town saw {s} as a groom or bride?"),
        ),
    ),
    "person": (
        Relation(
            statements=("{s} was taught by {v}.", "{s} learned a lot from {v}."),
            questions=("Who is the teacher of {s}?", "Whose lessons did {s} take?"),
        ),
        Relation(
            statements=("{s} works for {v}.", "{s} is paid by {v}."),
            questions=("Who is the employer of {s}?", "Whose orders does {s} follow?"),
        ),
        Relation(
            statements=("{s} lost a race to {v}.", "{s} was beaten by {v}."),
            questions=("Who is the rival of {s}?", "Which runner won against {s}?"),
        ),
        Relation(
            statements=("{s} is the uncle of {v}.", "{s} has a nephew called {v}."),
            questions=("Who is a relative of {s}?", "Who belongs to the family of {s}?"),
        ),
    ),
    "date": (
        Relation(
            statements=("{s} arrived on {v}.", "{s} came here on {v}."),
            questions=("When did the stay of {s} begin?", "What was the first day of {s}?"),
        ),
        Relation(
            statements=("{s} leaves on {v}.", "{s} stays until {v}."),
            questions=("When does the visit of {s} end?", "What will be the last day of {s}?"),
        ),
        Relation(
            statements=("{s} fell ill on {v}.", "{s} was unwell on {v}."),
            questions=("When did {s} see a doctor?", "What was the sick day of {s}?"),
        ),
        Relation(
            statements=("{s} sold the farm on {v}.", "{s} found a buyer on {v}."),
            questions=("When was the property of {s} given up?", "What was the day of the sale by {s}?"),
        ),
    ),
}

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
      UserError: the folder cannot be written.
      WorkFailed: the disk is full.
    """
    folder = Path(folder)
    files = CorpusFiles(train=folder / "train.json", val=folder / "val.json", eval=folder / "eval.json")
    for part, path, count in (("train", files.train, train), ("val", files.val, val), ("eval", files.eval, evaluation)):
        write_squad(path, make_paragraphs(part, count, seed=seed), prefix=part)
    return files


def write_squad(path: Path, paragraphs: Sequence[FactParagraph], *, prefix: str) -> None:
    """Write paragraphs as SQuAD v1.1 JSON; ids are `prefix-paragraph-question`.

    Raises:
      UserError: the folder cannot be written.
      WorkFailed: the disk is full.
    """
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
