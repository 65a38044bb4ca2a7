"""Show the API pages the packages: `adamshap` is a namespace whose folders have other names in a checkout."""

import atexit
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parent.parent


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Point mkdocstrings at a folder in which ``adamshap/reference`` and so on link to the checkout's folders."""
    tree = tempfile.TemporaryDirectory()
    atexit.register(tree.cleanup)
    package = Path(tree.name, "adamshap")
    package.mkdir()
    for name, folder in {"reference": "reference", "gpu": "gpu", "torch": "gpu/torch", "verify": "verify"}.items():
        (package / name).symlink_to(ROOT / folder, target_is_directory=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [tree.name]
    return config
