"""The upload to the Hugging Face hub. The token is the hub's own business: `hf auth login`, or HF_TOKEN; it is never asked
for, read or shown here. A new repository is private, so that publishing stays a step that a person takes.
"""

from __future__ import annotations

import json
from pathlib import Path

from brushset.errors import EnvironmentProblem, UsageError, VerificationFailed
from brushset.lora.metadata import read_metadata
from webui_export.verify import verify_package


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads an export's hub/ folder, verified anew; returns the repository's address.

    Raises:
        UsageError: a name that no repository could have.
        VerificationFailed: what lies there is not what was packed, or would not apply.
        EnvironmentProblem: no token, no right to write, no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if repository.count("/") != 1:
        raise UsageError(f"--push-to-hub {repository}: expected NAME/REPO, your name on the hub and the repository's")
    faults = verify_package(folder).faults
    if faults:
        raise VerificationFailed.of_many([f"{folder.name}: {fault}" for fault in faults])
    try:
        api = HfApi()
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=f"Upload {_lora_name(folder)}")
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub {repository}: {_first_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise EnvironmentProblem(f"--push-to-hub {repository}: not logged in; fix: hf auth login") from error
    except OfflineModeIsEnabled as error:
        raise EnvironmentProblem(f"--push-to-hub {repository}: HF_HUB_OFFLINE is set; nothing was uploaded") from error
    except HfHubHTTPError as error:
        raise EnvironmentProblem(f"--push-to-hub {repository}: {_refused(error)}") from error
    except OSError as error:  # requests' connection errors are such
        raise EnvironmentProblem(
            f"--push-to-hub {repository}: the hub cannot be reached ({type(error).__name__}); nothing was uploaded; fix: "
            f"the same command once there is a network; {folder} is ready"
        ) from error
    return str(made)


def told_captions(folder: Path) -> int:
    """How many tags of captions, the trigger aside, the headers of what would be uploaded tell."""
    told: set[str] = set()
    for path in folder.glob("*.safetensors"):
        metadata = read_metadata(path)
        for counts in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            told |= {tag.strip() for tag in counts} - {metadata.get("modelspec.trigger_phrase", "")}
    return len(told)


def _refused(error: Exception) -> str:
    """What the hub's answer means: its own text may hold addresses and ids, of which the first line is enough."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know you; fix: hf auth login"
    if status == 403:
        return "your token may not write there; fix: a token with write access, or a repository of your own"
    return f"the hub refused: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _lora_name(folder: Path) -> str:
    return next((path.name for path in sorted(folder.glob("*.safetensors"))), folder.name)
