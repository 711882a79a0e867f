"""The NNX BERT against PyTorch transformers, and model directories that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.model.bert import (
    BertForQuestionAnswering,
    Context,
    Gates,
    LayerNorm,
    Model,
    bind,
    init_model,
    jit_logits,
)
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, Quantization
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import activation_scales, count_parameters, question_answering_shapes, scale_shapes
from bertjax.modeldir.untrained import random_model
from bertjax.training.losses import span_cross_entropy
from tests.models import PLACEMENTS, tiny_config
from tests.onnx.reference import Reference


def _inputs(vocabulary: int, rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[-1, length // 2 :] = 0
    types = np.zeros((rows, length), np.int32)
    types[:, 5:] = 1
    return random.integers(0, vocabulary, (rows, length)).astype(np.int32), mask, types


def _span_model(config: BertConfig, *, seed: int, dtype: jnp.dtype = jnp.float32):
    """A compiled model with fresh weights."""
    model = bind(BertForQuestionAnswering, init_model(BertForQuestionAnswering, config, seed=seed), dtype=dtype)
    return jax.jit(lambda *inputs, **rest: model(*inputs, **rest))


def _compare_with_transformers(stored: StoredModel, length: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = stored.config
    layer = config.layers[0]
    theirs = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=len(config.layers),
        num_attention_heads=layer.heads,
        intermediate_size=layer.ffn,
        attn_implementation="eager",
    )
    with torch.device("meta"):  # nothing is drawn for weights that are replaced
        model = transformers.BertForQuestionAnswering(theirs).eval()
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in stored.tensors.items()}
    lost = model.load_state_dict(tensors, strict=False, assign=True)
    assert not lost.unexpected_keys and not [name for name in lost.missing_keys if "position_ids" not in name]
    ids, mask, types = _inputs(config.vocab_size, 2, length)
    with torch.no_grad():
        positions = torch.arange(length)[None]  # the module's own are not among its weights
        wanted = model(*(torch.from_numpy(array).long() for array in (ids, mask, types)), positions)
    ours = bind(BertForQuestionAnswering, Model.of(stored))
    start, end = jit_logits(ours)(ids, mask, types)
    np.testing.assert_allclose(start[mask > 0], wanted.start_logits.numpy()[mask > 0], atol=1e-4)
    np.testing.assert_allclose(end[mask > 0], wanted.end_logits.numpy()[mask > 0], atol=1e-4)


def test_bert_large_shape_matches_transformers():
    config, random = BertConfig.bert_large(), np.random.default_rng(0)
    noise = random.normal(0.0, 0.03, 1_000_003).astype(np.float32)  # drawn once and repeated: 334M draws take long
    params = {
        name: np.resize(np.roll(noise, random.integers(len(noise))), shape) + ("LayerNorm.weight" in name)
        for name, shape in question_answering_shapes(config).items()
    }
    assert count_parameters(config) == sum(value.size for value in params.values()) == 334_094_338
    _compare_with_transformers(StoredModel(config=config, tensors=params), length=16)


def test_gradients_match_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = BertConfig.dense(vocab_size=50, hidden_size=32, num_layers=2, heads=2, ffn=64, max_position_embeddings=32)
    fresh = init_model(BertForQuestionAnswering, config, seed=0)
    params = {name: value * 5 if value.ndim == 2 else value for name, value in fresh.params.items()}
    ids, mask, types = _inputs(50, 4, 12)
    starts, ends = np.array([1, 3, 5, 2]), np.array([2, 4, 5, 4])

    def loss(params: dict) -> jax.Array:
        output = bind(BertForQuestionAnswering, fresh.with_params(params))(ids, mask, types)
        return span_cross_entropy(output, mask, starts, ends).mean()

    ours = jax.jit(jax.grad(loss))(params)
    shape = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    theirs = transformers.BertConfig(**shape, max_position_embeddings=32, attn_implementation="eager")
    model = transformers.BertForQuestionAnswering(theirs).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in params.items()}, strict=False)
    output = model(*(torch.from_numpy(array).long() for array in (ids, mask, types)))
    parts = []
    for logits, labels in ((output.start_logits, starts), (output.end_logits, ends)):
        real = logits.masked_fill(torch.from_numpy(mask == 0), -1e4)
        parts.append(torch.nn.functional.cross_entropy(real, torch.from_numpy(labels)))
    (sum(parts) / 2).backward()
    for name, parameter in model.named_parameters():
        kept = slice(1 if "word_embeddings" in name else 0, None)  # PyTorch leaves [PAD]'s own row out of training
        np.testing.assert_allclose(ours[name][kept], parameter.grad.numpy()[kept], atol=1e-5, err_msg=name)


def test_the_real_encoder_matches_transformers(minilm: Path):
    encoder = store.load_encoder(minilm)
    head = init_model(BertForQuestionAnswering, encoder.config, seed=0).stored()
    model = dataclasses.replace(encoder, tensors=head.tensors | encoder.tensors)
    _compare_with_transformers(model, length=60)


def test_padding_changes_nothing():
    config = tiny_config(quantized=False)
    model = _span_model(config, seed=1)
    ids, mask, types = _inputs(config.vocab_size, 2, 12)
    padded = [np.pad(array, ((0, 0), (0, 20))) for array in (ids, mask, types)]
    short, long = model(ids, mask, types), model(*padded)
    np.testing.assert_allclose(long.start_logits[:, :12][mask > 0], short.start_logits[mask > 0], atol=1e-5)


def test_bfloat16_stays_near_float32():
    config = tiny_config(quantized=False)
    inputs = _inputs(config.vocab_size, 2, 20)
    wide = _span_model(config, seed=2)(*inputs)
    narrow = _span_model(config, seed=2, dtype=jnp.bfloat16)(*inputs)
    assert narrow.start_logits.dtype == jnp.float32 and narrow.hidden_states[-1].dtype == jnp.bfloat16
    difference = np.linalg.norm(narrow.start_logits - wide.start_logits) / np.linalg.norm(wide.start_logits)
    assert 0 < difference < 0.05


def test_a_layer_norm_of_bfloat16_is_computed_in_float32():
    norm, random = LayerNorm(64, 1e-12), np.random.default_rng(0)
    x = jnp.asarray(random.normal(200.0, 3.0, (5, 64)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    wanted = (exact - exact.mean(axis=-1, keepdims=True)) / exact.std(axis=-1, keepdims=True)
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0.01, atol=0.01)


def test_bfloat16_gradients_are_float32_and_near():
    config = tiny_config(quantized=True)
    fresh = init_model(BertForQuestionAnswering, config, seed=2)
    params = fresh.params
    ids, mask, types = _inputs(config.vocab_size, 2, 20)
    trained = {name: value for name, value in params.items() if not name.endswith("_scale")}
    scales = {name: 0.05 * value for name, value in params.items() if name.endswith("_scale")}

    def gradients(dtype: jnp.dtype) -> np.ndarray:
        def loss(trained):
            model = fresh.with_params(trained | scales)
            output = bind(BertForQuestionAnswering, model, dtype=dtype)(ids, mask, types)
            return span_cross_entropy(output, mask, np.array([6, 7]), np.array([8, 9])).mean()

        found = jax.jit(jax.grad(loss))(trained)
        assert all(value.dtype == jnp.float32 for value in found.values())
        return np.concatenate([np.ravel(found[name]) for name in sorted(found)])

    wide, narrow = gradients(jnp.float32), gradients(jnp.bfloat16)
    assert wide @ narrow > 0.995 * np.linalg.norm(wide) * np.linalg.norm(narrow)


def test_dropout_keeps_its_share_and_the_mean():
    x = jnp.ones((100, 200), jnp.bfloat16)
    dropped = Context(bias=jnp.zeros(()), dropout_key=jax.random.key(0)).dropout(x, 0.2, 0)
    assert dropped.dtype == x.dtype and set(np.unique(dropped.astype(np.float32)).tolist()) == {0.0, 1.25}
    assert float((dropped > 0).mean()) == pytest.approx(0.8, abs=0.01)
    assert Context(bias=jnp.zeros(()), dropout_key=jax.random.key(0)).dropout(x, 0.0, 0) is x
    assert Context(bias=jnp.zeros(())).dropout(x, 0.2, 0) is x


def test_every_dropout_of_a_pass_has_its_rate_and_a_mask_of_its_own(monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(tiny_config(quantized=False), hidden_dropout=0.3, attention_dropout=0.2)
    model = bind(BertForQuestionAnswering, init_model(BertForQuestionAnswering, config, seed=3))
    inputs, places = _inputs(config.vocab_size, 2, 20), []
    monkeypatch.setattr(
        Context, "dropout", lambda self, x, rate, place: places.append((place, rate, x.shape == (2, 20, 32))) or x
    )
    jax.eval_shape(lambda key: model(*inputs, dropout_key=key), jax.random.key(0))
    monkeypatch.undo()
    assert len({place for place, *_ in places}) == len(places) == 3 * len(config.layers) + 1
    assert all(rate == (0.3 if hidden else 0.2) for _, rate, hidden in places)
    once, again, other = (jax.jit(model)(*inputs, dropout_key=jax.random.key(seed)).start_logits for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3


def test_a_gate_scales_what_its_unit_gives_for_its_example_alone():
    config, random = tiny_config(quantized=False), np.random.default_rng(0)
    exact = Model.of(random_model(config, seed=4))
    factors = Gates(
        heads=tuple(random.random(layer.heads, np.float32) for layer in config.layers),
        ffn=tuple(random.random(layer.ffn, np.float32) for layer in config.layers),
    )
    scaled = dict(exact.params)
    for index in range(len(config.layers)):
        for block, shares in (
            ("attention.output", factors.heads[index].repeat(config.head_size)),
            ("output", factors.ffn[index]),
        ):
            scaled[f"bert.encoder.layer.{index}.{block}.dense.weight"] *= shares  # the columns of the units
    inputs = _inputs(config.vocab_size, 2, 20)
    logits = jax.jit(lambda model, gates: bind(BertForQuestionAnswering, model)(*inputs, gates=gates).start_logits)
    gates = jax.tree.map(lambda one: np.stack([one, np.ones_like(one)]), factors)
    found = logits(exact, gates)
    open_gates = jax.tree.map(np.ones_like, gates)
    np.testing.assert_allclose(found[0], logits(exact.with_params(scaled), open_gates)[0], atol=1e-5)
    np.testing.assert_allclose(found[1], logits(exact, open_gates)[1], atol=1e-5)


@pytest.mark.parametrize("placement", [PLACEMENTS[0], PLACEMENTS[-1]])
def test_the_grid_in_the_network_is_that_of_plain_numpy(placement: Quantization):
    """By relative L2: a difference of 1e-7 can turn a rounding."""
    config = tiny_config(((2, 64), (0, 32), (1, 0)), quantized=placement)
    stored, inputs = random_model(config, seed=5), _inputs(config.vocab_size, 3, 20)
    seen: dict[str, jax.Array] = {}
    model = bind(BertForQuestionAnswering, Model.of(stored))
    found = np.stack(jit_logits(model)(*inputs))
    wanted, real = Reference(stored).run(*inputs), inputs[1] > 0
    assert np.linalg.norm((found - wanted)[:, real]) < 0.02 * np.linalg.norm(wanted[:, real])
    jax.eval_shape(lambda: model(*inputs, observe=seen.__setitem__) and None)
    everything = dataclasses.replace(config, quantization=PLACEMENTS[-1])
    shapes = scale_shapes(everything)
    assert seen.keys() == set(activation_scales(everything))
    assert all(
        value.shape[:2] == (3, 20) and value.shape[-1:] == (shapes[name] or value.shape[-1:])
        for name, value in seen.items()
    )


def test_fresh_weights_are_a_narrow_normal_and_follow_their_seed():
    config = tiny_config(quantized=False)
    params, same, other = (init_model(BertForQuestionAnswering, config, seed=seed).params for seed in (0, 0, 1))
    for name, value in params.items():
        np.testing.assert_array_equal(value, same[name])
        if value.ndim == 2:
            assert (value != other[name]).any() and np.abs(value).max() <= 0.04
        else:
            assert (value == float(name.endswith("LayerNorm.weight"))).all()
    drawn = params["bert.embeddings.position_embeddings.weight"]
    assert float(drawn.std()) == pytest.approx(0.02 * 0.8796, rel=0.02) and float(np.abs(drawn).max()) > 0.038


def test_two_modules_of_one_shape_share_nothing():
    config = tiny_config(quantized=False)
    first, second = (init_model(BertForQuestionAnswering, config, seed=seed) for seed in (0, 1))
    ours, theirs = (bind(BertForQuestionAnswering, model) for model in (first, second))
    ours.qa_outputs.weight[...] = jnp.zeros_like(ours.qa_outputs.weight[...])
    np.testing.assert_array_equal(theirs.qa_outputs.weight[...], second.params["qa_outputs.weight"])
    again = bind(BertForQuestionAnswering, first, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(again.qa_outputs.weight[...], first.params["qa_outputs.weight"])
    assert (theirs.bert.dtype, again.bert.dtype) == (jnp.float32, jnp.bfloat16)
