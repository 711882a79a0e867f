"""The masked-LM head against PyTorch transformers, and the weights that pre-training starts from."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from bertjax.model.bert import Model, bind, init_model
from bertjax.model.masked_lm import BertForMaskedLM, fan_in_model, masked_lm_from_encoder
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import masked_lm_head_shapes
from tests.models import tiny_config, write_random_model

CONFIG = tiny_config(((2, 64),), quantized=False)


def test_logits_match_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    random = np.random.default_rng(0)
    params = {
        name: np.asarray(random.normal(0.0, 0.3, value.shape) + ("LayerNorm.weight" in name), np.float32)
        for name, value in init_model(BertForMaskedLM, CONFIG, seed=0).params.items()
    }
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            attn_implementation="eager",
        )
    ).eval()
    lost = theirs.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()}, strict=False)
    theirs.tie_weights()
    assert not lost.unexpected_keys
    ids, positions = random.integers(0, CONFIG.vocab_size, (2, 12)), np.array([[1, 3], [2, 4]])
    mask, types = (np.arange(12) < np.array([[12], [7]])).astype(int), np.arange(12)[None].repeat(2, 0) // 6
    with torch.no_grad():
        wanted = theirs(*map(torch.from_numpy, (ids, mask, types))).logits.numpy()
    found = jax.jit(lambda model, *inputs: bind(BertForMaskedLM, model)(*inputs))(
        Model(config=CONFIG, params=params), ids, mask, types, positions
    )
    assert found.shape == (2, 2, CONFIG.vocab_size)
    np.testing.assert_allclose(found, np.take_along_axis(wanted, positions[..., None], axis=1), atol=1e-4)


def test_a_model_from_nothing_has_embeddings_of_size_one_and_products_that_keep_theirs():
    config = BertConfig.dense(vocab_size=500, hidden_size=64, num_layers=1, heads=4, ffn=400)
    params = fan_in_model(config, seed=0).params
    size = {name: float(np.std(value)) for name, value in params.items()}
    deviation = 0.8796  # of a normal distribution cut at two standard deviations
    for table in ("word", "position"):
        assert size[f"bert.embeddings.{table}_embeddings.weight"] == pytest.approx(deviation, rel=0.02)
    layer = "bert.encoder.layer.0"
    assert size[f"{layer}.intermediate.dense.weight"] == pytest.approx(deviation / 8, rel=0.02)
    assert size[f"{layer}.output.dense.weight"] == pytest.approx(deviation / 20, rel=0.02)
    assert (params["cls.predictions.transform.LayerNorm.weight"] == 1 / 8).all()
    assert (params[f"{layer}.output.LayerNorm.weight"] == 1).all()
    assert not any(value.any() for name, value in params.items() if name.endswith("bias"))
    other = fan_in_model(config, seed=1).params
    assert (other[f"{layer}.output.dense.weight"] != params[f"{layer}.output.dense.weight"]).any()


def test_a_checkpoints_own_head_is_kept_and_a_missing_one_is_drawn(tmp_path: Path):
    write_random_model(tmp_path / "tokenizer", CONFIG, seed=0)
    arrays = fan_in_model(CONFIG, seed=4).stored().tensors
    head = masked_lm_head_shapes(CONFIG)
    arrays["cls.predictions.bias"] = np.arange(CONFIG.vocab_size, dtype=np.float32)
    store.save(tmp_path / "with", StoredModel(config=CONFIG, tensors=arrays), tokenizer_from=tmp_path / "tokenizer")
    found = masked_lm_from_encoder(tmp_path / "with", seed=0)
    assert found.config == CONFIG and found.params.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found.params[name], value)
    bare = {name: value for name, value in arrays.items() if name not in head}
    bare["cls.predictions.bias"] = np.ones(3, np.float32)  # of another vocabulary
    store.save(tmp_path / "without", StoredModel(config=CONFIG, tensors=bare), tokenizer_from=tmp_path / "tokenizer")
    drawn = init_model(BertForMaskedLM, CONFIG, seed=5).params
    for name, value in masked_lm_from_encoder(tmp_path / "without", seed=5).params.items():
        np.testing.assert_array_equal(value, drawn[name] if name in head else arrays[name])
