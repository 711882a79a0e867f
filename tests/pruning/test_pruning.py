"""Importance against finite differences, the search against brute force, surgery against masking."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.batching import collate
from bertjax.data.dataset import Dataset
from bertjax.data.windows import Window
from bertjax.errors import UserError
from bertjax.model.bert import BertForQuestionAnswering, Gates, Model, bind, init_model
from bertjax.modeldir.config import BertConfig, LayerShape, count_macs
from bertjax.pruning.costs import Costs, check_reduction, largest_blocks, mac_costs
from bertjax.pruning.importance import (
    Importance,
    gate_gradients,
    load_importance,
    measure_importance,
    open_gates,
    save_importance,
)
from bertjax.pruning.search import Plan, search
from bertjax.pruning.surgery import cut
from bertjax.training.losses import span_cross_entropy

TINY = BertConfig.dense(vocab_size=40, hidden_size=16, num_layers=2, heads=2, ffn=12, max_position_embeddings=24)


def _batch(seed: int, rows: int = 3, length: int = 10) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[1, 7:] = 0
    return {
        "input_ids": random.integers(5, 40, (rows, length)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": np.zeros((rows, length), np.int32),
        "starts": random.integers(0, 7, rows).astype(np.int32),
        "ends": random.integers(0, 7, rows).astype(np.int32),
    }


def _sharp_model(seed: int) -> Model:
    """Random weights large enough that every gate matters."""
    fresh = init_model(BertForQuestionAnswering, TINY, seed=seed)
    return fresh.with_params(
        {
            name: value * 8 if name.endswith("dense.weight") or "self." in name else value
            for name, value in fresh.params.items()
        }
    )


def _losses(model: Model, batch: dict, gates: Gates) -> np.ndarray:
    module = bind(BertForQuestionAnswering, model)
    output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], gates=gates)
    return np.asarray(span_cross_entropy(output, batch["attention_mask"], batch["starts"], batch["ends"]), np.float64)


def test_gate_gradients_are_the_finite_differences_of_each_example():
    with jax.enable_x64(True):
        model = _sharp_model(0)
        model = model.with_params({k: v.astype(jnp.float64) for k, v in model.params.items()})
        batch = _batch(1)
        gradients = gate_gradients(model, batch)
        gates, step = open_gates(TINY, 3), 3e-2  # LayerNorm works in float32: smaller steps drown
        for kind, layer, unit in (("heads", 0, 1), ("heads", 1, 0), ("ffn", 0, 5), ("ffn", 1, 11)):

            def shifted(by: float, kind=kind, layer=layer, unit=unit) -> Gates:
                arrays = list(getattr(gates, kind))
                arrays[layer] = arrays[layer].at[:, unit].add(by)
                return dataclasses.replace(gates, **{kind: tuple(arrays)})

            measured = (_losses(model, batch, shifted(step)) - _losses(model, batch, shifted(-step))) / (2 * step)
            found = np.asarray(getattr(gradients, kind)[layer])[:, unit]
            assert np.abs(measured).max() > 1e-4
            np.testing.assert_allclose(found, measured, rtol=2e-2, atol=2e-5)


def _dataset(random: np.random.Generator, sizes: list[int], answered: list[bool]) -> Dataset:
    windows = [
        Window(
            example=index,
            input_ids=random.integers(5, 40, size).astype(np.int32),
            context_start=3,
            offsets=np.zeros((size - 4, 2), np.int32),
            max_context=np.ones(size - 4, bool),
            start=4 if holds else 0,
            end=5 if holds else 0,
        )
        for index, (size, holds) in enumerate(zip(sizes, answered, strict=True))
    ]
    return Dataset(examples=[], windows=windows, lengths=np.array(sizes, np.int32), longest=24)


def test_importance_is_the_mean_square_of_each_windows_own_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertjax.pruning.importance.BATCH_TOKENS", 48)  # two windows
    sizes = [9, 20, 12, 24, 15, 18, 11, 21, 10]
    dataset = _dataset(np.random.default_rng(0), sizes, [number != 1 for number in range(9)])
    model = _sharp_model(5)
    measured = measure_importance(model, dataset, examples=3, seed=2)
    save_importance(tmp_path / "importance.npz", measured, "data=1 seed=2")
    found = load_importance(tmp_path / "importance.npz", "data=1 seed=2")
    assert found is not None
    drawn = np.random.default_rng(2).permutation(np.array([0, *range(2, 9)]))[:3]  # of those that hold their answer
    gradient = jax.jit(lambda batch: gate_gradients(model, batch))
    each = [gradient(collate(dataset.windows, [row], 24)) for row in drawn]
    blocks = {kind: np.zeros((3, 2)) for kind in ("heads", "ffn")}
    for kind, layer in itertools.product(blocks, range(2)):
        own = np.stack([getattr(gates, kind)[layer][0] for gates in each]).astype(np.float64)
        np.testing.assert_allclose(getattr(found, kind)[layer], np.square(own).mean(axis=0), rtol=1e-3, atol=1e-9)
        blocks[kind][:, layer] = own.sum(axis=1)
    for name, sums in (
        ("attention_blocks", blocks["heads"]),
        ("ffn_blocks", blocks["ffn"]),
        ("layers", blocks["heads"] + blocks["ffn"]),
    ):
        np.testing.assert_allclose(getattr(found, name), np.square(sums).mean(axis=0), rtol=1e-3, atol=1e-9)


def _random_importance(config: BertConfig, random: np.random.Generator) -> Importance:
    return Importance(
        heads=tuple(random.random(layer.heads) for layer in config.layers),
        ffn=tuple(random.random(layer.ffn) for layer in config.layers),
        attention_blocks=np.array([random.random() * layer.heads for layer in config.layers]),
        ffn_blocks=np.array([random.random() * layer.ffn for layer in config.layers]),
        layers=np.array([random.choice([0, layer.heads + layer.ffn]) * random.random() for layer in config.layers]),
    )


def _brute_force(
    config: BertConfig, importance: Importance, cost: Callable[[BertConfig], float], budget: float, group: int
) -> float:
    """The least importance lost by any choice of counts that costs at most the budget, from the definition."""
    best = np.inf
    counts = [itertools.product(range(layer.heads + 1), range(layer.ffn // group + 1)) for layer in config.layers]
    for choice in itertools.product(*map(list, counts)):
        layers = tuple(LayerShape(heads=h, ffn=g * group) for h, g in choice)
        if cost(dataclasses.replace(config, layers=layers)) > budget:
            continue
        loss = 0.0
        for i, (h, g) in enumerate(choice):
            heads = np.sort(importance.heads[i])[: config.layers[i].heads - h].sum()
            ffn = np.sort(importance.ffn[i])[: config.layers[i].ffn - g * group].sum()
            heads = max(heads, importance.attention_blocks[i]) if h == 0 else heads
            ffn = max(ffn, importance.ffn_blocks[i]) if g == 0 else ffn
            loss += max(heads + ffn, importance.layers[i]) if h == g == 0 else heads + ffn
        best = min(best, loss)
    return best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), reduction=st.sampled_from([1.0, 1.3, 2.0, 3.1]))
def test_search_finds_what_brute_force_finds(seed: int, reduction: float):
    config = BertConfig.dense(vocab_size=40, hidden_size=16, num_layers=2, heads=4, ffn=40)
    importance = _random_importance(config, np.random.default_rng(seed))
    wanted = _brute_force(config, importance, lambda shape: count_macs(shape, 8), count_macs(config, 8) / reduction, 4)
    try:
        plan = search(config, importance, mac_costs(config, 8), reduction=reduction, ffn_group=4)
    except UserError as error:  # the best plan may lie further than 2 % under the budget, and is then refused
        assert "nearest reachable" in str(error)
        return
    assert plan.loss == pytest.approx(wanted)
    assert count_macs(plan.config(config), 8) <= count_macs(config, 8) / reduction


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), reduction=st.sampled_from([1.0, 1.3, 2.0, 3.1]))
def test_search_for_time_is_optimal_within_its_bound(seed: int, reduction: float):
    """The plan is within the budget, and no plan for a budget of blocks smaller by 1/4096 loses less."""
    config = BertConfig.dense(vocab_size=40, hidden_size=16, num_layers=2, heads=4, ffn=40)
    random = np.random.default_rng(seed)
    importance = _random_importance(config, random)
    costs = Costs(  # not even rising: the search takes a table as it is
        goal="latency", rest=random.random(), attention=random.random(5) * np.arange(5), ffn=random.random(41)
    )
    budget = costs.total(config) / reduction
    lower = _brute_force(config, importance, costs.total, budget, 4)
    upper = _brute_force(config, importance, costs.total, costs.rest + (budget - costs.rest) * (1 - 1 / 4096), 4)
    try:
        plan = search(config, importance, costs, reduction=reduction, ffn_group=4)
    except UserError as error:
        assert "nearest reachable" in str(error) or (np.isinf(upper) and "every block gone" in str(error))
        return
    assert costs.total(plan.config(config)) <= budget * (1 + 1e-9)
    assert lower - 1e-9 <= plan.loss <= upper + 1e-9


def test_a_dense_model_is_its_own_plan_at_reduction_one():
    config = BertConfig.bert_large()
    costs = Costs(goal="latency", rest=0.7, attention=np.linspace(0.1, 2.3, 17), ffn=np.linspace(0.1, 3.1, 4097))
    importance = _random_importance(config, np.random.default_rng(0))
    assert search(config, importance, costs, reduction=1.0, ffn_group=32).loss == 0.0


@pytest.mark.parametrize("reduction", [2.0, 3.0, 5.6, 8.0])
def test_search_meets_the_target_within_two_percent_at_bert_large_shape(reduction: float):
    config = BertConfig.bert_large()
    importance = _random_importance(config, np.random.default_rng(0))
    plan = search(config, importance, mac_costs(config, 384), reduction=reduction, ffn_group=32)
    reached = count_macs(config, 384) / count_macs(plan.config(config), 384)
    assert reached == pytest.approx(reduction, rel=0.02)
    assert all(len(units) % 32 == 0 for units in plan.ffn)


def test_macs_of_bert_large_are_the_references():
    assert count_macs(BertConfig.bert_large(), 384) == pytest.approx(123.2e9, rel=1e-3)


def test_a_plan_says_what_it_keeps_and_what_that_loses():
    config = BertConfig.dense(vocab_size=40, hidden_size=16, num_layers=2, heads=2, ffn=6)
    importance = Importance(
        heads=(np.array([3.0, 0.5]), np.array([0.25, 4.0])),
        ffn=(np.array([5.0, 1.0, 1.0, 6.0, 7.0, 0.5]), np.array([0.5, 9.0, 9.0, 0.25, 9.0, 9.0])),
        attention_blocks=np.zeros(2),
        ffn_blocks=np.zeros(2),
        layers=np.zeros(2),
    )
    costs = Costs(goal="latency", rest=1.0, attention=np.array([0.0, 4.0, 8.0]), ffn=np.arange(7) * 2.0)
    plan = search(config, importance, costs, reduction=41 / 25, ffn_group=2)  # 16 of 40 go: a head and a group a layer
    assert [kept.tolist() for kept in plan.heads] == [[0], [1]]
    assert [kept.tolist() for kept in plan.ffn] == [[0, 1, 3, 4], [1, 2, 4, 5]]
    assert plan.loss == 0.5 + 0.25 + 1.5 + 0.75
    with pytest.raises(UserError, match="nearest reachable"):
        search(config, importance, costs, reduction=41 / 24, ffn_group=2)  # 25 of 41 cannot be 24


@pytest.mark.parametrize("reduction, allowed", [(0.99, False), (1.0, True), (32.0, True), (32.1, False)])
def test_a_student_is_between_one_and_a_thirty_second_of_its_teacher(reduction: float, allowed: bool):
    with contextlib.nullcontext() if allowed else pytest.raises(UserError, match="between 1 and 32"):
        check_reduction(reduction, "--flops-reduction")


@pytest.mark.parametrize("blocks", [(), ((0, 0),), ((1, 5), (2, 0)), ((2, 12), (0, 3))])
def test_costs_of_blocks_add_up_to_the_multiply_accumulates_of_a_model(blocks: tuple[tuple[int, int], ...]):
    layers = tuple(LayerShape(heads=heads, ffn=units) for heads, units in blocks)
    model = dataclasses.replace(TINY, layers=layers)
    assert mac_costs(TINY, 9).total(model) == count_macs(model, 9)


def test_the_largest_blocks_are_those_of_any_layer():
    layers = (LayerShape(heads=1, ffn=9), LayerShape(heads=3, ffn=4))
    assert largest_blocks(dataclasses.replace(TINY, layers=layers)) == (3, 9)
    assert largest_blocks(dataclasses.replace(TINY, layers=())) == (0, 0)


@pytest.mark.parametrize("reduction", [0.5, 100.0, float("nan")])
def test_an_impossible_target_is_the_users_mistake(reduction: float):
    importance = _random_importance(TINY, np.random.default_rng(0))
    with pytest.raises(UserError, match="--flops-reduction"):
        search(TINY, importance, mac_costs(TINY, 8), reduction=reduction, ffn_group=4)


@pytest.mark.parametrize(
    "heads, ffn",
    [
        (([0, 1], [1]), ([0, 3, 11], [5])),
        (([], [0]), ([], [1, 2])),
        (([1], []), (list(range(12)), [])),
    ],
)
def test_the_cut_model_is_the_masked_model(heads: tuple, ffn: tuple):
    plan = Plan(heads=tuple(map(_indexes, heads)), ffn=tuple(map(_indexes, ffn)), loss=0.0)
    model, batch = _sharp_model(3), _batch(4)
    closed = Gates(
        heads=tuple(jnp.zeros((3, 2)).at[:, kept].set(1) for kept in plan.heads),
        ffn=tuple(jnp.zeros((3, 12)).at[:, kept].set(1) for kept in plan.ffn),
    )
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    masked = bind(BertForQuestionAnswering, model)(*inputs, gates=closed)
    small = bind(BertForQuestionAnswering, cut(model, plan))(*inputs)
    np.testing.assert_allclose(small.start_logits, masked.start_logits, atol=1e-5)
    np.testing.assert_allclose(small.end_logits, masked.end_logits, atol=1e-5)


def _indexes(kept: list[int]) -> np.ndarray:
    return np.array(kept, np.int64)


def test_an_importance_of_another_identity_or_cut_short_is_said_and_not_taken(tmp_path: Path, capsys):
    path, zeros = tmp_path / "importance.npz", np.zeros(1)
    found = Importance(heads=(zeros,), ffn=(zeros,), attention_blocks=zeros, ffn_blocks=zeros, layers=zeros)
    assert load_importance(path, "data=1") is None and capsys.readouterr().out == ""
    save_importance(path, found, "data=1 seed=2")
    assert load_importance(path, "data=3 seed=2") is None
    assert "of other data; measured anew" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-30])
    assert load_importance(path, "data=1 seed=2") is None
    assert "importance.npz: broken" in capsys.readouterr().out
