"""The settings of one training run: records, read from YAML by `config_file`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from ..errors import Problem
from ..jobs.camera import Move
from ..jobs.choices import PredictionType
from ..jobs.conditions import Canny
from ..jobs.kinds import (
    Count,
    Flag,
    Index,
    LocalPath,
    Number,
    Positive,
    Share,
    Source,
    Strength,
    Whole,
)
from ..jobs.record import Record, kinds_of

Stage = Literal[
    "image",
    "motion",
    "motion-lora",
    "dreambooth",
    "lora",
    "textual-inversion",
    "controlnet",
    "ip-adapter",
]
ON_CLIPS: tuple[Stage, ...] = ("motion", "motion-lora")
"""Stages on whole clips; the others train on single frames."""


class OnlyIn:
    """Marks a setting of some stages."""

    def __init__(self, *stages: Stage) -> None:
        self.stages = stages


def squared(value: Any) -> Any:
    """One size stands for height and width alike."""
    return (value, value) if isinstance(value, int) else value


class DataConfig(Record):
    """Where the clips are and how windows are cut from them."""

    video_folder: LocalPath
    """Folder of videos (outside the motion stage also images), captions in .txt files beside."""
    csv_path: LocalPath | None = None
    """WebVid-style CSV with columns videoid, name, page_dir; the file is FOLDER/videoid.mp4."""
    sample_size: Annotated[tuple[Count, Count], BeforeValidator(squared)] = (256, 256)
    """Height and width in pixels; scaled to cover it, and the middle is cut out."""
    sample_stride: Count = 4
    """Frames from one sampled frame to the next."""
    sample_n_frames: Count = 16
    """Frames in a window; the stages on images take one."""
    camera: Move | None = None
    """Make the clips from images: the camera moves so over each."""
    horizontal_flip: Flag = False
    """Mirror half of the clips; leave it off if captions say left or right."""
    max_bad_files: Index = 10
    """Unreadable videos to name and skip before the run stops."""
    num_workers: Index = 0
    """Processes that decode ahead; 0 decodes between the steps."""
    cache_folder: LocalPath | None = None
    """Where to keep the latents of every frame, encoded once; default: encode at each step."""


class ValidationConfig(Record):
    """Samples of the model that are written in training."""

    prompts: tuple[str, ...] = ()
    """One clip each (one image each outside the motion stage)."""
    steps: Count = 25
    """Denoising steps."""
    guidance_scale: Number = 8.0
    """Classifier-free guidance; 1 is off."""
    every: Whole = 5000
    """Training steps from one validation to the next; 0 is never."""
    at: tuple[Whole, ...] = ()
    """Further single steps at which to validate."""


class TrainConfig(Record):
    """One run of one stage. Defaults are those of the official training code and files."""

    stage: Stage
    """image: all of the UNet, on single frames. motion: the motion module, base frozen.
    motion-lora: low-rank layers in the attentions of a motion module, all else frozen.
    dreambooth: as image, beside images that the base itself made. lora: low-rank layers in the
    UNet's attentions, base frozen. textual-inversion: the vectors of one new word, all else frozen,
    on images whose captions use it. controlnet: a copy of the UNet's first half that reads
    conditions. ip-adapter: attentions to a image beside those to the text. Both over a frozen
    base, for single frames, and ready for every motion module of the family."""
    base: Source
    """Base model: a folder, file, hub id or bundled:tiny."""
    data: DataConfig
    """The clips."""
    variant: str | None = None
    """Which weights of the base model's folder or hub id, for instance fp16; default: the plain
    ones."""
    prediction_type: PredictionType | None = None
    """Prediction type, if the base model's files do not say it or are wrong."""
    output_dir: LocalPath | None = None
    """Folder of the run, if the command line names none."""
    motion: Annotated[Source | None, OnlyIn(*ON_CLIPS)] = None
    """Motion module to start from, which motion-lora needs; none starts a fresh one of
    `motion_version`'s layout."""
    motion_version: Annotated[str | None, OnlyIn(*ON_CLIPS)] = None
    """Arithmetic and layout (v1, v2, v3, sdxl-beta); default: the file's, else v3."""
    max_frames: Annotated[Whole | None, OnlyIn("motion")] = None
    """Positions of a fresh module; default: the version's."""
    unet: Source | None = None
    """UNet weights to use instead of the base's, as the image stage writes them."""
    lora_rank: Annotated[Count | None, OnlyIn("lora", "motion-lora")] = None
    """Rank of the low-rank matrices; default: 16 in lora, 64 in motion-lora."""
    lora_feed_forward: Annotated[Flag | None, OnlyIn("motion-lora")] = None
    """Whether the feed-forward layers get low-rank matrices too, which official files lack."""
    lora_conv_rank: Annotated[Count | None, OnlyIn("lora")] = None
    """Rank of such pairs for the ResNets' convolutions too (LoCon); none leaves them alone."""
    word: Annotated[str | None, OnlyIn("textual-inversion")] = None
    """The new word of the textual-inversion stage, for instance <neon>."""
    init_word: Annotated[str | None, OnlyIn("textual-inversion")] = None
    """A word that means something near, whose vector it starts from; none starts at the mean."""
    num_vectors: Annotated[Count | None, OnlyIn("textual-inversion")] = None
    """Vectors of the new word; default: 1."""
    prior_prompts: Annotated[tuple[str, ...] | None, OnlyIn("dreambooth")] = None
    """Prompts of the images that the base makes before a dreambooth run, so that the model does not
    forget them."""
    prior_images: Annotated[Count | None, OnlyIn("dreambooth")] = None
    """How many images that makes; default: 100. Every second sample of a batch is one of them."""
    prior_weight: Annotated[Strength | None, OnlyIn("dreambooth")] = None
    """Weight of their loss beside that of the given images; default: 1."""
    controlnet: Annotated[Source | None, OnlyIn("controlnet")] = None
    """ControlNet to start from; none starts from the UNet's own weights."""
    small: Annotated[Flag | None, OnlyIn("controlnet")] = None
    """A ControlNet of ResNets alone, which reads no text and has about half the weights."""
    canny: Annotated[Canny | None, OnlyIn("controlnet")] = None
    """Conditions of the controlnet stage are the edges of images; true: default thresholds."""
    condition_folder: Annotated[Source | None, OnlyIn("controlnet")] = None
    """Conditions of the controlnet stage are images in this folder, named as the data's."""
    image_encoder: Annotated[Source | None, OnlyIn("ip-adapter")] = None
    """CLIP vision model of the ip-adapter stage: a folder, here or on the hub."""
    image_dropout: Annotated[Share | None, OnlyIn("ip-adapter")] = None
    """Share of samples without their image, for classifier-free guidance; default: 0.1."""
    betas: tuple[Number, Number, str] | None = None
    """Noise schedule; none takes the module's (linear), or the base's own outside motion."""
    learning_rate: Positive = 1e-4
    """Learning rate of AdamW."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate over the steps."""
    lr_warmup_steps: Index = 0
    """Steps in which the learning rate rises from 0."""
    train_batch_size: Count = 4
    """Clips for each device and micro-step."""
    gradient_accumulation_steps: Count = 1
    """Micro-steps whose gradients are averaged into one step."""
    max_train_steps: Count = 1000
    """Optimizer steps."""
    adam_betas: tuple[Number, Number] = (0.9, 0.999)
    """Decay of AdamW's averages."""
    adam_epsilon: Number = 1e-8
    """Epsilon of AdamW."""
    weight_decay: Number = 1e-2
    """Weight decay of AdamW."""
    max_grad_norm: Number = 1.0
    """Norm to which gradients are clipped."""
    ema_decay: Share = 0.0
    """Decay of the weights' moving average, which is then what is written; 0 is off."""
    caption_dropout: Share = 0.1
    """Share of clips trained with the empty caption, for classifier-free guidance."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """uniform is the paper's; logit_normal draws more from the middle."""
    logit_mean: Number = 0.0
    """Mean of logit_normal."""
    logit_std: Number = 1.0
    """Standard deviation of logit_normal."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass."""
    gradient_checkpointing: Literal["none", "full"] = "none"
    """full keeps only the inputs of ResNets and transformers for the backward and computes the rest
    again: about a tenth of the activations' memory for a third more time."""
    seed: Whole = 42
    """Seed of noise, timesteps, windows and order."""
    checkpointing_steps: Count = 500
    """Steps from one saved state to the next."""
    validation: ValidationConfig = ValidationConfig()
    """Samples written in training."""

    def misfits(self) -> Iterator[Problem]:
        for name, kind in kinds_of(type(self)).items():
            notes = [note for note in get_args(kind) if isinstance(note, OnlyIn)]
            owners = [stage for note in notes for stage in note.stages]
            if owners and self.stage not in owners and getattr(self, name) is not None:
                stages = " and ".join(owners)
                message = f"belongs to stage {stages}, this is stage {self.stage}; leave it out"
                yield Problem(message, name)
        if self.stage == "motion-lora" and self.motion is None:
            yield Problem("is missing: which motion module is the MotionLoRA for?", "motion")
        if self.data.camera is not None and self.stage not in ON_CLIPS:
            yield Problem(f"makes clips, which stage {self.stage} does not read", "data.camera")
        if self.data.camera is not None and self.data.cache_folder is not None:
            message = "keeps no clips that are made by data.camera; leave it out"
            yield Problem(message, "data.cache_folder")
        if self.stage == "textual-inversion" and not self.word:
            yield Problem("is missing: which word do the captions use?", "word")
        if self.stage == "dreambooth" and not self.prior_prompts:
            yield Problem("is missing: what should the model not forget?", "prior_prompts")
        if self.stage == "dreambooth" and self.train_batch_size % 2:
            message = "must be even: half of a batch is prior images"
            yield Problem(message, "train_batch_size")
        if self.stage == "controlnet" and (self.canny is None) == (self.condition_folder is None):
            yield Problem("name the conditions by one of canny and condition_folder")
        if self.controlnet is not None and self.small is not None:
            yield Problem("is for a new ControlNet, not for the one in controlnet", "small")
        if self.stage == "ip-adapter" and not self.image_encoder:
            message = "is missing: which CLIP vision model reads the images?"
            yield Problem(message, "image_encoder")
        if self.stage in ("controlnet", "ip-adapter") and self.validation.prompts:
            yield Problem(
                f"show nothing of stage {self.stage}, which needs images too; leave them out, and "
                "look at clips that `generate` makes with the file",
                "validation.prompts",
            )

    @property
    def num_frames(self) -> int:
        """Frames of one training sample."""
        return self.data.sample_n_frames if self.stage in ON_CLIPS else 1
