"""What metrics.jsonl may hold: where each measure stands on the page, what it is called, how it is written."""

from dataclasses import dataclass

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
class Measure:
    """One name of metrics.jsonl.

    Attributes:
        name: there.
        section: of the page; "" where it gets no curve.
        title, short: in full, and at the head of a column.
        note: what it is.
        share: of 1, written in percent.
    """

    name: str
    section: str
    title: str
    short: str
    note: str
    share: bool = False

    def text(self, value: float | None) -> str:
        """Write a value."""
        if value is None:
            return "–"
        return percent(value) if self.share else f"{value:.4g}"

    def spread(self, found: tuple[float, float] | None, runs: int) -> str:
        """Write mean and standard deviation over so many runs."""
        if found is None or runs == 1:
            return self.text(found and found[0])
        mean, deviation = found
        if self.share:
            return f"{100 * mean:.1f} ±\N{NO-BREAK SPACE}{100 * deviation:.1f}\N{NO-BREAK SPACE}%"
        return f"{mean:.3g} ±\N{NO-BREAK SPACE}{deviation:.2g}"


JUDGED = (
    Measure(
        "top1", "accuracy", "Top-1 accuracy", "top-1", "Test images whose first class is right.", share=True
    ),
    Measure(
        "top5",
        "accuracy",
        "Top-5 accuracy",
        "top-5",
        "Test images with the right class among five.",
        share=True,
    ),
    Measure(
        "nll",
        "calibration",
        "Negative log-likelihood",
        "NLL",
        "Mean of −log p(label) in nats; lower is better.",
    ),
    Measure(
        "ece",
        "calibration",
        "Expected calibration error",
        "ECE",
        "How far confidence is from accuracy, over 15 bins; 0 is honest.",
        share=True,
    ),
    Measure(
        "agreement",
        "agreement",
        "Agreement with the teacher",
        "agreement",
        "Test images given the teacher's first class.",
        share=True,
    ),
    Measure(
        "kl",
        "agreement",
        "KL from the teacher",
        "KL",
        "KL(teacher ‖ student) at T = 1 in nats; lower is nearer.",
    ),
)
TRAINED = (
    Measure("loss", "loss", "Loss", "loss", "What is minimised."),
    Measure("lr", "loss", "Learning rate", "lr", "At the end of each epoch."),
    Measure("views_per_second", "", "Views per second", "views/s", "While training."),
    Measure("seconds", "", "Seconds", "seconds", "Of the epoch."),
)
_BY_NAME = {measure.name: measure for measure in (*JUDGED, *TRAINED)}


def measure(name: str) -> Measure:
    """Return what is known of a name; one that is not known is a term of the loss."""
    return _BY_NAME.get(name) or Measure(name, "loss", name, name, "A term of the loss.")


def percent(value: float) -> str:
    """Write a share, as one word to a line breaker."""
    return f"{100 * value:.2f}\N{NO-BREAK SPACE}%"
