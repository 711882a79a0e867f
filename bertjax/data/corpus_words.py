"""The words of the embedded corpus: parts of names, and what can be told and asked about a person.

Every name is put together from two parts, so that most word pieces of an unseen name were seen in others.
In a template `{s}` is the subject and `{v}` the value.
"""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """One thing that can be told of a person: sentences that state it, and questions in other words that ask for it."""

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
