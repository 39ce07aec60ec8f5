"""The built-in data: painted panoramas of nine landscapes."""

from common.panoramas.dataset import Panoramas

__all__ = ["Panoramas"]
