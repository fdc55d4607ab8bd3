"""Weights in files, by torchvision's names: its ResNets' and VGGs' load here, and ours load there."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Files from before torch counted batches lack it; it does not matter to a network's output.
_COUNTER = "num_batches_tracked"
MOST_NAMED = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote (.pth, .pt). None of its code runs.

    Raises:
        ValueError: the file holds something else.
        OSError: it can't be read.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        # Not the cause's text: torch's advises to load the file with weights_only=False, which runs what is in it.
        raise ValueError(_no_state_dict(path)) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(_no_state_dict(path))
    return dict(state)


def _no_state_dict(path: Path) -> str:
    return f"{path} holds no state dict of tensors; accepted are those of torch.save(model.state_dict(), ...)"


def write_weights(network: nn.Module, path: Path) -> None:
    """Write the network's weights, by torchvision's names, as .safetensors, or for torch.load (.pth, .pt)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the network these weights, every tensor by its name; all or none.

    Raises:
        ValueError: names or shapes are not the network's; the message tells the first of them.
    """
    own = network.state_dict()
    given = dict(weights)
    for name in own.keys() - given.keys():
        if name.rpartition(".")[2] == _COUNTER:
            given[name] = own[name]
    problems = [
        *(f"{name} is missing" for name in own if name not in given),
        *(f"{name} is unknown" for name in given if name not in own),
        *(
            f"{name} is {_shape(given[name])} instead of {_shape(own[name])}"
            for name in own
            if name in given and own[name].shape != given[name].shape
        ),
    ]
    if problems:
        more = f", and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise ValueError(f"these are not this network's weights: {'; '.join(problems[:MOST_NAMED])}{more}")
    network.load_state_dict(given)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
