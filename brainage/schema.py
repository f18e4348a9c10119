"""The schema of an experiment: every key, its type, its default, its meaning and unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class MemberConfig:
    """One cohort of a mixture."""

    cohort: str = ""  # a name in data_modules.COHORTS; empty: the member's own name
    root: str = ""
    modality: str = "vbm"
    store: str = "auto"
    spacing_mm: float = 0.0
    split: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    cohort: str = "openbhb"  # a name in data_modules.COHORTS; mixture: the cohorts of `members` as one
    root: str = ""  # folder of the cohort as it was downloaded
    modality: str = "vbm"  # which of the cohort's images or tables to read
    store: str = "auto"  # folder of the array store; auto: stores/<cohort>_<modality>_<hash of the root>
    spacing_mm: float = 0.0  # voxel size of the model grid for cohorts read as NIfTI; 0: the cohort's own grid
    options: dict[str, Any] = field(default_factory=dict)  # what only this cohort's reader knows; it lists them
    members: dict[str, MemberConfig] = field(default_factory=dict)  # mixture: name -> cohort
    overlap: Literal["refuse", "warn", "drop"] = "refuse"  # one person in two cohorts, or two with the same samples
    exclude: list[str] = field(default_factory=list)  # rules like "qc_pass == 0"; matching scans are listed, left out
    mask: str = ""  # NIfTI file: store only the voxels above mask_threshold; empty: whole volumes
    mask_threshold: float = 0.0
    split: str = ""  # TSV with cohort, participant_id, split; empty: official, or drawn
    external_sites: list[str] = field(default_factory=list)  # held out whole, where the split is drawn
    external_cohorts: list[str] = field(default_factory=list)  # likewise, of a mixture
    stratify: list[str] = field(default_factory=list)  # drawn: keep the shares of age | sex | site; empty: by hash
    folds: int = 0  # drawn: k folds instead of one split; 0: none
    fold: int = 0  # the fold that is tested, from 0
    folds_by: Literal["person", "site", "cohort"] = "person"  # what a fold holds whole; site, cohort: test_external
    internal_fraction: float = 0.2  # of the other sites' people, where drawn
    val_fraction: float = 0.1  # people of train carved out as val, never trained on
    split_seed: int = 0  # seed of every split that brainage draws itself
    limit: int = 0  # n scans of each split only, people in the order of a hash; 0: all
    balance: Literal["none", "age", "site", "cohort"] = "none"  # draw 5-year ages | sites | cohorts equally often
    weights: dict[str, float] = field(default_factory=dict)  # mixture: cohort -> share of the scans drawn
    batch_size: int = 64  # scans in the global batch, over all devices; 2 or more
    workers: int = 0  # loader processes a device; 0: the training process reads (fast: the store is a memory map)
    prepare_workers: int = 0  # processes of `prepare`; 0: one a core
    resident: Literal["none", "host", "device"] = "none"  # where all arrays live during training
    intensity: Literal["none", "zscore", "standardise"] = "zscore"  # an image by itself | a feature by the train set


@dataclass
class AugmentConfig:
    """Probabilities are per view and per operation; 0 switches an operation off."""

    views: int = 2  # views of each subject in a batch
    flip_p: float = 0.0  # mirror left and right
    affine_p: float = 0.0
    rotate_degrees: float = 10.0  # each axis, uniform in [-r, r]
    scale: float = 0.1  # isotropic, uniform in [1 - s, 1 + s]
    translate_mm: float = 8.0  # each axis, uniform in [-t, t]
    crop_p: float = 0.0
    crop_share: float = 0.75  # edge length kept by a random crop, resized back to the grid
    blur_p: float = 0.0
    blur_sigma_mm: list[float] = field(default_factory=lambda: [0.1, 1.0])  # uniform
    noise_p: float = 0.0
    noise_sd: list[float] = field(default_factory=lambda: [0.1, 1.0])  # uniform; units of the normalised input
    intensity_p: float = 0.0
    gain: float = 0.2  # multiplied by uniform [1 - g, 1 + g]
    offset: float = 0.1  # plus uniform [-o, o], units of the normalised input
    gamma: float = 0.0  # contrast: power exp(uniform [-g, g]) of the image rescaled to [0, 1]
    cutout_p: float = 0.0
    cutout_share: float = 0.25  # edge length of the box set to zero; vectors: share of features set to zero


@dataclass
class EncoderConfig:
    name: str = "resnet18"  # a name in brainage.encoders.ENCODERS
    width: float = 1.0  # multiplies the channels of every layer
    norm: Literal["batch", "group", "none"] = "batch"
    hidden: list[int] = field(default_factory=lambda: [256, 256])  # hidden widths of the mlp encoder
    dropout: float = 0.0  # mlp encoder only
    head: Literal["mlp", "mlp_bn", "linear"] = "mlp_bn"  # projection head; mlp is the published one
    head_dim: int = 128  # length of the embedding the contrastive loss sees


@dataclass
class LossConfig:
    name: str = "exp"  # a name in brainage.losses.CONTRASTIVE or SUPERVISED
    similarity: Literal["cosine", "shifted"] = "cosine"  # exp only; shifted is what the published code trains
    temperature: float = 0.1
    kernel: Literal["rbf", "gaussian", "cauchy"] = "rbf"
    sigma_years: float = 2.0  # kernel width (cauchy: gamma)
    same_subject: Literal["exclude", "positive"] = "exclude"  # two scans of one person in a batch
    bin_years: float = 2.0  # width of SupCon's age bins
    normalise: Literal["row", "column"] = "row"  # yaware only; column is what two public codes do
    as_published_code: bool = False  # thr only: what the published code computes in place of the formula
    sigma_start_years: float = 0.0  # kernel width at the start, going to sigma_years in equal ratios; 0: constant
    repel_nearest: int = 0  # scans nearest in the embedding that repel an anchor at the end of training; 0: all, always
    site_repulsion: float = 1.0  # how often an embedding of the anchor's own site counts in what repels it
    age_balance: float = 0.0  # anchors weighted by their age's density to the power of minus this; 1: rare counts alike
    site_penalty: float = 0.0  # times the dependence of the embedding on site, added to a contrastive loss
    regulariser: Literal["none", "order", "conr"] = "none"  # added to a supervised loss, on the trunk's features
    regulariser_weight: float = 1.0
    regulariser_window_years: float = 1.0  # conr: ages that count as alike
    chunk_rows: int = 0  # scans whose rows of pairs are computed at once, to save memory; 0: all
    huber_delta_years: float = 1.0


@dataclass
class OptimConfig:
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 5e-5
    momentum: float = 0.9  # sgd only
    schedule: Literal["constant", "step", "cosine"] = "step"
    step_epochs: int = 10  # step: multiply by step_gamma every so many epochs
    step_gamma: float = 0.9
    warmup_epochs: float = 0.0  # linear, before the schedule
    clip_norm: float = 0.0  # gradient norm; 0: no clipping


@dataclass
class TrainerConfig:
    epochs: int = 300
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1  # of each machine; one process each, which share the global batch
    nodes: int = 1  # machines
    sync_batchnorm: bool = True  # BatchNorm over the samples of all devices: then their number changes nothing
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the encoder; losses are always fp32
    chunk_samples: int = 0  # views encoded at a time, whatever the batch; nothing of them is kept; 0: all at once
    accumulate: int = 1  # optimiser steps average the gradients of so many batches, each compared within itself only
    ema_decay: float = 0.0  # moving average of the weights, kept and evaluated in place of the last ones; 0: none
    channels_last: bool = False  # volumes and convolutions in channels_last_3d: the layout of bf16 tensor cores
    tf32: bool = False  # fp32 products of convolutions and matrices rounded to 10 bits on a GPU that can
    compile: bool = False  # torch.compile of the encoder; falls back with a warning where it fails
    deterministic: bool = True  # bit-equal repeats on as many threads; false may be faster on a GPU
    threads: int = 0  # CPU threads; 0: torch's choice
    fast_dev_run: bool = False  # one train and one validation batch, nothing kept
    overfit_batches: int = 0  # train on the first n batches only, again and again: must reach a low loss
    validate_every_epochs: int = 1
    progress: bool = True


@dataclass
class CheckpointConfig:
    resume: str = "auto"  # auto: the last good checkpoint of this configuration | never | path of a checkpoint
    every_steps: int = 500  # also at the end of training
    keep: int = 2  # newest checkpoints kept, so that a torn one can be stepped over


@dataclass
class HealthConfig:
    every_steps: int = 20  # steps between two looks at the embedding
    patience: int = 25  # looks in a row that must agree before a run is stopped
    collapse_margin: float = 0.01  # collapsed: loss within this share of its value on a constant embedding
    min_effective_rank: float = 1.5  # collapsed too: effective rank of the embedding below this
    stop: bool = True  # false: warn only


@dataclass
class TrackingConfig:
    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "brainage"
    log_individuals: bool = False  # send per-person predictions to MLflow (data use agreements often forbid it)


@dataclass
class EvaluateConfig:
    after_training: bool = False  # `pretrain` goes on with the evaluation and the report
    features: Literal["trunk", "head"] = "trunk"
    fit_splits: list[str] = field(default_factory=lambda: ["train", "val"])  # people the probes are fitted on
    bootstrap: int = 2000  # resamples of subjects behind every interval
    baselines: list[str] = field(default_factory=lambda: ["untrained", "pca_ridge"])
    losses: list[str] = field(default_factory=lambda: ["l1"])  # sibling networks trained alike, shown side by side
    seeds: int = 1  # each network is trained with seed, seed + 1, ...
    site_probe_published: bool = False  # also saga with 150 iterations, as published; slow with many sites
    allow_seen: bool = False  # score people the encoder was trained on
    scatter_points: int = 2000  # points a figure draws at most
    tasks: list[str] = field(default_factory=lambda: ["age", "gap", "diagnosis", "site", "longitudinal"])
    age_probes: list[str] = field(default_factory=lambda: ["ridge"])  # the first gives the gap
    age_fitted_on: Literal["run", "cohort"] = "run"  # another cohort's ages: by the run's people, or its own healthy
    conformal_coverage: float = 0.9  # share of people that a split-conformal interval of age is to hold
    correct_on: list[str] = field(default_factory=lambda: ["val"])  # whose healthy people the bias correction is from
    correction: Literal["none", "beheshti", "cole", "conditional"] = "beheshti"  # of the gap that other tasks read
    nuisance: list[str] = field(default_factory=list)  # age | sex | tiv: what the site task may remove, by name only
    harmonise: list[str] = field(default_factory=list)  # combat | residual: the site task once more after each
    site_permutations: int = 200  # shuffles of site behind its chance interval; 0: none
    pairs: list[str] = field(default_factory=lambda: ["CN-AD", "CN-MCI", "sMCI-pMCI"])  # who is told from whom
    predictors: list[str] = field(default_factory=lambda: ["age_sex", "gap", "probe"])  # | finetuned | scratch
    diagnosis_folds: int = 5  # outer folds of people
    diagnosis_by_site: bool = False  # also with whole sites held out in turn
    label_shares: list[float] = field(default_factory=lambda: [1.0])  # low-data curves: shares of the labels fitted on


@dataclass
class FinetuneConfig:
    """The encoder trained on a diagnosis: predictors `finetuned` and `scratch` of the diagnosis task."""

    mode: Literal["full", "last", "low_rank"] = "full"  # all weights | the last stages | low-rank updates of them all
    last_stages: int = 1  # last: trained stages, counted from the end
    rank: int = 4  # low_rank: of each update
    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    lr_decay: float = 0.7  # learning rate of a stage, as a share of the next deeper one's
    weight_decay: float = 1e-2
    dropout: float = 0.2  # before the linear head
    augment: bool = True  # with the experiment's views


@dataclass
class Experiment:
    name: str = "experiment"
    description: str = ""
    seed: int = 0
    runs: str = "runs"  # folder of the run folders
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
