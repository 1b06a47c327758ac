"""The version of logitcache, and those of the libraries that views and logits depend on."""

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
