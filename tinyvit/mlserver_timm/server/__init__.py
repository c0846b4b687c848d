"""MLServer's servers, subclassed. Importing this package puts the subclasses in their places."""

from mlserver_timm.server.repository import ModelRepository, install

__all__ = ["ModelRepository"]

install()
