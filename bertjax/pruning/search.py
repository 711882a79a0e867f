"""One search over heads, FFN widths and whole blocks and layers, under a multiply-accumulate budget.

Costs are additive, so keeping the most importance within a budget is a knapsack. All costs share a common divisor
and each layer offers few sensible choices (its best k heads and its best m groups of FFN units), which makes the
exact solution by dynamic programming cheap: layers x choices x budget steps.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from bertjax.config import BertConfig, LayerShape, count_macs, ffn_unit_macs, head_macs
from bertjax.errors import UserError
from bertjax.pruning.importance import Importance

MAX_REDUCTION = 32.0  # what is left beyond it is a head or two per model: no student of that size answers anything
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to keep: for each layer the sorted indexes of heads and of FFN units. `loss` is the importance given up."""

    heads: tuple[np.ndarray, ...]
    ffn: tuple[np.ndarray, ...]
    loss: float

    def config(self, teacher: BertConfig) -> BertConfig:
        """The student's shape."""
        layers = tuple(LayerShape(heads=len(h), ffn=len(f)) for h, f in zip(self.heads, self.ffn, strict=True))
        return dataclasses.replace(teacher, layers=layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choices:
    """One layer's choices, flattened: how many heads and FFN groups are kept, at what cost and loss."""

    heads: np.ndarray
    groups: np.ndarray
    cost: np.ndarray  # in budget steps
    loss: np.ndarray


def search(
    config: BertConfig,
    importance: Importance,
    *,
    reduction: float,
    seq: int,
    ffn_group: int,
    tolerance: float = TOLERANCE,
) -> Plan:
    """The plan that loses least importance with at most 1/`reduction` of the teacher's multiply-accumulates.

    FFN units are ranked by their own importance and kept in multiples of `ffn_group`. Emptying a block or a layer is
    charged the Fisher information of its common gate where that is more than the sum over its members.

    Args:
      seq: the served length in tokens at which multiply-accumulates are counted.
      tolerance: how far, relatively, the reached reduction may be from the wanted one.

    Raises:
      UserError: the reduction is out of range, or no plan comes within `tolerance` of it.
    """
    if not 1.0 <= reduction <= MAX_REDUCTION:
        raise UserError(
            f"--flops-reduction {reduction:g}: must lie between 1 and {MAX_REDUCTION:g};"
            " with less than that left no student can answer"
        )
    head, group = head_macs(config, seq), ffn_unit_macs(config, seq) * ffn_group
    step = math.gcd(head, group)
    target = count_macs(config, seq) / reduction
    budget = int((target - 2 * seq * config.hidden_size) // step)
    choices = [
        _layer_choices(config, importance, i, head // step, group // step, ffn_group) for i in range(len(config.layers))
    ]
    picked, loss = _knapsack(choices, max(budget, 0))
    plan = _assemble(importance, choices, picked, ffn_group, loss)
    reached = count_macs(config, seq) / count_macs(plan.config(config), seq)
    if abs(reached / reduction - 1) > tolerance:
        raise UserError(
            f"--flops-reduction {reduction:g}: the nearest reachable one below its cost is {reached:.3g};"
            f" ask for that, or for a smaller --ffn-group than {ffn_group}"
        )
    return plan


def _layer_choices(
    config: BertConfig, importance: Importance, layer: int, head_cost: int, group_cost: int, ffn_group: int
) -> _Choices:
    shape = config.layers[layer]
    head_loss = _loss_by_kept(importance.heads[layer], 1)  # [heads + 1]
    ffn_loss = _loss_by_kept(importance.ffn[layer], ffn_group)  # [groups + 1]
    if shape.heads:
        head_loss[0] = max(head_loss[0], importance.attention_blocks[layer])
    if shape.ffn:
        ffn_loss[0] = max(ffn_loss[0], importance.ffn_blocks[layer])
    heads, groups = np.meshgrid(np.arange(len(head_loss)), np.arange(len(ffn_loss)), indexing="ij")
    loss = head_loss[:, None] + ffn_loss[None, :]
    loss[0, 0] = max(loss[0, 0], importance.layers[layer])
    cost = heads * head_cost + groups * group_cost
    return _Choices(heads=heads.ravel(), groups=groups.ravel(), cost=cost.ravel(), loss=loss.ravel())


def _loss_by_kept(scores: np.ndarray, group: int) -> np.ndarray:
    """Importance lost when only the best 0, 1, 2, ... groups are kept. A last short group counts as a whole one."""
    ranked = np.sort(scores)[::-1]
    kept = np.concatenate([[0.0], np.cumsum(ranked)])
    ends = np.minimum(np.arange(0, -(-len(scores) // group) + 1) * group, len(scores))
    return kept[-1] - kept[ends]


def _knapsack(choices: list[_Choices], budget: int) -> tuple[list[int], float]:
    """One choice per layer with the least total loss and a total cost of at most `budget`."""
    best = np.zeros(budget + 1)  # least loss of the layers so far, by what they may cost at most
    taken = np.zeros((len(choices), budget + 1), np.int32)
    for layer, options in enumerate(choices):
        found = np.full(budget + 1, np.inf)
        for index in np.argsort(options.cost, kind="stable"):
            cost = options.cost[index]
            if cost > budget:
                break
            value = best[: budget + 1 - cost] + options.loss[index]
            better = value < found[cost:]
            found[cost:][better] = value[better]
            taken[layer, cost:][better] = index
        best = found
    picked, left = [], budget
    for layer in range(len(choices) - 1, -1, -1):
        picked.append(int(taken[layer, left]))
        left -= choices[layer].cost[picked[-1]]
    return picked[::-1], float(best[budget])


def _assemble(importance: Importance, choices: list[_Choices], picked: list[int], ffn_group: int, loss: float) -> Plan:
    heads, ffn = [], []
    for layer, (options, index) in enumerate(zip(choices, picked, strict=True)):
        heads.append(_best(importance.heads[layer], int(options.heads[index])))
        ffn.append(_best(importance.ffn[layer], int(options.groups[index]) * ffn_group))
    return Plan(heads=tuple(heads), ffn=tuple(ffn), loss=loss)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Sorted indexes of the `count` highest scores."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
