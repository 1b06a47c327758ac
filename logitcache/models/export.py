"""A trained student as one file that runs without logitcache: ONNX or TorchScript.

The file takes images as they are, (batch, channels, size, size) uint8 of the network's own size, and normalises them
itself, so that nobody can take another mean or another order of channels than the student was trained with. What else
there is to know stands in the file, as JSON under the key "logitcache": name, classes, size, how pictures became
views, and how these were resized.
"""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from logitcache.errors import Difference, MismatchError, OptionError
from logitcache.files import require_file, writing
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel
from logitcache.models.weights import first_line
from logitcache.paths import expand_home
from logitcache.versions import library_versions

Format = Literal["onnx", "torchscript"]
METADATA_KEY = "logitcache"
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order
BATCHES = (1, 3)  # sizes to compare at

ViewsToLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportReport(Spec):
    """What was written.

    Attributes:
        path, format, bytes: of the file.
        input: shape of the views, uint8; the number of them is free.
        num_classes: C; the output is (batch, C) float32 logits.
        difference: the largest between the file's logits and the student's, on random views.
    """

    path: str
    format: str
    bytes: int
    input: tuple[int, int, int]
    num_classes: int
    difference: float


def export_model(model: Model, out: str | Path, format: Format = "onnx") -> ExportReport:
    """Write a student to a file, after proof that the file answers as the student does.

    Args:
        model: the student; it answers in evaluation mode.
        out: the file; one that is there is replaced.
        format: "onnx" (needs the extra `onnx`) or "torchscript".

    Raises:
        OptionError: no such format, the packages for it are not installed, they cannot express the model, or `out`
            is a folder, or named as a file of the other format.
        MismatchError: the file answers otherwise.
        StorageError: the file cannot be written.
    """
    require_format(format)
    if (meant := _SUFFIXES.get(Path(out).suffix, format)) != format:
        raise OptionError(
            f"{out} is named as a file of {meant}, the format is {format}; give another --out or --format"
        )
    out, size = expand_home(out), model.adapter.size
    require_file(out, f"student.{format}")
    shape = (model.adapter.channels, size, size)
    student = ViewModel(replace(model, module=copy.deepcopy(model.module))).cpu().eval()
    with writing(out) as temporary, torch.no_grad():
        run = _FORMATS[format](student, _random_views(2, shape), temporary, _describe(model))
        difference = max(_difference(student, run, _random_views(n, shape)) for n in BATCHES)
    return ExportReport(str(out), format, out.stat().st_size, shape, model.num_classes, difference)


def require_format(name: str) -> Format:
    """Return the format of that name, after checking that its packages are installed.

    Raises:
        OptionError: there is none, or the packages for it are not there.
    """
    if name not in _FORMATS:
        raise OptionError(f"formats are {', '.join(_FORMATS)}, found {name!r}")
    needed = ("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ()
    for package in needed:
        try:
            import_module(package)
        except ImportError as error:
            raise OptionError(
                f"exporting to ONNX needs {package} ({first_line(error)}); pip install 'logitcache[onnx]'"
            ) from error
    return cast(Format, name)


def _describe(model: Model) -> str:
    """Describe the model and its input in JSON, for the file's metadata."""
    adapter = model.adapter
    facts = {
        "name": model.name,
        "num_classes": model.num_classes,
        "input": {"dtype": "uint8", "shape": ["batch", adapter.channels, adapter.size, adapter.size]},
        "resize": f"{adapter.interpolation}, antialiased, before",
        "normalisation": {"mean": list(adapter.mean), "std": list(adapter.std), "of": "views / 255, inside"},
        "pictures": _describe_pictures(model.evaluation or model.training),
        "views": model.evaluation and model.evaluation.to_dict(),  # how it was shown test images
        "output": {"dtype": "float32", "shape": ["batch", model.num_classes]},
        "class_names": list(model.class_names),
        "versions": library_versions(),
    }
    return json.dumps(facts)


def _describe_pictures(viewed_by: RecipeSpec | None) -> dict[str, str | None] | None:
    """Describe what was done to files before the steps of `views`; None where nobody said how they were viewed."""
    if viewed_by is None:
        return None
    background = viewed_by.background
    return {
        "frame": "the first",
        "orientation": "upright, as EXIF or XMP says",
        "background": background,
        "transparency": "alpha is dropped" if background is None else f"put on {background}",
        "bits": "8, the highest where there are more",
    }


def _random_views(count: int, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def _difference(student: ViewModel, run: ViewsToLogits, views: Tensor) -> float:
    expected = student(views)
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    try:
        largest = float((run(views) - expected).abs().max())
        fault = "" if largest <= allowed else f"off by {largest:.2g}"
    except Exception as error:  # a graph that takes no such batch, in the words of whatever runs it
        fault = first_line(error)
    if fault:
        raise MismatchError(
            "the exported file does not answer as the student does, so it is not kept",
            [Difference(f"logits of {len(views)} random views", f"within {allowed:.2g}", fault)],
            "take the other format; a forward that depends on Python values of its input cannot be exported",
        )
    return largest


# Formats: each writes the file and returns what the file answers ------------------------------------------


def _onnx(student: ViewModel, views: Tensor, file: Path, metadata: str) -> ViewsToLogits:
    import onnxruntime

    batch = torch.export.Dim("batch", min=1)
    names: dict[str, Any] = {"input_names": ["views"], "output_names": ["logits"]}
    try:
        program = torch.onnx.export(
            student, (views,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False, **names
        )
    except Exception as error:  # of dozens of classes, each for something that ONNX or the exporter lacks
        raise _inexpressible(student, "ONNX", error) from error
    assert program is not None
    program.model.metadata_props[METADATA_KEY] = metadata
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda views: torch.from_numpy(session.run(None, {"views": views.numpy()})[0])


def _torchscript(student: ViewModel, views: Tensor, file: Path, metadata: str) -> ViewsToLogits:
    with warnings.catch_warnings(action="ignore"):  # of its age, and of branches: the comparison tells
        try:
            traced: Any = torch.jit.trace(student, (views,), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as error:  # likewise
            raise _inexpressible(student, "TorchScript", error) from error
        buffer = BytesIO()  # torch's own writer ends the process where the disk is full
        torch.jit.save(traced, buffer, _extra_files={f"{METADATA_KEY}.json": metadata})
        file.write_bytes(buffer.getbuffer())
        loaded: ViewsToLogits = torch.jit.load(str(file))  # type: ignore[no-untyped-call]
    return loaded


def _inexpressible(student: ViewModel, format: str, error: Exception) -> OptionError:
    return OptionError(f"{type(student.module).__name__} cannot be exported to {format}: {first_line(error)}")


_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt": "torchscript", ".torchscript": "torchscript"}
_FORMATS: dict[str, Callable[[ViewModel, Tensor, Path, str], ViewsToLogits]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
}
