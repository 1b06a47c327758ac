"""The version of logitcache, and what else views and logits depend on: libraries, and the kind of CPU."""

import platform

__version__ = "0.1.0"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that views and logits depend on, by name."""
    import PIL
    import torch
    import torchvision

    return {
        "logitcache": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": str(PIL.__version__),
    }


def cpu_kind() -> str:
    """Return the kind of CPU as torch sees it: architecture and vector instructions, "x86_64 AVX2".

    Its kernels are chosen by it; some round otherwise, and so give other pixels.
    """
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
