"""Latency tables: what follows from timed probes, and what is refused. The program that times is run once, tiny."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline.prune import make_plan
from bertjax.pipeline.run import Run
from bertjax.pipeline.settings import RunSettings
from bertjax.pruning import latency
from bertjax.pruning.importance import Importance, save_importance
from tests.models import QUANTIZATION

CONFIG = BertConfig.dense(vocab_size=5000, hidden_size=32, num_layers=3, heads=4, ffn=256)
ATTENTION, FFN = np.array([0.25, 1.0, 1.5, 2.5, 3.0]), 0.25 + 0.01 * np.arange(257)


def _seconds(config: BertConfig) -> float:
    """An engine in which blocks add up."""
    return 5.0 + sum(ATTENTION[layer.heads] + FFN[layer.ffn] for layer in config.layers)


def _table() -> latency.LatencyTable:
    probes = latency.probe_shapes(CONFIG, QUANTIZATION, group=32, widths=4)
    return latency.table_from(probes, [_seconds(probe) for probe in probes], {"quantize_also": []})


def test_a_table_gives_back_what_blocks_take_and_fills_in_between():
    table = _table()
    assert [size for size, _ in table.ffn] == [0, 32, 96, 192, 256]
    costs = table.costs(CONFIG, "t")
    np.testing.assert_allclose(costs.attention, ATTENTION)
    np.testing.assert_allclose(costs.ffn, FFN)
    checked = latency.with_checks(table, [CONFIG], [_seconds(CONFIG)]).checks[0]
    assert checked["predicted"] == pytest.approx(checked["measured"])


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    latency.write_table(tmp_path / "t.json", _table())
    assert latency.read_table(tmp_path / "t.json") == _table()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rest": 0.0}, "rest, hidden_size and head_size must be above 0"),
        ({"ffn": [[0, 1.0], [64, 2.0], [32, 3.0]]}, "ffn: wanted are pairs"),
        ({"attention": [[0, "fast"]]}, "attention: wanted are pairs"),
        ({"speed": 1}, "no latency table"),
    ],
)
def test_a_broken_table_is_told_in_one_line(tmp_path: Path, change: dict, told: str):
    path = tmp_path / "t.json"
    latency.write_table(path, _table())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=told) as caught:
        latency.read_table(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_absent_table_is_told_with_the_program_that_makes_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"none.json: No such file.*train/latency_table.py"):
        latency.read_table(tmp_path / "none.json")


def test_a_table_of_another_model_is_refused():
    other = BertConfig.dense(vocab_size=5000, hidden_size=32, num_layers=3, heads=4, ffn=320)
    with pytest.raises(UserError, match="4 heads and 256 FFN units at most, which is not this teacher"):
        _table().costs(other, "t.json")


def test_a_run_keeps_what_the_table_allows(tmp_path: Path):
    latency.write_table(tmp_path / "t.json", _table())
    random, layers = np.random.default_rng(0), len(CONFIG.layers)
    importance = Importance(
        heads=tuple(random.random(4) for _ in range(layers)),
        ffn=tuple(random.random(256) for _ in range(layers)),
        attention_blocks=random.random(layers),
        ffn_blocks=random.random(layers),
        layers=random.random(layers),
    )
    save_importance(tmp_path / "importance.npz", importance)
    settings = RunSettings(
        latency_table=str(tmp_path / "t.json"), latency_reduction=2.0, ffn_group=8, cache=str(tmp_path)
    )
    teacher = Model(config=CONFIG, params={})  # its importance is known: nothing looks at the parameters
    student = make_plan(Run(settings, ""), teacher).config(CONFIG)
    assert _seconds(CONFIG) / _seconds(student) == pytest.approx(2.0, rel=0.02)
    other = dataclasses.replace(settings, quantize_also=("residual",))
    with pytest.raises(UserError, match="timed with nothing in --quantize-also"):
        make_plan(Run(other, ""), teacher)
