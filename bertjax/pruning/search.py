"""One search over heads, FFN widths and whole blocks and layers, under a budget of multiply-accumulates or of time.

Costs of blocks add up, so keeping the most importance within a budget is a multiple-choice knapsack: each layer is one
choice of how many of its best heads and of its best groups of FFN units stay. Dynamic programming over the budget in
equal steps solves it exactly where all costs are multiples of a step, as multiply-accumulates are. Times are rounded
up to steps so fine that the plan found loses no more than the best plan for a budget smaller by one part in 4096.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, LayerShape
from bertjax.pruning.costs import Costs, check_reduction
from bertjax.pruning.importance import Importance

TOLERANCE = 0.02
STEPS = 4096  # of a budget of real numbers, for each layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The heads and FFN units to keep, as sorted indexes for each layer. `loss` is the importance given up."""

    heads: tuple[np.ndarray, ...]
    ffn: tuple[np.ndarray, ...]
    loss: float

    def config(self, teacher: BertConfig) -> BertConfig:
        """The student's shape."""
        layers = tuple(LayerShape(heads=len(h), ffn=len(f)) for h, f in zip(self.heads, self.ffn, strict=True))
        return dataclasses.replace(teacher, layers=layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choices:
    """A layer's Pareto-optimal choices, cheapest first."""

    heads: np.ndarray  # number kept
    units: np.ndarray
    cost: np.ndarray
    loss: np.ndarray


def search(
    config: BertConfig,
    importance: Importance,
    costs: Costs,
    *,
    reduction: float,
    ffn_group: int,
    tolerance: float = TOLERANCE,
) -> Plan:
    """The plan that loses least importance at no more than 1/`reduction` of the teacher's cost.

    FFN units are ranked by their own importance and kept in multiples of `ffn_group`. Emptying a block or a layer is
    charged the Fisher information of its common gate where that is more than the sum over its members.

    Args:
      tolerance: the largest relative difference of the reached reduction from `reduction`.

    Raises:
      UserError: the reduction is out of range, or no plan comes within `tolerance` of it.
    """
    flag = f"--{costs.goal}-reduction"
    check_reduction(reduction, flag)
    whole = costs.total(config)
    choices = [_layer_choices(config, importance, costs, layer, ffn_group) for layer in range(len(config.layers))]
    picked = _knapsack(choices, whole / reduction - costs.rest)
    if picked is None:
        least = costs.rest + sum(options.cost[0] for options in choices)
        raise UserError(f"{flag} {reduction:g}: with every block gone it is {whole / least:.3g}; ask for less")
    plan = _assemble(importance, choices, picked)
    reached = whole / costs.total(plan.config(config))
    if abs(reached / reduction - 1) > tolerance:
        raise UserError(
            f"{flag} {reduction:g}: the nearest reachable one below its cost is {reached:.3g};"
            f" ask for that, or for a smaller --ffn-group than {ffn_group}"
        )
    return plan


def _layer_choices(config: BertConfig, importance: Importance, costs: Costs, layer: int, ffn_group: int) -> _Choices:
    shape = config.layers[layer]
    heads, head_loss = _loss_by_kept(importance.heads[layer], 1)
    units, ffn_loss = _loss_by_kept(importance.ffn[layer], ffn_group)
    if shape.heads:
        head_loss[0] = max(head_loss[0], importance.attention_blocks[layer])
    if shape.ffn:
        ffn_loss[0] = max(ffn_loss[0], importance.ffn_blocks[layer])
    loss = head_loss[:, None] + ffn_loss[None, :]
    loss[0, 0] = max(loss[0, 0], importance.layers[layer])
    cost = (costs.attention[heads][:, None] + costs.ffn[units][None, :]).ravel()
    heads, units = (grid.ravel() for grid in np.meshgrid(heads, units, indexing="ij"))
    loss = loss.ravel()
    order = np.lexsort((loss, cost))
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    order = order[loss[order] < best_before]
    return _Choices(heads=heads[order], units=units[order], cost=cost[order], loss=loss[order])


def _loss_by_kept(scores: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of units in the best 0, 1, 2, ... groups, and the importance lost if only they are kept."""
    kept = np.concatenate([[0.0], np.cumsum(np.sort(scores)[::-1])])
    counts = np.minimum(np.arange(0, -(-len(scores) // group) + 1) * group, len(scores))
    return counts, kept[-1] - kept[counts]


def _knapsack(choices: list[_Choices], budget: float) -> list[int] | None:
    """One choice per layer with the least total loss and a total cost of at most `budget`; None if there is none."""
    if budget <= 0:
        return None
    costs, steps = _in_steps([options.cost for options in choices], budget)
    if steps < sum(cost[0] for cost in costs):
        return None
    best = np.zeros(steps + 1)  # least loss of the layers so far, by their budget in steps
    taken = np.zeros((len(choices), steps + 1), np.int32)
    for layer, options in enumerate(choices):
        found = np.full(steps + 1, np.inf)
        for index, cost in enumerate(costs[layer]):
            if cost > steps:
                break
            value = best[: steps + 1 - cost] + options.loss[index]
            better = value < found[cost:]
            found[cost:][better] = value[better]
            taken[layer, cost:][better] = index
        best = found
    picked, left = [], steps
    for layer in range(len(choices) - 1, -1, -1):
        picked.append(int(taken[layer, left]))
        left -= costs[layer][picked[-1]]
    return picked[::-1]


def _in_steps(costs: list[np.ndarray], budget: float) -> tuple[list[np.ndarray], int]:
    """Costs and budget as whole steps: of the common divisor of whole numbers, else of a fine grid, rounded up."""
    if all(np.issubdtype(cost.dtype, np.integer) for cost in costs):
        step = int(np.gcd.reduce(np.concatenate(costs))) or 1
        return [cost // step for cost in costs], int(budget // step)
    steps = STEPS * len(costs)
    # 1e-9: a cost that is a multiple of a step but for float's rounding stays one.
    return [np.ceil(cost / budget * steps - 1e-9).astype(np.int64) for cost in costs], steps


def _assemble(importance: Importance, choices: list[_Choices], picked: list[int]) -> Plan:
    heads, ffn, loss = [], [], 0.0
    for layer, (options, index) in enumerate(zip(choices, picked, strict=True)):
        heads.append(_best(importance.heads[layer], int(options.heads[index])))
        ffn.append(_best(importance.ffn[layer], int(options.units[index])))
        loss += float(options.loss[index])
    return Plan(heads=tuple(heads), ffn=tuple(ffn), loss=loss)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Sorted indexes of the `count` highest scores."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
