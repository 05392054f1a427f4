"""The table of data sources. An entry of `data` that is not in it is a folder of video files."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from kinema.training.data.source import CaptionedSource
from kinema.training.data.toybox.source import ToyboxSource
from kinema.training.data.video_folder import VideoFolder

SOURCES: dict[str, type[CaptionedSource]] = {
    "toybox": ToyboxSource,
}
"""Name in `data` -> source."""


def source_class(name: str) -> type[CaptionedSource]:
    """The source that an entry of `data` names."""
    return SOURCES.get(name, VideoFolder)


def settings_classes() -> list[type[Any]]:
    """The classes of the sources' own settings."""
    return [source.settings_class for source in SOURCES.values() if source.settings_class is not None]


def setting_names(*, paths: bool) -> list[str]:
    """Names of the sources' own settings: those that name files or folders, or all others."""
    return [
        field.name
        for cls in settings_classes()
        for field in fields(cls)
        if paths == (Path in (get_type_hints(cls)[field.name], *get_args(get_type_hints(cls)[field.name])))
    ]
