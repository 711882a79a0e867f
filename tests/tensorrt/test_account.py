"""The account of steps that are made by hand: kernels in INT8, others in float, fused or not."""

from __future__ import annotations

from bertjax.tensorrt.account import Account, make_accounts
from bertjax.tensorrt.build import BuildSettings
from bertjax.tensorrt.steps import Step, Tensor
from bertjax.tensorrt.table import format_accounts
from tests.models import tiny_config


def step(kind: str, reads: str, nodes: str, weight: int = 0, profile: int = 0) -> Step:
    """A step that reads one tensor of each dtype in `reads`, has a weight of that type, and writes Half."""
    dtypes = reads.split()
    return Step(
        name=f"{kind}: {nodes}",
        kind=kind,
        inputs=tuple(Tensor("x", 32, dtype) for dtype in dtypes),
        constants=(Tensor("w", weight, dtypes[0]), Tensor("alpha", 1, "Float")) if weight else (),
        outputs=(Tensor("y", 32, "Half"),),
        tactic="",
        nodes=frozenset(nodes.split()),
        profile=profile,
    )


FFN = [
    step("kgen", "Half", "layer0/ffn/in/input/QuantizeLinear layer0/attention/LayerNormalization"),
    step("gemm", "Int8", "layer0/ffn/in/MatMul", weight=32 * 64),
    step("kgen", "Float", "layer0/ffn/in/MatMul layer0/ffn/in/Add", weight=64),  # applies the scales
    step("kgen", "Half", "layer0/ffn/out/input/QuantizeLinear"),
    step("gemm", "Half", "layer0/ffn/out/MatMul", weight=64 * 32),
    step("signal", "", ""),
]


def account_of(layers: tuple[tuple[int, int], ...], steps: list[Step]) -> Account:
    (account,) = make_accounts(tiny_config(layers), steps, profiles=1)
    return account


def test_int8_needs_int8_activations_and_int8_weights() -> None:
    account = account_of(((0, 64),), FFN)
    inner, outer = account.dense
    assert (inner.kernel, inner.int8, inner.quantized_in) == ("gemm: layer0/ffn/in/MatMul", True, "LayerNorm")
    assert (outer.kernel, outer.int8, outer.quantized_in) == ("gemm: layer0/ffn/out/MatMul", False, "alone")
    assert not account.all_int8
    totals = account.totals()
    assert totals["kinds"] == {"kgen": 3, "gemm": 2, "signal": 1} and totals["steps"] == 6
    assert totals["quantized_in"] == {"LayerNorm": 1, "alone": 1}
    assert totals["float_only_steps"] == {"attention": 1, "ffn": 3}
    assert [entry.part for entry in account.steps] == ["layer0/attention"] + ["layer0/ffn"] * 4


def test_without_listed_constants_the_activation_tells() -> None:
    steps = [
        step("kgen", "Float", "layer0/ffn/in/MatMul layer0/ffn/Gelu layer0/ffn/out/input/QuantizeLinear", weight=64),
        step("gemm", "Int8", "layer0/ffn/in/MatMul"),
        step("gemm", "Int8", "layer0/ffn/out/MatMul"),
    ]
    account = account_of(((0, 64),), steps)
    assert account.all_int8 and account.dense[1].quantized_in == "GELU"


def test_what_was_merged_and_what_attention_multiplies() -> None:
    names = [f"layer0/attention/{part}/MatMul" for part in ("query", "key", "value")]
    products = ["layer0/attention/scores/MatMul", "layer0/attention/context/MatMul"]
    fused = f"{products[0]} layer0/attention/Softmax {products[1]} layer0/attention/out/input/QuantizeLinear"
    merged = step("gemm", "Int8", " ".join(names), weight=3 * 32 * 32)
    out = step("gemm", "Int8", "layer0/attention/out/MatMul", weight=32 * 32)
    kinds = {"Half Half Half Half": "Half", "Int8 Int8 Half Int8": "Int8", "Int8 Half": "Half+Int8"}
    for reads, dtype in kinds.items():
        account = account_of(((2, 0),), [merged, step("kgen", reads, fused), out])
        assert account.attention[0].dtype == dtype and account.attention[0].kernel
        assert account.dense[3].quantized_in == "attention"
        assert account.totals()["merged_qkv"] == 1
    apart = [step("gemm", "Int8", name, weight=32 * 32) for name in names]
    loose = [step("gemm", "Int8 Int8", products[0]), step("gemm", "Half Half", products[1])]
    account = account_of(((2, 0),), apart + loose)
    assert (account.attention[0].kernel, account.attention[0].dtype) == ("", "Half+Int8")
    assert account.totals()["merged_qkv"] == 0 and account.totals()["fused_attention"] == 0


def test_what_residual_adds_read() -> None:
    node = "layer0/{}/residual/Add layer0/{}/LayerNormalization"
    steps = [
        step("kgen", reads, node.format(part, part)) for part, reads in (("attention", "Half Float"), ("ffn", "Int8"))
    ]
    assert account_of(((1, 32),), steps).totals()["residual_reads"] == {"Float+Half": 1, "Int8": 1}


def test_a_dense_layer_that_no_step_computes_is_not_int8() -> None:
    account = account_of(((1, 0),), FFN)
    assert {entry.kernel for entry in account.dense} == {"not found"}
    assert not account.all_int8


def test_the_table_shows_a_second_profile_only_where_it_differs() -> None:
    config, settings = tiny_config(((0, 64),)), BuildSettings(batches=((1, 1, 1), (1, 2, 4)), seq=(16, 32, 64))
    same = [step("gemm", "Int8", "layer0/ffn/in/MatMul", weight=2048, profile=number) for number in (0, 1)]
    lines = format_accounts(config, settings, make_accounts(config, same, profiles=2)).splitlines()
    assert lines[0] == "profile 0: batch 1, 16 to 64 (best at 32) tokens"
    assert lines[3].split() == ["0", "0", "64", "-", "-", "-", "Int8", "not", "found", "-", "0"]
    assert lines[4] == "INT8 GEMMs: 1 of 2 encoder dense layers, in 1 kernels"
    assert "profile 1: batch 1 to 4 (best at 2), 16 to 64 (best at 32) tokens; layer by layer as profile 0" in lines
    other = [same[0], step("gemm", "Half", "layer0/ffn/in/MatMul", weight=2048, profile=1)]
    text = format_accounts(config, settings, make_accounts(config, other, profiles=2))
    assert text.count("ffn out") == 2 and "INT8 GEMMs: 0 of 2" in text
