"""Hugging Face Trainer: a cache in a Trainer of one's own.

    python huggingface_trainer.py c.zarr

The Trainer calls the sampler's set_epoch itself, and its accelerator deals batches to processes: so the sampler walks
all pairs in each of them.
"""

import sys
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from logitcache import CachedViews, Objective, ViewSampler


class Student(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(pixel_values.float() / 255)}


def collate(items: list[tuple[Tensor, int, Tensor]]) -> dict[str, Tensor]:
    views, labels, rows = torch.utils.data.default_collate(items)
    return {"pixel_values": views, "labels": labels, "rows": rows}


class DistillationTrainer(Trainer):
    objective = Objective.parse("kd")

    def get_train_dataloader(self) -> DataLoader:
        sampler = ViewSampler(self.train_dataset, rank=0, world_size=1)
        size, workers = self.args.per_device_train_batch_size, self.args.dataloader_num_workers
        loader = DataLoader(
            self.train_dataset, batch_size=size, sampler=sampler, num_workers=workers, collate_fn=collate
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["pixel_values"])
        teacher = self.train_dataset.decode(inputs["rows"])
        loss, _ = self.objective(outputs["logits"], teacher, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Told(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            print(f"epoch {round(state.epoch) - 1}: loss {logs['loss']:.4f}")


def main(cache: str, epochs: int = 4) -> None:
    data = CachedViews(None, cache)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=1e-2,
            dataloader_num_workers=2, logging_strategy="epoch", save_strategy="no", report_to="none",
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        DistillationTrainer(Student(data.num_classes), args, train_dataset=data, callbacks=[Told()]).train()


if __name__ == "__main__":
    main(sys.argv[1])
