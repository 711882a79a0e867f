"""Tokenizers of model directories, written and read, and a dataset's questions drawn by seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.data.dataset import load_dataset
from bertjax.data.masking import Vocabulary
from bertjax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.data.windows import WindowSettings
from bertjax.errors import UserError

TEXTS = ["the king of the old river"] * 5


def test_a_learned_vocabulary_is_that_of_a_lower_casing_bert_with_every_letter(tmp_path: Path):
    size = write_vocabulary(tmp_path / "t", TEXTS, vocab_size=130)
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    vocabulary = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    assert len(words) == size == 121 and words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"the", "king", "a", "##a", "7", "##7", "~"} <= set(words) and not {"A", "##~"} & set(words)
    about = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    special = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    names = ["input_ids", "token_type_ids", "attention_mask"]
    rest = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names, "model_max_length": 512}
    assert about == rest | special
    tokenizer = load_tokenizer(tmp_path / "t")
    assert tokenizer.encode("The KING", add_special_tokens=False).tokens == ["the", "king"]


@pytest.mark.parametrize("lowercase", [True, False, None])
def test_a_vocabulary_alone_is_read_in_the_case_that_its_config_says(tmp_path: Path, lowercase: bool | None):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "king", "King"]))
    if lowercase is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    tokens = load_tokenizer(tmp_path).encode("King", add_special_tokens=False).tokens
    assert tokens == ["King" if lowercase is False else "king"]


def test_a_tokenizer_that_cuts_or_pads_is_told_not_to(tmp_path: Path):
    write_vocabulary(tmp_path / "t", TEXTS, vocab_size=130)
    tokenizer = load_tokenizer(tmp_path / "t")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path / "t").encode("the king of the river", add_special_tokens=False)) == 5


def test_what_is_no_tokenizer_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer\.json and no vocab\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n[UNK]\nking")
    with pytest.raises(UserError, match=r"the vocabulary lacks \[PAD\], \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer's file is broken"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_knows_what_begins_a_word(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "king", "##s"]))
    found = Vocabulary.of(load_tokenizer(tmp_path))
    assert found.continues.tolist() == [False] * 6 + [True]
    assert found.special.tolist() == [True] * 5 + [False] * 2 and found.mask_id == 4
    assert [found.has_word(np.array(ids)) for ids in ([2, 1, 3], [2, 5, 3], [2, 6, 3])] == [False, True, False]


def test_some_questions_are_drawn_by_seed_and_keep_their_order(tmp_path: Path):
    write_vocabulary(tmp_path / "t", TEXTS, vocab_size=130)
    row = {"context": "the king", "question": "who", "answers": [{"text": "king", "answer_start": 4}]}
    (tmp_path / "a.json").write_text(json.dumps([row | {"id": str(number)} for number in range(20)]))

    def ids(questions: int | None, seed: int = 0) -> list[int]:
        tokenizer, lengths = load_tokenizer(tmp_path / "t"), WindowSettings(max_seq=20, max_query=8)
        dataset = load_dataset(tmp_path / "a.json", tokenizer, lengths, questions=questions, seed=seed)
        assert dataset.longest == 20 and dataset.lengths.tolist() == [8] * len(dataset.examples)
        return [int(example.id) for example in dataset.examples]

    assert ids(None) == ids(20) == ids(21) == list(range(20))
    assert ids(7) == ids(7) == sorted(set(ids(7))) != ids(7, seed=1)
    assert len(ids(7)) == 7
