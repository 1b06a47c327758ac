"""The scripts of docs/integrations run as they stand, each in a loop that is not ours, and the student learns."""

import importlib.util
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import succeeds
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from logitcache import CachedViews, Objective, ViewSampler

FOLDER = Path(__file__).parents[2] / "docs" / "integrations"
NEEDED = {
    "plain": [],
    "timm_loop": ["timm"],
    "torchvision_reference": [],
    "lightning_module": ["lightning"],
    "huggingface_trainer": ["transformers", "accelerate"],
}
FEW = "import small\n\n\ndef digits(split):\n    return small.few_digits(600, split)\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 600 digits, which it names so that a script can open them."""
    folder = tmp_path_factory.mktemp("integrations")
    (folder / "few.py").write_text(FEW)
    words = ("--data", "few:digits", "--out")
    succeeds(
        "train",
        "--student",
        "digits_small",
        "--loss",
        "ce",
        "--epochs",
        6,
        "--lr",
        0.4,
        *words,
        "t",
        cwd=folder,
    )
    weights = ("--weights", "t/best.safetensors", "--seeds", "0-1", "--top-k", 4)
    succeeds("dump", "--teacher", "digits_small", *weights, *words, "c.zarr", cwd=folder)
    return folder / "c.zarr"


def test_every_script_is_listed_and_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NEEDED)
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == set(NEEDED)
    assert len((FOLDER / "plain.py").read_text().splitlines()) <= 40


@pytest.mark.filterwarnings("ignore")  # of the libraries that are shown
@pytest.mark.parametrize("script", NEEDED)
def test_a_student_learns(
    script: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if missing := [name for name in NEEDED[script] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.syspath_prepend(cache.parent)
    monkeypatch.setattr(sys, "argv", [script, str(cache)])
    epochs, walk = [], ViewSampler.__iter__

    def told(sampler: ViewSampler) -> Iterator[tuple[int, int]]:
        epochs.append(sampler.epoch)
        return walk(sampler)

    monkeypatch.setattr(ViewSampler, "__iter__", told)
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    losses = [
        float(loss)
        for loss in re.findall(r"^epoch \d+: loss ([\d.]+)$", capfd.readouterr().out, re.MULTILINE)
    ]
    assert len(losses) >= 3
    assert epochs == list(range(len(losses)))
    assert losses[-1] < 0.9 * losses[0]


# A plain data set in trainers that make, or shuffle, the loader --------------------------------------------------


class Follower(nn.Module):
    """A student that notes, for each epoch begun, the seeds whose rows its batches hold."""

    def __init__(self, data: CachedViews) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.data, self.objective, self.seeds = data, Objective.parse("kd"), []
        self.rows = {
            seed: {bytes(data[i, seed][2].tolist()) for i in range(len(data))} for seed in data.seeds
        }

    def begin(self, epoch: int) -> None:
        self.data.set_epoch(epoch)
        self.seeds.append(set())

    def loss(self, views: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        batch = {bytes(row) for row in rows.tolist()}
        self.seeds[-1].add(tuple(seed for seed, known in self.rows.items() if batch <= known))
        return self.objective(self.net(views.float() / 255), self.data.decode(rows), labels)[0]


@pytest.fixture
def data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> CachedViews:
    monkeypatch.syspath_prepend(cache.parent)
    return CachedViews(None, cache)


@pytest.mark.filterwarnings("ignore")  # of Lightning
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_lightning_announces_epochs_in_its_hook(workers: dict[str, object], data: CachedViews) -> None:
    lightning = pytest.importorskip("lightning")
    student = Follower(data)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def on_train_epoch_start(self) -> None:
            student.begin(self.current_epoch)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return student.loss(*batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=3, enable_model_summary=False, **quiet)
    trainer.fit(Module(), DataLoader(data, 64, shuffle=True, **workers))
    assert student.seeds == [{(0,)}, {(1,)}, {(0,)}]


@pytest.mark.filterwarnings("ignore")  # of transformers
@pytest.mark.parametrize("persistent", [False, True])
def test_a_trainer_of_hugging_face_announces_them_in_a_callback(
    persistent: bool, data: CachedViews, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    student = Follower(data)

    class DistillationTrainer(transformers.Trainer):
        def compute_loss(
            self, model: nn.Module, inputs: dict[str, Tensor], *_: object, **__: object
        ) -> Tensor:
            return student.loss(**inputs)

    class Announcer(transformers.TrainerCallback):
        def on_epoch_begin(self, args: object, state: object, control: object, **_: object) -> None:
            student.begin(round(state.epoch))  # type: ignore[attr-defined]

    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=64, dataloader_num_workers=1,
        dataloader_persistent_workers=persistent, report_to="none", save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip

    def collate(items: list[object]) -> dict[str, Tensor]:
        return dict(zip(("views", "labels", "rows"), default_collate(items), strict=True))

    trainer = DistillationTrainer(
        student, args, train_dataset=data, data_collator=collate, callbacks=[Announcer()]
    )
    trainer.train()
    assert student.seeds == [{(0,)}, {(1,)}, {(0,)}]
