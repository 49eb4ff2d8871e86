"""What one training run is told: frozen records, read from YAML by `config_file`."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..errors import TrainingError
from ..jobs.conditions import Canny
from ..motion import Betas


def squared(value: Any) -> Any:
    """One size stands for height and width alike."""
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the clips are and how windows are cut from them."""

    video_folder: str
    """Folder of videos (outside the motion stage also pictures), captions in .txt files beside."""
    csv_path: str | None = None
    """WebVid-style CSV with columns videoid, name, page_dir; the file is FOLDER/videoid.mp4."""
    sample_size: Annotated[tuple[int, int], squared] = (256, 256)
    """Height and width in pixels; scaled to cover it, and the middle is cut out."""
    sample_stride: int = 4
    """Frames from one sampled frame to the next."""
    sample_n_frames: int = 16
    """Frames in a window; the stages on pictures take one."""
    horizontal_flip: bool = False
    """Mirror half of the clips; leave it off where captions say left or right."""
    max_bad_files: int = 10
    """Unreadable videos to name and skip before the run stops."""
    num_workers: int = 0
    """Processes that decode ahead; 0 decodes between the steps."""
    cache_folder: str | None = None
    """Where to keep the latents of every frame, encoded once; none encodes at each step."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is sampled from the model in training, so that a person can look at it."""

    prompts: tuple[str, ...] = ()
    """One clip each (one picture each outside the motion stage)."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 8.0
    """Classifier-free guidance; 1 is off."""
    every: int = 5000
    """Training steps from one validation to the next; 0 is never."""
    at: tuple[int, ...] = ()
    """Further single steps at which to validate."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of one stage. Defaults are those of the official training code and files."""

    stage: Literal[
        "image", "motion", "dreambooth", "lora", "textual-inversion", "controlnet", "ip-adapter"
    ]
    """image: all of the UNet, on single frames. motion: the motion module, base frozen.
    dreambooth: as image, beside pictures that the base itself made. lora: low-rank layers in the
    UNet's attentions, base frozen. textual-inversion: the vectors of one new word, all else frozen,
    on pictures whose captions use it. controlnet: a copy of the UNet's first half that reads
    conditions. ip-adapter: attentions to a picture beside those to the text. Both over a frozen
    base, for single frames, and ready for every motion module of the family."""
    base: str
    """Base model: a folder, file, hub id or bundled:tiny."""
    data: DataConfig
    variant: str | None = None
    """Which weights of the base model's folder or hub id: fp16, for instance; none the plain."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the UNet predicts, where the base model's files do not say it or are wrong."""
    output_dir: str | None = None
    """Folder of the run, where the command line names none."""
    motion: str | None = None
    """Motion module to start from; none starts a fresh one of `motion_version`'s layout."""
    motion_version: str | None = None
    """Arithmetic and layout (v1, v2, v3, sdxl-beta); none is v3, or what the file says."""
    max_frames: int | None = None
    """Positions of a fresh module; none takes the version's."""
    unet: str | None = None
    """UNet weights to use instead of the base's, as the image stage writes them."""
    lora_rank: int | None = None
    """Rank of the lora stage's matrices; none is 16."""
    lora_conv_rank: int | None = None
    """Rank of such pairs for the ResNets' convolutions too (LoCon); none leaves them alone."""
    word: str | None = None
    """The new word of the textual-inversion stage, for instance <neon>."""
    init_word: str | None = None
    """A word that means something near, whose vector it starts from; none starts at the mean."""
    num_vectors: int | None = None
    """Vectors of the new word; none is 1."""
    prior_prompts: tuple[str, ...] | None = None
    """What the base is asked for before a dreambooth run, so that the model does not forget it."""
    prior_pictures: int | None = None
    """How many pictures that makes; none is 100. Every second sample of a batch is one of them."""
    prior_weight: float | None = None
    """Weight of their loss beside that of the given pictures; none is 1."""
    controlnet: str | None = None
    """ControlNet to start from; none starts from the UNet's own weights."""
    small: bool | None = None
    """A ControlNet of ResNets alone, which reads no text and has about half the weights."""
    canny: Canny | None = None
    """Conditions of the controlnet stage are the edges of pictures; true: the usual thresholds."""
    condition_folder: str | None = None
    """Conditions of the controlnet stage are pictures in this folder, named as the data's."""
    image_encoder: str | None = None
    """CLIP vision model of the ip-adapter stage: a folder, here or on the hub."""
    picture_dropout: float | None = None
    """Share of samples without their picture, for classifier-free guidance; none is 0.1."""
    betas: Betas | None = None
    """Noise schedule; none takes the module's (linear), or the base's own outside motion."""
    learning_rate: float = 1e-4
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    lr_warmup_steps: int = 0
    train_batch_size: int = 4
    """Clips for each device and micro-step."""
    gradient_accumulation_steps: int = 1
    """Micro-steps whose gradients are averaged into one step."""
    max_train_steps: int = 1000
    """Optimizer steps."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is then what is written; 0 is off."""
    caption_dropout: float = 0.1
    """Share of clips trained with the empty caption, for classifier-free guidance."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """uniform is the paper's; logit_normal draws more from the middle."""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: Literal["none", "full"] = "none"
    """full keeps only the inputs of ResNets and transformers for the backward and computes the rest
    again: about a tenth of the activations' memory for a third more time."""
    seed: int = 42
    checkpointing_steps: int = 500
    """Steps from one saved state to the next."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {least} or more, got {value}"
            for name, value, least in (
                ("train_batch_size", self.train_batch_size, 1),
                ("gradient_accumulation_steps", self.gradient_accumulation_steps, 1),
                ("max_train_steps", self.max_train_steps, 1),
                ("checkpointing_steps", self.checkpointing_steps, 1),
                ("lr_warmup_steps", self.lr_warmup_steps, 0),
                ("train_data.sample_size", min(self.data.sample_size), 1),
                ("train_data.sample_stride", self.data.sample_stride, 1),
                ("train_data.sample_n_frames", self.data.sample_n_frames, 1),
                ("train_data.max_bad_files", self.data.max_bad_files, 0),
                ("train_data.num_workers", self.data.num_workers, 0),
                ("lora_rank", 1 if self.lora_rank is None else self.lora_rank, 1),
                ("lora_conv_rank", 1 if self.lora_conv_rank is None else self.lora_conv_rank, 1),
                ("num_vectors", 1 if self.num_vectors is None else self.num_vectors, 1),
                ("prior_pictures", 1 if self.prior_pictures is None else self.prior_pictures, 1),
                ("prior_weight", self.prior_weight or 0, 0),
                ("validation.steps", self.validation.steps, 1),
            )
            if value < least
        ]
        owners = {
            "motion": "motion", "motion_version": "motion", "max_frames": "motion",
            "lora_rank": "lora", "lora_conv_rank": "lora", "word": "textual-inversion",
            "init_word": "textual-inversion", "num_vectors": "textual-inversion",
            "prior_prompts": "dreambooth", "prior_pictures": "dreambooth",
            "prior_weight": "dreambooth", "controlnet": "controlnet", "canny": "controlnet",
            "condition_folder": "controlnet", "small": "controlnet", "image_encoder": "ip-adapter",
            "picture_dropout": "ip-adapter",
        }  # fmt: skip
        problems += [
            f"{name} belongs to stage {stage}, this is stage {self.stage}; leave it out"
            for name, stage in owners.items()
            if getattr(self, name) is not None and stage != self.stage
        ]
        for name, share in (
            ("caption_dropout", self.caption_dropout),
            ("ema_decay", self.ema_decay),
            ("picture_dropout", self.picture_dropout or 0.0),
        ):
            if not 0 <= share <= 1:
                problems.append(f"{name} must lie between 0 and 1, got {share}")
        if self.stage == "textual-inversion" and not self.word:
            problems.append("word is missing: which word do the captions use?")
        if self.stage == "dreambooth":
            if not self.prior_prompts:
                problems.append("prior_prompts is missing: what should the model not forget?")
            if self.train_batch_size % 2:
                problems.append("train_batch_size must be even: half of a batch is prior pictures")
        if self.stage == "controlnet" and (self.canny is None) == (self.condition_folder is None):
            problems.append("name the conditions by one of canny and condition_folder")
        if self.controlnet is not None and self.small is not None:
            problems.append("small is for a new ControlNet, not for the one in controlnet")
        if self.stage == "ip-adapter" and not self.image_encoder:
            problems.append("image_encoder is missing: which CLIP vision model reads the pictures?")
        if self.stage in ("controlnet", "ip-adapter") and self.validation.prompts:
            problems.append(
                f"validation.prompts show nothing of stage {self.stage}, which needs pictures too; "
                "leave them out, and look at clips that `generate` makes with the file"
            )
        if self.learning_rate <= 0:
            problems.append(f"learning_rate must be above 0, got {self.learning_rate}")
        if problems:
            raise TrainingError("; ".join(problems))

    @property
    def num_frames(self) -> int:
        """Frames of one training sample."""
        return self.data.sample_n_frames if self.stage == "motion" else 1
