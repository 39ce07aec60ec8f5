"""Old names of `common.io`."""

from common.io import SETTINGS as NAME
from common.io import claim_folder, write_json

__all__ = ["NAME", "claim_folder", "write_json"]
