"""Losses: what a student minimises, given its own logits, a teacher's and the labels.

For `train`, `bench`, `report` and your own training loops. `Objective.parse("kd:0.5+cmkd")` is cross-entropy plus a
weighted sum of the losses in `LOSSES`. Each loss is a pure function in a module of its own:
``from logitcache.losses.kd import kd``. `docs/losses.md` compares them.

objective       cross-entropy plus weighted losses, from a line of text; `LOSSES`, the losses by name
registry        `Loss`, a loss function with its default weight; `Term`, a loss with its options
ce              cross-entropy with the labels
kd              divergences at a temperature: KL, reverse KL, Jensen-Shannon
bdkd            forward and reverse KL, balanced by who is less sure
erkd            KL weighted by the teacher's entropy
ttm             KL with a temperature for the teacher alone
decoupled       losses that treat the label apart: DKD, NKD
cmkd            correlation matching: Pearson and Spearman, weighted by difficulty
dist            correlations within a sample and within a class
kendall, pld    the teacher's order of classes
mse             regression of the teacher's logits
logit_std       another loss between z-scored logits
sinkd           optimal transport between batches
taid            a target that moves from the student to the teacher
two_heads       students with one head for the labels and one for the teacher: DHO, DHKD
correlation     Pearson correlation, for `cmkd` and `dist`
soft_ranks      differentiable ranks and their correlation, for `cmkd`
misfit          what a loss cannot learn from the batches that it gets
arguments       student logits in float32; a warning where the teacher knows no order in its tail
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.losses.objective import LOSSES, Objective
    from logitcache.losses.registry import Loss, Term

__all__ = ["LOSSES", "Loss", "Objective", "Term"]

__getattr__, __dir__ = lazy(__name__, {"objective": "LOSSES Objective", "registry": "Loss Term"})
