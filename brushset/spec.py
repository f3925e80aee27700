"""What a user may say about a style, and the default of everything he does not say.

One frozen model a section; every default stands in its field, here and nowhere else. Unknown keys, wrong types and
impossible combinations are refused (brushset.load turns them into one error that lists them all). Training keys
carry sd-scripts' names. What a learning rate means depends on alpha/dim and on the effective batch: change the three
together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from brushset.mediums import STYLE_WORDS

STYLE_NAME = r"^[a-z0-9][a-z0-9_-]{0,47}$"
DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"

Px = Annotated[int, Field(ge=64, le=4096)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
# Keys of [train] that rule how a training is watched, not what comes of it: with another value it is the same run.
SUPERVISION = frozenset(
    {
        "save_state_minutes", "stall_minutes", "stall_ends", "retry_out_of_memory", "pack", "cuda_graphs", "compile",
    }
)  # fmt: skip
# `--set dataset.accept=too-small` names one; a tuple is what a TOML array becomes.
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class Section(BaseModel):
    """A part of a spec: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BaseSection(Section):
    """The model that adapters are trained on."""

    model: str = Field(
        DEFAULT_BASE, description="HF id, .safetensors checkpoint, diffusers folder, random:sd15 or random:tiny"
    )
    revision: str | None = Field(None, description="commit or tag of an HF id")


class DatasetSection(Section):
    """The images, and what they must be."""

    images: str | None = Field(None, description="folder of images; relative to the project; default datasets/<style>")
    resolution: Px = Field(512, description="training size: the square root of a bucket's area, in pixels")
    min_images: int = Field(80, ge=1, description="fewer is reported as too few; 80-100 are advised for a style")
    max_upscale: float = Field(
        2.0, ge=1, le=8, description="an image that must be enlarged more is unusable: the detail would be invented"
    )
    upscaler: str = Field(
        "lanczos", description="or the path of a super-resolution model (.safetensors) that spandrel knows"
    )
    max_upscale_model: float = Field(4.0, ge=1, le=16, description="the limit where upscaler is a model")
    max_megapixels: float = Field(64.0, gt=0, le=89, description="larger images are refused before they are decoded")
    background: str = Field(
        "#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="what shows through transparent pixels"
    )
    format: Literal["png", "jpeg"] = Field(
        "png", description="prepared images; jpeg is quality 95, a quarter of the size"
    )
    crop: Literal["none", "centre", "smart"] = Field(
        "none", description="cut to the bucket here; none leaves it to the trainer, which cuts at the centre"
    )
    near_duplicate_distance: int = Field(
        6, ge=0, le=16, description="images whose 64-bit perceptual hashes differ in at most so many bits are grouped"
    )
    max_duplicate_share: Share = Field(
        0.1, description="a set of which more are near-duplicates of another is told so: what repeats is learned first"
    )
    max_unusable_share: Share = Field(
        0.5, description="a set of which more cannot be used stops the run: it is not the set that was meant"
    )
    max_cut_share: Share = Field(
        0.25, description="an image of which its bucket cuts off more is named: a third of the subject may be lost"
    )
    max_frame_share: Share = Field(
        0.2, description="an image of which a frame or letterbox takes more is named: bars are learned as style"
    )
    min_sharpness: float = Field(
        50.0,
        ge=0,
        description="variance of the Laplacian at an area of 256²; less is blurry: scans, paintings and photographs have "
        "84 to 14,000, blurred by 5 pixels of 512 at most 34",
    )
    min_contrast: float = Field(
        0.15, ge=0, le=1, description="between the darkest and lightest hundredth of the pixels; less is washed out"
    )
    min_mean_luma: float = Field(0.06, ge=0, le=1, description="darker images are named: the style cannot be seen")
    min_jpeg_quality: int = Field(
        50, ge=1, le=100, description="worse JPEGs are named where they are not scaled down: blocks are learned"
    )
    outlier_deviations: float = Field(
        5.0, gt=0, description="robust standard deviations (of the median) at which an image differs from its set"
    )
    accept: Names = Field(
        (), description="findings of the audit, by code, that shall not make an image or set unusable"
    )
    holdout: Share = Field(0.1, description="share of the images that is never trained on and used by evaluation")
    holdout_from: int = Field(80, ge=2, description="fewer usable images than this are all trained on")


