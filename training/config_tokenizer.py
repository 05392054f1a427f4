"""The configuration of a tokenizer training."""

from dataclasses import dataclass, fields

from kinema.training.config_base import (
    IN_UNIT_INTERVAL,
    IS_RATE,
    TrainingConfig,
    above,
    at_least,
    check,
    check_shares,
    parse_shape,
    require,
)

_WEIGHTS = (
    *("mse_weight", "l1_weight", "charbonnier_weight", "lpips_weight", "kl_weight", "entropy_weight"),
    *("commitment_weight", "adversarial_weight", "lecam_weight", "image_vae_weight", "image_decode_weight"),
)

_NEEDS = {
    "lpips_frames": "lpips_weight",
    "image_vae_weight": "image_vae",
    "image_decode_weight": "image_vae",
    "lecam_weight": "adversarial_weight",
    "adversarial_adaptive": "adversarial_weight",
    "adversarial_start": "adversarial_weight",
    "discriminator_lead": "adversarial_weight",
    "discriminator_width": "adversarial_weight",
    "discriminator_levels": "adversarial_weight",
    "discriminator_learning_rate": "adversarial_weight",
}
"""Settings that have no effect without another one, and are therefore a mistake without it."""


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig(TrainingConfig):
    """Training of a tokenizer.

    It can be done in two stages, as in VidTok (arXiv 2412.13061): first the whole model on small clips, then only the
    decoder on large ones, here with the adversarial loss. The second stage is a new run that starts from the result of
    the first:

        train_tokenizer.py kl-4x8x8-c16 --data clips --shapes 17x64x64 --output runs/one
        train_tokenizer.py kl-4x8x8-c16 --data clips --shapes 17x128x128 1x256x256 --output runs/two
            --init-from runs/one/model --no-init-linear --freeze-encoder --lpips-weight 0.1 --adversarial-weight 0.1

    The second stage leaves all latents and their normalization unchanged, bit for bit.
    """

    shapes: tuple[str, ...] = ("17x64x64",)
    """Clip sizes as FRAMESxHEIGHTxWIDTH, one drawn for each step. `batch_size` counts clips of the first size; other
    sizes get as many clips as have about the same number of pixels. A single frame is an image: 17x128x128 1x128x128
    trains on videos and images."""
    shape_weights: tuple[float, ...] = ()
    """Relative share of steps for each entry of `shapes` (default: equal shares)."""
    cache_short_side: int = 160
    """Short side at which video files are decoded once, in pixels; at least the longest side of `shapes` is used."""
    max_stride: int = 2
    """Maximum step between two frames of a training clip, if `frame_rates` is not given."""
    frame_rates: tuple[float, ...] = ()
    """Frames per second of training clips, one drawn for each clip. Frames of the file are dropped by their
    timestamps; slower files give all their frames. Validation clips have the first of these rates. Default: the file's
    own rate and `max_stride`."""
    max_zoom_out: float = 1.25
    """Crops are up to this many times larger than the clip and scaled down; half of them are not scaled."""

    mse_weight: float = 1.0
    """Weight of the mean squared error, for pixels in [-1, 1]."""
    l1_weight: float = 0.0
    """Weight of the mean absolute error."""
    charbonnier_weight: float = 0.0
    """Weight of the Charbonnier loss."""
    lpips_weight: float = 0.0
    """Weight of LPIPS (downloads the weights of a VGG network)."""
    lpips_frames: int | None = None
    """Number of frames of each clip on which LPIPS is computed, drawn in each step (default: all). LPIPS takes most of
    a step's time."""
    kl_weight: float = 1e-6
    """Weight of the posterior's KL divergence."""
    entropy_weight: float = 0.1
    """Weight of the entropy loss of LFQ, BSQ and FSQ (lower in FSQ's presets, which uses most codes without it)."""
    commitment_weight: float = 0.25
    """Weight of VQ's and LFQ's commitment loss."""
    sample_posterior: bool = True
    """Decode a sample of the posterior in training rather than its mode."""
    init_linear: bool = False
    """Initialize with the best linear code (KLT) of some training batches; the linear path is then frozen, also in
    trainings that start from the result."""
    freeze_encoder: bool = False
    """Train only the decoder, so that models trained on the latents stay valid. The codebook and the latents'
    normalization are frozen as well."""
    latent_balance: float = 0.5
    """How much a latent channel's effect on pixels counts in the latents' normalization: 0 not at all, 1 fully."""

    adversarial_weight: float = 0.0
    """Weight of the adversarial loss (0: none), multiplied by the adaptive weight if that is on."""
    adversarial_adaptive: bool = True
    """Adaptive weight of VQGAN: scale the adversarial loss so that its gradient at the decoder's last layer has the
    same norm as that of the other reconstruction losses."""
    adversarial_start: int = 0
    """First step with the adversarial loss."""
    discriminator_lead: int = 0
    """Steps that the discriminator trains before `adversarial_start`, so that the decoder meets no untrained one."""
    discriminator_width: int = 32
    """Channels of the discriminator's first level, doubled at each further level."""
    discriminator_levels: int = 3
    """Number of the discriminator's levels, each with half the resolution."""
    discriminator_learning_rate: float = 2e-4
    """Peak learning rate of the discriminator, with the model's schedule."""
    lecam_weight: float = 0.001
    """Weight of LeCAM regularization of the discriminator; increase it if there is little data."""

    image_vae: str | None = None
    """Folder or Hub id of an image VAE of diffusers (`AutoencoderKL`), whose latents the latents of single frames are
    trained to match (CV-VAE, arXiv 2405.20279)."""
    image_vae_weight: float = 1.0
    """Weight of the squared distance between the first frames' latents and those of the image VAE."""
    image_decode_weight: float = 0.0
    """Weight of the squared error of first frames that the image VAE decodes from this tokenizer's latents."""

    validation_clips: int = 2
    """Validation clips per held-out file."""
    validation_shape: str = "17x128x128"
    """Size of the validation clips as FRAMESxHEIGHTxWIDTH."""
    score_lpips: float | None = None
    """Weight of LPIPS in the score that selects the best weights, PSNR (dB) - weight * LPIPS. Default: 50 with the
    adversarial loss, because PSNR alone would select weights from before the discriminator had any effect; else 0."""

    @property
    def lpips_in_score(self) -> float:
        """The value of `score_lpips`, or its default."""
        return self.score_lpips if self.score_lpips is not None else 50.0 * bool(self.adversarial_weight)

    @property
    def decoded_short_side(self) -> int:
        """Short side at which files are decoded: large enough that no shape needs upscaling."""
        return max(self.cache_short_side, *(side for shape in self.shapes for side in parse_shape(shape)[1:]))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "shapes", len(self.shapes) >= 1, "name at least one size")
        for shape in self.shapes:
            parse_shape(shape, "shapes")
        parse_shape(self.validation_shape, "validation_shape")
        check(self, at_least(1), "cache_short_side", "validation_clips", "max_stride", "max_zoom_out", "lpips_frames")
        check(self, at_least(1), "discriminator_width", "discriminator_levels")
        check(self, at_least(0), *_WEIGHTS, "score_lpips", "adversarial_start", "discriminator_lead")
        check(self, above(0), "discriminator_learning_rate")
        check(self, IN_UNIT_INTERVAL, "latent_balance")
        check(self, IS_RATE, "frame_rates")
        check_shares(self, "shape_weights", "shapes")
        require(self, "init_from", not (self.init_from and self.init_linear), "not be combined with `init_linear`")
        defaults = {field.name: field.default for field in fields(self)}
        for name, needed in _NEEDS.items():
            effect = getattr(self, name) == defaults[name] or bool(getattr(self, needed))
            require(self, name, effect, f"not be given without `{needed}`")
        clash = bool(self.image_vae) and self.freeze_encoder
        require(self, "image_vae", not clash, "not be combined with `freeze_encoder`")
