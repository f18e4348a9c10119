"""What watches a training run: journal, health, checkpoints, progress. None of them changes what is learnt."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brainage.errors import TrainingStopped
from brainage.pretraining.checkpoint import PAYLOAD, Payload, checkpoint_name, checkpoints
from brainage.pretraining.group import agree
from brainage.pretraining.health import HealthWatch, alignment, collapse_value, effective_rank, uniformity
from brainage.pretraining.module import PretrainingModule
from brainage.runtime import console
from brainage.tracking import MetricJournal, MlflowRun


class Recorder(L.Callback):
    """Every step's loss and rate, and every validation, into the append-only journal of the first rank.

    Losses stay on the device until `every_steps` of them are due, so that the device is not waited for at each step.
    """

    def __init__(self, journal: MetricJournal | None, every_steps: int, loader_wait_s: Callable[[], float]) -> None:
        self.journal = journal
        self.every_steps = every_steps
        self.loader_wait_s = loader_wait_s
        self.latest: dict[str, float] = {}
        self._pending: list[tuple[int, torch.Tensor, float]] = []
        self._of_step: list[torch.Tensor] = []  # losses of the batches of a step that is under way
        self._rate = 0.0
        self._images = 0
        self._since = time.perf_counter()
        self._paused = 0.0
        self._waited_s = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._waited_s = time.perf_counter(), self.loader_wait_s()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the end of the step it is the next one's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainingModule)
        self._images += len(pl_module.outputs["age_years"]) * pl_module.experiment.augment.views  # of all ranks
        self._of_step.append(pl_module.outputs["loss"])
        if not pl_module.accumulation.ends(batch_idx):
            return
        step = trainer.global_step  # steps done, this one included
        loss = self._of_step[0] if len(self._of_step) == 1 else torch.stack(self._of_step).mean()
        self._pending.append((step, loss, self._rate))
        self._of_step.clear()
        if step % self.every_steps == 0:
            self.flush()
            self._speed(step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused  # speed is the training step's alone

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PretrainingModule)
        if pl_module.validation:
            self.flush()
            self.write(trainer.global_step, pl_module.validation_metrics())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.flush()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.flush()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append metrics of a step; points that a resumed run repeats are left out by the journal."""
        self.latest |= metrics
        if self.journal is not None:
            self.journal.log(step, metrics)

    def flush(self) -> None:
        """Bring the pending losses from the device and append them."""
        if not self._pending:
            return
        if self.journal is not None:
            losses = torch.stack([loss for _, loss, _ in self._pending]).float().cpu().tolist()
            for (step, _, rate), loss in zip(self._pending, losses, strict=True):
                self.write(step, {"train/loss": loss, "train/lr": rate})
        self._pending.clear()

    def _speed(self, step: int) -> None:
        now, waited = time.perf_counter(), self.loader_wait_s()
        elapsed = max(now - self._since, 1e-9)
        self.write(
            step,
            {
                "speed/images_per_s": self._images / elapsed,
                "speed/loader_wait_share": min(1.0, (waited - self._waited_s) / elapsed),
            },
        )
        self._since, self._waited_s, self._images = now, waited, 0


