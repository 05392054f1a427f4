"""Weights of the networks that measure: where they come from, and where they are kept.

`fetch_weights(name)` gives a file of safetensors: the one the user names, else the one in the cache, else one that is
downloaded once, checked against a known SHA-256 and converted. `find_weights` does the same without a network.
"""

from kinema.eval.weights.cache import cache_folder, weights_file
from kinema.eval.weights.fetch import (
    download_weights,
    fetch_weights,
    find_weights,
    import_weights,
    load_weights,
    read_weights,
)
from kinema.eval.weights.intact import damage_of, weights_hash
from kinema.eval.weights.table import NETWORKS, HubFile, Network, PackageFile, network_names

__all__ = [
    "NETWORKS",
    "HubFile",
    "Network",
    "PackageFile",
    "cache_folder",
    "damage_of",
    "download_weights",
    "fetch_weights",
    "find_weights",
    "import_weights",
    "load_weights",
    "network_names",
    "read_weights",
    "weights_file",
    "weights_hash",
]
