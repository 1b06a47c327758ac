"""What metrics.jsonl may hold: where each metric stands on the page, its title, and how it is written."""

from dataclasses import dataclass

from logitcache.units import figures

SECTIONS = {
    "accuracy": ("Accuracy", "On the test images, after each epoch."),
    "loss": (
        "Loss and its terms",
        "On the training views, mean over each epoch; terms before they are weighted.",
    ),
    "calibration": (
        "Calibration",
        "How honest the students are about how sure they are, on the test images.",
    ),
    "agreement": ("Agreement with the teacher", "On the test images, against the teacher's cached answers."),
}


@dataclass(frozen=True)
class Metric:
    """A number of metrics.jsonl.

    Attributes:
        name: in metrics.jsonl.
        section: of the page; "" where it gets no curve.
        title, short: in full, and as a column header.
        note: what it is.
        share: a share of 1, written in percent.
    """

    name: str
    section: str
    title: str
    short: str
    note: str
    share: bool = False

    def format(self, value: float | None) -> str:
        """Write a value."""
        if value is None:
            return "–"
        return percent(value) if self.share else figures(value, 4)

    def format_spread(self, spread: tuple[float, float] | None, runs: int) -> str:
        """Write mean and standard deviation over so many runs."""
        if spread is None or runs == 1:
            return self.format(spread and spread[0])
        mean, deviation = spread
        if self.share:
            return f"{100 * mean:.1f} ±\N{NO-BREAK SPACE}{100 * deviation:.1f}\N{NO-BREAK SPACE}%"
        return f"{figures(mean)} ±\N{NO-BREAK SPACE}{figures(deviation, 2)}"


TEST_METRICS = (
    Metric(
        "top1", "accuracy", "Top-1 accuracy", "top-1", "Test images whose first class is right.", share=True
    ),
    Metric(
        "top5",
        "accuracy",
        "Top-5 accuracy",
        "top-5",
        "Test images with the right class among five.",
        share=True,
    ),
    Metric(
        "nll",
        "calibration",
        "Negative log-likelihood",
        "NLL",
        "Mean of −log p(label) in nats; lower is better.",
    ),
    Metric(
        "ece",
        "calibration",
        "Expected calibration error",
        "ECE",
        "How far confidence is from accuracy, over 15 bins; 0 is honest.",
        share=True,
    ),
    Metric(
        "agreement",
        "agreement",
        "Agreement with the teacher",
        "agreement",
        "Test images given the teacher's first class.",
        share=True,
    ),
    Metric(
        "kl",
        "agreement",
        "KL from the teacher",
        "KL",
        "KL(teacher ‖ student) at T = 1 in nats; lower is nearer.",
    ),
)
TRAIN_METRICS = (
    Metric("loss", "loss", "Loss", "loss", "What is minimised."),
    Metric("lr", "loss", "Learning rate", "lr", "At the end of each epoch."),
    Metric("views_per_second", "", "Views per second", "views/s", "While training."),
    Metric("seconds", "", "Seconds", "seconds", "Of the epoch."),
    Metric("left_out", "", "Test images left out", "left out", "They did not decode."),
)
_BY_NAME = {metric.name: metric for metric in (*TEST_METRICS, *TRAIN_METRICS)}


def metric_named(name: str) -> Metric:
    """Return the metric of a name; an unknown name is a term of the loss."""
    return _BY_NAME.get(name) or Metric(name, "loss", name, name, "A term of the loss.")


def percent(value: float) -> str:
    """Write a share in percent, with a no-break space."""
    return f"{100 * value:.2f}\N{NO-BREAK SPACE}%"
