"""What a loss cannot learn from the batches that it gets: a line for each, from a look at the first batch.

That an even tail misleads losses of single logits is said by these themselves (`arguments.warn_of_even_tail`).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from logitcache.losses.registry import Term
from logitcache.teacher.sparse import SparseTeacher

MUCH_MASS = 0.25  # of a teacher's probability, from which an even tail costs students accuracy
LESS_MASS = 0.1  # likewise, for losses that divide by the other classes' mass, or compare a class's column
OF_LESS_MASS = ("dist", "dkd", "nkd")
FEW_LISTED = 4  # unlisted classes to a listed one, above which completed tails mislead some losses:
OF_WHOLE_TAIL = ("reverse_kl", "bdkd", "mse")
TEMPERATURES = 0.1, 20.0  # beyond, T² times a loss is nearly nothing, or drowns all else
OF_LABELS = ("dkd", "nkd", "pld")
OF_PROBABILITIES = (
    "kd", "reverse_kl", "js", "bdkd", "erkd", "dist", "dkd", "nkd", "ttm", "wttm", "sinkd", "taid", "dho",
)  # fmt: skip


def list_misfits(
    term: Term, rows: int, teacher: SparseTeacher, labels: Tensor | None = None, *, alone: bool = False
) -> Iterator[str]:
    """Say what of a loss has no gradient, or another than the teacher would give, on batches like this one.

    Args:
        term: the loss with its options.
        rows: of the batch.
        teacher: its answers; waits for the device where they have an even tail.
        labels: (B,) int64, −1 where there is none; likewise, where the loss needs labels.
        alone: whether there is no cross-entropy beside the loss.
    """
    name, options = term.name, term.options
    if name in OF_LABELS and labels is not None and not bool((labels >= 0).any()):
        yield f"{name} learns from rows with labels alone, and no row of the first batch has one; take kd, say"
    if teacher.num_classes == 2 and _compares_classes(term):
        yield (
            f"{name} compares how the classes of a row lie to each other, which of two classes is always the same: "
            "it has no gradient; take kd"
        )
    elif (
        name in OF_WHOLE_TAIL
        and teacher.completion is not None
        and teacher.tail_size > FEW_LISTED * teacher.k
    ):
        yield (
            f"{name} reads the classes of the tail as closely as the {teacher.k} of {teacher.num_classes} that the "
            "teacher lists: how they are completed is too coarse for it; take kd, or a cache of a larger --top-k"
        )
    elif _ranks_listed(term) and teacher.k < 3:
        yield (
            f"{name} ranks the classes that the teacher lists, of which there are {teacher.k}: that has no gradient; "
            "take another loss, or a cache of a larger --top-k"
        )
    elif alone and name == "kendall" and teacher.tail_size > teacher.k:
        yield (
            f"{name} ranks the {teacher.k} classes that the teacher lists, and never against the other "
            f"{teacher.tail_size}: without cross-entropy students learn little; give that a weight, or take cmkd"
        )
    elif alone and name == "sinkd":
        yield (
            f"{name} matches a batch as a whole, and not its rows: without cross-entropy students learn nothing; "
            "give that a weight, or take kd"
        )
    if rows < 3 and (options.get("gamma" if name == "dist" else "intra", 0) > 0 or name == "sinkd"):
        yield (
            f"{name} compares the rows of a batch, of which there are {rows}: that teaches next to nothing; take "
            "batches of many rows"
        )
    yield from _list_of_temperature(name, options, teacher)
    if isinstance(inner := options.get("loss"), Term) and teacher.num_classes > 2:
        yield from list_misfits(inner, rows, teacher.standardise(), labels, alone=alone)


def _list_of_temperature(name: str, options: dict[str, Any], teacher: SparseTeacher) -> Iterator[str]:
    temperature = options.get("temperature", 1.0)
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        yield (
            f"{name}'s temperature {temperature:g} is outside {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, where "
            "teachers are told apart; 1 to 8 is what papers use"
        )
    if teacher.is_whole or not (name in OF_PROBABILITIES or _is_linear_cmkd(name, options)):
        return
    mass = float(teacher.listed_at(temperature).tail_mass.mean())
    if mass > (LESS_MASS if name in OF_LESS_MASS else MUCH_MASS):
        yield (
            f"{name} at T = {temperature:g} reads {mass:.0%} of the probability from classes that the teacher does "
            f"not list, {teacher.num_classes - teacher.k} of {teacher.num_classes}, over which it is spread evenly; "
            "`logitcache calibrate CACHE` adds how it lies there, and a smaller temperature reads less of it"
        )


def _compares_classes(term: Term) -> bool:
    """Whether all that the loss reads is the same for any two classes."""
    if term.name == "dist":
        return not term.options["gamma"]
    return term.name in ("logit_std", "dhkd", "kendall") or (
        term.name == "cmkd" and not term.options["intra"]
    )


def _ranks_listed(term: Term) -> bool:
    return term.name == "kendall" or (term.name == "cmkd" and term.options["support"] == "listed")


def _is_linear_cmkd(name: str, options: dict[str, Any]) -> bool:
    """Whether it is a CMKD that reads probabilities, and no order of the tail."""
    if name != "cmkd" or options["values"] != "probabilities":
        return False
    without_ranks = 0.0 if options["hard"] == "spearman" else 1.0
    fixed = options["difficulty"] == "fixed" and options["balance"] == without_ranks
    return bool(fixed or options["support"] == "listed")