class CaptionSection(Section):
    """Where captions come from. Sidecar .txt files beside the images always win."""

    captioner: Literal["interrogator", "blip", "wd14", "filename", "sidecar", "trigger-only"] = Field(
        "interrogator", description="who writes the missing ones; sidecar: nobody, every image must have its own"
    )
    model: str = Field("Salesforce/blip-image-captioning-large", description="BLIP weights: HF id or folder")
    revision: str | None = Field(None, description="commit or tag of the captioner's HF id")
    clip_model: str = Field("ViT-L-14/openai", description="CLIP that clip-interrogator ranks phrases with")
    mode: Literal["caption", "fast", "classic"] = Field(
        "fast", description="clip-interrogator: BLIP alone, or with ranked phrases"
    )
    batch_size: int = Field(8, ge=1)
    max_new_tokens: int = Field(40, ge=1, le=75)
    tagger: str = Field("SmilingWolf/wd-vit-tagger-v3", description="wd14's ONNX weights: HF id or folder")
    tag_threshold: float = Field(0.35, gt=0, lt=1, description="least probability of a general tag")
    character_threshold: float = Field(0.85, gt=0, lt=1, description="least probability of a character's name")
    style_words: Names = Field(
        STYLE_WORDS,
        description="stripped from machine captions, whole: a style that is described is not bound to the trigger",
    )
    more_style_words: Names = Field((), description="of this style, besides those: what its look is called")

    @property
    def all_style_words(self) -> tuple[str, ...]:
        """Both lists, each word once."""
        return tuple(dict.fromkeys((*self.style_words, *self.more_style_words)))


class TrainSection(Section):
    """The recipe. Names follow sd-scripts where it has one."""

    engine: Literal["auto", "kohya", "native"] = "auto"
    network_dim: int = Field(32, ge=1, le=1024, description="rank")
    network_alpha: float = Field(16.0, gt=0, description="the adapter acts with alpha / dim")
    train_text_encoder: bool = Field(True, description="72 further modules; false trains the UNet's 192 alone")
    unet_lr: Rate = 1e-4
    text_encoder_lr: Rate = 5e-5
    batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    processes: int = Field(
        1, ge=1, le=64, description="GPUs that one training is spread over, each with its own batch; see --gpus"
    )
    epochs: int = Field(20, ge=1)
    max_steps: int | None = Field(
        None, ge=1, description="ends training at this optimizer step; epochs are then not used"
    )
    repeats: int | None = Field(
        None, ge=1, description="times each image is seen an epoch; default: what brings epochs near target_steps"
    )
    target_steps: int = Field(1000, ge=1, description="optimizer steps that automatic repeats aim at")
    lr_scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"
    ] = "cosine"
    lr_warmup_ratio: Share = Field(
        0.05, description='share of the steps in which the rates rise from 0; "constant" has none'
    )
    optimizer: Literal["AdamW", "AdamW8bit", "Prodigy", "Lion"] = "AdamW"
    optimizer_args: tuple[str, ...] = Field(
        (), description="key=value, as sd-scripts takes them; AdamW gets fused=True where nothing speaks against it"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="0 does not clip")
    mixed_precision: Literal["no", "fp16", "bf16"] = "bf16"
    save_precision: Literal["float", "fp16", "bf16"] = "bf16"
    attention: Literal["sdpa", "xformers"] = "sdpa"
    gradient_checkpointing: bool = Field(False, description="saves memory, costs about a third of the speed")
    min_snr_gamma: float = Field(5.0, ge=0, description="loss weight min(SNR, gamma) / SNR, arXiv 2303.09556; 0 is off")
    noise_offset: float = Field(0.0, ge=0, le=1)
    shuffle_caption: bool = False
    keep_tokens: int = Field(1, ge=0, description="comma-separated parts that stay in front when captions are shuffled")
    caption_dropout_rate: Share = Field(0.05, description="share of the samples trained with an empty caption")
    max_token_length: Literal[75, 150, 225] = 75
    clip_skip: int = Field(1, ge=1, le=12, description="1 for SD 1.5 itself, 2 for most anime bases")
    flip_aug: bool = False
    enable_bucket: bool = True
    min_bucket_reso: Px = 256
    max_bucket_reso: Px = 1024
    bucket_reso_steps: int = Field(64, ge=64, multiple_of=64, description="sd-scripts takes multiples of 64 only")
    bucket_no_upscale: bool = False
    cache_latents: bool = True
    vae_batch_size: int = Field(4, ge=1)
    tf32: bool = Field(False, description="TF32 matrix products in what is left in fp32; native engine only")
    seed: int = Field(42, ge=0, lt=2**32)
    save_every_n_epochs: int = Field(1, ge=1)
    save_state_minutes: float = Field(
        5.0, ge=0, description="work that a kill may cost, about; 0 keeps no state, and training starts anew"
    )
    stall_minutes: float = Field(15.0, gt=0, description="without progress for so long, it is reported")
    stall_ends: bool = Field(False, description="a stalled trainer is stopped, and the run has failed")
    retry_out_of_memory: bool = Field(
        True, description="halve the batch and double gradient_accumulation_steps, then gradient_checkpointing"
    )
    cuda_graphs: bool = Field(
        True, description="native on a GPU: a step is started by one call, with the same result; false where that fails"
    )
    compile: bool = Field(
        False,
        description="native: torch.compile of the UNet's blocks; it takes minutes the first time, and what it saves is "
        "not measured yet: bench/train.py --compile does",
    )
    pack: bool = Field(
        True,
        description="native: styles of one command are trained in one pass, since three cost little more than one; false: by itself",
    )
    validate_every_n_epochs: int = Field(0, ge=0, description="loss on the held-out images; 0 is never")
    early_stop_patience: int = Field(
        0, ge=0, description="validations without a better loss that end the training, best epoch kept; 0 is never"
    )
    sample_every_n_epochs: int = Field(0, ge=0, description="images of [evaluate] prompts while training; 0 is never")
    data_loader_workers: int = Field(0, ge=0, description="0 is fastest once latents are cached in memory")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="any other sd-scripts option, checked by name and type"
    )


