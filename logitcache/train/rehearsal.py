"""A student's step before its first one: what it answers while it trains, and which of its parameters learn."""

from dataclasses import dataclass

import torch

from logitcache.errors import LogitCacheError, OptionError
from logitcache.models.answers import take_logits
from logitcache.models.build import Model
from logitcache.models.catalog import seeded
from logitcache.models.weights import first_line

VIEWS = (2, 8, 64)  # batch norm can learn of 2; some layers need more


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        unused: names of parameters that learn nothing: their layers have no part in the logits.
        note: a line for people, or "".
    """

    unused: tuple[str, ...] = ()
    note: str = ""


def rehearse(student: Model) -> Rehearsal:
    """Run a student forward and backward on a batch of noise, if it is no network of the catalog; it stays as it is.

    Raises:
        OptionError: it has nothing to train, or fails.
        WeightsError: what it answers while it trains are no logits.
    """
    parameters = dict(student.module.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        found = "all of its parameters are frozen" if parameters else "it has no parameters"
        raise OptionError(f"{student.name} cannot be trained: {found}; leave some of them to learn")
    if ":" not in student.name and student.weights != "own":
        return Rehearsal()
    module = student.module
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    grads = [(parameter, parameter.grad) for parameter in parameters.values()]
    try:
        with seeded(0):
            answer = _try_batches(student)
        unused = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    finally:
        for part, training in modes:
            part.training = training
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    if all(name in unused for name, p in parameters.items() if p.requires_grad):
        raise _nothing_learns(student)
    return Rehearsal(tuple(unused), _note(student, answer, unused))


def _try_batches(student: Model) -> object:
    """Return what a student answers on the smallest batch that it takes; its parameters then have gradients."""
    adapter = student.adapter
    refusals = []
    for views in VIEWS:
        shape = views, adapter.channels, adapter.size, adapter.size
        try:
            return _try_batch(student, shape)
        except LogitCacheError:
            raise
        except Exception as error:  # of the user's own code, whatever it is
            message = f"{student.name} fails on a {shape} float batch while it trains: {first_line(error)}"
            refusals.append(OptionError(message))
            refusals[-1].__cause__ = error
    raise refusals[0]


def _try_batch(student: Model, shape: tuple[int, int, int, int]) -> object:
    parameters = list(student.module.parameters())
    answer = student.module.train()(torch.randn(shape).to(parameters[0].device))
    name = f"{student.name}, while it trains"
    logits = take_logits(answer, shape[0], student.num_classes, name, student.heads)
    if not logits.requires_grad:
        raise _nothing_learns(student)
    for parameter in parameters:
        parameter.grad = None
    logits.float().sum().backward()  # type: ignore[no-untyped-call]
    return answer


def _nothing_learns(student: Model) -> OptionError:
    return OptionError(
        f"{student.name} cannot be trained: its logits depend on no parameter that learns; see whether its forward "
        "detaches them, or runs under no_grad"
    )


def _note(student: Model, answer: object, unused: list[str]) -> str:
    notes = []
    if not isinstance(answer, torch.Tensor):
        notes.append(
            f"answers with {type(answer).__name__} while it trains, of which the logits alone are trained"
        )
    if unused:
        more = ", …" if len(unused) > 3 else ""
        notes.append(
            f"has parameters that its logits don't depend on, and that learn nothing: {', '.join(unused[:3])}{more}"
        )
    return f"{student.name} {'; it '.join(notes)}" if notes else ""
