"""Tokenizers as people have them: the ids and offsets of transformers, and the same from the one file that we write."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, normalizers, pre_tokenizers

from bertjax.data import tokenizer
from bertjax.data.tokenizer import SPECIAL_TOKENS, as_one_file, load_tokenizer, tokenizer_size
from bertjax.errors import UserError
from bertjax.modeldir import store
from bertjax.modeldir.untrained import random_model
from tests.models import tiny_config

CHARACTERS = "".join(map(chr, range(33, 127))) + "öéü日本\N{COMBINING ACUTE ACCENT}"
WORDS = [*SPECIAL_TOKENS, *CHARACTERS, *(f"##{letter}" for letter in CHARACTERS)]
WORDS += ["könig", "konig", "König", "was", "unused"]
TEXTS = [
    "The König was in 日本, cafe\N{COMBINING ACUTE ACCENT} [DATE] covid19 COVID19!",
    "[CLS] Könige [SEP]was<ent>was <ent> unused \N{ZERO WIDTH SPACE}x\ty\N{NO-BREAK SPACE}z ﬁ Ⅷ",
    "x" * 150 + " 🙂 was",
]

auto = pytest.importorskip("transformers").AutoTokenizer


def write(folder: Path, files: dict[str, Any], words: list[str] | None = WORDS) -> Path:
    """A directory of someone else's: a BERT's config.json, a vocabulary, and these JSON files."""
    folder.mkdir()
    files = {"config.json": {"model_type": "bert"}} | about() | files
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    if words is not None:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def about(**fields: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"} | fields}


def one_file(change: Callable[[Tokenizer], None] = lambda _: None, *, lowercase: bool = True) -> str:
    made = BertWordPieceTokenizer({word: index for index, word in enumerate(WORDS)}, lowercase=lowercase)._tokenizer
    change(made)
    return made.to_str()


def _other_normalizer(made: Tokenizer) -> None:
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def _other_words(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def _cut_and_padded(made: Tokenizer) -> None:
    made.enable_truncation(8)
    made.enable_padding(length=12)


ADDED = {"content": "<ent>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
FAST = "PreTrainedTokenizerFast"
KINDS: dict[str, dict[str, Any]] = {
    "lower-cased": about(do_lower_case=True),
    "without a config": {"tokenizer_config.json": {}},
    "cased": about(do_lower_case=False),
    "accents kept": about(do_lower_case=True, strip_accents=False),
    "cased, accents stripped": about(do_lower_case=False, strip_accents=True),
    "Chinese words whole": about(tokenize_chinese_chars=False),
    "another class of the kind": about(tokenizer_class="DistilBertTokenizer", do_lower_case=False),
    "added tokens": {"added_tokens.json": {"[DATE]": len(WORDS), "covid19": len(WORDS) + 1}},
    "decoder table": about(added_tokens_decoder={str(len(WORDS)): ADDED | {"special": True}}),
    "more special tokens": {"special_tokens_map.json": {"additional_special_tokens": ["<ent>", "[DATE]"]}},
    "one file": {"tokenizer.json": one_file()},
    "one file and a config that differ": {"tokenizer.json": one_file(lowercase=False)} | about(do_lower_case=True),
    "one file alone, cut and padded": {"tokenizer.json": one_file(_cut_and_padded)},
    "another normalizer": {"tokenizer.json": one_file(_other_normalizer)} | about(tokenizer_class=FAST),
    "another splitter": {"tokenizer.json": one_file(_other_words)} | about(tokenizer_class=FAST),
}


def encoded(found: Tokenizer) -> list[tuple[list[int], list[tuple[int, int]]]]:
    return [(e.ids, e.offsets) for e in (found.encode(text, add_special_tokens=False) for text in TEXTS)]


def theirs(directory: Path) -> list[tuple[list[int], list[tuple[int, int]]]]:
    found = auto.from_pretrained(directory, local_files_only=True)
    results = [found(text, add_special_tokens=False, return_offsets_mapping=True) for text in TEXTS]
    return [(result["input_ids"], result["offset_mapping"]) for result in results]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_ids_of_transformers_before_and_after_it_is_written(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    alone = kind == "one file alone, cut and padded"
    directory = write(tmp_path / "theirs", KINDS[kind], words=None if alone else WORDS)
    wanted = theirs(directory)
    assert encoded(load_tokenizer(directory)) == wanted
    with as_one_file(directory, positions=64) as folder:
        store.save(tmp_path / "ours", random_model(tiny_config()), tokenizer_from=folder)
    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert theirs(tmp_path / "ours") == wanted
    monkeypatch.setattr(tokenizer, "_read_with_transformers", None)  # what we wrote needs none
    assert encoded(load_tokenizer(tmp_path / "ours")) == wanted
    with as_one_file(tmp_path / "ours", positions=64) as folder:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_text() == (tmp_path / "ours" / name).read_text()


def test_the_kinds_differ_from_each_other(tmp_path: Path):
    seen = {str(theirs(write(tmp_path / str(i), KINDS[kind]))) for i, kind in enumerate(KINDS)}
    assert len(seen) >= 10


@pytest.mark.parametrize(("given", "written"), [(None, 64), (1000, 64), (32, 32), ("many", 64)])
def test_the_longest_sequence_is_written_within_the_models_positions(tmp_path: Path, given: Any, written: int):
    fields = {} if given is None else {"model_max_length": given}
    with as_one_file(write(tmp_path / "theirs", about(**fields)), positions=64) as folder:
        found = json.loads((folder / "tokenizer_config.json").read_text())
    assert found["model_max_length"] == written


def test_the_size_is_that_of_the_table_that_the_ids_need(tmp_path: Path):
    directory = write(tmp_path / "theirs", {"added_tokens.json": {"covid19": len(WORDS)}})
    assert tokenizer_size(load_tokenizer(directory)) == len(WORDS) + 1
    twice = write(tmp_path / "twice", {}, words=[*WORDS, "was", "castle"])  # one id of the two is never given
    assert tokenizer_size(load_tokenizer(twice)) == len(WORDS) + 2


def test_a_directory_of_version_0_1_keeps_the_ids_that_it_was_trained_with(tmp_path: Path):
    config = {"config.json": {"model_type": "bert", "heads_per_layer": [2]}}
    directory = write(tmp_path / "old", config | about(do_lower_case=True, strip_accents=False))
    wanted = BertWordPieceTokenizer(str(directory / "vocab.txt"), lowercase=True)._tokenizer
    assert encoded(load_tokenizer(directory)) == encoded(wanted)


def _bytes_pairs() -> str:
    return Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(SPECIAL_TOKENS)}, merges=[])).to_str()


def _other_prefix() -> str:
    made = json.loads(one_file())
    made["model"]["continuing_subword_prefix"] = "@@"
    return json.dumps(made)


@pytest.mark.parametrize(
    ("files", "words", "told"),
    [
        ({}, None, "no tokenizer.json and no vocab.txt; copy the tokenizer's files there"),
        ({}, WORDS[6:], r"the vocabulary lacks \[UNK\]"),
        (about(cls_token="<s>"), [w for w in WORDS if w != "[CLS]"], r"the vocabulary lacks \[CLS\]"),
        ({"tokenizer.json": _bytes_pairs()} | about(tokenizer_class=FAST), None, "of kind BPE"),
        ({"tokenizer.json": _other_prefix()} | about(tokenizer_class=FAST), None, "'@@' in its"),
        ({"tokenizer.json": "{"}, None, "transformers cannot read the tokenizer"),
        ({"tokenizer_config.json": "{"}, WORDS, "transformers cannot read the tokenizer"),
        (about(auto_map={"AutoTokenizer": [None, "code.Made"]}, tokenizer_class="Made"), WORDS, "cannot read"),
        (about(tokenizer_class="BertJapaneseTokenizer"), WORDS, "BertJapaneseTokenizer|cannot read"),
        ({"config.json": {"heads_per_layer": [], "a": 1}, "tokenizer.json": "{"}, None, "file is broken"),
        ({"config.json": {"heads_per_layer": []}, "tokenizer_config.json": "["}, WORDS, "not valid JSON"),
        ({"config.json": {"heads_per_layer": []}, "tokenizer_config.json": "[]"}, WORDS, "not a JSON object"),
    ],
)
def test_other_tokenizers_and_broken_ones_are_refused_in_a_line(
    tmp_path: Path, files: dict[str, Any], words: list[str] | None, told: str
):
    with pytest.raises(UserError, match=told) as caught:
        load_tokenizer(write(tmp_path / "m", files, words))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "m"))


_WITHOUT_TORCH = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("torch") else find(name, *rest)
from bertjax.data.tokenizer import load_tokenizer
assert "transformers" not in sys.modules
print(load_tokenizer(sys.argv[1]).encode("was").ids)
assert "transformers" in sys.modules
"""


def test_transformers_says_nothing_of_a_missing_pytorch(tmp_path: Path):
    directory = write(tmp_path / "theirs", {})
    command = [sys.executable, "-c", _WITHOUT_TORCH, directory]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("[")


def test_without_transformers_a_foreign_directory_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="its tokenizer needs transformers; run pip install transformers"):
        load_tokenizer(write(tmp_path / "theirs", {}))
