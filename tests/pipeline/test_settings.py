"""Settings are flat to whoever reads files and flags, and have parts for the stages."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from bertjax.data.windows import WindowSettings
from bertjax.errors import UserError
from bertjax.modeldir.config import Quantization
from bertjax.pipeline.flags import parse_run
from bertjax.pipeline.settings import RunSettings, StageSettings, to_dict
from bertjax.training.settings import DistillSettings, TrainSettings

SETTINGS_FILE = [
    "output",
    "encoder",
    "teacher",
    "train_file",
    "val_file",
    "eval_file",
    "train_questions",
    "val_questions",
    "max_seq",
    "doc_stride",
    "max_query",
    "hidden_dropout",
    "attention_dropout",
    "teacher_epochs",
    "teacher_batch_size",
    "teacher_learning_rate",
    "flops_reduction",
    "latency_table",
    "latency_reduction",
    "ffn_group",
    "importance_examples",
    "repair_examples",
    "pruning_rounds",
    "distill_epochs",
    "distill_batch_size",
    "distill_learning_rate",
    "temperature",
    "label_weight",
    "hidden_weight",
    "layer_map",
    "relation_weight",
    "cache_gib",
    "calibrator",
    "activation_scales",
    "quantize_also",
    "calibration_examples",
    "qat_epochs",
    "qat_batch_size",
    "qat_learning_rate",
    "learned_scales",
    "ema",
    "length_multiple",
    "evaluations",
    "dtype",
    "seed",
    "skip",
    "scratch",
    "cache",
]


def test_settings_json_is_flat_in_its_known_order():
    """Runs of 0.1 are continued as long as no name is lost; a new one is added at the end of its stage."""
    assert list(to_dict(RunSettings())) == SETTINGS_FILE


def test_every_stage_has_its_own_numbers():
    names = [f"{stage}_{field}" for stage in ("teacher", "distill", "qat") for field in ("epochs", "batch_size")]
    settings = RunSettings(
        **{name: number for number, name in enumerate(names, 1)},
        teacher_learning_rate=0.1,
        distill_learning_rate=0.2,
        qat_learning_rate=0.3,
    )
    assert settings.stage("teacher") == StageSettings(epochs=1, batch_size=2, learning_rate=0.1)
    assert settings.stage("distill") == StageSettings(epochs=3, batch_size=4, learning_rate=0.2)
    assert settings.stage("qat") == StageSettings(epochs=5, batch_size=6, learning_rate=0.3)


def test_parts_take_their_fields_and_defaults_are_theirs():
    assert RunSettings().windows == WindowSettings()
    assert RunSettings().distillation == DistillSettings()
    train = TrainSettings(steps=1, learning_rate=1.0)
    assert (RunSettings().ema, RunSettings().seed) == (train.ema, train.seed)
    loss = DistillSettings(
        temperature=3.0,
        label_weight=0.3,
        hidden_weight=0.4,
        layer_map="dynamic",
        relation_weight=0.5,
        learned_scales=True,
    )
    assert RunSettings(**dataclasses.asdict(loss)).distillation == loss
    assert RunSettings(max_seq=5, doc_stride=6, max_query=7).windows == WindowSettings(
        max_seq=5, doc_stride=6, max_query=7
    )


def test_the_quantization_record_follows_the_settings_within_the_data():
    settings = RunSettings(calibrator="mse", activation_scales="tensor", quantize_also=("residual",))
    assert settings.quantization(windows=9) == Quantization(
        calibrator="mse",
        calibration_examples=9,
        trained=False,
        activation_scales="tensor",
        attention=False,
        residual=True,
    )
    assert RunSettings().quantization(windows=10_000).calibration_examples == 256
    assert RunSettings().quantization(windows=1).activation_scales == "feature"


def test_help_has_a_group_for_every_stage_and_says_what_a_value_is():
    parser = argparse.ArgumentParser()
    parse_run(parser, [])
    shown = parser.format_help()
    titles = ["inputs and output", "windows", "teacher", "pruning", "distillation", "quantization"]
    places = [shown.index(f"\n{title}:\n") for title in [*titles, "training, every stage"]]
    assert places == sorted(places)
    for flag in ("--output DIR", "--train-file FILE", "--latency-table FILE", "--max-seq N", "--train-questions N"):
        assert f"  {flag} " in shown
    assert places[3] < shown.index("  --ffn-group N ") < places[4]


def test_flags_are_numbers_names_and_lists_as_the_fields_are():
    flags = "--train-questions 7 --ema 0.5 --latency-reduction 3 --learned-scales --quantize-also attention residual"
    settings, own = parse_run(argparse.ArgumentParser(), [*flags.split(), "--seed", "4"])
    assert (settings.train_questions, settings.ema, settings.latency_reduction) == (7, 0.5, 3.0)
    assert settings.learned_scales and settings.quantize_also == ("attention", "residual") and settings.seed == 4
    assert own == {} and settings.max_seq == 64, "what is not given is the preset's"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("length_multiple", 0, "--length-multiple 0: must be at least 1"),
        ("pruning_rounds", 0, "--pruning-rounds 0: must be at least 1"),
        ("ema", 1.0, "--ema 1: must be at least 0 and less than 1"),
        ("ema", -0.1, "--ema -0.1"),
        ("relation_weight", -1.0, "--relation-weight -1: must not be negative"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_their_flag(field: str, value: float, told: str):
    with pytest.raises(UserError, match=told):
        RunSettings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("train_questions", 0, "must be at least 1"),
        ("val_questions", 0, "must be at least 1"),
        ("max_seq", -3, "must be at least 1"),
        ("distill_batch_size", 0, "must be at least 1"),
        ("calibration_examples", 0, "must be at least 1"),
        ("teacher_epochs", -1.0, "must not be negative"),
        ("qat_epochs", float("nan"), "must not be negative"),
        ("cache_gib", -1.0, "must not be negative"),
        ("seed", -1, "must not be negative"),
        ("temperature", 0.0, "must be above 0"),
        ("distill_learning_rate", float("inf"), "must be above 0"),
        ("attention_dropout", 1.0, "must be at least 0 and less than 1"),
    ],
)
def test_counts_rates_and_shares_have_their_bounds(field: str, value: float, told: str):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} .*: {told}"):
        RunSettings(**{field: value})
