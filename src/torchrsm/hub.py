"""Models on the Hugging Face Hub, or on a server that speaks as it does. No network is used unless this is called.

A repository holds what a model's folder holds: settings as JSON, weights as safetensors, the run, and a card. Nothing
that comes from there is executed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchrsm import __version__
from torchrsm.baselines import SequenceModel
from torchrsm.model import VideoPredictor
from torchrsm.rsm.kernels import EngineName
from torchrsm.runs.settings import RUN_FILE, load_run_config
from torchrsm.storage.folders import WEIGHTS_FILE
from torchrsm.storage.shipped import CONFIG_FILE, find_model
from torchrsm.systems import load

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"
_OWN_CARD = "card.md"
_FILES = (CONFIG_FILE, WEIGHTS_FILE, RUN_FILE, CARD_FILE)
_TAGS = ("video-prediction", "online-learning", "recurrent-sparse-memory")


def push_to_hub(
    name_or_folder: Path | str,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a model, with the settings of its run and a card; a repository that is not there is made.

    Args:
        name_or_folder: of a model, as `torchrsm.load` takes it. ``card.md`` in its folder is its card.
        repository: ``user/name``.
        private: whether a new repository is.
        token: of the account; None for the one that ``hf auth login`` saved, or the variable ``HF_TOKEN``.
        endpoint: address of the server; None for the Hub's own, or the variable ``HF_ENDPOINT``.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model cannot be read, or the name of the repository is none.
        ImportError: the extra ``hub`` is missing.
        OSError: the server cannot be reached or refuses.
    """
    _check_repository(repository)
    folder = find_model(name_or_folder)
    model = load(folder)
    api = _api(endpoint, token)
    with tempfile.TemporaryDirectory() as made:
        model.save(made)
        if (folder / RUN_FILE).is_file():
            shutil.copyfile(folder / RUN_FILE, Path(made) / RUN_FILE)
        (Path(made) / CARD_FILE).write_text(model_card(folder, model, repository))
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=made,
            allow_patterns=list(_FILES),
            commit_message=f"Model of torchrsm {__version__}",
        )
    return str(address)


def from_pretrained(
    name_or_folder: Path | str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache: Path | str | None = None,
    engine: EngineName = "auto",
    device: str | torch.device = "cpu",
) -> VideoPredictor | SequenceModel:
    """Load a model: of a folder or a shipped one as `torchrsm.load` does, any other ``user/name`` from the Hub.

    What was downloaded once is kept, and not fetched again.

    Args:
        name_or_folder: a folder, a shipped model, or ``user/name`` of a repository.
        revision: branch, tag or commit of the repository; None for its newest.
        token: of an account that may read it; None for the one that is saved.
        endpoint: address of the server; see `push_to_hub`.
        cache: folder of downloads; None for the Hub's own, or the variable ``HF_HOME``.
        engine: see `torchrsm.load`.
        device: see `torchrsm.load`.

    Raises:
        FileNotFoundError: there is neither a folder nor a repository of this name, or it holds no model.
        ValueError: what is there cannot be read.
        ImportError: the extra ``hub`` is missing.
        OSError: the server cannot be reached or refuses.
    """
    return load(pulled(name_or_folder, revision, token, endpoint, cache), engine, device=device)


def pulled(
    name_or_folder: Path | str,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache: Path | str | None = None,
) -> Path | str:
    """Return a folder that `torchrsm.load` takes, downloaded if need be; see `from_pretrained`."""
    name = str(name_or_folder)
    if Path(name).is_dir() or "/" not in name:
        return name_or_folder
    _check_repository(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = snapshot_download(
            name,
            revision=revision,
            token=token,
            endpoint=endpoint,
            cache_dir=cache,
            allow_patterns=list(_FILES),
            library_name="torchrsm",
            library_version=__version__,
        )
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"no model folder {name}, and no repository of this name that can be read") from None
    return Path(str(found))


def model_card(folder: Path, model: VideoPredictor | SequenceModel, repository: str) -> str:
    """Return the card of a model as Markdown, with metadata for the Hub.

    Args:
        folder: of the model; ``card.md`` in it is the text of the card.
        model: that was loaded from it.
        repository: ``user/name``.
    """
    head = ["---", "library_name: torchrsm", "tags:", *(f"- {tag}" for tag in _TAGS), "---", ""]
    own = folder / _OWN_CARD
    text = own.read_text().rstrip() if own.is_file() else _short_card(folder, model, repository)
    use = [
        "## Use",
        "",
        "```python",
        "import torchrsm",
        "",
        f'model = torchrsm.from_pretrained("{repository}")',
        "```",
        "",
    ]
    return "\n".join([*head, text, "", *use])


def _short_card(folder: Path, model: VideoPredictor | SequenceModel, repository: str) -> str:
    kind = "RSM" if isinstance(model, VideoPredictor) else type(model).__name__
    count = sum(weight.numel() for weight in model.parameters())
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        f"Predicts the next frame of a stream. {kind}, {count:,} weights.",
    ]
    if (folder / RUN_FILE).is_file():
        run = load_run_config(folder)
        t = run.training
        budget = f"{t.steps:,} updates" if t.steps else f"{t.minutes:g} minutes"
        how = f"preset `{run.name}`, {budget}, batches of {t.batch_size}, seed {t.seed}"
        lines += ["", f"Trained on {run.stream.subject}: {how}."]
    return "\n".join(lines)


def _api(endpoint: str | None, token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="torchrsm", library_version=__version__)


def _check_repository(name: str) -> None:
    user, slash, rest = name.partition("/")
    if not (user and slash and rest) or "/" in rest or name != name.strip():
        raise ValueError(f"repository must be user/name; got {name!r}")
