"""The cost of a student by its shape: a constant, and a cost for every block by the size that is kept."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, ffn_unit_macs, head_macs

MAX_REDUCTION = 32.0  # beyond it a head or two are left in the whole model, and such a student answers nothing

Goal = Literal["flops", "latency"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of blocks, the same in every layer, in any unit.

    Whole numbers (an integer dtype) are searched exactly, real ones on a fine grid.
    """

    goal: Goal  # --flops-reduction or --latency-reduction
    rest: float  # of the parts that pruning does not change
    attention: np.ndarray  # [heads + 1]: of an attention block with 0, 1, 2, ... heads
    ffn: np.ndarray  # [units + 1]: of an FFN block with 0, 1, 2, ... units

    def total(self, config: BertConfig) -> float:
        """The cost of a whole model."""
        blocks = sum(self.attention[layer.heads] + self.ffn[layer.ffn] for layer in config.layers)
        return float(self.rest + blocks)


def mac_costs(config: BertConfig, seq: int) -> Costs:
    """Multiply-accumulates of one sequence of `seq` tokens, as `count_macs` counts them, for a teacher's layers."""
    heads, units = largest_blocks(config)
    return Costs(
        goal="flops",
        rest=2 * seq * config.hidden_size,
        attention=np.arange(heads + 1) * head_macs(config, seq),
        ffn=np.arange(units + 1) * ffn_unit_macs(config, seq),
    )


def largest_blocks(config: BertConfig) -> tuple[int, int]:
    """The most heads and the most FFN units that any layer has."""
    return max((layer.heads for layer in config.layers), default=0), max(
        (layer.ffn for layer in config.layers), default=0
    )


def check_reduction(reduction: float, flag: str) -> None:
    """Refuse a reduction that no student can have.

    Args:
      flag: its flag, for the message.

    Raises:
      UserError: it is out of range.
    """
    if not 1.0 <= reduction <= MAX_REDUCTION:
        raise UserError(
            f"{flag} {reduction:g}: must lie between 1 and {MAX_REDUCTION:g}; a smaller student answers nothing"
        )
