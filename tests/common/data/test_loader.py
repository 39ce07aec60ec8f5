import pytest
import pytorch_lightning as pl
import torch

from common.data.loader import DataModule


class Numbers:
    """A data set whose images are their own index and draw number."""

    class_names = ("only",)

    def __init__(self, length: int = 18) -> None:
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, draw):
        return torch.tensor([float(draw.index), float(draw.number)]), 0


class Recorder(pl.LightningModule):
    """Writes down every batch that it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch[0].tolist()))
        return self.layer(batch[0]).mean() * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, resume_from=None):
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        callbacks=[
            pl.callbacks.ModelCheckpoint(
                folder, filename="{step}", save_top_k=-1, every_n_train_steps=1
            )
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = DataModule(batch_size=4, train={"target": f"{__name__}.Numbers"})
    trainer.fit(recorder, data, ckpt_path=resume_from)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_sees_the_batches_that_an_unbroken_one_sees(tmp_path):
    unbroken = fit(tmp_path / "unbroken")
    assert len(unbroken) == 3 * 4
    for step in (1, 3, 4, 6, 11):  # in the middle of an epoch, and at its end
        resumed = fit(tmp_path / str(step), tmp_path / "unbroken" / f"step={step}.ckpt")
        assert resumed == unbroken[step:], step
