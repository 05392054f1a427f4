"""Settings of all tests: one thread, fixed seeds, no network, no deadlines."""

import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face package is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import beartype
import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# A busy machine is no failure: no example has a deadline.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# `fps: float` takes 24 as well, as it does for type checkers (PEP 484); beartype is stricter unless told. This comes
# before any module of kinema is imported, and so before its annotations are read.
beartype.beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
