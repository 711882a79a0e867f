"""Files of questions in the forms that people have, and the faults that are told."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bertjax.data.squad import Answer, Example, read_squad
from bertjax.errors import UserError

CONTEXT = "the king was by the river \u2028 of Zürich"
GOOD = Example(id="q1", question="who?", context=CONTEXT, answers=(Answer(text="king", start=4),))


def _row(**changed: Any) -> dict[str, Any]:
    row = {"id": "q1", "context": CONTEXT, "question": "who?", "answers": [{"text": "king", "answer_start": 4}]}
    return {key: value for key, value in (row | changed).items() if value != "absent"}


def _squad(*rows: dict[str, Any]) -> dict[str, Any]:
    paragraphs = [{"context": row.get("context"), "qas": [{**row, "context": ""}]} for row in rows]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


EXPORTED = _row(title="t", answers={"text": ["king"], "answer_start": [4]})
TEXT = json.dumps(_squad(_row()), ensure_ascii=False, indent=1)
LINES = json.dumps(EXPORTED, ensure_ascii=False) + "\n" + json.dumps(_row(id="q2"), ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", TEXT.encode()),
        ("a.json.gz", gzip.compress(TEXT.encode())),
        ("a.json.gz", TEXT.encode()),  # unzipped on the way
        ("a.json", gzip.compress(TEXT.encode())),
        ("a.json", codecs.BOM_UTF8 + TEXT.encode()),
        ("a.json", TEXT.encode("utf-16")),
        ("a.json", TEXT.encode("utf-16-be")),
        ("a.json", codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le")),
        ("a.json", TEXT.replace("\n", "\r\n").encode()),
        ("a.json", json.dumps(_squad(EXPORTED)).encode()),
        ("a.json", json.dumps(_squad(_row(answers=[{"text": "king", "answer_start": 4.0}]))).encode()),
        ("a.json", json.dumps([EXPORTED]).encode()),
        ("a.json", json.dumps({"data": [EXPORTED]}).encode()),
        ("a.json", json.dumps(_squad(_row())["data"]).encode()),
        ("a.json", json.dumps(EXPORTED).encode()),
    ],
)
def test_every_form_reads_as_the_same_question(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert read_squad(tmp_path / name) == [GOOD]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.data"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_json_lines_are_split_at_line_feeds_alone(tmp_path: Path, name: str, newline: str):
    (tmp_path / name).write_bytes(LINES.replace("\n", newline).encode())
    examples = read_squad(tmp_path / name)
    assert [example.id for example in examples] == ["q1", "q2"]
    assert {example.context for example in examples} == {CONTEXT}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": "absent"}, "data[0].paragraphs[0].qas[0]: id is missing; expected a text"),
        ({"id": ["q1"]}, "data[0].paragraphs[0].qas[0]: id is a list; expected a text"),
        ({"id": 12}, "data[0].paragraphs[0].qas[0]: id is the number 12; expected a text"),
        ({"question": None}, "id 'q1': question is null; expected a text"),
        ({"question": 3.5}, "id 'q1': question is the number 3.5; expected a text"),
        (
            {"question": "a\ud83d"},
            "id 'q1': question holds half of a surrogate pair, which is no character; take it out",
        ),
        ({"context": {}}, "id 'q1': context is an object; expected a text"),
        ({"context": " \n"}, "id 'q1': context is empty"),
        ({"context": "king \ude00"}, "id 'q1': context holds half of a surrogate pair"),
        ({"answers": []}, "id 'q1': no answer; SQuAD v1.1 has one for every question"),
        (
            {"answers": "absent"},
            "id 'q1': answers is missing; expected a list of objects with 'text' and 'answer_start'",
        ),
        ({"answers": "king"}, "id 'q1': answers is the text 'king'; expected a list"),
        ({"answers": [None]}, "id 'q1': answers holds something else than objects"),
        (
            {"answers": {"text": ["king"], "answer_start": [4, 5]}},
            "id 'q1': 'text' and 'answer_start' of answers must be",
        ),
        (
            {"answers": {"text": "king", "answer_start": 4}},
            "id 'q1': 'text' and 'answer_start' of answers must be lists",
        ),
        ({"answers": [{"answer_start": 4}]}, "id 'q1': answers[0]: text is missing; expected a text"),
        ({"answers": [{"text": "", "answer_start": 4}]}, "id 'q1': answers[0]: text is empty"),
        ({"answers": [{"text": "king"}]}, "id 'q1': answers[0]: answer_start is missing; expected a whole number"),
        (
            {"answers": [{"text": "king", "answer_start": 4.5}]},
            "id 'q1': answers[0]: answer_start is the number 4.5; expected a whole",
        ),
        (
            {"answers": [{"text": "king", "answer_start": "4"}]},
            "id 'q1': answers[0]: answer_start is the text '4'; expected a whole",
        ),
        (
            {"answers": [{"text": "king", "answer_start": True}]},
            "id 'q1': answers[0]: answer_start is true; expected a",
        ),
        (
            {"answers": [{"text": "king", "answer_start": False}]},
            "id 'q1': answers[0]: answer_start is false; expected a",
        ),
        (
            {"answers": [{"text": "king", "answer_start": 0}]},
            "id 'q1': answers[0]: 'king' does not stand at answer_start 0, where the context has 'the '",
        ),
        (
            {"answers": [{"text": "king", "answer_start": float("nan")}]},
            "id 'q1': answers[0]: answer_start is the number nan",
        ),
        (
            {"answers": [{"text": "king", "answer_start": 3}]},
            "id 'q1': answers[0]: 'king' does not stand at answer_start 3, where the context has ' kin'",
        ),
        (
            {"answers": [{"text": "Zür", "answer_start": -6}]},
            "id 'q1': answers[0]: 'Zür' does not stand at answer_start -6, below 0",
        ),
        (
            {"answers": [{"text": "king", "answer_start": 10**30}]},
            "id 'q1': answers[0]: 'king' does not stand at answer_start 1e+30, past the end",
        ),
    ],
)
def test_a_fault_of_a_question_names_its_file_id_and_field(tmp_path: Path, changed: dict[str, Any], told: str):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(_squad(_row(**changed))))
    with pytest.raises(UserError) as caught:
        read_squad(path)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT[:-9].encode(), "the JSON is cut short or broken at line 23, column 5; fetch"),
        (gzip.compress(TEXT.encode())[:-12], "the gzip file is cut short or broken; fetch it again"),
        (gzip.compress(TEXT.encode())[:30] + b"\xff" * 30, "the gzip file is cut short or broken; fetch it again"),
        (TEXT.encode("gb18030"), "is not UTF-8; convert the file to UTF-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], "is not UTF-16; convert the file to UTF-8"),
        (b"", "is empty; expected a SQuAD v1.1 .json"),
        (b" \r\n", "is empty; expected a SQuAD v1.1 .json"),
        (b"[" * 100_000, "the JSON is nested too deeply"),
        (b"[1]", "[0]: is the number 1; expected an article or a question (an object)"),
        (b'{"train": []}', "no 'data', 'paragraphs' or 'context' in it"),
        (b'[{"context": "a", "question": 3}]', "[0]: question is the number 3; expected a text"),
        (b'{"data": {}}', "data is an object; expected a list"),
        (b'{"data": []}', "holds no question"),
        (b'{"data": [{"title": "x"}]}', "data[0]: no 'data', 'paragraphs' or 'context' in it"),
        (b'{"data": [{"paragraphs": null}]}', "data[0]: paragraphs is null; expected a list"),
        (b'{"data": [{"paragraphs": [7]}]}', "data[0].paragraphs[0]: is the number 7; expected a paragraph"),
        (b'{"data": [{"paragraphs": [{"context": "a"}]}]}', "data[0].paragraphs[0]: qas is missing; expected a list"),
        (
            b'{"data": [{"paragraphs": [{"context": "a", "qas": [[]]}]}]}',
            "data[0].paragraphs[0].qas[0]: is a list",
        ),
        (
            b'{"context": "a", "context": "a", "id": "q", "question": "b"}',
            "id 'q': context stands twice; expected",
        ),
        (b'{"data": ' + b"9" * 5000 + b"}", "data is the number inf; expected a list"),
        (LINES.encode() * 2, "id 'q1': stands twice; make ids unique"),
        (LINES.encode() + b'{"id": "q3", "con\n', "line 3: the JSON is cut short or broken at column"),
        (b"x" + LINES.encode(), "line 1: the JSON is cut short or broken at column 1"),
        (b'{"id": "q3"}\n' + LINES.encode(), "line 1: no 'data', 'paragraphs' or 'context' in it"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_squad(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    assert told in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="none.json: no such file; expected a SQuAD"):
        read_squad(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        read_squad(tmp_path)


def test_all_faults_of_a_file_are_told_at_once_and_at_most_ten_by_name(tmp_path: Path):
    rows = [_row(id=f"q{number}", question=None) for number in range(12)]
    (tmp_path / "a.json").write_text(json.dumps(_squad(*rows[:2], _row(id="q0", answers=[]))))
    with pytest.raises(UserError) as caught:
        read_squad(tmp_path / "a.json")
    assert [line.split(": ")[1:] for line in str(caught.value).splitlines()] == [
        ["id 'q0'", "question is null; expected a text"],
        ["id 'q1'", "question is null; expected a text"],
        ["id 'q0'", "no answer; SQuAD v1.1 has one for every question"],
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        read_squad(tmp_path / "a.json")
    assert len(str(caught.value).splitlines()) == 11 and str(caught.value).endswith("\nand 2 more")
