"""Conversion from high dynamic range and wide gamut to BT.709 with standard dynamic range.

1. R'G'B' to linear light: PQ gives cd/m² on the display (ITU-R BT.2100, table 4). HLG gives scene light, which the OOTF
   for a display of 1,000 cd/m² converts to display light (BT.2100, table 5). Wide-gamut SDR has a gamma of 2.4
   (BT.1886).
2. HDR only: the maximum of R, G and B is mapped by the EETF of BT.2390-10, section 5.4.1, from a display of 1,000 cd/m²
   to one of 203 cd/m², the reference white of BT.2408; all three are scaled equally, which preserves hue and gray.
   Light below 92 cd/m² is unchanged; reference white becomes 159 cd/m² (level 230 of 255); 1,000 cd/m² and above
   become white. Metadata (mastering display, brightest pixel) is ignored, so that equal levels look equal in all files.
3. Conversion to BT.709 primaries (for BT.2020: BT.2087-0, annex 2); colours outside of the gamut are clipped.
4. Back to R'G'B' with an exponent of 1/2.4, where 203 cd/m² is 1.

R'G'B' is `(3, h, w)` in [0, 1].
"""

import torch
from jaxtyping import Float
from torch import Tensor

PQ, HLG = 16, 18
HDR_TRANSFERS = frozenset({PQ, HLG})
"""`TransferCharacteristics` of ITU-T H.273: SMPTE ST 2084, and ARIB STD-B67."""

WIDE_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020, BT.2100
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # SMPTE RP 431-2 (DCI-P3)
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # SMPTE EG 432-1 (Display P3)
}
"""Chromaticities (x, y) of red, green and blue by `ColourPrimaries` of ITU-T H.273; white is assumed to be D65."""

BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65 = (0.3127, 0.3290)

SOURCE_PEAK = 1000.0
"""Maximum luminance in cd/m²; brighter light becomes white."""
REFERENCE_WHITE = 203.0
"""Luminance in cd/m² of HDR reference white (ITU-R BT.2408, section 2.1), the peak of the output."""

GAMMA = 2.4


def to_bt709(rgb: Float[Tensor, "3 h w"], transfer: int, primaries: int) -> Float[Tensor, "3 h w"]:
    """Convert HDR or wide-gamut R'G'B' to R'G'B' for a BT.709 display.

    Args:
        rgb: R'G'B' in [0, 1].
        transfer: `TransferCharacteristics` of ITU-T H.273.
        primaries: `ColourPrimaries` of ITU-T H.273; HDR with unspecified primaries is treated as BT.2020.
    """
    if transfer in HDR_TRANSFERS:
        light = pq_to_light(rgb) if transfer == PQ else hlg_to_light(rgb)
        light = light * (compress(light.amax(0)) / REFERENCE_WHITE)
        primaries = 9 if primaries == 2 else primaries
    else:
        light = rgb**GAMMA
    if primaries in WIDE_PRIMARIES:
        light = torch.einsum("ij,jhw->ihw", conversion(primaries), light)
    return light.clamp(0, 1) ** (1 / GAMMA)


def pq_to_light(rgb: Tensor) -> Tensor:
    """Convert PQ in [0, 1] to cd/m² (ITU-R BT.2100, table 4: EOTF)."""
    root = rgb ** (1 / PQ_M2)
    return 10000 * ((root - PQ_C1).clamp(min=0) / (PQ_C2 - PQ_C3 * root)) ** (1 / PQ_M1)


def light_to_pq(light: Tensor) -> Tensor:
    """Convert cd/m² to PQ in [0, 1] (ITU-R BT.2100, table 4: inverse EOTF)."""
    power = (light / 10000) ** PQ_M1
    return ((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power)) ** PQ_M2


PQ_M1, PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
PQ_C1, PQ_C2, PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def hlg_to_light(rgb: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Convert HLG in [0, 1] to cd/m² on a display of 1,000 cd/m² (ITU-R BT.2100, table 5: inverse OETF, OOTF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = torch.where(rgb <= 0.5, rgb**2 / 3, (((rgb - c) / a).exp() + b) / 12)
    luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
    return 1000 * luminance**0.2 * scene  # the system gamma is 1.2 at 1,000 cd/m²


def compress(light: Tensor) -> Tensor:
    """Return the factor that maps `SOURCE_PEAK` to `REFERENCE_WHITE` and darker light by the EETF of ITU-R BT.2390.

    Args:
        light: luminance in cd/m².
    """
    peak = light_to_pq(torch.tensor(SOURCE_PEAK, dtype=light.dtype))
    e1 = light_to_pq(light.clamp(max=SOURCE_PEAK)) / peak
    largest = light_to_pq(torch.tensor(REFERENCE_WHITE, dtype=light.dtype)) / peak
    knee = 1.5 * largest - 0.5
    t = (e1 - knee) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * largest
    )  # fmt: skip
    darker = pq_to_light(torch.where(e1 < knee, e1, spline) * peak)
    return torch.where(e1 < knee, torch.ones_like(light), darker / light.clamp(min=1e-6))


def conversion(primaries: int) -> Float[Tensor, "3 3"]:
    """Return the matrix from linear RGB with the given primaries to linear BT.709 RGB."""
    return (torch.linalg.inv(_to_xyz(BT709)) @ _to_xyz(WIDE_PRIMARIES[primaries])).float()


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> Float[Tensor, "3 3"]:
    """Return the matrix from linear RGB to CIE XYZ (SMPTE RP 177), with D65 white of luminance 1."""
    columns = torch.tensor([[x, y, 1 - x - y] for x, y in chromaticities], dtype=torch.float64).T
    x, y = D65
    white = torch.tensor([x / y, 1, (1 - x - y) / y], dtype=torch.float64)
    return columns * torch.linalg.solve(columns, white)
