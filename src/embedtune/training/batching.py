"""Which rows come at which step: a function of the seed and the step alone, over all phases of a plan."""

from __future__ import annotations

from embedtune.data.batches import BatchOrder
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.neighbours import Links
from embedtune.training.plan import Plan


class StepBatches:
    """The contrastive batches of each optimiser step: `batches[step]` are the row numbers of each of them."""

    def __init__(self, pairs: Pairs, plan: Plan, *, accumulate: int, seed: int, passage_once: bool) -> None:
        self._plan, self._accumulate = plan, accumulate
        first_epoch, self._orders = 0, list[BatchOrder]()
        for phase in plan.phases:
            order = BatchOrder(
                pairs,
                batch_size=phase.batch_size,
                seed=seed,
                passage_once=passage_once,
                first_epoch=first_epoch,
            )
            self._orders.append(order)
            first_epoch += order.epochs_begun(phase.steps * accumulate)

    def link(self, phase: int, links: Links | None) -> None:
        """Tell which rows of a phase are to come together (`BatchOrder.link`)."""
        self._orders[phase].link(links)

    def __getitem__(self, step: int) -> list[IdArray]:
        number = self._plan.phase_at(step)
        first = (step - self._plan.phases[number].first_step) * self._accumulate
        return [self._orders[number][first + place] for place in range(self._accumulate)]