class EvaluateSection(Section):
    """The fixed grid that every adapter is looked at on."""

    prompts: tuple[str, ...] = (
        "a portrait of a girl",
        "a landscape with mountains and a lake",
        "a cat sitting on a windowsill",
        "a street in an old town",
    )
    negative_prompt: str = "lowres, worst quality, jpeg artifacts"
    seeds: tuple[int, ...] = (1, 2)
    weight: float = Field(0.8, gt=0, le=2, description="of the adapter alone")
    weights: tuple[Annotated[float, Field(gt=0, le=2)], ...] = Field(
        (0.4, 0.6, 0.8, 1.0),
        description="of the adapter alone, besides `weight`: steps of 0.2 tell apart what images of some 50 prompts can",
    )
    style_words: str | None = Field(
        None,
        description="the baseline to beat is the base with these words in front; by default the style's name and "
        '"style", which SD 1.5 knows already',
    )
    trigger_cells: bool = Field(
        True, description="also without its trigger, and with another style's: what the word is good for; two cells"
    )
    pair_weights: tuple[float, float] = Field((0.5, 0.5), description="of this style and of the other one")
    pair_sweep: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.3, 0.7),
        description="shares of this style in further mixes with each other one, the rest being the other's: with "
        "pair_weights three points, the fewest that show whether more weight is more style",
    )
    max_pairs: int = Field(4, ge=0)
    steps: int = Field(25, ge=1)
    guidance: float = Field(7.0, ge=1)
    width: Px = 512
    height: Px = 512
    batch_size: int = Field(4, ge=1)
    references: int = Field(
        200, ge=2, description="prepared images that FID and style similarity are held against, at most"
    )
    clip_model: str = Field("openai/clip-vit-large-patch14", description="HF id or folder; random: a made-up tiny one")
    csd_model: str = Field(
        "tomg-group-umd/CSD-ViT-L",
        description="style apart from content: HF id, folder, file or random; 2.4 GB, since CLIP's own embedding holds both",
    )
    dinov2_model: str = Field(
        "facebook/dinov2-large",
        description="KD, memorisation, Vendi: HF id, folder or random; the encoder of arXiv 2306.04675, nearest to people",
    )
    inception: str = Field("inception-v3-compat", description="FID's features: torch-fidelity's Inception, or random")
    lpips_model: str = Field(
        "alexnet", description="LPIPS' network: torchvision's AlexNet, which its authors advise; or random"
    )


