"""Data sets, their order, and cached tokens."""

from typing import Any

from common.data.folders import ImageFolder, ImageList
from common.data.imagenet import ImageNetTrain, ImageNetValidation

__all__ = ["DataModule", "ImageFolder", "ImageList", "ImageNetTrain", "ImageNetValidation"]


def __getattr__(name: str) -> Any:
    if name == "DataModule":  # which takes the seconds that Lightning needs to be imported
        from common.data.loader import DataModule

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
