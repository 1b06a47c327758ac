"""Models: teachers and students by name; weights in, logits out.

For every wing above. Views themselves are made in `views`; here they are uint8 tensors that a model takes.

build    a model by name, with weights and an input adapter: `build_model`, `Model`, `InputAdapter`, `save_weights`
catalog  what is known of a model before it is built: names, input sizes, published weights
nets     small networks that torchvision lacks; two heads on any network
weights  files of weights, read without unpickling objects
forward  views in, logits out: precision, memory format, batches that do not fit; devices
export   a trained student as ONNX or TorchScript
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.models.build import InputAdapter, Model, build_model
    from logitcache.models.export import export_model
    from logitcache.models.forward import ViewModel

__all__ = ["InputAdapter", "Model", "ViewModel", "build_model", "export_model"]

__getattr__, __dir__ = lazy(
    __name__, {"build": "InputAdapter Model build_model", "export": "export_model", "forward": "ViewModel"}
)