class ExportSection(Section):
    """The packages."""

    targets: Names = Field(
        ("a1111", "forge", "comfyui", "invokeai", "swarmui"),
        description="all of them: further copies of the file are hard links, where the disk can make them",
    )
    weight: float = Field(0.8, gt=0, le=2, description="recommended weight, written into the packages")
    negative_prompt: str = "lowres, worst quality, jpeg artifacts"
    author: str = Field("anonymous", min_length=1, description="nobody's name is taken from the machine")
    license: str = Field(
        "creativeml-openrail-m",
        min_length=1,
        description="SPDX or hub name; Stable Diffusion 1.5's own wants its use restrictions passed on",
    )
    tags: Names = Field((), description="of this style, besides its name, style, lora and sd-1.5")
    tag_frequency: Literal["full", "minimal", "none"] = Field(
        "full",
        description="captions' tags in the file's header: full as the trainer wrote them, since A1111's card shows "
        "them; minimal the trigger alone; none. Those who publish may not want to tell their captions",
    )
    merge_mixes: bool = Field(
        True, description="each recommended mix also as one file: UIs without several LoRAs a prompt can use it"
    )


class StyleSpec(Section):
    """Everything about one style, resolved."""

    name: str = Field(pattern=STYLE_NAME)
    trigger: str = Field(pattern=r"^[^\s,][^,\n]{0,63}$", description="the word that calls the style; no comma")
    description: str = ""
    smoke: bool = Field(
        False, description="set by the smoke profile: results show that the machinery runs, nothing more"
    )
    base: BaseSection = BaseSection()
    dataset: DatasetSection = DatasetSection()
    caption: CaptionSection = CaptionSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _combinations(self) -> StyleSpec:
        findings = list(_impossible(self))
        if findings:
            raise ValueError("\n".join(findings))
        return self

    def images_dir(self, project: Path) -> Path:
        """The folder of the user's images."""
        return project / (self.dataset.images or f"datasets/{self.name}")


def _impossible(spec: StyleSpec) -> list[str]:
    """Combinations that a trainer would refuse late or ignore silently, each with its fix."""
    train, size = spec.train, spec.dataset.resolution
    found = []
    if train.early_stop_patience and not train.validate_every_n_epochs:
        found.append("[train] early_stop_patience needs a validation loss; set validate_every_n_epochs = 1")
    if train.validate_every_n_epochs and not spec.dataset.holdout:
        found.append("[train] validate_every_n_epochs needs held-out images; set [dataset] holdout = 0.1")
    if train.enable_bucket and not train.min_bucket_reso <= size <= train.max_bucket_reso:
        found.append(
            f"[train] min_bucket_reso {train.min_bucket_reso} ≤ [dataset] resolution {size} ≤ "
            f"max_bucket_reso {train.max_bucket_reso} does not hold"
        )
    found += [
        f"[train] {key} = {getattr(train, key)} is not a multiple of bucket_reso_steps = {train.bucket_reso_steps}"
        for key in ("min_bucket_reso", "max_bucket_reso")
        if getattr(train, key) % train.bucket_reso_steps
    ]
    if size % 8:
        found.append(f"[dataset] resolution = {size} is not a multiple of 8, which a latent needs")
    if train.bucket_no_upscale and spec.dataset.upscaler != "lanczos":
        found.append("[dataset] upscaler has nothing to do with [train] bucket_no_upscale = true; set one of them only")
    if train.shuffle_caption and train.keep_tokens == 0:
        found.append("[train] shuffle_caption = true with keep_tokens = 0 moves the trigger; set keep_tokens = 1")
    if train.optimizer == "Prodigy" and train.unet_lr < 0.1:
        found.append(
            f'[train] optimizer = "Prodigy" finds its own rate: set unet_lr and text_encoder_lr to 1.0, not {train.unet_lr}'
        )
    if train.mixed_precision == "no" and train.attention == "xformers":
        found.append('[train] attention = "xformers" wants mixed_precision "fp16" or "bf16"')
    found += [
        f"[evaluate] {side} = {getattr(spec.evaluate, side)} is not a multiple of 8"
        for side in ("width", "height")
        if getattr(spec.evaluate, side) % 8
    ]
    return found
