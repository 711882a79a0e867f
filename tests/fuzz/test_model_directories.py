"""Mutated model directories are read with the values that their files hold, or refused in one line that names them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given

from bertjax.data.tokenizer import as_one_file, load_tokenizer, tokenizer_size
from bertjax.errors import UserError
from bertjax.modeldir import store
from bertjax.onnx.export import export_onnx, is_current
from tests.fuzz.budget import bounded, draws
from tests.fuzz.mutations import mutate_bytes, mutate_tree
from tests.models import tiny_config, write_random_model

PYTHONS_OWN = re.compile(r"Traceback|NoneType|object is not|not subscriptable|indices must|codec can't|<class")
WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_random_model(folder / "start", CONFIG, seed=0)
    with as_one_file(folder / "start", positions=512) as tokenizer:
        store.save(folder / "model", store.load_question_answering(folder / "start"), tokenizer_from=tokenizer)
    return folder / "model"


def _refused(error: UserError, model: Path) -> bool:
    told = str(error)
    return "\n" not in told and str(model) in told and not PYTHONS_OWN.search(told) and len(told) < 1000


@bounded
@given(draw=draws)
def test_a_config_is_read_as_json_says_it_or_refused(model: Path, draw: random.Random):
    path, whole = model / "config.json", json.dumps(CONFIG.to_dict())
    if draw.random() < 0.7:
        content = json.dumps(mutate_tree(json.loads(whole), draw)).encode()
    else:
        content = mutate_bytes(whole.encode(), draw)
    path.write_bytes(content)
    try:
        found = store.load_question_answering(model).config
    except UserError as error:
        assert _refused(error, model)
    else:
        said = json.loads(content)
        assert [layer.heads for layer in found.layers] == (said.get("heads_per_layer") or [2, 2])
        assert found.vocab_size == said["vocab_size"] and found.layer_norm_eps == (said.get("layer_norm_eps") or 1e-12)
    finally:
        path.write_text(whole)


@bounded
@given(draw=draws)
def test_weights_are_read_as_the_library_reads_them_or_refused(model: Path, draw: random.Random):
    path = model / WEIGHTS
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    if draw.random() < 0.4:
        header = json.dumps(mutate_tree(json.loads(whole[8:size]), draw)).encode()
        content = len(header).to_bytes(8, "little") + header + whole[size:]
    else:
        content = mutate_bytes(whole[:size], draw) + whole[size:]
    path.write_bytes(content)
    try:
        found = store.load_question_answering(model).tensors
    except UserError as error:
        assert _refused(error, model)
    else:
        wanted = safetensors.numpy.load_file(path)
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name].astype(np.float32))
    finally:
        path.write_bytes(whole)


@bounded
@given(draw=draws)
def test_an_index_is_followed_or_refused(model: Path, draw: random.Random):
    whole, part = model / WEIGHTS, model / "part.safetensors"
    names = {name: part.name for name in safetensors.numpy.load_file(whole)}
    index = {"metadata": {"total_size": 1}, "weight_map": dict(list(names.items())[:4])}
    whole.rename(part)
    try:
        text = json.dumps(mutate_tree(index, draw)).encode()
        (model / INDEX).write_bytes(text if draw.random() < 0.7 else mutate_bytes(text, draw))
        assert store.load_question_answering(model).config == CONFIG
    except UserError as error:
        assert _refused(error, model)
    finally:
        part.rename(whole)
        (model / INDEX).unlink()


@bounded
@given(draw=draws)
def test_a_tokenizer_encodes_or_is_refused(model: Path, draw: random.Random):
    path = model / TOKENIZER
    whole = path.read_text(encoding="utf-8")
    tree = draw.random() < 0.7
    content = json.dumps(mutate_tree(json.loads(whole), draw)).encode() if tree else mutate_bytes(whole.encode(), draw)
    path.write_bytes(content)
    try:
        found = load_tokenizer(model)
        ids = found.encode("the king's RIVER 7 [SEP] caf\u00e9", add_special_tokens=False).ids
        assert all(0 <= number < tokenizer_size(found) for number in ids)
    except UserError as error:
        assert _refused(error, model)
    finally:
        path.write_text(whole, encoding="utf-8")


@bounded
@given(draw=draws)
def test_a_graph_is_current_only_if_it_is_byte_for_byte_what_was_written(model: Path, draw: random.Random):
    path = model / "model.cpu.onnx"
    if not path.exists():
        export_onnx(model, flavour="cpu")
        path.with_suffix(".kept").write_bytes(path.read_bytes())
    whole = path.with_suffix(".kept").read_bytes()
    path.write_bytes(mutate_bytes(whole, draw))
    assert is_current(path, model, "cpu") == (path.read_bytes() == whole)
