"""``python -m logitcache_cli`` is the same as ``logitcache``."""

from .main import run

if __name__ == "__main__":
    run()
