"""The control panel's schema, and the messages for what does not fit it.

`check` turns what Hydra composed into a `Config`, before torch is imported, so that a wrong name or value costs
a second and not an hour.
"""

from headstart.config.checking import check, check_sweep, to_yaml
from headstart.config.data import Data
from headstart.config.schema import CachedFeatures, Config, Features

__all__ = ["CachedFeatures", "Config", "Data", "Features", "check", "check_sweep", "to_yaml"]
