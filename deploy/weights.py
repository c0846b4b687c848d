"""Fetches a checkpoint from the Hugging Face Hub into a folder, for `parameters.uri` or an image.

usage: weights.py MODEL[@REVISION] FOLDER
"""

import sys
from pathlib import Path

CHECKPOINT = ("config.json", "model.safetensors")


class WeightsError(RuntimeError):
    """The checkpoint could not be fetched whole; the message says why."""


def fetch(model: str, folder: Path) -> None:
    """The checkpoint's two files, and nothing else of the model; raises WeightsError."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = model.partition("@")
    try:
        snapshot_download(
            repo_id, revision=revision or None, allow_patterns=list(CHECKPOINT), local_dir=folder
        )
    except Exception as error:  # the hub's errors share no base with those of the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(f"{model} cannot be fetched from the hub: {reason}.") from None
    missing = [name for name in CHECKPOINT if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{model} has no {' and no '.join(missing)}, so it is not a timm checkpoint."
        )


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, folder = sys.argv[1], Path(sys.argv[2])
    try:
        fetch(model, folder)
    except WeightsError as error:
        sys.exit(str(error))
    size = (folder / CHECKPOINT[1]).stat().st_size
    print(f"{model} is in {folder} ({size / 2**20:.1f} MiB of weights).")


if __name__ == "__main__":
    main()
