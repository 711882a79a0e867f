"""Model directories as people have them: read with the right values, or refused in one line that says why."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bertjax.errors import UserError
from bertjax.modeldir import store, tensors
from bertjax.modeldir.check import check_model
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.weights import Tensors
from tests.models import QUANTIZATION, tiny_config, write_random_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", tiny_config(quantized=False), seed=0)
    return tmp_path / "model"


def arrays_of(model: Path) -> Tensors:
    return safetensors.numpy.load_file(model / WEIGHTS)


def change(model: Path, **fields: Any) -> None:
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | fields))


def refused(model: Path, told: str) -> None:
    """Both the door and the reader refuse, in one line."""
    for read in (check_model, store.load_question_answering):
        with pytest.raises(UserError, match=told) as caught:
            read(model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def check_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, wanted[name])


def test_a_directory_comes_back_as_it_was_saved(tmp_path: Path):
    config = tiny_config(((2, 64), (0, 32), (1, 0), (0, 0)))
    write_random_model(tmp_path / "a", config, seed=0)
    model = store.load_question_answering(tmp_path / "a")
    assert model.config == config == check_model(tmp_path / "a")
    store.save(tmp_path / "b", model, tokenizer_from=tmp_path / "a")
    again = store.load_question_answering(tmp_path / "b")
    assert again.config == config
    check_same(again.tensors, model.tensors)
    weights, config_file = ((tmp_path / "b" / name).stat() for name in (WEIGHTS, "config.json"))
    assert weights.st_mode == config_file.st_mode, "whoever may read one file may read the other"


def test_a_directory_whose_replacement_was_cut_off_is_read(model: Path):
    os.rename(model, model.with_name(f".model.old-{2**22 + 1}"))  # no process has such a number
    assert store.load_question_answering(model).config == tiny_config(quantized=False)


def test_all_wrong_tensors_are_told_at_once_the_first_three_of_a_kind_by_name(tmp_path: Path):
    write_random_model(tmp_path / "m", tiny_config(), seed=0)
    arrays = arrays_of(tmp_path / "m")
    for part in ("query", "key"):
        for kind in ("weight", "bias"):
            del arrays[f"bert.encoder.layer.0.attention.self.{part}.{kind}"]
    arrays["bert.embeddings.LayerNorm.bias"] = np.zeros(3, np.float32)
    arrays["bert.encoder.layer.0.intermediate.dense.input_scale"][3] = np.nan
    arrays["qa_outputs.bias"][1] = -np.inf
    arrays["bert.encoder.layer.1.output.dense.weight_scale"][2] = 0
    safetensors.numpy.save_file(arrays, tmp_path / "m" / WEIGHTS)
    with pytest.raises(UserError) as caught:
        store.load_question_answering(tmp_path / "m")
    parts = str(caught.value).removeprefix(f"{tmp_path}/m: the weights do not fit config.json: ").split("; ")
    self = "bert.encoder.layer.0.attention.self"
    assert parts == [
        f"4 tensors missing: {self}.query.weight [32, 32], {self}.query.bias [32], {self}.key.weight [32, 32], ...",
        "1 tensor of another shape: bert.embeddings.LayerNorm.bias is [3], wanted [32]",
        "2 tensors with NaN or infinity: qa_outputs.bias, bert.encoder.layer.0.intermediate.dense.input_scale",
        "1 tensor with scales that are not positive: bert.encoder.layer.1.output.dense.weight_scale",
    ]


def test_an_encoder_without_a_span_head_is_told_the_way_to_one(model: Path):
    arrays = {name: value for name, value in arrays_of(model).items() if not name.startswith("qa_outputs")}
    safetensors.numpy.save_file(arrays, model / WEIGHTS)
    refused(model, r"2 tensors missing: qa_outputs.weight \[2, 32\], qa_outputs.bias \[2\]; train/finetune.py gives")
    assert check_model(model, shapes=tensors.encoder_shapes)
    check_same(store.load_encoder(model).tensors, arrays)


def test_a_directory_from_before_there_were_scales_for_features_is_read(tmp_path: Path):
    config = tiny_config(quantized=dataclasses.replace(QUANTIZATION, activation_scales="tensor"))
    write_random_model(tmp_path / "m", config, seed=0)
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    del raw["quantization"]["activation_scales"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    assert store.load_question_answering(tmp_path / "m").config == config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(model: Path, dtype: type):
    stored = {name: value.astype(dtype) for name, value in arrays_of(model).items()}
    stored["bert.embeddings.position_ids"] = np.arange(512)  # an integer that nobody asks for
    safetensors.numpy.save_file(stored, model / WEIGHTS)
    del stored["bert.embeddings.position_ids"]
    check_same(
        store.load_question_answering(model).tensors, {name: value.astype(np.float32) for name, value in stored.items()}
    )


def test_a_number_past_float32_is_told_as_infinity(model: Path):
    stored = arrays_of(model) | {"qa_outputs.bias": np.array([0, 1e300])}
    safetensors.numpy.save_file(stored, model / WEIGHTS)
    with pytest.raises(UserError, match=r"1 tensor with NaN or infinity: qa_outputs\.bias"):
        store.load_question_answering(model)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_weights_that_another_tool_quantized_are_refused_by_dtype(model: Path, dtype: type):
    names = {np.int8: "I8", np.uint8: "U8", np.int32: "I32"}
    name = names.get(dtype) or str(np.dtype(dtype)).removesuffix("fn").replace("float8", "f8").upper()
    dense = {site.weight for site in tensors.dense_sites(tiny_config())}
    stored = {k: v.astype(dtype) if k in dense else v for k, v in arrays_of(model).items()}
    safetensors.numpy.save_file(stored, model / WEIGHTS)
    refused(model, rf"quantized by another tool: 12 tensors of dtype {name}: .*, ...; weights of dtype F32, F16, BF16")
    change(model, quantization_config={"quant_method": "compressed-tensors"})
    refused(model, rf"12 tensors of dtype {name}: .*; config.json has a quantization_config \('compressed-tensors'\)")


def test_a_quantization_config_is_refused_whatever_the_weights_are(model: Path):
    change(model, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    refused(model, r"quantization_config \('bitsandbytes'\)")
    change(model, quantization_config=None)
    assert check_model(model)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_prefixes_of_wrappers_are_dropped(model: Path, prefix: str):
    plain = arrays_of(model)
    safetensors.numpy.save_file({prefix + name: value for name, value in plain.items()}, model / WEIGHTS)
    check_same(store.load_question_answering(model).tensors, plain)


def test_old_names_of_layer_norms_and_bare_encoders_are_read(model: Path):
    plain = {name: value for name, value in arrays_of(model).items() if not name.startswith("qa")}
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        for new, before in old.items():
            name = name.replace(new, before)
        return name.removeprefix("bert.")

    safetensors.numpy.save_file({rename(name): value for name, value in plain.items()}, model / WEIGHTS)
    check_same(store.load_encoder(model).tensors, plain)


def test_one_tensor_under_two_names_is_refused(model: Path):
    stored = arrays_of(model)
    safetensors.numpy.save_file(stored | {QUERY.removeprefix("bert."): stored[QUERY] + 1}, model / WEIGHTS)
    refused(model, f"holds one tensor under two names: .*{QUERY}")


def _sharded(model: Path, **changes: str) -> None:
    stored = arrays_of(model)
    names = sorted(stored)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        safetensors.numpy.save_file({name: stored[name] for name in held}, model / file)
    (model / WEIGHTS).unlink()
    weight_map = {name: file for file, held in parts.items() for name in held}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map | changes}))


def test_parts_are_read_by_their_files_whatever_the_index_says_of_tensors(model: Path):
    plain = arrays_of(model)
    _sharded(model, **{QUERY: "b.safetensors", sorted(plain)[0]: "b.safetensors", "absent": "a.safetensors"})
    check_same(store.load_question_answering(model).tensors, plain)
    assert store.weight_bytes(model) == sum(path.stat().st_size for path in model.glob("?.safetensors"))


def test_a_stale_index_beside_the_whole_file_is_passed_over(model: Path):
    (model / INDEX).write_text(json.dumps({"weight_map": {QUERY: "model-00001-of-00002.safetensors"}}))
    assert store.load_question_answering(model).tensors
    (model / INDEX).write_text("{")
    assert store.load_question_answering(model).tensors
    (model / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    assert store.weight_bytes(model) == (model / WEIGHTS).stat().st_size


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "index.json: not valid JSON"),
        ("[]", "index.json: not a JSON object"),
        ("{}", "weight_map is None; an object of tensor names and file names is wanted"),
        ('{"weight_map": []}', r"weight_map is \[\]"),
        ('{"weight_map": {"a": ""}}', "weight_map names ''"),
        ('{"weight_map": {"a": 1}}', "weight_map names 1; names of files beside it are wanted"),
        ('{"weight_map": {"a": "../a.safetensors"}}', r"weight_map names '\.\./a\.safetensors'"),
        ('{"weight_map": {"a": "\\ud800.safetensors"}}', r"weight_map names '\\ud800\.safetensors'"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: no such file"),
    ],
)
def test_broken_indexes_are_told(model: Path, content: str, told: str):
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text(content)
    refused(model, told)


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _deep(content: bytes) -> bytes:
    header = b'{"a":' + b"[" * 100_000
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "spoil",
    [_cut, _deep, lambda _: b"", lambda _: b"\xff" * 100, lambda c: c[:20], lambda c: c.replace(b"F32", b"\\nF", 1)],
)
def test_a_broken_safetensors_file_is_told(model: Path, spoil: Callable[[bytes], bytes]):
    (model / WEIGHTS).write_bytes(spoil((model / WEIGHTS).read_bytes()))
    refused(model, "model.safetensors: not a safetensors file, or cut short")


def test_weights_in_another_format_or_a_folder_are_told(model: Path):
    (model / WEIGHTS).rename(model / "pytorch_model.bin")
    refused(model, "model.safetensors: no such file; bertjax reads safetensors weights")
    (model / WEIGHTS).mkdir()
    refused(model, "model.safetensors: not a safetensors file")


def test_an_int8_student_is_no_teacher_and_no_encoder(tmp_path: Path):
    for place in ("run/student-int8", "run/work/ptq", "alone"):
        write_random_model(tmp_path / place, tiny_config(), seed=0)
    write_random_model(tmp_path / "run/student", tiny_config(quantized=False), seed=0)
    for place, told in (
        ("run/student-int8", f"take {tmp_path}/run/student$"),
        ("run/work/ptq", f"take {tmp_path}/run/student$"),
        ("alone", "take the one that it was made from"),
    ):
        with pytest.raises(UserError, match=f"{place}: is an INT8 model; a floating-point one is wanted: {told}"):
            store.load_encoder(tmp_path / place)
        with pytest.raises(UserError, match="is an INT8 model"):
            check_model(tmp_path / place, floating_point=True)
        assert store.load_question_answering(tmp_path / place)


def test_positions_and_vocabulary_are_held_against_windows_and_tokenizer(model: Path):
    size = tiny_config().vocab_size
    assert check_model(model, tokenizer_size=size, longest=512)
    with pytest.raises(UserError, match=r"^--max-seq 513: .*model/config.json has max_position_embeddings 512"):
        check_model(model, longest=513)
    with pytest.raises(UserError, match=rf"model: tokenizer has {size + 1} tokens, the model {size} \(vocab_size\)"):
        check_model(model, tokenizer_size=size + 1)


@pytest.mark.parametrize("field", ["pad_token_id", "layer_norm_eps", "quantization", "is_decoder"])
def test_null_stands_for_what_is_absent(model: Path, field: str):
    change(model, **{field: None})
    assert check_model(model) == tiny_config(quantized=False)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("vocab_size", None, "vocab_size is None; a whole number from 1 to 2147483647 is wanted"),
        ("vocab_size", "128", "vocab_size is '128'"),
        ("vocab_size", 128.0, r"vocab_size is 128\.0"),
        ("hidden_size", True, "hidden_size is True"),
        ("hidden_size", 0, "hidden_size is 0; a whole number from 1"),
        ("hidden_size", -32, "hidden_size is -32"),
        ("hidden_size", 10**4000, r"hidden_size is 10+\.\.\.;"),
        ("hidden_size", 33, "hidden_size 33 is not a multiple of num_attention_heads 2"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; a whole number from 0 to 1000 is wanted"),
        ("num_attention_heads", [2], r"num_attention_heads is \[2\]"),
        ("intermediate_size", {}, r"intermediate_size is \{\}"),
        ("heads_per_layer", [2], r"heads_per_layer is \[2\]; a list of 2 whole numbers, one for each layer,"),
        ("heads_per_layer", [2, -1], "heads_per_layer"),
        ("ffn_per_layer", [64, "32"], "ffn_per_layer"),
        ("ffn_per_layer", 7, "ffn_per_layer is 7"),
        ("max_position_embeddings", 0, "max_position_embeddings is 0"),
        ("type_vocab_size", 1, "type_vocab_size is 1; 2 are wanted, for question and context"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12'; a number from 0 to below 1"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
        ("layer_norm_eps", -1e-12, "layer_norm_eps is -1e-12"),
        ("hidden_dropout_prob", 1, "hidden_dropout_prob is 1"),
        ("attention_probs_dropout_prob", [], "attention_probs_dropout_prob"),
        ("pad_token_id", 10**6, "pad_token_id is 1000000"),
        ("model_type", "roberta", "model_type is 'roberta'; 'bert' is wanted"),
        ("hidden_act", "gelu_pytorch_tanh", "hidden_act is 'gelu_pytorch_tanh'; 'gelu' is wanted"),
        ("position_embedding_type", "relative_key", "position_embedding_type"),
        ("is_decoder", True, "is_decoder is true"),
        ("quantization", [1], r"quantization is \[1\]; an object or null"),
        ("quantization", {"calibrator": "max"}, "quantization: calibration_examples is missing"),
        ("quantization", {"bits": 4}, "quantization: its fields are calibrator, calibration_examples"),
    ],
)
def test_fields_of_other_types_or_ranges_are_told(model: Path, field: str, value: Any, told: str):
    change(model, **{field: value})
    refused(model, f"config.json: .*{told}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", r"not text in UTF-8 \(byte 0\)"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"hidden_size": 1, "a": {"b": 1, "b": 2}}', "'b' stands there twice"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"{}", "hidden_size is missing; a whole number from 1"),
    ],
)
def test_a_config_that_cannot_be_read_is_told(model: Path, content: bytes, told: str):
    (model / "config.json").write_bytes(content)
    refused(model, f"config.json: .*{told}")


def test_an_absent_config_and_a_folder_in_its_place_are_told(model: Path):
    (model / "config.json").unlink()
    refused(model, "config.json: no such file; a model directory holds config.json")
    (model / "config.json").mkdir()
    refused(model, r"config.json: cannot be read \(Is a directory\)")


def test_a_config_of_a_dense_bert_has_the_same_layers_everywhere(model: Path):
    raw = json.loads((model / "config.json").read_text())
    del raw["heads_per_layer"], raw["ffn_per_layer"], raw["type_vocab_size"], raw["pad_token_id"]
    found = BertConfig.from_dict(raw, model)
    assert [(layer.heads, layer.ffn) for layer in found.layers] == [(2, 64), (2, 64)]
    assert (found.type_vocab_size, found.pad_token_id) == (2, 0)
