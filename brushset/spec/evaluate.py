"""[evaluate]: the fixed grid that every adapter is looked at on, and what a chosen one may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from brushset.spec.section import Px, Section
from brushset.subjects import SUBJECTS

SHOWN_PROMPTS = 4


class EvaluateSection(Section):
    """The fixed grid that every adapter is looked at on."""

    prompts: tuple[str, ...] = Field(
        SUBJECTS,
        min_length=1,
        description="content, without a word of style; 32, since a checkpoint is chosen on one half and reported on the "
        "other, and of 16 an interval is a third wider than of 32",
    )
    negative_prompt: str = "lowres, worst quality, jpeg artifacts"
    seeds: tuple[int, ...] = (1, 2)
    weight: float = Field(
        0.8, gt=0, le=2, description="of the adapter alone, a candidate too; used where nothing better can be chosen"
    )
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
    pair_weights: tuple[Annotated[float, Field(gt=0, le=2)], Annotated[float, Field(gt=0, le=2)]] = Field(
        (0.5, 0.5),
        description="of this style and of the other one, where both are recommended at the same weight; else shared out "
        "in proportion to what is recommended of each alone, with the same sum, and neither beyond what it is alone",
    )
    pair_sweep: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.3, 0.7),
        description="shares of this style in further mixes with each other one, the rest being the other's: with "
        "pair_weights three points, the fewest that show whether more weight is more style",
    )
    max_pairs: int = Field(4, ge=0)
    triple_partners: int = Field(
        2, ge=0, le=4, description="so many of the partners that mix best are mixed by twos with this style: 2 make one "
        "triple, 3 make three, 4 six, each about as costly as a pair; 0 makes none",
    )  # fmt: skip
    mix_methods: tuple[Literal["switch", "composite"], ...] = Field(
        ("switch", "composite"),
        description="also tried with the best weights of a mix; with two or three adapters people saw no difference, so "
        "the weighted sum stays where none is better (brushset/lora/compose)",
    )
    min_mix_fidelity: float = Field(
        -2.5, le=0, description="CLIP score of a mix less the base's, lower bound: half a point more than what one style "
        "may cost, since two triggers take more of the prompt",
    )  # fmt: skip
    min_balance: float = Field(
        0.5, ge=0, le=1, description="what is left of the weaker style by what is left of the stronger; below a half it is "
        "one style with a tint of the other",
    )  # fmt: skip
    min_fidelity: float = Field(
        -2.0,
        le=0,
        description="points of CLIP score that a chosen weight may cost at most, by the lower bound of the paired "
        "difference to the base, since a level would say nothing; of 16 prompts that bound lies about a point below what "
        "it really costs",
    )
    min_diversity: float = Field(
        0.8, ge=0, le=1, description="least diversity by the base's: below, images of one prompt become one image"
    )
    max_memorisation: float = Field(
        0.03,
        ge=0,
        description="most memorisation, by the upper bound: likeness to images trained on less that to held-out ones, less "
        "the same of the base; cosines, of which a style's own images have about 0.1 of spread",
    )
    choose_checkpoints: int = Field(
        10, ge=2, description="checkpoints tried first, evenly spread; neighbours of the best are tried next"
    )
    choose_finalists: int = Field(4, ge=2, description="of the last round, on all prompts of its half with all seeds")
    choose_loss_margin: float = Field(
        0.1,
        gt=0,
        description="an epoch whose held-out loss is above the lowest by more is not tried: a style moves that loss by some "
        "hundredths",
    )
    budget_minutes: float | None = Field(
        None,
        gt=0,
        description="of choosing and judging together: prompts, seeds and checkpoints are left out, also in the middle of a round, and named; default: all is done",
    )
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

    @property
    def shown(self) -> tuple[str, ...]:
        """The prompts that people are shown: in grids, in reports, while training."""
        return self.prompts[:SHOWN_PROMPTS]
