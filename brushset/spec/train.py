"""[train]: the recipe. Names follow sd-scripts where it has one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from brushset.spec.section import Px, Rate, Section, Share

# Keys of [train] that rule how a training is watched, not what comes of it: with another value it is the same run.
SUPERVISION = frozenset(
    {
        "save_state_minutes", "stall_minutes", "stall_ends", "retry_out_of_memory", "pack", "cuda_graphs", "compile",
    }
)  # fmt: skip


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
    sample_every_n_epochs: int = Field(
        0, ge=0, description="images of the first four [evaluate] prompts while training; 0 is never"
    )
    data_loader_workers: int = Field(0, ge=0, description="0 is fastest once latents are cached in memory")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="any other sd-scripts option, checked by name and type"
    )