class Health(L.Callback):
    """Every k steps: is the embedding alive? A collapsed, NaN or stalled run stops with TrainingStopped.

    The first rank measures the batch of all ranks and judges; the others wait for its verdict and stop with it.
    """

    def __init__(self, watch: HealthWatch, recorder: Recorder, every_steps: int) -> None:
        self.watch = watch
        self.recorder = recorder
        self.every_steps = every_steps
        self.line = ""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainingModule)
        if pl_module.accumulation.ends(batch_idx) and trainer.global_step % self.every_steps == 0:
            with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
                self.line = agree(lambda: self.look(trainer.global_step, pl_module))

    def look(self, step: int, module: PretrainingModule) -> str:
        """Measure the last batch, journal it, and let the watch judge; gives the line that says so."""
        seen = module.outputs
        z, ages = seen["z"].float(), seen["age_years"]
        flat = z.flatten(0, 1)
        collapse = self._collapse(module, z, ages)
        self.recorder.write(step, {"health/collapse_loss": collapse})
        line = self.watch.look(
            step,
            self._compared(module),
            collapse_value=collapse,
            effective_rank=effective_rank(flat),
            alignment=alignment(z) if z.shape[1] > 1 else None,
            uniformity=uniformity(flat),
        )
        self.recorder.write(step, line.metrics())
        return str(line)

    def state_dict(self) -> dict[str, Any]:
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watch.load_state_dict(state_dict)

    @staticmethod
    def _compared(module: PretrainingModule) -> float:
        """The loss that the collapse value is of: without a regulariser, whose value says nothing of the ages."""
        seen = module.outputs
        total = float(seen["loss"])
        if "predicted_years" not in seen or module.experiment.loss.regulariser == "none" or not math.isfinite(total):
            return total
        years = seen["age_years"].repeat_interleave(len(seen["predicted_years"]) // len(seen["age_years"]))
        return float(module.loss(seen["predicted_years"], years))

    @staticmethod
    def _collapse(module: PretrainingModule, z: torch.Tensor, ages: torch.Tensor) -> float:
        if "predicted_years" in module.outputs:  # supervised: the best constant prediction of this batch
            constant = ages.mean() if module.experiment.loss.name == "l2" else ages.median()
            return float(module.loss(constant.expand_as(ages), ages))
        views, dim = z.shape[1], z.shape[2]
        loss = partial(module.loss, **module.loss_setting)
        return float(collapse_value(loss, ages, views=views, dim=dim, subject=module.outputs["subject"]))


class Keeper(L.Callback):
    """Checkpoints every k steps and at the end; the newest `keep` stay.

    A checkpoint is written where the next step starts: the step's validation and journal lines are then behind it, and
    a resumed run goes on with the next batch.
    """

    def __init__(
        self, folder: Path, payload: Payload, mlflow: MlflowRun, recorder: Recorder, every_steps: int, keep: int
    ) -> None:
        self.folder = folder
        self.payload = payload
        self.mlflow = mlflow
        self.recorder = recorder
        self.every_steps = every_steps
        self.keep = keep
        self.newest: Path | None = None  # checkpoint written or resumed from
        self._saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step  # what was resumed from, or step 0, needs no copy

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        payload = dataclasses.replace(self.payload, step=trainer.global_step, mlflow_run_id=self.mlflow.run_id or "")
        checkpoint[PAYLOAD] = payload.to_dict()

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of the present step unless it is there already, then remove the oldest. All ranks call
        this, since a strategy may gather the state from them; the first one writes."""
        step = trainer.global_step
        if step == self._saved_step:
            return
        self.recorder.flush()
        weights = trainer.lightning_module.parameters()
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):  # or it would replace the last good one
            raise TrainingStopped(
                f"nan: the weights after step {step} are not finite and not saved. "
                "Try a smaller optim.lr, optim.clip_norm=1 or trainer.precision=fp32"
            )
        self.newest = self.folder / "checkpoints" / checkpoint_name(step)
        trainer.save_checkpoint(self.newest, weights_only=False)
        self._saved_step = step
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[self.keep :]:
                old.unlink(missing_ok=True)


class ProgressLine(L.Callback):
    """One bar with loss, speed, loader wait and time left; a plain line an epoch where there is no terminal."""

    def __init__(self, recorder: Recorder, health: Health, total_steps: int, label: str) -> None:
        self.recorder = recorder
        self.health = health
        self.total_steps = total_steps
        self.label = label
        self._bar: Progress | None = None
        self._task: Any = None
        self._printed = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if console().is_terminal and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[line]}"), console=console(),
            )  # fmt: skip
            self._task = self._bar.add_task(
                self.label, total=self.total_steps, completed=trainer.global_step, line=self.line()
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, line=self.line())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.global_step >= self.total_steps
        if not self._bar and (last or time.perf_counter() - self._printed > 10):
            self._printed = time.perf_counter()
            console().print(f"{self.label}: step {trainer.global_step}/{self.total_steps}, {self.line()}", markup=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        if self.health.line:
            console().print(self.health.line, markup=False, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def line(self) -> str:
        """Loss, validation, speed and loader wait, as far as they are known."""
        latest = self.recorder.latest
        parts = [
            (f"loss {latest['train/loss']:.3f}" if "train/loss" in latest else ""),
            (f"val {latest['val/loss']:.3f}" if "val/loss" in latest else ""),
            (f"{latest['speed/images_per_s']:.0f} images/s" if "speed/images_per_s" in latest else ""),
            (f"wait {latest['speed/loader_wait_share']:.0%}" if "speed/loader_wait_share" in latest else ""),
        ]
        return ", ".join(part for part in parts if part)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
