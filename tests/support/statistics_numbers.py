"""Class statistics as something that can be compared, bit for bit."""

from logitcache.format.class_statistics import ClassStatistics


def numbers_of(statistics: ClassStatistics | None) -> tuple[bytes, bytes, float, int] | None:
    """Return mean, factors, noise and views; None where there are no statistics."""
    if statistics is None:
        return None
    return statistics.mean.tobytes(), statistics.factors.tobytes(), statistics.noise, statistics.views
