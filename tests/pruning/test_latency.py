"""Latency tables: what follows from timed probes, and what is refused. The program that times is run once, tiny."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import pytest

from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline import prune
from bertjax.pipeline.prune import make_plan
from bertjax.pipeline.run import Run
from bertjax.pipeline.settings import RunSettings
from bertjax.pruning import latency
from bertjax.pruning.importance import Importance
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
    (checked,) = latency.with_checks(table, [CONFIG], [7.5]).checks
    assert checked == {
        "heads": [4] * 3,
        "ffn": [256] * 3,
        "predicted": pytest.approx(_seconds(CONFIG)),
        "measured": 7.5,
    }


def test_probes_are_four_equal_layers_with_one_kind_of_block_and_a_small_vocabulary():
    probes = latency.probe_shapes(CONFIG, QUANTIZATION, group=32, widths=4)
    layers = [tuple((layer.heads, layer.ffn) for layer in probe.layers) for probe in probes]
    blocks = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 32), (0, 96), (0, 192), (0, 256)]
    assert layers == [(), *((block,) * 4 for block in blocks)]
    assert {probe.vocab_size for probe in probes} == {1000} and {probe.quantization for probe in probes} == {
        QUANTIZATION
    }
    coarse = latency.probe_shapes(CONFIG, QUANTIZATION, group=128, widths=4)
    assert [probe.layers[0].ffn for probe in coarse[6:]] == [128, 256]
    few = dataclasses.replace(CONFIG, vocab_size=30)
    assert latency.probe(few, QUANTIZATION, [(1, 8)]).vocab_size == 30


def test_checks_are_the_dense_model_its_half_and_two_mixed_ones():
    dense, half, *mixed = latency.check_shapes(CONFIG, QUANTIZATION, group=32)
    assert [(layer.heads, layer.ffn) for layer in (*dense.layers, *half.layers)] == [(4, 256)] * 3 + [(2, 128)] * 3
    assert len(mixed) == 2 and all(len(set(shape.layers)) == 3 for shape in mixed)
    assert all(layer.heads <= 4 and layer.ffn <= 256 and layer.ffn % 32 == 0 for s in mixed for layer in s.layers)
    assert sum(layer.ffn for layer in mixed[1].layers) < sum(layer.ffn for layer in mixed[0].layers)
    assert all(shape.quantization == QUANTIZATION for shape in (dense, half, *mixed))


def test_a_block_that_seems_to_take_less_than_nothing_takes_what_an_empty_one_does():
    probes = latency.probe_shapes(CONFIG, QUANTIZATION, group=32, widths=2)
    table = latency.table_from(probes, [5.0, 7.0, 6.0, *[9.0] * 5], {"clock": "wall"})
    assert table.attention == ((0, 0.25), (1, 0.25), (2, 0.75), (3, 0.75), (4, 0.75))
    assert table.rest == 5.0 and table.about == {"clock": "wall"}
    assert (table.hidden_size, table.head_size) == (32, 8)
    assert latency.table_from(probes, [5.0, 4.0, *[9.0] * 6], {}).attention[:2] == ((0, 0.0), (1, 1.25))


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    latency.write_table(tmp_path / "t.json", _table())
    assert latency.read_table(tmp_path / "t.json") == _table()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rest": 0.0}, "rest, hidden_size and head_size must be above 0"),
        ({"ffn": [[0, 1.0], [64, 2.0], [32, 3.0]]}, "ffn: must be pairs"),
        ({"attention": [[0, "fast"]]}, "attention: must be pairs"),
        ({"hidden_size": "32"}, "rest, hidden_size and head_size must be above 0"),
        ({"head_size": 0}, "rest, hidden_size and head_size must be above 0"),
        ({"about": "it"}, "rest, hidden_size and head_size must be above 0"),
        ({"ffn": [[0, 1.0]]}, "ffn: must be pairs"),
        ({"ffn": [[1, 1.0], [64, 2.0]]}, "ffn: must be pairs"),
        ({"ffn": [[0, 1.0], [64, 2.0], [64, 3.0]]}, "ffn: must be pairs"),
        ({"ffn": [[0, 1.0], [64, -2.0]]}, "ffn: must be pairs"),
        ({"ffn": [[0, 1.0], [64, float("nan")]]}, "ffn: must be pairs"),
        ({"attention": 3}, "attention: must be pairs"),
        ({"speed": 1}, "not a latency table"),
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


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_file_that_is_no_table_is_told(tmp_path: Path, content: str):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"t.json: no.*train/latency_table.py"):
        latency.read_table(tmp_path / "t.json")


@pytest.mark.parametrize("change", [{"ffn": 320}, {"heads": 8}, {"hidden_size": 64}, {"heads": 2}])
def test_a_table_of_another_model_is_refused(change: dict[str, int]):
    shape = dict(hidden_size=32, num_layers=3, heads=4, ffn=256)
    with pytest.raises(UserError, match="4 heads and 256 FFN units at most, which is not this teacher"):
        _table().costs(BertConfig.dense(vocab_size=5000, **shape | change), "t.json")
    smaller = _table().costs(BertConfig.dense(vocab_size=5000, **shape | {"ffn": 128}), "t.json")
    np.testing.assert_allclose(smaller.ffn, FFN[:129])


def test_a_run_keeps_what_the_table_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    latency.write_table(tmp_path / "t.json", _table())
    random, layers = np.random.default_rng(0), len(CONFIG.layers)
    importance = Importance(
        heads=tuple(random.random(4) for _ in range(layers)),
        ffn=tuple(random.random(256) for _ in range(layers)),
        attention_blocks=random.random(layers),
        ffn_blocks=random.random(layers),
        layers=random.random(layers),
    )
    monkeypatch.setattr(prune.fisher, "measure_importance", lambda *model, **settings: importance)
    monkeypatch.setattr(Run, "datasets", (types.SimpleNamespace(digest="windows"), None))
    settings = RunSettings(
        latency_table=str(tmp_path / "t.json"), latency_reduction=2.0, ffn_group=8, cache=str(tmp_path)
    )
    teacher = Model(config=CONFIG, params={})  # no gradient is taken: nothing looks at the parameters
    student = make_plan(Run(settings, ""), teacher).config(CONFIG)
    assert _seconds(CONFIG) / _seconds(student) == pytest.approx(2.0, rel=0.02)
    other = dataclasses.replace(settings, quantize_also=("residual",))
    with pytest.raises(UserError, match="timed with --quantize-also \\(empty\\); give the same here"):
        make_plan(Run(other, ""), teacher)
