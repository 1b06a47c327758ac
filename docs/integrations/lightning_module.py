"""Lightning: a cache in a LightningModule.

    python lightning_module.py c.zarr

Lightning calls the sampler's set_epoch itself. On several devices the sampler deals the pairs to ranks, so Lightning
is told to leave it as it is.
"""

import sys

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from logitcache import CachedViews, Objective, ViewSampler


class Student(lightning.LightningModule):
    def __init__(self, data: CachedViews) -> None:
        super().__init__()
        self.data, self.objective = data, Objective.parse("kd")
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, data.num_classes)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        views, labels, rows = batch
        loss, terms = self.objective(self.network(views.float() / 255), self.data.decode(rows), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log_dict(terms, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch}: loss {self.trainer.callback_metrics['loss']:.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=64, sampler=ViewSampler(self.data), num_workers=2)


def main(cache: str, epochs: int = 4) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=epochs, use_distributed_sampler=False, **quiet)
    trainer.fit(Student(CachedViews(None, cache)))


if __name__ == "__main__":
    main(sys.argv[1])
